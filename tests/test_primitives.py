"""Choices of layers, inputs and depths in a supernet, against sums written out; labels; the zero-one loss."""

import copy
import re

import nni
import pytest
import torch
import torch.nn.functional as F
from handwritten import (
    CLOSE,
    Inputs,
    Space,
    check_gradients,
    conv,
    export,
    found,
    gates,
    images,
    kernel,
    open_only,
    padded,
    supernet,
    weights,
)
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableBatchNorm2d, MutableConv2d, MutableLinear, Repeat
from nni.nas.nn.pytorch.choice import ChosenInputs
from torch import nn

from nni_fairdarts import FairDARTS, InputError

pytestmark = pytest.mark.filterwarnings("ignore:Found positional arguments")


# -- InputChoice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n_chosen", [1, 2, None])
def test_inputs_are_summed_under_their_gates(n_chosen, reduction):
    model, (part,) = supernet(lambda: Inputs(n_chosen, reduction))
    x, shares = images(), gates(model, "in.put")
    if reduction == "mean":
        shares = [g / sum(shares) for g in shares]
    expected = shares[0] * part.one(x) + shares[1] * part.other(x) + shares[2] * x
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)


def test_inputs_of_several_tensors_are_summed_one_by_one():
    model, (part,) = supernet(lambda: Inputs(1))
    a, b, c = (images() for _ in range(3))
    g = gates(model, "in.put")
    one, other = g[0] * a + g[1] * b + g[2] * c, g[0] * b + g[1] * c + g[2] * a
    torch.testing.assert_close(part.choose([(a, b), (b, c), (c, a)]), [one, other], **CLOSE)
    found_one = part.choose([{"x": [a], "y": b}, {"x": [b], "y": c}, {"x": [c], "y": a}])
    torch.testing.assert_close(found_one, {"x": [one], "y": other}, **CLOSE)


@pytest.mark.parametrize(
    ("n_chosen", "export_as", "open_gates", "kept"),
    [
        (1, "single", [0.2, 0.6, 0.6], [1]),
        (2, "single", [0.1, 0.2, 0.3], [1, 2]),
        (2, "single", [0.9, 0.9, 0.9], [0, 1]),
        (None, "single", [0.85, 0.3, 0.9], [0, 2]),
        (None, "single", [0.9, 0.9, 0.9], [0, 1, 2]),
        (1, "multi", [0.9, 0.1, 0.85], [0, 2]),
        (2, "multi", [0.9, 0.1, 0.2], [0]),
    ],
)
def test_inputs_that_are_exported(n_chosen, export_as, open_gates, kept):
    model, _ = supernet(lambda: Inputs(n_chosen), export=export_as)
    found(model)["in.put"].alpha.data = torch.logit(torch.tensor(open_gates, dtype=torch.float64)) + 1e-12
    assert export(model) == {"in.put": kept}


@pytest.mark.parametrize(("n_chosen", "export_as"), [(None, "single"), (1, "multi")])
def test_where_no_input_reaches_the_threshold_the_strongest_is_kept(n_chosen, export_as):
    model, _ = supernet(lambda: Inputs(n_chosen), export=export_as)
    found(model)["in.put"].alpha.data = torch.tensor([0.1, 0.3, 0.2])
    told = re.escape("in.put: no gate reaches the threshold 0.85; kept only the strongest, 1 with 0.5744; lower")
    with pytest.warns(RuntimeWarning, match=told):
        assert export(model) == {"in.put": [1]}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("n_chosen", "kept"), [(1, [2]), (2, [0, 2]), (None, [1, 2]), (None, [0, 1, 2])])
def test_with_gates_of_0_and_1_it_is_nnis_choice_of_the_same_inputs(n_chosen, kept, reduction):
    model, (part,) = supernet(lambda: Inputs(n_chosen, reduction))
    open_only(model, in_put=kept)
    assert export(model) == {"in.put": kept}
    inputs = [images() for _ in range(3)]
    torch.testing.assert_close(part.choose(inputs), ChosenInputs(kept, reduction)(inputs), **CLOSE)


# -- Repeat --------------------------------------------------------------------------------------------------------

DEPTHS = {
    "from 0": (lambda: Repeat(conv(), (0, 2), label="d.x"), [0, 1, 2], [0, 1, 2]),
    "from 1": (lambda: Repeat(conv(), (1, 3), label="d.x"), [1, 2, 3], [1, 2, 3]),
    "some": (lambda: Repeat(conv(), nni.choice("d.x", [1, 3])), [1, 3], [1, 3]),
    "expression": (lambda: Repeat(conv(), nni.choice("d.x", [1, 3]) + 1), [2, 4], [1, 3]),
    "falling": (lambda: Repeat(conv(), 4 - nni.choice("d.x", [1, 2, 4])), [3, 2, 0], [1, 2, 4]),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_a_repeat_sums_what_comes_out_after_each_depth(case):
    make, depths, values = DEPTHS[case]
    model, (repeat,) = supernet(make)
    x = images()
    states = [x]
    for block in repeat.blocks:
        states.append(block(states[-1]))
    shares = weights(model, "d.x")
    expected = sum(shares[value] * states[depth] for value, depth in zip(values, depths, strict=True))
    torch.testing.assert_close(model(x), expected, **CLOSE)
    check_gradients(model, x)  # that of depth 0 too
    for place, (value, depth) in enumerate(zip(values, depths, strict=True)):
        open_only(model, d_x=place)
        assert export(model) == {"d.x": value}
        assert len(Space(make).freeze(export(model)).body[0]) == depth
        torch.testing.assert_close(model(x), states[depth], **CLOSE)


def test_a_repeat_of_states_of_several_tensors():
    class Block(nn.Module):
        def forward(self, x):
            return {"a": x["a"] + 1, "b": [x["b"][0] * 2]}

    model, _ = supernet(lambda: Repeat(Block(), (0, 1), label="d"))
    p, x = weights(model, "d"), images()
    expected = {"a": x + p[1], "b": [(p[0] + 2 * p[1]) * x]}
    torch.testing.assert_close(model({"a": x, "b": [x]}), expected, **CLOSE)


def test_a_choice_of_one_value_has_no_alpha_and_is_exported_all_the_same():
    parts = (lambda: Repeat(conv(), (2, 2), label="depth"), lambda: MutableConv2d(4, nni.choice("width", [3]), 1))
    model, (repeat, layer) = supernet(*parts)
    assert found(model) == {}
    assert export(model) == {"depth": 2, "width": 3}
    x = images()
    h = repeat.blocks[1](repeat.blocks[0](x))
    torch.testing.assert_close(model(x), F.conv2d(h, layer.weight, layer.bias), **CLOSE)


# -- labels --------------------------------------------------------------------------------------------------------


def test_one_label_of_a_depth_and_of_widths_is_one_alpha_exported_once():
    def count():
        return nni.choice("n", [1, 2, 3])

    model, (repeat, wide, norm, last) = supernet(
        lambda: Repeat(conv(), count()),
        lambda: MutableConv2d(4, 2 * count(), 1),
        lambda: MutableBatchNorm2d(count() * 2),
        lambda: MutableConv2d(6, count() + 1, 1),
    )
    x, p = images(), weights(model, "n")
    assert [p.shape for name, p in model.named_parameters() if "alpha" in name] == [(3,)]
    states = [repeat.blocks[0](x)]
    states += [repeat.blocks[1](states[0])]
    states += [repeat.blocks[2](states[1])]
    h = sum(p[i + 1] * state for i, state in enumerate(states))
    h = sum(p[n] * padded(wide._conv_forward(h, wide.weight, wide.bias)[:, : 2 * n], 1, 6) for n in p)
    h = F.batch_norm(h, None, None, norm.weight, norm.bias, True)
    h = sum(p[n] * padded(h[:, : 2 * n], 1, 6) for n in p)
    h = last._conv_forward(h, last.weight, last.bias)
    torch.testing.assert_close(model(x), sum(p[n] * padded(h[:, : n + 1], 1, 4) for n in p), **CLOSE)
    check_gradients(model, x)
    open_only(model, n=1)
    assert export(model) == {"n": 2}


def test_choices_in_choices():
    """LayerChoice in Repeat in LayerChoice, one label in several places, a width and inputs in candidates."""

    def inner():
        return LayerChoice([conv(1), Inputs(1)], label="inner")

    def narrow():
        width = nni.choice("w", [1, 3])
        return nn.Sequential(MutableConv2d(4, width, 1), MutableConv2d(width, 4, 1))

    model, (outer,) = supernet(
        lambda: LayerChoice({"deep": nn.Sequential(Repeat(lambda i: inner(), (0, 2), label="d")), "narrow": narrow()},
                            label="outer")
    )  # fmt: skip
    assert list(found(model)) == ["outer", "d", "inner", "in.put", "w"]
    x = images()
    (g, o, i), p, w = (
        (gates(model, label) for label in ("in.put", "outer", "inner")),
        weights(model, "d"),
        weights(model, "w"),
    )

    def layer(choice, x):
        plain, inputs = choice[0], choice[1]
        return i[0] * plain(x) + i[1] * (g[0] * inputs.one(x) + g[1] * inputs.other(x) + g[2] * x)

    blocks, (wide, last) = outer["deep"][0].blocks, outer["narrow"]
    once = layer(blocks[0], x)
    deep = p[0] * x + p[1] * once + p[2] * layer(blocks[1], once)
    h = F.conv2d(x, wide.weight, wide.bias)
    h = F.conv2d(sum(w[n] * padded(h[:, :n], 1, 3) for n in w), last.weight, last.bias)
    torch.testing.assert_close(model(x), o[0] * deep + o[1] * h, **CLOSE)
    check_gradients(model, x)
    open_only(model, outer=0, d=1, inner=1, w=0, in_put=2)
    assert export(model) == {"outer": "deep", "d": 1, "inner": 1, "in.put": [2], "w": 1}


def everything():
    return Space(
        lambda: nn.Conv2d(3, 4, 1),
        lambda: LayerChoice([conv(), nn.Identity()], label="ops"),
        lambda: LayerChoice([conv(), conv(5)], label="ops"),
        lambda: Inputs(None),
        lambda: Repeat(conv(), nni.choice("n", [1, 2, 3])),
        lambda: MutableConv2d(4, nni.choice("n", [1, 2, 3]) * 2, kernel(), padding=kernel() // 2),
        lambda: MutableBatchNorm2d(nni.choice("n", [1, 2, 3]) * 2),
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: MutableLinear(nni.choice("n", [1, 2, 3]) * 2, 10),
    )


def test_the_zero_one_loss_sees_every_label_once(classification, loader, search):
    """A mean over the gates of operations and inputs and the weights of values, not over what layers make of them."""
    strategy = FairDARTS()
    numbers = {"dtype": torch.float64}
    search(everything().double(), classification(loader(seed=1, **numbers), loader(seed=2, **numbers)), strategy)
    choices = strategy.oneshot_module.choices()
    assert {label: choice.operations for label, choice in choices.items()} == {
        "ops": ("0", "1"), "in.put": (0, 1, 2), "n": (1, 2, 3), "k": (1, 3, 5)
    }  # fmt: skip
    assert all((choice.alpha != 0).all() for choice in choices.values())  # the one step has moved them all
    for choice in choices.values():
        nn.init.normal_(choice.alpha)
    choices["k"].alpha.data.fill_(0.3)
    seen = {label: gates(strategy.supernet, label) for label in ("ops", "in.put")}
    seen |= {label: list(weights(strategy.supernet, label).values()) for label in ("n", "k")}
    total = sum(map(len, seen.values()))
    assert total == 11
    loss = strategy.oneshot_module.zero_one()
    assert loss.item() == pytest.approx(-sum((g - 0.5) ** 2 for gs in seen.values() for g in gs) / total, abs=1e-14)
    slopes = dict(zip(choices, torch.autograd.grad(loss, [choice.alpha for choice in choices.values()]), strict=True))
    for label, gs in seen.items():
        pushes = [-2 / total * (g - 0.5) for g in gs]
        mean = sum(push * g for push, g in zip(pushes, gs, strict=True))
        expected = [
            (push - mean) * g if label in "nk" else push * g * (1 - g) for push, g in zip(pushes, gs, strict=True)
        ]
        assert slopes[label].tolist() == pytest.approx(expected, abs=1e-14)
    assert slopes["k"].abs().max() < 1e-16  # of equal weights none is preferred


# -- the supernet as a module --------------------------------------------------------------------------------------


def test_copies_and_saved_states_compute_the_same():
    torch.manual_seed(3)
    model = FairDARTS().mutate_model(everything()).eval()
    for choice in found(model).values():
        nn.init.normal_(choice.alpha)
    x = torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    other = FairDARTS().mutate_model(everything()).eval()
    other.load_state_dict(model.state_dict())
    for same in (twin, other):
        assert torch.equal(same(x), model(x))
        same(x).sum().backward()
        assert all(choice.alpha.grad is not None for choice in found(same).values())
    assert all(choice.alpha.grad is None for choice in found(model).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_supernet_is_of_its_spaces_precision_and_alpha_at_least_single(dtype):
    model = FairDARTS().mutate_model(everything().to(dtype))
    alphas = {choice.alpha for choice in found(model).values()}
    assert {alpha.dtype for alpha in alphas} == {torch.promote_types(dtype, torch.float32)}
    assert {p.dtype for p in model.parameters() if p not in alphas} == {dtype}
    assert model(torch.randn(2, 3, 8, 8, dtype=dtype)).dtype == dtype


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Inputs(1), lambda: LayerChoice([conv(), conv(5)], label="c")])
def test_one_module_under_two_names_is_refused(make):
    class Twice(ModelSpace):
        def __init__(self):
            super().__init__()
            self.first = make()
            self.rest = nn.Sequential(conv(), self.first)

    told = (
        r"one (Input|Layer)Choice under two names, 'first(\.choose)?' and 'rest\.1(\.choose)?', and NNI .*; give it one"
    )
    with pytest.raises(InputError, match=told):
        FairDARTS().mutate_model(Twice())


@pytest.mark.parametrize("name", ["zeros", "options", "kept", "values"])
def test_a_candidate_whose_name_is_taken_is_refused(name):
    told = f"LayerChoice 'c' has a candidate named '{name}', which is taken; give it another name"
    with pytest.raises(InputError, match=told):
        FairDARTS().mutate_model(Space(lambda: LayerChoice({"skip": nn.Identity(), name: conv()}, label="c")))


def test_inputs_that_are_all_off_have_a_mean():
    model, _ = supernet(lambda: Inputs(None, "mean"))
    found(model)["in.put"].alpha.data.fill_(-1e4)
    assert torch.equal(model(images()), torch.zeros(2, 4, 7, 7, dtype=torch.float64))
