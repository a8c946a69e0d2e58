"""From a search in hand-written spaces to networks: export, JSON, freezing, inherited weights, batch norms."""

import copy
import json
import re

import nni
import pytest
import torch
from handwritten import CLOSE, Inputs, Space, conv, export, found, images, open_only
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasbench201 import Zero
from nni.nas.nn.pytorch import (
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    MutableLayerNorm,
    MutableLinear,
    MutableMultiheadAttention,
    MutableReLU,
    ParametrizedModule,
    Repeat,
)
from torch import nn

from nni_fairdarts import FairDARTS, InputError, freeze, inherit, reestimate_batch_norm

pytestmark = pytest.mark.filterwarnings("ignore:Found positional arguments", "ignore:.*no gate reaches:RuntimeWarning")


class Two(nn.Module):
    """Two tensors, in a tuple or dict."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = conv(), wrap

    def forward(self, x):
        return self.wrap(self.conv(x), -x)


class Nothing(nn.Module):
    def forward(self, x):
        return 0 * x


def width():
    return nni.choice("w.x", [2, 4, 6])


def pair():
    return nn.Sequential(MutableConv2d(4, width(), 1), MutableConv2d(width(), 4, 1))


def bottleneck(bias=True, kernels=(1, 3, 5)):
    """Widths, a kernel and its padding, a depthwise convolution, batch norms."""
    size = nni.choice("k", list(kernels))
    return nn.Sequential(
        MutableConv2d(4, width(), 1, bias=bias),
        MutableBatchNorm2d(width(), eps=0.01),
        MutableReLU(),
        MutableConv2d(width(), width(), size, padding=size // 2, groups=width(), bias=bias),
        MutableBatchNorm2d(width()),
        MutableConv2d(width(), 4, 1, bias=bias),
    )


class Everything(ModelSpace):
    """Every primitive at once, choices in choices, "." in labels."""

    def __init__(self):
        super().__init__()
        self.stem = MutableConv2d(3, 4, 3, padding=1)
        inner = LayerChoice([conv(), bottleneck()], label="inner")
        self.outer = LayerChoice({"conv": conv(), "pool": nn.MaxPool2d(3, 1, 1), "inner": inner}, label="outer")
        self.inputs = Inputs(None)
        self.repeat = Repeat(
            lambda i: LayerChoice({"none": Zero(4, 4, 1), "a": conv(), "b": conv(5)}, label="none"), (0, 2), label="d.d"
        )
        features, embedding = nni.choice("f", [3, 6]), nni.choice("e", [4, 8])
        self.first = MutableLinear(4, features)
        self.norm = MutableLayerNorm(features)
        self.second = MutableLinear(features, embedding, bias=False)
        self.attention = MutableMultiheadAttention(embedding, 2, batch_first=True)
        self.classifier = MutableLinear(embedding, 10)

    def forward(self, x):
        x = self.repeat(self.inputs(self.outer(self.stem(x))))
        x = self.second(self.norm(self.first(x.flatten(2).transpose(1, 2))))
        return self.classifier(self.attention(x, x, x)[0].mean(1))


LABELS = ["outer", "inner", "w.x", "k", "in.put", "d.d", "none", "f", "e"]


def supernet(make, **strategy):
    """A supernet in float64, in evaluation mode, its batch norms with statistics and scales of a life behind them."""
    torch.manual_seed(0)
    model = FairDARTS(**{"candidate_norm": "space", **strategy}).mutate_model(make().double()).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            for scale in norm.parameters(recurse=False):
                nn.init.normal_(scale)
    return model


def derived(make, model):
    """The network of the model's export, from a fresh space and what JSON keeps of the dict, with the weights."""
    sample = json.loads(json.dumps(export(model)))
    network = freeze(make().double(), sample).eval()
    inherit(network, model, sample)
    return network


# -- gates of 0 and 1 ----------------------------------------------------------------------------------------------

HARD = {
    "bottleneck": (bottleneck, [{"w_x": 0, "k": 1}, {"w_x": 1, "k": 0}, {"w_x": 2, "k": 2}]),
    "without bias": (lambda: bottleneck(False), [{"w_x": 1, "k": 1}]),
    "kernels out of order": (lambda: bottleneck(kernels=(5, 1, 3)), [{"w_x": 0, "k": 0}, {"w_x": 1, "k": 2}]),
    "choices in choices": (
        lambda: LayerChoice({"a": conv(), "b": nn.Sequential(LayerChoice([conv(1), Inputs(1)], label="i"))}, label="o"),
        [{"o": 0, "i": 1, "in_put": 0}, {"o": 1, "i": 0, "in_put": 0}, {"o": 1, "i": 1, "in_put": 2}],
    ),
    "layers in a depth": (
        lambda: Repeat(lambda i: LayerChoice([conv(), conv(5)], label=f"layer{i}"), (1, 3), label="d.d"),
        [{"d_d": 0, "layer0": 1, "layer1": 0, "layer2": 0}, {"d_d": 2, "layer0": 0, "layer1": 1, "layer2": 1}],
    ),
    "a depth and a width in layers": (
        lambda: LayerChoice([Repeat(conv(), (0, 2), label="d.d"), bottleneck()], label="o"),
        [{"o": 0, "d_d": depth, "w_x": 0, "k": 0} for depth in (0, 2)] + [{"o": 1, "d_d": 1, "w_x": 1, "k": 2}],
    ),
    "one label": (
        lambda: Repeat(lambda i: pair(), width() // 2),
        [{"w_x": 0}, {"w_x": 1}, {"w_x": 2}],
    ),
}  # fmt: skip


class Attention(ModelSpace):
    """Self-attention; with ``own`` keys and values have widths of their own."""

    def __init__(self, own=False, **options):
        super().__init__()
        width = nni.choice("e", [4, 8])
        widths = {"kdim": nni.choice("k", [8, 4]), "vdim": nni.choice("v", [2, 4])} if own else {}
        self.query = MutableLinear(8, width)
        self.key, self.value = (MutableLinear(8, widths.get(name, width)) for name in ("kdim", "vdim"))
        self.attention = MutableMultiheadAttention(width, 2, **widths, **options)
        self.last = MutableLinear(width, 3)

    def forward(self, x):
        return self.last(self.attention(self.query(x), self.key(x), self.value(x))[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}, {"own": True}],
    ids=str,
)
def test_an_attention_with_weights_of_0_and_1_is_the_one_that_inherits_its_weights(options):
    model, x = supernet(lambda: Attention(**options)), torch.randn(5, 2, 8, dtype=torch.float64)
    for places in ((0, 0, 0), (0, 1, 1), (1, 0, 1)):  # with keys and values as wide as the query, and not
        open_only(model, **dict(zip("ekv", places, strict=True)))
        network = derived(lambda: Attention(**options), model)
        torch.testing.assert_close(network(x), model(x), **CLOSE)


@pytest.mark.parametrize("case", HARD)
def test_with_gates_of_0_and_1_the_supernet_is_the_network_that_inherits_its_weights(case):
    make, openings = HARD[case]
    model, x = supernet(lambda: Space(make)), images()
    for places in openings:
        open_only(model, **places)
        network = derived(lambda: Space(make), model)
        torch.testing.assert_close(network(x), model(x), **CLOSE)
        assert not [m for m in network.modules() if isinstance(m, Mutable) and m is not network]
        nnis = Space(make).freeze(export(model)).double()  # the same network by NNI's own way
        nnis.load_state_dict(network.state_dict())
        for theirs in (nnis, model.freeze(export(model))):
            torch.testing.assert_close(theirs.eval()(x), model(x), **CLOSE)


# -- a search ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(search, classification, loader):
    """searched(...): the experiment after a search of one step in the space of everything, in double precision."""

    def run(**strategy):
        loaders = (loader(seed=seed, dtype=torch.float64) for seed in (1, 2))
        return search(Everything().double(), classification(*loaders), FairDARTS(log_prob_every_n_step=1, **strategy))

    return run


def exported(experiment, form):
    (model,) = experiment.export_top_models(formatter=form)
    return model


def shapes(network):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_a_search_of_everything(searched):
    experiment = searched()
    strategy, sample = experiment.strategy, exported(experiment, "dict")
    assert list(strategy.oneshot_module.choices()) == list(sample) == LABELS
    assert all((choice.alpha != 0).all() for choice in found(strategy.supernet).values())
    assert sample["none"] == "none"  # no gate reaches the threshold
    network, fresh = exported(experiment, "instance"), Everything().double()
    for other in (freeze(fresh, json.loads(json.dumps(sample))), fresh.freeze(sample), network):
        assert other.double()(images(3)).shape == (2, 10)
        assert shapes(other) == shapes(network)


SOME = {"inner": 1, "w_x": 1, "k": 2, "in_put": [0, 2], "d_d": 2, "none": 0, "f": 0, "e": 1}


def test_weights_are_inherited_in_the_norms_of_the_space(searched):
    experiment = searched(inherit_weights=True, candidate_norm="space")
    model, x = experiment.strategy.supernet.eval(), images(3)
    for outer in (0, 1, 2):
        open_only(model, outer=outer, **SOME)
        network = exported(experiment, "instance").eval()
        torch.testing.assert_close(network(x), model(x), **CLOSE)
    nn.init.zeros_(network.classifier.weight)
    assert model.classifier.weight.all()  # they are copies


def test_scales_that_a_search_leaves_out_are_1_and_0(searched):
    experiment = searched(inherit_weights=True)  # candidate_norm="paper"
    model = experiment.strategy.supernet
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    open_only(model, outer=2, **SOME)
    chosen, source = exported(experiment, "instance").outer, model.outer["inner"][1]
    for index in (1, 4):
        assert chosen[index].weight.tolist() == [1] * 4
        assert chosen[index].bias.tolist() == [0] * 4
        assert torch.equal(chosen[index].running_var, source[index].running_var[:4])
    assert torch.equal(chosen[0].weight, source[0].weight[:4])


def test_a_pooling_with_a_norm_of_its_own_gets_no_other_and_keeps_its_statistics():
    def make():
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4))
        return Space(lambda: LayerChoice([pool, nn.MaxPool2d(3, 1, 1), conv()], label="c"))

    model, x = supernet(make, candidate_norm="paper"), images()
    assert [len(list(candidate.children())) for candidate in model.body[0]] == [2, 2, 0]
    open_only(model, c=0)
    network = derived(make, model)
    assert torch.equal(network.body[0][1].running_mean, model.body[0][0][1].running_mean)
    torch.testing.assert_close(network(x), model(x), **CLOSE)


def test_batch_norms_are_estimated_from_the_training_loader(searched):
    experiment = searched(inherit_weights=True, reestimate_batches=3)
    open_only(experiment.strategy.supernet, outer=2, **SOME)
    network = exported(experiment, "instance")
    ((batch, _),) = experiment.strategy.model_space.evaluator.train_dataloaders
    expected = network.outer[0](network.stem(batch))
    torch.testing.assert_close(network.outer[1].running_mean, expected.mean((0, 2, 3)), **CLOSE)
    torch.testing.assert_close(network.outer[1].running_var, expected.var((0, 2, 3)), **CLOSE)


# -- several operations --------------------------------------------------------------------------------------------


def test_several_operations_are_their_sum(searched):
    """Every one with a gate of 1 in a supernet of weights of 0 and 1 is one of the network."""
    experiment = searched(export="multi", inherit_weights=True, candidate_norm="space")
    model, x = experiment.strategy.supernet.eval(), images(3)
    values = {"w.x": 4, "k": 5, "d.d": 2, "f": 3, "e": 8}
    for places, kept in (
        ([[0, 1, 2], [0, 1], [0, 1, 2], [0, 1]], [["conv", "pool", "inner"], [0, 1], [0, 1, 2], ["a", "b"]]),
        ([[0, 2], [1], [1], [1]], [["conv", "inner"], [1], [1], ["b"]]),
    ):
        labels = ("outer", "inner", "in.put", "none")
        open_only(model, **{**SOME, **{k.replace(".", "_"): v for k, v in zip(labels, places, strict=True)}})
        sample, network = exported(experiment, "dict"), exported(experiment, "instance").eval()
        assert sample == {**dict(zip(labels, kept, strict=True)), **values}
        rebuilt = freeze(Everything().double(), json.loads(json.dumps(sample))).eval()
        rebuilt.load_state_dict(network.state_dict())
        for one in (network, rebuilt):
            torch.testing.assert_close(one(x), model(x), **CLOSE)


@pytest.mark.parametrize(
    ("gates", "single", "multi"),
    [([0.1, 0.7], "none", ["none"]), ([0.9, 0.1], "a", ["a"]), ([0.9, 0.95], "b", ["a", "b"])],
)
@pytest.mark.parametrize("zero", [lambda: Zero(4, 4, 1), Nothing])
def test_none_is_kept_only_where_no_gate_reaches_the_threshold(zero, gates, single, multi):
    def make():
        return Space(lambda: LayerChoice({"a": conv(), "none": zero(), "b": conv(5)}, label="c"))

    x = images()
    for form, expected in (("single", single), ("multi", multi)):
        model = supernet(make, export=form)
        choice = found(model)["c"]
        assert choice.operations == ("a", "b")
        choice.alpha.data = torch.logit(torch.tensor(gates, dtype=torch.float64))
        assert export(model) == {"c": expected}
        names = [expected] if form == "single" else expected
        torch.testing.assert_close(derived(make, model)(x), sum(model.body[0][name](x) for name in names), **CLOSE)


@pytest.mark.parametrize("wrap", [lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}])
def test_several_operations_that_put_out_several_tensors(wrap):
    model = supernet(lambda: Space(lambda: LayerChoice([Two(wrap), Two(wrap)], label="c")), export="multi")
    found(model)["c"].alpha.data.fill_(3)
    network = derived(lambda: Space(lambda: LayerChoice([Two(wrap), Two(wrap)], label="c")), model)
    x = images()
    one, other = (candidate.conv(x) for candidate in network.body[0].operations.values())
    expected = wrap(one + other, -2 * x)
    torch.testing.assert_close(network(x), list(expected) if isinstance(expected, tuple) else expected, **CLOSE)


# -- freezing ------------------------------------------------------------------------------------------------------

SAMPLE = {"outer": ["conv", "inner"], "inner": 1, "w.x": 2, "k": 3, "in.put": [0, 2], "d.d": 1, "none": ["a"], "f": 3,
          "e": 4}  # fmt: skip


def test_the_space_is_left_as_it_is_and_its_fixed_layers_are_kept():
    space, x = Everything(), torch.randn(2, 3, 8, 8)
    described, state = str(space), copy.deepcopy(space.state_dict())
    network = freeze(space, {**SAMPLE, "a label of no choice": 3})
    assert str(space) == described
    assert all(torch.equal(state[name], tensor) for name, tensor in space.state_dict().items())
    assert torch.equal(network.stem(x), space.stem(x))
    assert type(network.stem) is nn.Conv2d
    nn.init.zeros_(network.stem.weight)
    assert space.stem.weight.all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"outer": ["conv", "wide"]}, "the sample keeps ['conv', 'wide'] of 'outer'; give at least one of conv, pool,"),
        ({"outer": []}, "the sample keeps [] of 'outer'; give at least one of conv, pool, inner, each once"),
        ({"inner": [1, 1]}, "the sample keeps [1, 1] of 'inner'; give at least one of 0, 1, each once"),
        ({"inner": ["1"]}, "the sample keeps ['1'] of 'inner'"),
        ({"in.put": [0, 3]}, "the sample keeps [0, 3] of 'in.put'; give at least one of 0, 1, 2, each once"),
        ({"in.put": []}, "the sample keeps [] of 'in.put'"),
        ({"in.put": 3}, "the sample keeps [3] of 'in.put'; give at least one of 0, 1, 2, each once"),
        ({"outer": "wide"}, "does not fit Everything in 'outer': wide not found in ['conv', 'pool', 'inner']"),
        ({"w.x": 3}, "does not fit Everything in 'w.x': 3 not found in [2, 4, 6]"),
        ({"d.d": [1]}, "does not fit Everything in 'd.d': [1] not found in [0, 1, 2]; give the dict that a search in"),
        *(({label: ...}, f"Label {label} is missing from sample") for label in LABELS),
    ],
    ids=str,
)  # fmt: skip
def test_samples_that_do_not_fit(change, told):
    sample = {label: value for label, value in {**SAMPLE, **change}.items() if value is not ...}
    with pytest.raises(InputError, match=re.escape(told)):
        freeze(Everything(), sample)


class Block(ParametrizedModule):
    """A module of the user's whose arguments have no choice, but whose layers do."""

    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 1)
        self.choice = LayerChoice([conv(), conv(5)], label="c")

    def forward(self, x):
        return self.choice(self.first(x))


@pytest.mark.parametrize(("chosen", "candidates"), [(1, [1]), ([0, 1], [0, 1])])
def test_choices_in_a_module_that_is_kept_are_made(chosen, candidates):
    space, x = Space(lambda: nn.Sequential(Block(4))), torch.randn(2, 4, 8, 8)
    (block,) = space.body[0]
    network = freeze(space, {"c": chosen})
    assert not [m for m in network.modules() if isinstance(m, LayerChoice) or "freeze" in vars(m)]
    torch.testing.assert_close(network(x), sum(block.choice[i](block.first(x)) for i in candidates))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_is_of_its_spaces_precision(dtype):
    network = freeze(Everything().to(dtype), SAMPLE)
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert network(torch.randn(2, 3, 8, 8, dtype=dtype)).dtype == dtype


def test_only_spaces_are_frozen():
    with pytest.raises(InputError, match="freeze takes a model space of NNI's, got Linear"):
        freeze(nn.Linear(2, 2), {})


def test_a_network_of_other_layers_does_not_inherit():
    class Other(ModelSpace):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([LayerChoice([conv(), conv()], label="c"), conv()])

    model = supernet(lambda: Space(lambda: LayerChoice([conv(), conv()], label="c")))
    with pytest.raises(InputError, match=r"the supernet has no weights for body\.1\.weight, body\.1\.bias"):
        inherit(freeze(Other(), {"c": 0}), model, {"c": 0})


# -- batch norms ---------------------------------------------------------------------------------------------------


@pytest.fixture
def normed():
    """A network whose second batch norm reads what the first and a dropout put out."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), conv(), nn.BatchNorm2d(4, momentum=0.3)).double()
    network[2].eval()
    for scale in (*network[0].parameters(), *network[3].parameters()):
        nn.init.normal_(scale)
    return network


def test_batch_norms_are_the_average_over_the_first_batches(normed):
    before = copy.deepcopy(normed)
    batches = [images(), (images(), "labels"), images()]
    left = iter(batches)
    reestimate_batch_norm(normed, left, 2)
    assert next(left) is batches[2]
    moments = {0: [], 3: []}
    for x in (batches[0], batches[1][0]):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        scale, shift = (p.view(1, 4, 1, 1) for p in before[0].parameters())
        h = before[2]((x - mean) / (var + 1e-5).sqrt() * scale + shift)
        for index, values in ((0, x), (3, h)):
            moments[index].append((values.mean((0, 2, 3)), values.var((0, 2, 3))))
    for index, pairs in moments.items():
        means, variances = zip(*pairs, strict=True)
        torch.testing.assert_close(normed[index].running_mean, sum(means) / 2, **CLOSE)
        torch.testing.assert_close(normed[index].running_var, sum(variances) / 2, **CLOSE)
    assert [m.training for m in normed.modules()] == [m.training for m in before.modules()]
    assert [normed[index].momentum for index in (0, 3)] == [0.1, 0.3]
    assert all(torch.equal(p, q) for p, q in zip(normed.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "no batch to estimate batch norms from; give a loader that yields at least one"),
        ([{"x": images()}], "must be a tensor, or begin with one, got dict"),
        ([("labels", images())], "must be a tensor, or begin with one, got str"),
    ],
    ids=["none", "dict", "no tensor"],
)
def test_batches_that_cannot_be_estimated_from(normed, batches, told):
    training, mean = [m.training for m in normed.modules()], normed[0].running_mean.normal_().clone()
    with pytest.raises(InputError, match=told):
        reestimate_batch_norm(normed, batches, 3)
    assert torch.equal(normed[0].running_mean, mean)
    assert [m.training for m in normed.modules()] == training
    assert [normed[index].momentum for index in (0, 3)] == [0.1, 0.3]
