"""The resource penalty: expected costs against NNI's profilers, counted networks and closed forms."""

import itertools
import random
import re

import nni
import nni.nas.profiler.pytorch.flops as nni_flops
import nni.nas.profiler.pytorch.utils.misc as nni_misc
import nni.nas.profiler.pytorch.utils.shape_formula as nni_shapes
import pytest
import torch
from nni.mutable import Categorical, MutableExpression
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.hub.pytorch import (
    DARTS,
    AutoFormer,
    MobileNetV3Space,
    NasBench201,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.hub.pytorch.nasnet import NDS, OPS, Zero
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableConv2d, Repeat
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty, SampleProfilerPenalty
from nni.nas.oneshot.pytorch.supermodule._expression_utils import expression_expectation
from nni.nas.profiler import ExpressionProfiler
from nni.nas.profiler.pytorch.flops import FlopsParamsProfiler, FlopsProfiler, NumParamsProfiler
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from nni_fairdarts import FairDARTS, Genotype, InputError, derive_network
from nni_fairdarts.data import retrain_loaders, search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.network import count_multiply_adds, count_parameters
from nni_fairdarts.penalty import ExpectedCost, ResourcePenalty, profiler
from nni_fairdarts.penalty.terms import MOST_COMBINATIONS
from nni_fairdarts.training import ImageTraining

DTYPE = torch.float64


def raises(*texts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, texts)))


def one_hot(cost, sample):
    return {k: (v, torch.tensor([float(x == sample[k]) for x in v], dtype=DTYPE)) for k, v in cost.values.items()}


def gates(cost, seed=0, softmax=False):
    """Random gates for every label: softmax weights, or independent ones in (0, 1)."""
    torch.manual_seed(seed)
    alphas = {label: torch.randn(len(values), dtype=DTYPE) for label, values in cost.values.items()}
    return {k: (cost.values[k], a.softmax(0) if softmax else a.sigmoid()) for k, a in alphas.items()}


def samples(space, count):
    rng = random.Random(0)
    return [{k: rng.choice(list(m.grid())) for k, m in space.simplify().items()} for _ in range(count)]


class Made(ExpressionProfiler):
    """A profiler of an expression of the test's own."""

    def __init__(self, expression):
        self.expression = expression


class Mixed(ModelSpace):
    """Choices inside choices, a depth, a width, a kernel; maps of 8×8 throughout."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 6])
        kernel = nni.choice("kernel", [1, 3])
        self.stem = MutableConv2d(3, width, 3, padding=1, bias=False)
        inner = LayerChoice({"point": MutableConv2d(width, width, 1, bias=False), "skip": nn.Identity()}, label="inner")
        sized = MutableConv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.outer = LayerChoice({"sized": sized, "inner": inner, "skip": nn.Identity()}, label="outer")
        self.body = Repeat(lambda i: self.block(width, i), (0, 2), label="depth")
        self.tail = MutableConv2d(width, 5, 1, bias=False)
        self.head = nn.Linear(5, 2, bias=False)

    @staticmethod
    def block(width, index):
        candidates = [MutableConv2d(width, width, 3, padding=1, groups=2, bias=False), nn.MaxPool2d(3, 1, 1)]
        return LayerChoice(candidates, label=f"block{index}")

    def forward(self, x):
        return self.head(self.tail(self.body(self.outer(self.stem(x)))).mean((2, 3)))


def mixed_by_hand(w):
    """Multiply-adds that ``Mixed`` is expected to take, for gates {label: list}."""
    total = 10
    for width, p in zip((4, 6), w["width"], strict=True):
        maps = 64 * p
        total += maps * width * 27 + maps * width * 5
        total += maps * width**2 * w["outer"][0] * (w["kernel"][0] + 9 * w["kernel"][1])
        total += maps * width**2 * w["outer"][1] * w["inner"][0]
        for depth, block in ((1, "block0"), (2, "block1")):
            total += maps * width * (width // 2) * 9 * w[block][0] * sum(w["depth"][depth:])
    return total


# -- expected cost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [FlopsProfiler, NumParamsProfiler])
def test_one_hot_gates_give_what_nni_profiles_for_every_sample(make):
    space = Mixed()
    made = make(space, torch.zeros(1, 3, 8, 8))
    cost, mutables = ExpectedCost(made.expression), space.simplify()
    seen = set()
    for values in itertools.product(*(m.values for m in mutables.values())):
        sample = dict(zip(mutables, values, strict=True))
        seen.add(made.profile(sample))
        assert cost(one_hot(cost, sample)).item() == made.profile(sample)
    assert len(seen) > 10


@pytest.mark.parametrize("softmax", [True, False])
def test_expectation_by_hand(softmax):
    """Independent gates too: the nested choice has the product of two, what lies behind a choice costs the same."""
    cost = ExpectedCost(profiler("flops", Mixed(), torch.zeros(1, 3, 8, 8)).expression)
    weights = gates(cost, softmax=softmax)
    for label in ("width", "depth", "kernel"):
        weights[label] = gates(cost, 1, softmax=True)[label]
    expected = mixed_by_hand({label: g.tolist() for label, (_, g) in weights.items()})
    torch.testing.assert_close(cost(weights).item(), expected, rtol=1e-12, atol=0)


HUB = {
    "proxyless": (lambda: ProxylessNAS(10, base_widths=(8,) * 9), 32),
    "shufflenet": (lambda: ShuffleNetSpace(10), 64),
    "mobilenet": (lambda: MobileNetV3Space(10), 32),
    "autoformer": (
        lambda: AutoFormer((16, 32), search_num_heads=(1, 2), search_depth=(1, 2), img_size=32, patch_size=16),
        32,
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_hub_spaces(name):
    build, size = HUB[name]
    space = build()
    counted = FlopsParamsProfiler(space.eval(), torch.zeros(1, 3, size, size)).flops_result
    for expression in counted:
        made = Made(expression)
        cost = ExpectedCost(expression)
        found = [(cost(one_hot(cost, sample)).item(), made.profile(sample)) for sample in samples(space, 5)]
        assert all(ours == theirs for ours, theirs in found)
        assert len({ours for ours, _ in found}) > 1
        if name != "mobilenet":  # NNI's expectation tries all combinations, of which these maps have too many
            weights = gates(cost, softmax=True)
            plain = {k: dict(zip(values, g.tolist(), strict=True)) for k, (values, g) in weights.items()}
            naive = expression_expectation(expression, plain)
            torch.testing.assert_close(cost(weights).item(), naive, rtol=1e-10, atol=0)


def choice(label, *values):
    return Categorical(list(values), label=label)


def test_candidates_that_cost_the_same_cost_the_sum_of_what_stays_on():
    switch = MutableExpression.switch_case(choice("op", "a", "b"), {"a": 100, "b": 100})
    cost = ExpectedCost(1 + 2 * switch - 3)
    weights = {"op": (("a", "b"), torch.tensor([0.5, 0.75]))}
    assert cost(weights).item() == 1 + 2 * 125 - 3
    assert (
        ExpectedCost(MutableExpression.switch_case(choice("one", "a"), {"a": 8}))(
            {"one": (("a",), torch.tensor([0.5]))}
        ).item()
        == 4
    )


def test_latency_by_cases_as_nn_meter_profiles_it():
    """Conditions on several labels, the first that holds: Σ over combinations of product of weights times latency."""
    kernel, width = choice("k", (1, 1), (3, 3)), choice("w", 8, 16, 24)
    pairs = list(itertools.product(kernel.values, width.values))
    cases = [((kernel == k) & (width == w), 10.0 * i) for i, (k, w) in enumerate(pairs)]
    op = choice("op", "conv", "skip")
    cost = ExpectedCost(MutableExpression.switch_case(op, {"conv": MutableExpression.case(cases), "skip": 0.25}))
    weights = gates(cost)
    p = {label: g.tolist() for label, (_, g) in weights.items()}
    joint = sum(10.0 * i * p["k"][i // 3] * p["w"][i % 3] for i in range(6))
    torch.testing.assert_close(cost(weights).item(), p["op"][0] * joint + p["op"][1] * 0.25, rtol=1e-12, atol=0)


def test_terms_of_the_same_choices_are_merged():
    a, b = choice("a", 1, 2), choice("b", 3, 5)
    cost = ExpectedCost(a * b + (a >= 2) * (b + 1) - a * b + 7.0)
    assert [term.labels for term in cost.terms] == [("a", "b"), ("a",), ()]
    assert cost.terms[0].costs.tolist() == [[0, 0], [3, 5]]


def test_networks_of_any_depth_compile():
    size, cost = choice("kernel", 1, 3), 0
    for index in range(2000):
        size = (size + 2) // 1 - 1
        cost = cost + (choice(f"op{index % 3}", 0, 1) >= 1) * size
    assert ExpectedCost(cost)(
        {"kernel": ((1, 3), torch.tensor([1.0, 0.0]))}
        | {f"op{i}": ((0, 1), torch.tensor([0.0, 1.0])) for i in range(3)}
    ).item() == sum(range(2, 2002))


def test_values_are_matched_and_precision_is_enough():
    cost = ExpectedCost(MutableExpression.switch_case(choice("op", 0, 1), {0: 70_000, 1: 3}))
    swapped = {"op": (("1", "0"), torch.tensor([0.5, 1.0], dtype=torch.bfloat16)), "more": ((1,), torch.ones(1))}
    assert cost(swapped).item() == 70_001.5
    with torch.autocast("cpu", torch.bfloat16):
        assert cost({"op": ((0, 1), torch.tensor([1.0, 1.0]))}).item() == 70_003


def test_the_gradient_of_the_cost_is_what_candidates_cost():
    cost = ExpectedCost(profiler("flops", Mixed(), torch.zeros(1, 3, 8, 8)).expression)
    weights = one_hot(cost, {"width": 6, "kernel": 3, "inner": "skip", "outer": "skip", "depth": 1, "block0": 1,
                             "block1": 0})  # fmt: skip
    for _, g in weights.values():
        g.requires_grad_()
    cost(weights).backward()
    assert weights["outer"][1].grad.tolist() == [64 * 36 * 9, 0, 0]
    assert weights["block0"][1].grad.tolist() == [64 * 6 * 3 * 9, 0]
    assert weights["block1"][1].grad.tolist() == [0, 0]
    labels, random_gates = zip(*((k, g.requires_grad_()) for k, (_, g) in gates(cost).items()), strict=True)
    by_label = lambda *g: cost({k: (cost.values[k], x) for k, x in zip(labels, g, strict=True)})  # noqa: E731
    assert torch.autograd.gradcheck(by_label, random_gates, rtol=1e-6)


def test_bad_costs_and_weights_are_refused():
    x = choice("x", 1, 2)
    with raises("Numerical", "one among given values"):
        ExpectedCost(nni.uniform("rate", 0, 1) * 2)
    with raises("'x' is shared by choices of different values, [1, 2] and [1, 3]"):
        ExpectedCost(x + choice("x", 1, 3))
    many = 1
    for index in range(20):
        many = many * choice(f"v{index}", 1, 2)
    with raises("depends on 20 choices together (v0, v1", f"{2**20:,}", f"at most {MOST_COMBINATIONS:,}"):
        ExpectedCost(many)
    cost = ExpectedCost(x + 0)
    with raises("a choice 'x' that the supernet does not have", "The supernet's choices: y, z"):
        cost({"z": ((1,), torch.ones(1)), "y": ((1,), torch.ones(1))})
    free = ExpectedCost(MutableExpression.switch_case(choice("op", "none", "conv"), {"none": 0, "conv": 7}))
    assert free({"op": (("conv",), torch.tensor([0.5]))}).item() == 3.5  # a supernet has no gate for "none"
    with raises("'op' with the values none, conv, but the supernet has it with none"):
        free({"op": (("none",), torch.ones(1))})
    with raises("'x' with the values 1, 2, but the supernet has it with 1, 3"):
        cost({"x": ((1, 3), torch.ones(2))})


# -- profilers for cells -----------------------------------------------------------------------------------------------


def kept(cost, genotype):
    """Gates of 1 for the genotype's edges, 0 for all others."""
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    on = {(f"{kind}/{e.node}_{e.source}", e.operation) for kind, edges in cells.items() for e in edges}
    return {k: (v, torch.tensor([float((k, op) in on) for op in v], dtype=DTYPE)) for k, v in cost.values.items()}


def random_genotype(seed, operations, nodes):
    """Two inputs for every node."""
    rng = random.Random(seed)
    cells = [
        tuple((rng.choice(operations), node, source) for node in nodes for source in sorted(rng.sample(range(node), 2)))
        for _ in range(2)
    ]
    return Genotype(*cells)


@pytest.mark.parametrize(
    ("dataset", "operations", "size"),
    [("cifar", DARTS.DARTS_OPS, 17), ("imagenet", ["skip_connect", "conv_7x1_1x7", "conv_1x1"], 64)],
)
def test_kept_edges_cost_what_the_derived_network_has(dataset, operations, size):
    """Odd maps among them, which halve to the larger half."""
    space = NDS(operations, num_nodes_per_cell=2, width=4, num_cells=4, dataset=dataset)
    multiply_adds, parameters = (
        ExpectedCost(profiler(kind, space, torch.zeros(1, 3, size, size)).expression) for kind in ("flops", "params")
    )
    for seed in range(3):
        genotype = random_genotype(seed, operations, (2, 3))
        network = derive_network(space, genotype.to_sample())
        assert multiply_adds(kept(multiply_adds, genotype)).item() == count_multiply_adds(network, (3, size, size))
        assert parameters(kept(parameters, genotype)).item() == count_parameters(network)


def test_all_gates_open_cost_the_whole_supernet():
    operations = sorted(OPS.keys() - {"none", "avg_pool_2x2", "max_pool_2x2"})  # two keep no map's size
    space = NDS(operations, num_nodes_per_cell=2, width=4, num_cells=3, dataset="cifar")
    cost = ExpectedCost(profiler("flops", space, torch.zeros(1, 3, 8, 8)).expression)
    supernet = FairDARTS().mutate_model(space)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        supernet.eval()(torch.zeros(1, 3, 8, 8))
    whole = cost({k: (v, torch.ones(len(v), dtype=DTYPE)) for k, v in cost.values.items()})
    assert whole.item() == counter.get_total_flops() // 2
    labels = {k for m in supernet.modules() if hasattr(m, "edges") for k in m.export_probs({})}
    assert labels == set(cost.values)  # what the supernet's gates are called


def test_mutable_width_and_depth_of_cells():
    operations = ["sep_conv_3x3", "conv_7x1_1x7", "skip_connect"]
    space = NDS(operations, num_nodes_per_cell=2, width=(4, 8), num_cells=(6, 7), dataset="cifar")
    cost = ExpectedCost(profiler("flops", space, torch.zeros(1, 3, 8, 8)).expression)
    genotype = random_genotype(3, operations, (2, 3))
    for width, depth in itertools.product((4, 8), (6, 7)):
        network = space.freeze({**genotype.to_sample(), "width": width, "depth": depth})
        weights = one_hot(cost, dict.fromkeys(cost.values) | {"width": width, "depth": depth})
        weights |= {k: v for k, v in kept(cost, genotype).items() if "/" in k}
        assert cost(weights).item() == count_multiply_adds(network, (3, 8, 8))


def test_nas_bench_201():
    space = NasBench201(4, 1)
    multiply_adds, parameters = (profiler(kind, space, torch.zeros(1, 3, 8, 8)) for kind in ("flops", "params"))
    for sample in samples(space, 4):
        network = space.freeze(sample)
        assert multiply_adds.profile(sample) == count_multiply_adds(network, (3, 8, 8))
        assert parameters.profile(sample) == count_parameters(network)


def test_nni_counts_on_request():
    """64 outputs: 27 products and one bias each, 4 steps of a batch norm with scales, one of a ReLU."""

    class Small(ModelSpace):
        def __init__(self):
            super().__init__()
            layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
            self.layers = LayerChoice({"on": nn.Sequential(*layers), "off": nn.Conv2d(3, 4, 1)}, label="layers")
            self.sum = InputChoice(2, 2, reduction="sum", label="sum")

        def forward(self, x):
            return self.sum([self.layers(x)] * 2)

    space, x = Small(), torch.zeros(1, 3, 4, 4)
    counts = {"count_bias": 64, "count_normalization": 256, "count_activation": 64}
    for number in range(4):
        for names in itertools.combinations(counts, number):
            made = profiler("flops", space, x, **dict.fromkeys(names, True))
            assert made.profile({"layers": "on"}) == 64 * 27 + sum(counts[name] for name in names)
    assert profiler("params", space, x).profile({"layers": "on"}) == 4 * 27 + 4 + 8
    with raises("unknown settings of the profiler: bias", "count_bias, count_normalization, count_activation"):
        profiler("flops", space, x, bias=True)


def test_profiling_changes_nothing():
    space = NDS(["sep_conv_3x3"], num_nodes_per_cell=1, width=4, num_cells=3, dataset="cifar", drop_path_prob=0.5)
    registries = nni_shapes._shape_inference_formulas, nni_flops._flops_formula, nni_misc._leaf_registry
    before = [type(registry)(registry) for registry in registries]
    state = {name: value.clone() for name, value in space.state_dict().items()}
    noise = torch.get_rng_state()
    profiler("params", space, torch.ones(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), noise)
    assert [type(registry)(registry) for registry in registries] == before
    assert space.training
    assert all(torch.equal(value, state[name]) for name, value in space.state_dict().items())
    with pytest.raises(RuntimeError):
        profiler("params", space, torch.ones(1, 2, 8, 8))
    assert [type(registry)(registry) for registry in registries] == before


def test_what_cannot_be_profiled_is_refused():
    space, x = DARTS(4, 3, "cifar"), torch.zeros(1, 3, 8, 8)
    with raises("unknown kind of profiler 'macs'; known: flops, params, latency"):
        profiler("macs", space, x)
    with raises("latency of a whole Cell", "'flops' or 'params'"):
        profiler("latency", space, x, predictor="cortexA76cpu_tflite21")
    with raises("needs predictor=", "nn-meter --list-predictors"):
        profiler("latency", Mixed(), x)
    with raises("supernet already; make the profiler before the search"):
        profiler("flops", FairDARTS().mutate_model(space), x)
    try:
        import nn_meter  # noqa: F401
    except ImportError:
        with raises("needs nn-Meter, but", "is not installed", "pip install nn-meter onnx onnxsim"):
            profiler("latency", Mixed(), x, predictor="cortexA76cpu_tflite21")


def test_nn_meter_predicts_every_candidate():
    """With a predictor of our own: nn-Meter's are downloaded. It takes a network's nodes for its milliseconds."""
    pytest.importorskip("nn_meter")

    class Nodes:
        def predict(self, model, model_type):
            return float(len(model.graph.node))

    class Small(ModelSpace):
        def __init__(self):
            super().__init__()
            self.stem = MutableConv2d(3, 4, nni.choice("kernel", [1, 3]))
            layers = nn.ReLU(), nn.Conv2d(4, 4, 1)
            self.layers = LayerChoice({"two": nn.Sequential(*layers), "one": nn.ReLU()}, label="layers")

        def forward(self, x):
            return self.layers(self.stem(x))

    cost = ExpectedCost(profiler("latency", Small(), torch.zeros(1, 3, 4, 4), predictor=Nodes()).expression)
    weights = {"kernel": ((1, 3), torch.tensor([0.5, 0.5])), "layers": (("two", "one"), torch.tensor([0.5, 0.25]))}
    assert cost(weights).item() == 1 + 0.5 * 2 + 0.25 * 1


# -- penalty -----------------------------------------------------------------------------------------------------------

TWO = MutableExpression.switch_case(choice("op", "a", "b"), {"a": 30, "b": 90})


@pytest.mark.parametrize("nonlinear", ["linear", "positive", "negative", "absolute"])
@pytest.mark.parametrize("aggregate", ["add", "mul"])
@pytest.mark.parametrize("scale", [1.0, 0.07, -2.0])
def test_formulas_are_those_of_nni(nonlinear, aggregate, scale):
    values = {"profiler": Made(TWO), "baseline": 60, "scale": scale, "nonlinear": nonlinear, "aggregate": aggregate}
    theirs, ours = SampleProfilerPenalty(**values), ResourcePenalty.of(values)
    for op in ("a", "b"):
        loss = torch.tensor(1.7, dtype=DTYPE, requires_grad=True)
        expected, expected_details = theirs(loss, {"op": op})
        found, details = ours.forward(loss, one_hot(ours.cost, {"op": op}))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
        assert details.keys() == expected_details.keys()
        for name, value in details.items():
            assert not value.requires_grad
            torch.testing.assert_close(
                value.item(), float(torch.as_tensor(expected_details[name]).detach()), rtol=1e-14, atol=0
            )


def test_alpha_learns_by_the_closed_form():
    """d/dα of scale · (E / baseline - 1) with E = Σ σ(α_o) · cost_o: scale · cost_o / baseline · σ(1 - σ)."""
    penalty = ResourcePenalty(Made(TWO), baseline=40, scale=0.5)
    alpha = torch.tensor([0.3, -1.0], dtype=DTYPE, requires_grad=True)
    loss, _ = penalty.forward(torch.tensor(2.0, dtype=DTYPE), {"op": (("a", "b"), alpha.sigmoid())})
    loss.backward()
    g = alpha.detach().sigmoid()
    torch.testing.assert_close(alpha.grad, 0.5 * torch.tensor([30, 90]) / 40 * g * (1 - g), rtol=1e-12, atol=0)
    below = ResourcePenalty(Made(TWO), baseline=1000, nonlinear="positive")
    alpha.grad = None
    below.forward(torch.tensor(2.0, dtype=DTYPE), {"op": (("a", "b"), alpha.sigmoid())})[0].backward()
    assert alpha.grad.tolist() == [0, 0]


def test_a_penalty_comes_in_nni_s_forms():
    made = Made(TWO)
    theirs = ExpectationProfilerPenalty(made, 60, 0.3, nonlinear="absolute", aggregate="mul")
    ours = ResourcePenalty.of(theirs)
    names = ("profiler", "baseline", "scale", "nonlinear", "aggregate")
    assert [getattr(ours, name) for name in names] == [made, 60, 0.3, "absolute", "mul"]
    assert ResourcePenalty.of(ours) is ours
    defaults, nni_defaults = ResourcePenalty.of({"profiler": made, "baseline": 60}), SampleProfilerPenalty(made, 60)
    assert all(getattr(defaults, name) == getattr(nni_defaults, name) for name in names)


def test_bad_penalties_are_refused():
    made, x = Made(TWO), torch.zeros(1, 3, 8, 8)
    good = {"profiler": made, "baseline": 60}
    with raises("unknown penalty keys: weight", "known: profiler, baseline, scale, nonlinear, aggregate"):
        ResourcePenalty.of({**good, "weight": 1})
    with raises("the penalty lacks profiler and baseline"):
        ResourcePenalty.of({})
    with raises("must be a dict with profiler, baseline", "got SampleProfilerPenalty"):
        ResourcePenalty.of(SampleProfilerPenalty(made, 60))
    for baseline in (0, -5, float("nan"), "60", True):
        with raises("baseline must be more than 0, got"):
            ResourcePenalty.of({**good, "baseline": baseline})
    with raises("scale must be a finite number, got inf"):
        ResourcePenalty.of({**good, "scale": float("inf")})
    with raises("unknown nonlinear 'relu'", "known: linear, positive, negative, absolute"):
        ResourcePenalty.of({**good, "nonlinear": "relu"})
    with raises("unknown aggregate 'max'", "known: add, mul"):
        ResourcePenalty.of({**good, "aggregate": "max"})
    with raises("must be an ExpressionProfiler of NNI, got FlopsParamsProfiler", "use FlopsProfiler or NumParams"):
        ResourcePenalty.of({**good, "profiler": FlopsParamsProfiler(Mixed(), x)})
    with raises("got str", "nni_fairdarts.penalty.profiler('flops', space, inputs)"):
        ResourcePenalty.of({**good, "profiler": "flops"})
    with raises("the same for every architecture"):
        ResourcePenalty.of({**good, "profiler": Made(12.0)})


# -- in a search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_level", [False, True])
def test_alpha_gets_the_penalty_s_gradient_in_a_search(search, classification, choices, single_level):
    """The difference that the penalty makes to α.grad: scale / baseline · cost_o · σ(1 - σ), at α = 0 a quarter."""
    seen = []

    def look(optimizer, *args):
        if [p.shape for p in optimizer.param_groups[0]["params"]] == [(3,), (2,)]:
            seen.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])

    handle = register_optimizer_step_pre_hook(look)
    for scale in (0.0, 3.0):
        torch.manual_seed(0)
        space = choices()
        penalty = {"profiler": profiler("flops", space, torch.zeros(1, 3, 8, 8)), "baseline": 1000, "scale": scale}
        search(space, classification(), FairDARTS(penalty=penalty, single_level=single_level))
    handle.remove()
    without, penalized = seen
    costs = [64 * 4 * 4 * 9, 0, 0], [2 * 64 * 4 * 4, 2 * 64 * 4 * 4 * 9]
    for before, after, cost in zip(without, penalized, costs, strict=True):
        torch.testing.assert_close(after - before, 3.0 / 1000 * torch.tensor(cost) / 4, rtol=1e-5, atol=1e-5)


def test_a_penalty_of_another_space_is_refused(search, classification, choices):
    made = profiler("flops", Mixed(), torch.zeros(1, 3, 8, 8))
    with raises("that the supernet does not have", "The supernet's choices: first, second"):
        search(choices(), classification(), FairDARTS(penalty={"profiler": made, "baseline": 1000}))


class Layers(ModelSpace):
    """Three residual layers for digits, each a large convolution, a small one, both, or nothing."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        for number in range(3):
            candidates = {"large": self.layer(5), "small": self.layer(1), "none": Zero(1)}
            setattr(self, f"layer{number}", LayerChoice(candidates, label=f"layer{number}"))
        self.head = nn.Linear(8, 10)

    @staticmethod
    def layer(kernel):
        return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        x = self.stem(x)
        for layer in (self.layer0, self.layer1, self.layer2):
            x = x + layer(x)
        return self.head(x.mean((2, 3)))


def test_a_search_on_digits_ends_smaller_with_the_penalty(search, classification, quiet):
    data, found = load("digits"), []
    for scale in (0.0, 1.0):
        torch.manual_seed(0)
        space = Layers()
        weights, alpha, _ = search_loaders(data, 96, None)
        penalty = {"profiler": profiler("params", space, torch.zeros(1, 1, 8, 8)), "baseline": 5000, "scale": scale}
        evaluator = classification(weights, alpha, max_epochs=6, learning_rate=1e-2)
        experiment = search(space, evaluator, FairDARTS(arc_learning_rate=0.1, zero_one_weight=1.0, penalty=penalty))
        network = Layers().freeze(experiment.export_top_models(formatter="dict")[0])
        training, trainer = ImageTraining(10, learning_rate=0.05), Trainer(**{**quiet, "max_epochs": 12})
        train, test = retrain_loaders(data, 64, None)
        Lightning(training, trainer, train_dataloaders=train, val_dataloaders=test).evaluate(network)
        found.append((count_parameters(network), float(trainer.callback_metrics["val_acc"])))
    (size, accuracy), (smaller, penalized) = found
    print(f"digits: {size:,} parameters, {accuracy:.2%}; with the penalty {smaller:,}, {penalized:.2%}")
    assert smaller < size / 2
    assert accuracy > 0.9
    assert penalized > 0.25  # chance is 0.1
