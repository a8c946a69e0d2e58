"""S2, the paper's second space: a single-branch chain of inverted bottlenecks."""

import math
from collections import Counter
from itertools import product

from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from nni_fairdarts.errors import InputError

BOTTLENECKS = {f"k{kernel}e{expansion}": (kernel, expansion) for kernel, expansion in product((3, 5, 7), (3, 6))}
SKIP = "skip_connect"

WIDTHS = (32, 40, 80, 96, 192, 320)
"""Channels of the stages."""
LAYERS = (2, 4, 4, 4, 4, 1)
"""Searchable layers of the stages."""
STEM, FIRST, HEAD = 32, 16, 1280
"""Channels in front of the stages, two convolutions, and behind them."""
STRIDES = {"imagenet": (2, (2, 2, 2, 1, 2, 1)), "cifar": (1, (1, 2, 2, 1, 2, 1))}
"""By ``dataset``: stride of the stem, and of each stage's first layer."""

SMALLEST = {"imagenet": 64, "cifar": 8}
"""By ``dataset``: the least side of an image, of which more than a pixel, or for small images one, is left."""


class S2(ModelSpace):
    """A chain of ``depth`` layers, each one of six inverted bottlenecks or a skip. Fair DARTS, arXiv 1911.12126.

    Images (N, in_channels, H, W) -> logits (N, num_classes). Layer i is the ``LayerChoice`` ``layer_i`` of ``k3e3``,
    ``k3e6``, ``k5e3``, ``k5e6``, ``k7e3``, ``k7e6`` (kernel, expansion) and ``skip_connect``; ``freeze(sample)`` is a
    mobile network as everybody builds them.

    num_classes, in_channels: of the images. dataset: "imagenet", for 224×224 (1/32 of the resolution remains, 7×7),
    or "cifar", for small images (1/8 remains: 4×4 of 32×32). depth: 1 to 19 layers, given to the stages in turn; with
    fewer than six the last stages are missing, with their strides. width: multiplies all channels, in multiples of 8.
    normalize: see below. Raises InputError for other values, and for images with another number of channels.

    Ours, for the paper gives only the candidates and the 19 layers:

    - Widths, strides, stem and head: those of the authors' FairNAS (arXiv 1907.01845), which are ProxylessNAS' (arXiv
      1812.00332) but for two layers in the first stage. Its FairNAS-A is in this space, parameter for parameter.
    - The skip of a layer that changes the shape: an average pooling (for a stride) and a 1×1 projection with batch
      norm. Elsewhere it is the identity.
    - ``normalize``: a batch norm without scales behind each layer, which ``freeze`` takes away. A bottleneck that keeps
      the shape is x + f(x), and so gates g give Σg·x + Σ g·f(x): at α = 0 each such layer multiplies x by 7/2, three in
      a row by 43, and divides the gradients behind it: those of α fall thirty times and more from a stage's first layer
      to its fourth. The zero-one loss, which is not divided, would decide there. The price: of a layer's gates only
      their proportions reach the cross entropy. False is the plain sum. It stays finite, for the candidates that
      change the shape have no residual and all end in batch norm.
    - Search settings to start from on ImageNet, untried at that size: 100 classes, 224×224, batch 128, 50 epochs of SGD
      0.05 -> 0 (cosine), momentum 0.9, weight decay 4e-5; for α the defaults of ``FairDARTS`` with ``warmup_epochs=10``
      and, where memory is short, ``recompute=True``.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        dataset: str = "imagenet",
        depth: int = sum(LAYERS),
        width: float = 1.0,
        normalize: bool = True,
    ):
        super().__init__()
        _check(num_classes, in_channels, dataset, depth, width)
        self.in_channels, self.dataset = in_channels, dataset
        stem_stride, strides = STRIDES[dataset]
        stem, channels, head = (scaled(number, width) for number in (STEM, FIRST, HEAD))
        self.stem = nn.Sequential(
            *convolution(in_channels, stem, 3, stem_stride),
            *convolution(stem, stem, 3, groups=stem),
            *convolution(stem, channels, activation=False),
        )
        self.layers = nn.Sequential()
        self.norms = nn.ModuleList()
        for stage, count in enumerate(stage_depths(depth)):
            out = scaled(WIDTHS[stage], width)
            for stride in (strides[stage], *(1,) * (count - 1)):
                layer = LayerChoice(candidates(channels, out, stride), label=f"layer_{len(self.layers)}")
                self.layers.append(layer)
                if normalize and isinstance(layer, LayerChoice):  # NNI makes it the chosen one when it freezes
                    self.norms.append(nn.BatchNorm2d(out, affine=False))
                channels = out
        self.head = nn.Sequential(*convolution(channels, head), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise InputError(
                f"this space takes images (N, {self.in_channels}, H, W), got {tuple(images.shape)}; for another number "
                "of channels use S2(in_channels=...)"
            )
        if min(images.shape[-2:]) < SMALLEST[self.dataset]:
            raise InputError(
                f"images of {images.shape[-2]}×{images.shape[-1]} are too small for S2(dataset={self.dataset!r}), "
                f"which needs {SMALLEST[self.dataset]}×{SMALLEST[self.dataset]} or more; resize them"
                + (", or use dataset='cifar'" if self.dataset == "imagenet" else "")
            )
        x = self.stem(images)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
        return self.classifier(self.head(x))

    def freeze(self, sample) -> nn.Module:
        network = super().freeze(sample)
        network.norms = nn.ModuleList()
        return network


def candidates(in_channels: int, out_channels: int, stride: int) -> dict[str, nn.Module]:
    """The seven choices of a layer by name: (N, in_channels, H, W) -> (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
    bottlenecks = {
        name: InvertedBottleneck(in_channels, out_channels, kernel, expansion, stride)
        for name, (kernel, expansion) in BOTTLENECKS.items()
    }
    return {**bottlenecks, SKIP: skip(in_channels, out_channels, stride)}


class InvertedBottleneck(nn.Sequential):
    """Widen by a 1×1 convolution, filter each channel, narrow by 1×1; where the shape is kept, add the input.

    (N, in_channels, H, W) -> (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉). MobileNetV2, arXiv 1801.04381.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, expansion: int, stride: int):
        hidden = in_channels * expansion
        super().__init__(
            *convolution(in_channels, hidden),
            *convolution(hidden, hidden, kernel, stride, groups=hidden),
            *convolution(hidden, out_channels, activation=False),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.residual else super().forward(x)


def skip(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity or, where the shape changes, what comes nearest to it."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    # A side of odd length rounds up, as in the other candidates.
    pooling = [nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)] if stride > 1 else []
    return nn.Sequential(*pooling, *convolution(in_channels, out_channels, activation=False))


def convolution(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: bool = True
) -> list[nn.Module]:
    """Convolution with "same" padding, batch norm and, with ``activation``, ReLU6."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if activation else layers


def stage_depths(depth: int) -> list[int]:
    """Searchable layers of each stage: ``depth`` in all, one for each stage in turn until it has its ``LAYERS``."""
    turns = [stage for turn in range(max(LAYERS)) for stage, layers in enumerate(LAYERS) if turn < layers]
    counts = Counter(turns[:depth])
    return [counts[stage] for stage in sorted(counts)]


def scaled(channels: int, width: float) -> int:
    """``channels`` · ``width`` as the nearest multiple of 8, at least 8."""
    return max(8, math.floor(channels * width / 8 + 0.5) * 8)


def _check(num_classes, in_channels, dataset, depth, width) -> None:
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("depth", depth)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number, at least 1, got {value!r}")
    if dataset not in STRIDES:
        raise InputError(f"unknown dataset {dataset!r}; known: {', '.join(STRIDES)} (small images)")
    if depth > sum(LAYERS):
        raise InputError(f"depth must be at most {sum(LAYERS)}, the layers of the paper's S2, got {depth}")
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
        raise InputError(f"width must be a factor over 0 for the numbers of channels, got {width!r}; 1 is the full S2")
