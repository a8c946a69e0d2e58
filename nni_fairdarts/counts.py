"""Counts of skip connections: of a genotype's, and the paper's count of those that dominate while searching."""

import numpy as np

from nni_fairdarts.discretize import keep
from nni_fairdarts.edges import OPERATIONS

SKIP = "skip_connect"


def dominant_skips(gates, operations=OPERATIONS) -> np.ndarray:
    """How many skip connections dominate a cell: those that lead one of a node's two strongest edges.

    gates: (..., edges, operations), in [0, 1], sigmoid gates or shares of a softmax, rows as ``discretize.keep`` takes
    them; (epochs, edges, operations), say. Returns whole numbers (...), each from 0 to twice the number of nodes. An
    edge is as strong as its largest gate, and that operation leads it; the threshold has no part in it. Equal gates:
    the lower source, the earlier operation. Raises InputError as ``keep`` does.
    Source: Fair DARTS, arXiv 1911.12126, figure 1.
    """
    gates = np.asarray(gates, dtype=float)
    cells = gates.reshape(-1, *gates.shape[-2:])
    found = [sum(edge.operation == SKIP for edge in keep(cell, "darts", operations=operations)) for cell in cells]
    return np.array(found, dtype=int).reshape(gates.shape[:-2])
