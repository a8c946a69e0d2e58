"""How decided a search's gates are, and which skip connections dominate, epoch by epoch."""

import numpy as np

from nni_fairdarts.counts import dominant_skips
from nni_fairdarts.errors import InputError
from nni_fairdarts.recorded import Recorded


def sigmoid_entropy(gates) -> np.ndarray:
    """Mean entropy of gates that are each on or off for themselves, in bits.

    H = mean of -(g log2 g + (1 - g) log2(1 - g)) over the last two dimensions of gates (..., edges, operations) in
    [0, 1]: in [0, 1], 0 where all gates are 0 or 1, 1 where all are one half. Returns (...). Raises InputError for
    other gates.
    """
    gates = _checked(gates)
    return (_terms(gates) + _terms(1 - gates)).mean((-2, -1)) / np.log(2)


def softmax_entropy(shares) -> np.ndarray:
    """Mean entropy of the edges' shares of a softmax, as a part of the largest there can be.

    H = mean over edges of -(Σ_o p_o log p_o) / log(number of operations), for shares (..., edges, operations), each
    edge's divided by their sum: NNI's cells have one more operation, "none", which is not among them. In [0, 1]: 0
    where every edge has one operation alone, 1 where all are equal. Of a single operation 0. Returns (...). Raises
    InputError for shares out of [0, 1], and for an edge that has none.
    """
    shares = _checked(shares)
    sums = shares.sum(-1, keepdims=True)
    if not (sums > 0).all():
        raise InputError("an edge's shares must have a sum over 0, got 0; pass softmax(alpha), not alpha")
    most = np.log(max(2, shares.shape[-1]))
    return _terms(shares / sums).sum(-1).mean(-1) / most


def entropy_by_epoch(recorded: Recorded) -> dict[str, np.ndarray]:
    """{label: entropy (epochs,)} of a search's gates, in [0, 1].

    ``softmax_entropy`` of a strategy with a softmax, and of a choice of one of many (a depth, a width);
    ``sigmoid_entropy`` of all other gates. The two mean different things: compare within a strategy.
    """
    found = {}
    for label in recorded.labels:
        gates = recorded.gates(label)
        entropy = softmax_entropy if recorded.softmax or _is_one_of_many(recorded, label) else sigmoid_entropy
        found[label] = entropy(gates)
    return found


def _is_one_of_many(recorded: Recorded, label: str) -> bool:
    """Whether a fairdarts label's gates are shares: a record does not say it. Candidates have names, values are none.

    Two chosen inputs whose gates sum to 1 all the time are taken for shares; of two both entropies are the same.
    """
    names = recorded.history[-1]["operations"][label]
    values = not any(isinstance(name, str) for name in names)
    return values and np.allclose(recorded.gates(label).sum(-1), 1, rtol=0, atol=1e-5)


def dominant_by_epoch(recorded: Recorded) -> dict[str, np.ndarray]:
    """{kind of cell: skip connections that dominate (epochs,)}; see ``nni_fairdarts.counts.dominant_skips``."""
    cells = [label for label in recorded.labels if recorded.is_cell(label)]
    return {label: dominant_skips(recorded.gates(label), recorded.operations(label)) for label in cells}


def _terms(p: np.ndarray) -> np.ndarray:
    """-p log p, 0 at 0."""
    return -p * np.log(np.where(p > 0, p, 1))


def _checked(gates) -> np.ndarray:
    gates = np.asarray(gates, dtype=float)
    if gates.ndim < 2 or not gates.size or not ((gates >= 0) & (gates <= 1)).all():
        raise InputError(
            "gates must be numbers in [0, 1] of the shape (..., edges, operations), got "
            + (f"{gates.min():.4g} to {gates.max():.4g}, of the shape " if gates.size else "")
            + f"{gates.shape}; pass sigmoid(alpha) or softmax(alpha), not alpha"
        )
    return gates
