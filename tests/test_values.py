"""Layers with a choice among their arguments, against expectations written out."""

import re

import nni
import pytest
import torch
import torch.nn.functional as F
from handwritten import (
    CLOSE,
    Space,
    check_gradients,
    found,
    images,
    kernel,
    open_only,
    padded,
    supernet,
    weights,
)
from nni.nas.nn.pytorch import (
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLayerNorm,
    MutableLinear,
    MutableMultiheadAttention,
)
from torch import nn

from nni_fairdarts import FairDARTS, InputError

pytestmark = pytest.mark.filterwarnings("ignore:Found positional arguments")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("arguments", "stride", "dilation", "groups"),
    [
        (lambda: {"padding": kernel() // 2}, 1, 1, 1),
        (lambda: {"padding": (kernel() - 1) // 2, "stride": 2}, 2, 1, 1),
        (lambda: {"padding": kernel() - 1, "dilation": 2}, 1, 2, 1),
        (lambda: {"padding": kernel() // 2, "groups": 4}, 1, 1, 4),
        (lambda: {"padding": "same"}, 1, 1, 1),
    ],
    ids=["plain", "stride", "dilation", "depthwise", "same"],
)
def test_a_kernel_is_the_expectation_over_centre_crops(arguments, stride, dilation, groups, bias):
    model, (layer,) = supernet(lambda: MutableConv2d(4, 8, kernel(), bias=bias, **arguments()))
    x = images()
    expected = 0
    for size, share in weights(model, "k").items():
        rim = (5 - size) // 2
        crop = layer.weight[:, :, rim : 5 - rim, rim : 5 - rim]
        padding = dilation * (size // 2)
        expected = expected + share * F.conv2d(x, crop, layer.bias, stride, padding, dilation, groups)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)


@pytest.mark.parametrize("bias", [True, False])
def test_channels_are_the_expectation_over_their_first_ones(bias):
    """Also of an expression with two choices: 4 channels come about in two ways."""
    model, (layer,) = supernet(
        lambda: MutableConv2d(4, nni.choice("w", [2, 4]) * nni.choice("e", [1, 2]), 3, bias=bias)
    )
    x = images()
    expected = 0
    for w, p in weights(model, "w").items():
        for e, q in weights(model, "e").items():
            b = layer.bias[: w * e] if bias else None
            expected = expected + p * q * padded(F.conv2d(x, layer.weight[: w * e], b), 1, 8)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)


@pytest.mark.parametrize("bias", [True, False])
def test_features_are_the_expectation_over_their_first_ones(bias):
    def widths():
        return nni.choice("w", [3, 5, 6])

    model, (first, last) = supernet(lambda: MutableLinear(4, widths(), bias), lambda: MutableLinear(widths(), 2, bias))
    x, p = torch.randn(3, 4, dtype=torch.float64), weights(model, "w")
    b = first.bias if bias else torch.zeros(6, dtype=torch.float64)
    expected = sum(share * padded(x @ first.weight[:w].T + b[:w], 1, 6) for w, share in p.items())
    torch.testing.assert_close(first(x), expected, **CLOSE)
    h = torch.randn(3, 6, dtype=torch.float64)
    expected = sum(share * (h[:, :w] @ last.weight[:, :w].T) for w, share in p.items()) + (last.bias if bias else 0)
    torch.testing.assert_close(last(h), expected, **CLOSE)
    check_gradients(model, x)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norms_channels_are_scaled_behind_it(affine):
    model, (norm,) = supernet(
        lambda: MutableBatchNorm2d(nni.choice("w", [1, 3, 4]), eps=0.1, affine=affine), candidate_norm="space"
    )
    x, p = images(), weights(model, "w")
    normal = F.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=0.1)
    torch.testing.assert_close(model(x), sum(p[w] * padded(normal[:, :w], 1, 4) for w in p), **CLOSE)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)), **CLOSE)
    model.eval()
    mean, var = (t.clone() for t in (norm.running_mean, norm.running_var))
    normal = F.batch_norm(x, mean, var, norm.weight, norm.bias, eps=0.1)
    torch.testing.assert_close(model(x), sum(p[w] * padded(normal[:, :w], 1, 4) for w in p), **CLOSE)
    check_gradients(model, x)


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_norm_is_the_expectation_over_norms_of_the_first_features(affine):
    model, (norm,) = supernet(lambda: MutableLayerNorm(nni.choice("w", [2, 5, 6]), eps=0.1, elementwise_affine=affine))
    x, expected = torch.randn(2, 3, 6, dtype=torch.float64), 0
    for width, share in weights(model, "w").items():
        h = x[..., :width]
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
        if affine:
            h = h * norm.weight[:width] + norm.bias[:width]
        expected = expected + share * padded(h, -1, 6)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)


class Attention(ModelSpace):
    """Self-attention; with ``own`` keys and values have widths of their own."""

    def __init__(self, own=False, **options):
        super().__init__()
        width = nni.choice("e", [4, 8, 6])
        widths = {"kdim": nni.choice("k", [6, 3]), "vdim": nni.choice("v", [2, 4])} if own else {}
        self.query = MutableLinear(8, width)
        self.key, self.value = (MutableLinear(8, widths.get(name, width)) for name in ("kdim", "vdim"))
        self.attention = MutableMultiheadAttention(width, 2, batch_first=True, **widths, **options)

    def forward(self, x):
        return self.attention(self.query(x), self.key(x), self.value(x))[0]


def attention(layer, width, query, key, value):
    """What ``layer`` does as a network of this width: two heads, each over its half of the features."""
    weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    weights = layer.in_proj_weight.chunk(3) if layer.in_proj_weight is not None else weights
    biases = [0] * 3 if layer.in_proj_bias is None else [b[:width] for b in layer.in_proj_bias.chunk(3)]
    parts = []
    for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
        parts.append((x @ weight[:width, : x.shape[-1]].T + bias).unflatten(-1, (2, -1)).transpose(1, 2))
    scores = parts[0] @ parts[1].transpose(-1, -2) / (width // 2) ** 0.5
    mixed = (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)
    out = layer.out_proj
    return mixed @ out.weight[:width, :width].T + (0 if out.bias is None else out.bias[:width])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"own": True}], ids=str)
def test_an_attention_is_the_expectation_over_attentions_of_the_first_features(options):
    torch.manual_seed(0)
    model = FairDARTS().mutate_model(Attention(**options)).double()
    for choice in found(model).values():
        nn.init.normal_(choice.alpha)
    for name, p in model.attention.named_parameters():
        if "bias" in name:
            nn.init.normal_(p)
    x, expected = torch.randn(2, 5, 8, dtype=torch.float64), 0
    inputs = [model.query(x), model.key(x), model.value(x)]
    for width, share in weights(model, "e").items():
        own = [h if options.get("own") and i else h[..., :width] for i, h in enumerate(inputs)]
        expected = expected + share * padded(attention(model.attention, width, *own), -1, 8)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)


@pytest.mark.parametrize(
    ("layer", "odd"),
    [
        (lambda odd: MutableConv2d(4, 4, 1, dilation=odd), "dilation"),
        (lambda odd: MutableConv2d(4, 4, 1, stride=odd), "stride"),
        (lambda odd: MutableConv2d(4, 4, 1, bias=odd), "bias"),
        (lambda odd: MutableBatchNorm2d(4, eps=odd), "eps"),
        (lambda odd: MutableBatchNorm2d(4, momentum=odd), "momentum"),
        (lambda odd: MutableLayerNorm(4, eps=odd), "eps"),
        (lambda odd: MutableLinear(4, 4, bias=odd), "bias"),
        (lambda odd: MutableMultiheadAttention(4, odd), "num_heads"),
        (lambda odd: MutableMultiheadAttention(4, 2, dropout=odd), "dropout"),
    ],
)
def test_arguments_that_cannot_be_searched_are_refused(layer, odd):
    told = rf"'body\.0': FairDARTS cannot search {odd}, only .*; fix it, or put whole layers into a LayerChoice"
    with pytest.raises(InputError, match=told):
        FairDARTS().mutate_model(Space(lambda: layer(nni.choice("odd", [1, 2]))))


def even():
    return nni.choice("k", [2, 3])


class Halved(MutableConv2d):
    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (lambda: MutableConv2d(4, 4, kernel()), "would change with kernel_size; give odd kernels and padding=kernel_"),
        (lambda: MutableConv2d(4, 4, kernel(), padding=1), "the size of what comes out would change"),
        (lambda: MutableConv2d(4, 4, kernel(), padding="valid"), "the size of what comes out would change"),
        (lambda: MutableConv2d(4, 4, kernel(), padding=kernel("p") // 2), "the size of what comes out would change"),
        (lambda: MutableConv2d(4, 4, kernel(), padding=kernel() // 2, dilation=2), "(times the dilation)"),
        (lambda: MutableConv2d(4, 4, even(), padding=even() // 2), "the size of what comes out would change"),
        (
            lambda: MutableConv2d(4, 4, nni.choice("k", [(1, 3), (3, 1)])),
            "'body.0': kernel_size must be chosen among whole numbers, got (1, 3), (3, 1)",
        ),
        (
            lambda: MutableLayerNorm(nni.choice("w", [[2, 4], [2, 6]])),
            "'body.0': normalized_shape must be chosen among whole numbers, got [2, 4], [2, 6]",
        ),
        (lambda: MutableConv2d(4, 4, 3, padding=nni.choice("p", [0, 1])), "padding has a choice, but kernel_size has"),
        (lambda: MutableConv2d(4, 2 * kernel("w"), 1, groups=2), "groups must be 1 or keep a constant ratio to"),
        (lambda: MutableConv2d(4, 4, 1, groups=nni.choice("g", [1, 2])), "groups must be 1 or keep a constant ratio"),
        (lambda: Halved(4, nni.choice("w", [2, 4]), 1), "cannot search Halved 'body.0' (choices: w)"),
    ],
)  # fmt: skip
def test_values_that_no_one_network_could_share_are_refused(layer, told):
    with pytest.raises(InputError, match=re.escape(told)):
        FairDARTS().mutate_model(Space(layer))


def test_a_norm_with_nothing_to_save_is_frozen():
    model, _ = supernet(
        lambda: MutableBatchNorm2d(nni.choice("w", [2, 4]), affine=False, track_running_stats=False),
        lambda: MutableConv2d(nni.choice("w", [2, 4]), 4, 1),
    )
    open_only(model, w=0)
    torch.testing.assert_close(model.freeze({"w": 2})(x := images(2)), model(torch.cat([x, x], 1)), **CLOSE)


def test_weights_of_values_stay_in_single_precision_under_autocast():
    model, _ = supernet(lambda: MutableConv2d(4, 8, kernel(), padding=kernel() // 2))
    layer = model.float().body[0]
    expected = list(weights(model, "k").values())
    with torch.autocast("cpu", torch.bfloat16):
        found_weights = layer.value_weights.of(layer.mutable_arguments["kernel_size"])
        assert layer.reached("kernel_size", layer.weight).dtype == torch.float32
    assert found_weights.dtype == torch.float32
    assert found_weights.tolist() == pytest.approx(expected, abs=1e-6)
