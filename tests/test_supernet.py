"""Gated cells and layers: their formula, whose parameters they are, and what is refused."""

import re
from functools import partial

import nni
import pytest
import torch
from nni.mutable import MutableExpression
from nni.nas.hub.pytorch import DARTS, PNAS, NasBench101
from nni.nas.hub.pytorch.nasnet import NDS, OPS, Zero
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableConv2d,
    MutableDropout,
    MutableLinear,
    MutableModule,
    Repeat,
)
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedInput, DifferentiableMixedRepeat
from nni.nas.space import model_context
from reference import OPERATIONS, gated_cell, sigmoid
from torch import nn

from nni_fairdarts import Edge, FairDARTS, InputError
from nni_fairdarts.discretize import discretize
from nni_fairdarts.network import DerivedNetwork
from nni_fairdarts.supernet import GatedCell, GatedLayer, GatedModule

pytestmark = pytest.mark.filterwarnings("ignore:Found positional arguments")

CLOSE = {"rtol": 0, "atol": 1e-10}


def darts(width=4, num_cells=3, **strategy):
    """A supernet of NNI's DARTS space in float64, with random α."""
    torch.manual_seed(0)
    supernet = FairDARTS(**strategy).mutate_model(DARTS(width, num_cells, "cifar")).double()
    for alpha in alphas(supernet).values():
        nn.init.normal_(alpha)
    return supernet


class Space(ModelSpace):
    """A stem, then what the functions given make (NNI wants choices made in here)."""

    def __init__(self, *parts):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.body = nn.ModuleList(part() for part in parts)

    def forward(self, x):
        x = self.stem(x)
        for module in self.body:
            x = module(x)
        return x


def gated(supernet):
    return [m for m in supernet.modules() if isinstance(m, GatedModule)]


def alphas(supernet):
    return {m.label: m.alpha for m in gated(supernet)}


def choice():
    return LayerChoice([conv(), conv(5)], label="a")


def images(size=8, channels=3):
    return torch.randn(2, channels, size, size, dtype=torch.float64)


def conv(kernel=3):
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


# -- cells ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["paper", "space"])
@pytest.mark.parametrize("index", [0, 1])
def test_cell_is_the_sum_over_edges_and_operations(index, norm):
    supernet = darts(candidate_norm=norm)
    cell = supernet.stages[index].blocks[0]
    assert isinstance(cell, GatedCell)
    channels = [m.in_channels for m in (cell.preprocessor.pre0[1], cell.preprocessor.pre1[1])]
    inputs = [images(channels=c) for c in channels]
    last, output = cell(inputs)
    expected = gated_cell(cell, cell.alpha.tolist(), *inputs)
    assert last is inputs[1]
    torch.testing.assert_close(output, expected, **CLOSE)
    assert output.shape == ((2, 16, 8, 8), (2, 32, 4, 4))[index]
    assert cell.operations == tuple(OPERATIONS)


def test_alpha_is_shared_by_all_cells_of_a_kind_and_has_no_hidden_column():
    supernet = darts(num_cells=6)
    cells = gated(supernet)
    assert [cell.label for cell in cells] == ["normal", "normal", "reduce", "normal", "reduce", "normal"]
    parameters = {id(cell.alpha): cell.alpha for cell in cells}
    assert [tuple(p.shape) for p in parameters.values()] == [(14, 7), (14, 7)]
    assert len(alphas(supernet)) == 2
    named = [name for name, _ in supernet.named_parameters() if "alpha" in name]  # each shared one once
    assert len(named) == 2


def test_every_alpha_gets_a_gradient():
    supernet = darts()
    nn.functional.cross_entropy(supernet(images()), torch.tensor([3, 7])).backward()
    for alpha in alphas(supernet).values():
        assert alpha.grad.shape == (14, 7)
        assert (alpha.grad != 0).all()


@pytest.mark.parametrize("init", [0.0, -1.5])
def test_alpha_starts_at_alpha_init(init):
    supernet = FairDARTS(alpha_init=init).mutate_model(DARTS(4, 3, "cifar"))
    assert all((alpha == init).all() for alpha in alphas(supernet).values())


def test_a_space_in_double_precision_stays_so():
    for space in (DARTS(4, 3, "cifar"), Space(lambda: LayerChoice([conv(), nn.MaxPool2d(3, 1, 1)], label="a"))):
        supernet = FairDARTS().mutate_model(space.double())
        assert {p.dtype for p in supernet.parameters()} == {torch.float64}
        assert supernet(images()).dtype == torch.float64


def test_alpha_of_a_half_precision_space_is_single():
    supernet = FairDARTS().mutate_model(DARTS(4, 3, "cifar").bfloat16())
    assert {alpha.dtype for alpha in alphas(supernet).values()} == {torch.float32}


FEW = [("max_pool_3x3", 2, 0), ("sep_conv_3x3", 3, 0), ("skip_connect", 3, 2), ("dil_conv_5x5", 4, 1),
       ("sep_conv_5x5", 5, 0), ("avg_pool_3x3", 5, 3)]  # fmt: skip
MORE = [("dil_conv_3x3", 2, 0), ("max_pool_3x3", 3, 2), ("sep_conv_3x3", 4, 1), ("skip_connect", 4, 3)]


@pytest.mark.parametrize(("rule", "edges"), [("sparse", FEW), ("edge", FEW + MORE)])
def test_with_gates_of_0_and_1_it_is_the_derived_network(rule, edges):
    """The same weights in the network of the open gates give the same logits."""
    supernet = darts(num_cells=5, candidate_norm="space").eval()
    edges = {Edge(*edge) for edge in edges}
    for alpha in alphas(supernet).values():
        nn.init.constant_(alpha, -800)
        for edge in edges:
            alpha.data[row(edge), OPERATIONS.index(edge.operation)] = 40
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    genotype = discretize(*(alphas(supernet)[label].sigmoid() for label in ("normal", "reduce")), rule=rule)
    assert set(genotype.normal) == set(genotype.reduce) == edges
    network = DerivedNetwork(genotype, width=4, num_cells=5).double().eval()
    network.load_state_dict(derived_names(supernet, network))
    x = images(16)
    torch.testing.assert_close(network(x), supernet(x), **CLOSE)


def row(edge):
    return sum(range(2, edge.node)) + edge.source


def derived_names(supernet, network):
    """The supernet's weights that a derived network has, under its names."""
    cells = [name for name, module in supernet.named_modules() if isinstance(module, GatedCell)]
    state, found = supernet.state_dict(), {}
    for name in network.state_dict():
        first, _, rest = name.partition(".")
        if first == "cells":
            number, part, rest = rest.split(".", 2)
            if part == "ops":
                index, rest = rest.split(".", 1)
                edge = network.cells[int(number)].edges[int(index)]
                rest = f"edges.{row(edge)}.{edge.operation}.{rest}"
            else:
                rest = f"{part}.{rest}"
            found[name] = state[f"{cells[int(number)]}.{rest}"]
        else:
            found[name] = state[name]
    return found


# -- batch norms ---------------------------------------------------------------------------------------------------


def built_by_nni(name, channels, stride):
    with model_context({}):
        return shape(OPS[name](channels, stride, True))


def shape(op):
    return re.sub("affine=(True|False)(, bias=(True|False))?", "affine", repr(op))


@pytest.mark.parametrize("norm", ["paper", "space"])
def test_candidates_of_a_cell(norm):
    supernet = darts(candidate_norm=norm)
    for cell, channels in zip(gated(supernet), (4, 8, 16), strict=True):
        sources = [source for node in range(2, 6) for source in range(node)]
        assert len(cell.edges) == len(sources) == 14
        for source, candidates in zip(sources, cell.edges, strict=True):
            stride = 2 if cell.label == "reduce" and source < 2 else 1
            assert list(candidates) == OPERATIONS
            for name, op in candidates.items():
                expected = built_by_nni(name, channels, stride)
                norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
                assert {m.affine for m in norms} <= {norm == "space"}
                if norm == "paper" and "pool" in name:
                    pool, batch_norm = op
                    assert shape(pool) == expected
                    assert type(batch_norm) is nn.BatchNorm2d
                    assert batch_norm.num_features == channels
                else:
                    assert shape(op) == expected


@pytest.mark.parametrize("norm", ["paper", "space"])
def test_learnable_scales_are_left_outside_cells_only(norm):
    supernet = darts(candidate_norm=norm)
    norms = {name: m for name, m in supernet.named_modules() if isinstance(m, nn.BatchNorm2d)}
    preprocessors = [name for name in norms if ".preprocessor." in name]
    learnable = {name for name, m in norms.items() if list(m.parameters())}
    assert len(preprocessors) == 6
    if norm == "paper":
        assert learnable == {"stem.1"}
    else:
        assert learnable == set(norms)


def test_candidate_norm_reaches_layer_choices():
    def block():
        return nn.Sequential(conv(), nn.BatchNorm2d(4))

    supernet = FairDARTS().mutate_model(Space(lambda: LayerChoice([block(), block()], label="a"), block))
    learnable = [name for name, m in supernet.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    assert learnable == ["stem.1", "body.1.1"]


# -- layers --------------------------------------------------------------------------------------------------------


def naive_layer(candidates, alpha, x):
    return sum(sigmoid(a) * candidate(x) for candidate, a in zip(candidates, alpha.tolist(), strict=True))


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("norm", ["paper", "space"])
def test_layer_is_the_sum_over_candidates(form, norm):
    torch.manual_seed(1)
    modules = {"conv": conv(), "pool": nn.MaxPool2d(3, 1, 1), "skip": nn.Identity(), "wide": conv(5)}
    candidates = dict(modules) if form == "dict" else list(modules.values())
    space = Space(lambda: LayerChoice(candidates, label="a"))
    supernet = FairDARTS(candidate_norm=norm).mutate_model(space).double()
    layer = supernet.body[0]
    assert type(layer) is GatedLayer
    assert layer.names == (list(modules) if form == "dict" else [0, 1, 2, 3])
    nn.init.normal_(layer.alpha)
    x = images(channels=4)

    def pool(x):
        pooled = modules["pool"](x)
        if norm == "space":
            return pooled
        mean = pooled.mean((0, 2, 3), keepdim=True)
        return (pooled - mean) / (((pooled - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()

    expected = naive_layer([modules["conv"], pool, modules["skip"], modules["wide"]], layer.alpha, x)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    layer(x).square().sum().backward()
    assert (layer.alpha.grad != 0).all()


def test_layers_of_one_label_share_alpha_and_are_exported_once():
    parts = (partial(LayerChoice, {"a": conv(), "b": conv(5)}, label=label) for label in ("x", "y", "x"))
    supernet = FairDARTS().mutate_model(Space(*parts))
    one, other, again = supernet.body
    assert one.alpha is again.alpha
    assert one.alpha is not other.alpha
    memo = {}
    for layer in supernet.body:
        memo.update(layer.export(memo))
    assert memo == {"x": "a", "y": "a"}  # of equal gates the earlier candidate


def test_nested_layers():
    torch.manual_seed(2)
    first, second = conv(), conv(5)

    def nested():
        inner = LayerChoice([first, second], label="inner")
        return LayerChoice({"nested": inner, "plain": conv()}, label="outer")

    supernet = FairDARTS().mutate_model(Space(nested)).double()
    outer = supernet.body[0]
    assert {type(m) for m in gated(supernet)} == {GatedLayer}
    assert set(alphas(supernet)) == {"outer", "inner"}
    for alpha in alphas(supernet).values():
        nn.init.normal_(alpha)
    x = images(channels=4)
    expected = naive_layer(
        [lambda x: naive_layer([first, second], alphas(supernet)["inner"], x), outer["plain"]], outer.alpha, x
    )
    torch.testing.assert_close(outer(x), expected, **CLOSE)
    supernet(images()).square().sum().backward()
    assert all((alpha.grad != 0).all() for alpha in alphas(supernet).values())


class Two(nn.Module):
    """Two tensors, in a tuple, list or dict."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = conv(), wrap

    def forward(self, x):
        return self.wrap(self.conv(x), -x)


@pytest.mark.parametrize("wrap", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}])
def test_outputs_of_several_tensors_are_summed_one_by_one(wrap):
    candidates = [Two(wrap), Two(wrap)]
    supernet = FairDARTS(alpha_init=0.5).mutate_model(Space(lambda: LayerChoice(candidates, label="a"))).double()
    layer, x = supernet.body[0], images(channels=4)
    found, expected = layer(x), wrap(naive_layer([c.conv for c in candidates], layer.alpha, x), -2 * sigmoid(0.5) * x)
    if isinstance(expected, tuple):
        expected = list(expected)  # NNI's sum makes lists of tuples
    torch.testing.assert_close(found, expected, **CLOSE)


# -- refusals ------------------------------------------------------------------------------------------------------


class Chooses(ModelSpace):
    def __init__(self):
        super().__init__()
        self.choose = InputChoice(2, label="which")


class RootChoice(Space):
    def __init__(self):
        super().__init__(choice)
        self.add_mutable(nni.choice("ratio", [1, 2]))


class WithNone(NDS):
    def __init__(self):
        super().__init__(["none", "skip_connect", "conv_3x3"], width=4, num_cells=3, dataset="cifar")


class OwnCell(ModelSpace):
    def __init__(self):
        super().__init__()
        self.cell = Cell([lambda *_: conv(), lambda *_: conv(5)], num_nodes=2, label="own")


class Concatenates(ModelSpace):
    def __init__(self, reduction):
        super().__init__()
        self.choose = InputChoice(2, reduction=reduction, label="which")


@pytest.mark.parametrize(
    ("space", "texts"),
    [
        (lambda: Concatenates("concat"), ["InputChoice 'which' has reduction 'concat'", "reduction='sum' or 'mean'"]),
        (lambda: Concatenates("none"), ["InputChoice 'which' has reduction 'none'", "reduction='sum' or 'mean'"]),
        (
            lambda: Space(lambda: MutableConv2d(4, 4, 1, stride=nni.choice("s", [1, 2]))),
            ["MutableConv2d 'body.0': FairDARTS cannot search stride, only in_channels", "into a LayerChoice"],
        ),
        (
            lambda: Space(lambda: MutableDropout(nni.choice("rate", [0.1, 0.5]))),
            ["cannot search MutableDropout 'body.0' (choices: rate)", "Fix this choice", "mutation_hooks"],
        ),
        (
            lambda: Space(lambda: MutableDropout(nni.uniform("rate", 0, 1))),
            ["cannot search MutableDropout 'body.0' (choices: rate)"],
        ),
        (
            lambda: Space(lambda: MutableLinear(4, MutableExpression.to_int(nni.uniform("wide", 2, 9)))),
            ["finitely many values, but MutableLinear 'body.0' has 'wide'", "nni.choice with a list of values"],
        ),
        (lambda: NasBench101(4, 1, 1), ["NasBench101Cell 'features.0'", "use NasBench201", "multi-trial strategy"]),
        (lambda: WithNone(), ["Cell 'normal' has the operation 'none'", "leave it out"]),
        (
            lambda: Space(lambda: LayerChoice({"none": Zero(1)}, label="a")),
            ["LayerChoice 'a' has only zero operations"],
        ),
        (
            lambda: DARTS(width=4, num_cells=(2, 6)),
            ["stages.0: a depth of the space", "every num_cells must be 3 or more"],
        ),
        (
            lambda: Space(lambda: Repeat(LayerChoice([conv(), conv(5)], label="a"), nni.choice("a", [0, 1]))),
            ["label 'a' is shared by a choice of operations or inputs", "labels of their own"],
        ),
        (RootChoice, ["RootChoice at the space's root (choices: ratio)"]),
        (OwnCell, ["Cell in NNI's hub spaces", "OwnCell has one of its own at 'cell'", "nasnet.NDS"]),
        (
            lambda: Space(lambda: LayerChoice([nn.MaxPool2d(3), nn.Identity()], label="a")),
            ["LayerChoice 'a'", "no other candidate has a convolution", "candidate_norm='space'"],
        ),
    ],
)
def test_refused_with_a_sentence_that_names_it(space, texts):
    with pytest.raises(InputError) as refusal:
        FairDARTS().mutate_model(space())
    for text in texts:
        assert text in str(refusal.value)


def test_a_cell_of_ones_own_is_refused_beside_a_hook_for_something_else():
    with pytest.raises(InputError, match="has one of its own at 'cell'"):
        FairDARTS(mutation_hooks=[SearchedScale.mutate]).mutate_model(OwnCell())


def test_a_supernet_is_not_gated_again():
    supernet = FairDARTS().mutate_model(Space(choice))
    with pytest.raises(InputError, match="is a FairDARTS supernet already; make a new space"):
        FairDARTS().mutate_model(supernet)


@pytest.mark.parametrize("space", [lambda: PNAS(4, 3), lambda: DARTS(4, 3, dataset="imagenet")])
def test_other_hub_spaces_with_one_width_and_depth_are_taken(space):
    supernet = FairDARTS().mutate_model(space())
    assert {type(m) for m in gated(supernet)} == {GatedCell}
    size = 8 if supernet.dataset == "cifar" else 32
    assert supernet(torch.randn(2, 3, size, size)).shape == (2, supernet.num_labels)


# -- hooks of the user's -------------------------------------------------------------------------------------------


class Scale(MutableModule):
    """A primitive of the user's own: multiplies by one of some numbers."""

    def __init__(self, label):
        super().__init__()
        self.factor = nni.choice(label, [1.0, 2.0, 3.0])
        self.add_mutable(self.factor)

    def forward(self, x):
        return x


class SearchedScale(BaseSuperNetModule):
    """Its supernet form, written for NNI's DARTS: α is looked up by label, the relaxation is the softmax given."""

    def __init__(self, label, alpha, softmax):
        super().__init__()
        self.label, self.softmax = label, softmax
        self._arch_alpha = alpha

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        if type(module) is not Scale:
            return None
        label = module.factor.label
        return cls(label, memo[label], mutate_kwargs["softmax"])

    def forward(self, x):
        return x * (self.softmax(self._arch_alpha) * torch.tensor([1.0, 2.0, 3.0])).sum()

    def arch_parameters(self):
        yield self._arch_alpha

    def resample(self, memo):
        return {}

    def export(self, memo):
        return {self.label: [1.0, 2.0, 3.0][int(self._arch_alpha.argmax())]}

    def export_probs(self, memo):
        return {self.label: dict(zip([1.0, 2.0, 3.0], self.softmax(self._arch_alpha).tolist(), strict=True))}


def test_a_hook_of_the_users_is_respected_and_gets_gates():
    def space():
        return Space(lambda: Scale("factor"), choice)

    with pytest.raises(InputError, match=re.escape("cannot search Scale 'body.0' (choices: factor)")):
        FairDARTS().mutate_model(space())
    supernet = FairDARTS(mutation_hooks=[SearchedScale.mutate], alpha_init=0.7).mutate_model(space())
    scale, layer = supernet.body
    assert type(scale) is SearchedScale
    assert type(layer) is GatedLayer
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(scale(x), x * 6 * sigmoid(0.7))
    scale(x).sum().backward()
    assert (scale._arch_alpha.grad != 0).all()


def test_hooks_of_nni_fill_the_gaps():
    hooks = [DifferentiableMixedRepeat.mutate, DifferentiableMixedInput.mutate]
    supernet = FairDARTS(mutation_hooks=hooks).mutate_model(Space(lambda: Repeat(conv(), (1, 3), label="depth")))
    assert type(supernet.body[0]) is DifferentiableMixedRepeat
    first, second, third = supernet.body[0].blocks
    x = torch.randn(1, 4, 8, 8)
    expected = (first(x) + second(first(x)) + third(second(first(x)))) / 2  # every depth behind a gate of 0.5
    torch.testing.assert_close(supernet.body[0](x), expected)
    chosen = FairDARTS(mutation_hooks=hooks).mutate_model(Chooses()).choose
    a, b = torch.randn(2), torch.randn(2)
    torch.testing.assert_close(chosen([a, b]), (a + b) / 2)


def test_a_hook_may_take_over_layer_choices():
    class Other(BaseSuperNetModule):
        pass

    def hook(module, name, memo, mutate_kwargs):
        return Other() if type(module) is LayerChoice and module.label == "mine" else None

    supernet = FairDARTS(mutation_hooks=[hook]).mutate_model(
        Space(*(partial(LayerChoice, [conv(), conv()], label=label) for label in ("mine", "theirs")))
    )
    assert [type(m) for m in supernet.body] == [Other, GatedLayer]
