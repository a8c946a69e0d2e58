"""NNI's layers with a choice among their arguments.

NNI's mixed operations scale a layer's weights by how likely each part of them is, which the batch norm behind the
layer takes out again. Here a width scales what comes out of a layer, and of its norm (FBNetV2, arXiv 2004.05565), so
that channels past the chosen width are zero for whatever reads them, in whichever place a concatenation puts them.
"""

import torch
import torch.nn.functional as F
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDS, FactorizedReduce
from torch import Tensor, nn

from nni_fairdarts._nni import (
    MixedBatchNorm2d,
    MixedConv2d,
    MixedLayerNorm,
    MixedLinear,
    MixedOperation,
)
from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.norm import drop_scales
from nni_fairdarts.supernet.values import finite_values


class GatedOperation(MixedOperation):
    """NNI's mixed operation, searched where an argument has a choice, frozen with its own weights.

    ``searchable`` lists the arguments that may have one.
    """

    searchable: tuple[str, ...] = ()

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        # Of a subclass it would lose the forward.
        if type(module) is not cls.bound_type or not module.mutables:
            return None
        where = f"{type(module).__name__} {name!r}"
        chosen = [key for key, value in module.trace_kwargs.items() if isinstance(value, Mutable)]
        if odd := [key for key in chosen if key not in cls.searchable]:
            raise InputError(
                f"{where}: FairDARTS cannot search {', '.join(odd)}, only {', '.join(cls.searchable)}; fix it, or put "
                "whole layers into a LayerChoice"
            )
        for key in chosen:
            for label, leaf in module.trace_kwargs[key].simplify().items():
                finite_values(label, leaf, where)
        cls.check(module, where)
        operation = super().mutate(module, name, memo, mutate_kwargs)
        operation.prepare()
        return operation

    @classmethod
    def check(cls, module, where: str) -> None:
        """Raise InputError for choices that do not fit together."""

    def prepare(self) -> None:
        """Set up what ``forward`` needs beside the weights of the choices."""

    def add_masks(self, argument: str, masks) -> None:
        """Note a mask for each value of ``argument``: ``masks(value)``."""
        if argument in self.mutable_arguments:
            values = self.value_weights.values(self.mutable_arguments[argument])
            stacked = torch.stack([masks(value) for value in values])
            self.register_buffer(f"{argument}_masks", stacked.to(self.value_weights.table_0.device), persistent=False)

    def reached(self, argument: str, like: Tensor) -> Tensor:
        """Σ_v p_v · mask_v over the values of ``argument``: how likely each part is there, in [0, 1]."""
        weights = self.value_weights.of(self.mutable_arguments[argument])
        masks = getattr(self, f"{argument}_masks").to(weights.dtype)
        # No matrix product: autocast would make it half precision.
        return (masks * weights.view(-1, *[1] * (masks.dim() - 1))).sum(0).to(like.dtype)

    def freeze(self, sample):
        """The layer that ``sample`` chooses, with its part of the weights."""
        arguments = {**self.init_arguments}
        for name, mutable in self.mutable_arguments.items():
            arguments[name] = mutable.freeze(sample)
        # NNI's hands load_state_dict a bias of None where the layer has none.
        weights = {name: tensor for name, tensor in self.freeze_weight(**arguments).items() if tensor is not None}
        layer = self.bound_type(**arguments).to(next(iter(weights.values()), torch.empty(0)))
        layer.load_state_dict(weights)
        return layer


def first(count: int, total: int) -> Tensor:
    """1 for the first ``count`` of ``total``, else 0, (total,)."""
    return (torch.arange(total) < count).float()


def whole_numbers(what: str, expression) -> None:
    """Raise InputError where the expression has other values."""
    values = list(expression.grid())
    if not all(isinstance(value, int) for value in values):
        raise InputError(f"{what} must be chosen among whole numbers, got {', '.join(map(str, values))}")


class GatedLinear(GatedOperation, MixedLinear):
    """y = m_out ∘ (W (m_in ∘ x) + b), with m_j = Σ_v p_v · [j < v] over the widths v.

    ``masks_inputs`` is False where the input is a concatenation whose every part has its own width, with its own zeros.
    """

    searchable = ("in_features", "out_features")
    masks_inputs = True

    def prepare(self):
        self.add_masks("in_features", lambda width: first(width, self.in_features))
        self.add_masks("out_features", lambda width: first(width, self.out_features))

    def forward(self, inputs):
        if "in_features" in self.mutable_arguments and self.masks_inputs:
            inputs = inputs * self.reached("in_features", inputs)
        outputs = F.linear(inputs, self.weight, self.bias)
        if "out_features" in self.mutable_arguments:
            outputs = outputs * self.reached("out_features", outputs)
        return outputs


class GatedConv2d(GatedOperation, MixedConv2d):
    """m_out ∘ ((M ∘ W) * x + b): channels past each width and the rings around each kernel, as likely as they are.

    The input is read whole: past the chosen width it is zero, unless a function with f(0) ≠ 0 came in between. A
    smaller kernel is the centre of the largest; the padding is the largest kernel's.
    """

    searchable = ("in_channels", "out_channels", "kernel_size", "padding", "groups")

    @classmethod
    def check(cls, module, where):
        arguments = module.trace_kwargs
        kernel, padding, groups = (arguments.get(name) for name in ("kernel_size", "padding", "groups"))
        channels = [arguments[name] for name in ("in_channels", "out_channels")]
        if isinstance(padding, Mutable) and not isinstance(kernel, Mutable):
            raise InputError(f"{where}: padding has a choice, but kernel_size has none; fix the padding")
        if isinstance(kernel, Mutable):
            cls.check_kernel(kernel, arguments.get("padding", 0), arguments.get("dilation", 1), where)
        if isinstance(groups, Mutable):
            fits = all(isinstance(width, Mutable) and len(set((width / groups).grid())) == 1 for width in channels)
        else:
            fits = groups in (None, 1) or not any(isinstance(width, Mutable) for width in channels)
        if not fits:
            raise InputError(
                f"{where}: groups must be 1 or keep a constant ratio to in_channels and out_channels (as in a "
                "depthwise convolution) where these have a choice"
            )

    @staticmethod
    def check_kernel(kernel, padding, dilation, where):
        """All kernels must put out images of one size, as the centre of the largest does."""
        whole_numbers(f"{where}: kernel_size", kernel)
        if isinstance(padding, str):
            changes = padding != "same"
        else:
            axes = zip(*(v if isinstance(v, tuple) else (v, v) for v in (dilation, padding)), strict=True)
            changes = any(len(set((kernel * step - 2 * edge).grid())) > 1 for step, edge in axes)
        if changes:
            raise InputError(
                f"{where}: the size of what comes out would change with kernel_size; give odd kernels and "
                "padding=kernel_size // 2 (times the dilation), or padding='same'"
            )

    def super_init_argument(self, name, mutable_expr):
        return max(mutable_expr.grid())

    def prepare(self):
        self.add_masks("out_channels", lambda width: first(width, self.out_channels))
        self.add_masks("kernel_size", self._centre)

    def _centre(self, kernel) -> Tensor:
        mask = torch.zeros(self.kernel_size)
        height, width = self._to_tuple(kernel)
        top, left = (self.kernel_size[0] - height) // 2, (self.kernel_size[1] - width) // 2
        mask[top : top + height, left : left + width] = 1
        return mask

    def forward(self, inputs):
        weight = self.weight
        if "kernel_size" in self.mutable_arguments:
            weight = weight * self.reached("kernel_size", weight)
        outputs = self._conv_forward(inputs, weight, self.bias)
        if "out_channels" in self.mutable_arguments:
            outputs = outputs * self.reached("out_channels", outputs)[:, None, None]
        return outputs


class GatedBatchNorm2d(GatedOperation, MixedBatchNorm2d):
    """A batch norm whose outputs past each width are scaled by how likely the width reaches them."""

    searchable = ("num_features",)

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        norm = super().mutate(module, name, memo, mutate_kwargs)
        if norm is not None:  # with what was set after its construction
            norm.init_arguments |= {"eps": module.eps, "momentum": module.momentum}
            norm.eps, norm.momentum = module.eps, module.momentum
            if not module.affine:
                drop_scales(norm)
        return norm

    def prepare(self):
        self.add_masks("num_features", lambda width: first(width, self.num_features))

    def forward(self, inputs):
        return self.normalize(inputs) * self.reached("num_features", inputs)[:, None, None]

    def normalize(self, inputs: Tensor) -> Tensor:
        """The batch norm alone, over all channels."""
        return nn.BatchNorm2d.forward(self, inputs)

    def freeze_weight(self, num_features, **kwargs):
        tensors = {name: getattr(self, name) for name in ("weight", "bias", "running_mean", "running_var")}
        return {name: None if tensor is None else tensor[:num_features] for name, tensor in tensors.items()}

    def freeze(self, sample):
        if self.weight is None:
            self.init_arguments["affine"] = False
        return super().freeze(sample)


class GatedLayerNorm(GatedOperation, MixedLayerNorm):
    """The sum over the widths of each one's weight times the norm over the first that many features, (..., width)."""

    searchable = ("normalized_shape",)

    @classmethod
    def check(cls, module, where):
        whole_numbers(f"{where}: normalized_shape", module.trace_kwargs["normalized_shape"])

    def forward(self, inputs):
        total = 0
        for width, weight in self.forward_argument("normalized_shape").items():
            scale, shift = (None if p is None else p[:width] for p in (self.weight, self.bias))
            normal = F.layer_norm(inputs[..., :width], (width,), scale, shift, self.eps)
            total = total + weight * F.pad(normal, (0, inputs.shape[-1] - width))
        return total

    def freeze_weight(self, normalized_shape, **kwargs):
        tensors = {name: getattr(self, name) for name in ("weight", "bias")}
        return {name: None if tensor is None else tensor[:normalized_shape] for name, tensor in tensors.items()}


class GatedReduce(nn.Module):
    """The hub's ``FactorizedReduce`` with a choice of width: Σ_w p_w · [first half of w, second half of w, zeros].

    It concatenates two convolutions; what a width keeps are the first channels of both.
    """

    def __init__(self, reduce: FactorizedReduce):
        super().__init__()
        for name, child in reduce.named_children():
            self.add_module(name, child)

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        chooses = type(module) is FactorizedReduce and module.bn.mutables
        return cls(module) if chooses else None

    def forward(self, x):
        x = self.relu(x)
        both = torch.cat([self.conv_1(x), self.conv_2(self.pad(x)[:, :, 1:, 1:])], 1)
        first, second = self.bn.normalize(both).chunk(2, 1)
        total = 0
        for width, weight in self.bn.forward_argument("num_features").items():
            kept = torch.cat([first[:, : width // 2], second[:, : width // 2]], 1)
            total = total + weight.to(x.dtype) * F.pad(kept, (0, 0, 0, 0, 0, both.shape[1] - width))
        return total


def read_whole_cells(space: nn.Module) -> None:
    """Let a hub space's classifier read all of the last cell: every part of that concatenation has its own zeros."""
    if isinstance(space, NDS) and isinstance(space.classifier, GatedLinear):
        space.classifier.masks_inputs = False
