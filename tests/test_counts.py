"""Counts of skip connections."""

import json
from pathlib import Path

import numpy as np
import pytest

from nni_fairdarts.counts import dominant_skips
from nni_fairdarts.edges import OPERATIONS
from nni_fairdarts.errors import InputError

GOLDEN = Path(__file__).parent / "golden"


def counted(gates):
    """The count written down as the paper says it, for one cell of 2 inputs."""
    gates, count, first, sources = np.asarray(gates), 0, 0, 2
    skip = OPERATIONS.index("skip_connect")
    while first < len(gates):
        edges = gates[first : first + sources]
        strongest = np.argsort(-edges.max(1), kind="stable")[:2]
        count += sum(edges[edge].argmax() == skip for edge in strongest)
        first, sources = first + sources, sources + 1
    return count


def test_dominant_skips_are_those_that_lead_a_nodes_two_strongest_edges():
    gates = np.full((5, 7), 0.3)
    gates[0, 2] = 0.4  # node 2: one leads, whatever the threshold
    gates[1, 3] = 0.9
    gates[2:, 2] = 0.5, 0.6, 0.7  # node 3: all three edges are skips, two of them count
    assert dominant_skips(gates) == 3
    gates[3, 0] = 0.6  # equal: the earlier operation leads
    assert dominant_skips(gates) == 2


def test_dominant_skips_of_many_epochs_are_counted_one_by_one():
    gates = np.random.default_rng(0).random((3, 5, 14, 7)) ** 2
    gates[..., 2] += 0.2 * (gates[..., 2] < 0.8)
    found = dominant_skips(gates)
    assert found.shape == (3, 5)
    assert found.tolist() == [[counted(cell) for cell in row] for row in gates]
    assert found.min() < found.max()
    assert dominant_skips(gates[0, 0][:, :2], OPERATIONS[:2]) == 0  # a space without them


def test_dominant_skips_of_published_searches_are_those_that_the_published_darts_rule_keeps():
    golden, found = json.loads((GOLDEN / "parse.json").read_text()), 0
    for case in golden["cases"]:
        for cell in ("normal", "reduce"):
            kept = [operation for operation, _ in case["darts"][cell]].count("skip_connect")
            assert dominant_skips(case[f"{cell}_gates"], golden["operations"]) == kept
            found += kept
    assert found


def test_gates_of_another_shape_are_refused():
    with pytest.raises(InputError, match="one row per edge, 2, 5, 9, 14"):
        dominant_skips(np.zeros((4, 7)))
