import json
import random
import re
import warnings
from dataclasses import FrozenInstanceError, astuple
from pathlib import Path

import pytest
import torch
from reference import kept

from nni_fairdarts.discretize import RULES, Discretization, decided_share, discretize, keep, limit_skips, open_gates
from nni_fairdarts.edges import OPERATIONS, Edge
from nni_fairdarts.errors import InputError

PARSE = json.loads((Path(__file__).parent / "golden" / "parse.json").read_text())
LOW = [0.1] * 7


def matrix(rows=14, **high):
    """A matrix of low gates; r3_o2=0.9 sets row 3, operation 2."""
    gates = [list(LOW) for _ in range(rows)]
    for place, gate in high.items():
        row, op = re.findall(r"\d+", place)
        gates[int(row)][int(op)] = gate
    return gates


@pytest.mark.parametrize("cell", ["normal", "reduce"])
@pytest.mark.parametrize("case", PARSE["cases"])
def test_keeps_what_the_published_parser_keeps(case, cell):
    gates, threshold, operations = case[f"{cell}_gates"], case["threshold"], PARSE["operations"]
    darts = keep(gates, "darts", threshold, operations)
    assert [[e.operation, e.source] for e in darts] == case["darts"][cell]
    assert [e.node for e in darts] == [2, 2, 3, 3, 4, 4, 5, 5]
    for rule, key in (("sparse", "threshold_sparse"), ("edge", "threshold_edge")):
        assert [list(astuple(e)) for e in keep(gates, rule, threshold, operations)] == case[key][cell]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [2, 3, 10, 10**6])
def test_equals_the_naive_rules_also_with_ties(rule, levels):
    rng = random.Random(levels)
    for _ in range(200):
        inputs, nodes, width = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 7)
        shape = sum(range(inputs, inputs + nodes)), width
        gates = [[rng.randrange(levels) / (levels - 1) for _ in range(width)] for _ in range(shape[0])]
        threshold = gates[0][0] if 0 < gates[0][0] < 1 else 0.85
        operations = OPERATIONS[:width]
        found = keep(gates, rule, threshold, operations, inputs)
        assert [astuple(edge) for edge in found] == kept(gates, rule, threshold, operations, inputs)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("darts", [("max_pool_3x3", 2, 0), ("max_pool_3x3", 2, 1)]),
        ("sparse", [("max_pool_3x3", 2, 0), ("max_pool_3x3", 2, 1)]),
        ("edge", [(op, 2, source) for source in (0, 1) for op in ("dil_conv_3x3", "dil_conv_5x5")]),
    ],
)
def test_ties_at_the_threshold(rule, expected):
    assert [astuple(e) for e in keep([[0.85] * 7] * 14, rule)][: len(expected)] == expected


def test_a_gate_just_below_the_threshold_goes():
    assert keep(matrix(r0_o3=0.85, r1_o3=0.8499999)) == (Edge("sep_conv_3x3", 2, 0),)


@pytest.mark.parametrize(
    "wrap", [torch.tensor, lambda g: torch.tensor(g).numpy(), lambda g: [torch.tensor(r) for r in g]]
)
def test_takes_tensors_and_arrays(wrap):
    gates = PARSE["cases"][0]["normal_gates"]
    assert keep(wrap(gates)) == keep(gates)


@pytest.mark.parametrize("rule", RULES)
def test_discretize_both_cells(rule):
    case = PARSE["cases"][0]
    genotype = discretize(case["normal_gates"], case["reduce_gates"], rule)
    assert genotype.normal == keep(case["normal_gates"], rule)
    assert genotype.reduce == keep(case["reduce_gates"], rule)
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3, 4, 5)
    assert genotype.style == ("darts" if rule == "darts" else "fairdarts")


def test_concat_follows_each_matrix():
    genotype = discretize(matrix(20, r0_o0=0.9), matrix(5, r0_o0=0.9))
    assert (genotype.normal_concat, genotype.reduce_concat) == ((2, 3, 4, 5, 6), (2, 3))


@pytest.mark.parametrize("rule", ["sparse", "edge"])
@pytest.mark.parametrize(
    ("gates", "edge", "gate"),
    [
        (matrix(r6_o4=0.61), Edge("sep_conv_5x5", 4, 1), "0.61"),
        ([[0.5] * 7] * 14, Edge("max_pool_3x3", 2, 0), "0.5"),  # as at the start of a search
        (matrix(r1_o5=0.6, r2_o0=0.6), Edge("dil_conv_3x3", 2, 1), "0.6"),
        (matrix(r4_o2=0.99, r8_o2=0.95, r3_o1=0.3), Edge("avg_pool_3x3", 3, 1), "0.3"),  # 3 <- 2 alone is no path
    ],
)
def test_an_empty_cell_keeps_its_strongest_input(rule, gates, edge, gate):
    with pytest.warns(RuntimeWarning) as caught:
        genotype = discretize(matrix(r0_o0=0.9), gates, rule)
    assert genotype.reduce == (edge,)
    assert genotype.normal == (Edge("max_pool_3x3", 2, 0),)
    assert [str(w.message) for w in caught] == [
        f"reduce cell: rule {rule} with threshold 0.85 keeps nothing that is connected to the inputs; kept only the "
        f"strongest gate on an input, {gate} ({edge.node} <- {edge.operation}({edge.source})); "
        "lower the threshold to keep more"
    ]
    assert Path(caught[0].filename).name == "discretize.py"


def test_keep_alone_may_keep_nothing_and_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keep(matrix()) == ()
        assert len(Discretization("darts").cell(matrix())) == 8
        assert Discretization(threshold=0.5).cell(matrix(3, r2_o0=0.7), inputs=3) == (Edge("max_pool_3x3", 3, 2),)


def test_the_fallback_knows_the_number_of_inputs():
    with pytest.warns(RuntimeWarning, match="^chain cell: "):
        edges = Discretization().cell(matrix(3, r0_o1=0.2, r2_o0=0.7), inputs=1, label="chain")
    assert edges == (Edge("avg_pool_3x3", 1, 0),)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Discretization().threshold = 0.5


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, float("nan"), "high", None])
@pytest.mark.parametrize("call", [lambda t: Discretization("darts", t), lambda t: keep(matrix(), threshold=t)])
def test_threshold_error(call, threshold):
    message = f"threshold must be in (0, 1), got {threshold!r}; the paper uses 0.85"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(threshold)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "best"}, "unknown rule 'best'; known: darts, sparse, edge"),
        (
            {"gates": matrix(13)},
            "one row per edge, 2, 5, 9, 14, 20, ... rows for 1, 2, 3, 4, 5, ... nodes and 2 inputs; got 13",
        ),
        ({"gates": []}, "gates must have one row per edge"),
        ({"inputs": 3}, "3, 7, 12, 18, 25, ... rows for 1, 2, 3, 4, 5, ... nodes and 3 inputs; got 14"),
        ({"inputs": 0}, "inputs must be a whole number from 1, got 0; a DARTS cell has 2"),
        ({"gates": [LOW, LOW[:6]]}, "gates must have 7 columns, one per operation (max_pool_3x3, "),
        ({"gates": [LOW, LOW[:6]]}, "row 1 has 6"),
        ({"operations": ("a", "b")}, "gates must have 2 columns, one per operation (a, b); row 0 has 7"),
        ({"operations": ()}, "operations must name at least one operation, got none"),
        ({"gates": LOW}, "gates must be a matrix (edges, operations): a list of lists, an array or a tensor"),
        ({"gates": None}, "gates must be a matrix (edges, operations)"),
        ({"gates": matrix(r4_o1=1.2)}, "gates must be in [0, 1], got 1.2 in row 4; pass sigmoid(alpha), not alpha"),
        ({"gates": matrix(r0_o0=-0.1)}, "gates must be in [0, 1], got -0.1 in row 0"),
        ({"gates": matrix(r0_o0=float("nan"))}, "gates must be in [0, 1], got nan in row 0"),
        ({"gates": matrix(r0_o0=float("inf"))}, "gates must be in [0, 1], got inf in row 0"),
        ({"gates": matrix(r0_o0="x")}, "gates must be in [0, 1], got 'x' in row 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        keep(**{"gates": matrix(), **arguments})


def test_counts_of_gates():
    gates = [0.0, 0.0999, 0.1, 0.5, 0.9, 0.901, 1.0, 0.85]
    assert decided_share(gates) == decided_share(torch.tensor(gates, dtype=torch.float64)) == 4 / 8
    assert open_gates(iter(gates), 0.85) == 4
    assert open_gates(gates, 0.95) == 1
    assert open_gates([], 0.5) == 0
    with pytest.raises(InputError, match="^decided_share needs at least one gate, got none$"):
        decided_share([])


@pytest.mark.parametrize("rule", RULES)
def test_skip_connections_are_limited_by_their_strongest_alternatives(rule):
    """The weakest kept one is lowered first; where one stays, no other choice of so many would be stronger."""
    generator = random.Random(0)
    for _ in range(20):
        gates = [[generator.random() for _ in OPERATIONS] for _ in range(14)]
        for row in gates:
            row[OPERATIONS.index("skip_connect")] = generator.uniform(0.8, 1)
        free = [edge for edge in keep(gates, rule, 0.5) if edge.operation == "skip_connect"]
        for most in (0, 1, 2, 14):
            limited = limit_skips(gates, most, rule, 0.5)
            left = [edge for edge in keep(limited, rule, 0.5) if edge.operation == "skip_connect"]
            assert len(left) == min(most, len(free)) or (rule != "edge" and len(left) <= most)
            lowered = [row for row, (old, new) in enumerate(zip(gates, limited, strict=True)) if old != new]
            assert all(limited[row][OPERATIONS.index("skip_connect")] == 0 for row in lowered)
            settings = Discretization(rule, 0.5, max_skips=most)
            assert settings.kept(gates, label="normal") == keep(limited, rule, 0.5)
            assert settings.kept(gates, label="reduce") == keep(gates, rule, 0.5)
    with pytest.raises(InputError, match="max_skips must be 0 or more, or None for any number, got -1"):
        Discretization(rule, max_skips=-1)
