"""What a record's gates come to: the edges that its cells keep, and those that dominate."""

import warnings

import numpy as np

from nni_fairdarts.discretize import Discretization, keep
from nni_fairdarts.edges import Edge
from nni_fairdarts.genotype import CELLS
from nni_fairdarts.recorded import Recorded

SKIP = "skip_connect"


def kept(recorded: Recorded, label: str) -> tuple[Edge, ...]:
    """The edges that the cells ``label`` keep: the genotype's or, without one, those of the last epoch's gates.

    Nothing for what is no kind of cell.
    """
    if recorded.genotype is not None and label in CELLS:
        return getattr(recorded.genotype, label)
    if label not in recorded.labels or not recorded.is_cell(label):
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it is the export that says so
        return _rule(recorded).cell(recorded.gates(label)[-1], recorded.operations(label), label=label)


def kept_in_choice(recorded: Recorded, label: str) -> set[str]:
    """What the choice ``label`` was derived with: candidates, inputs or values by name; nothing before the end."""
    sample = (recorded.result or {}).get("nni_sample", {})
    if label not in sample:
        return set()
    several = isinstance(sample[label], list) and str(sample[label]) not in recorded.operations(label)
    return {str(name) for name in (sample[label] if several else [sample[label]])}


def _rule(recorded: Recorded) -> Discretization:
    if recorded.config is None:
        return Discretization("darts") if recorded.softmax else Discretization()
    settings = recorded.config.search
    rule = settings.discretization if settings.strategy == "fairdarts" else "darts"  # the others know no other
    return Discretization(rule, recorded.threshold, settings.parts.max_skips)


def dominant_skips(recorded: Recorded, label: str) -> np.ndarray | None:
    """How many skip connections dominated after every epoch: (epochs,); None for what has none to offer.

    In a cell: among every node's two strongest edges, those whose strongest operation is skip_connect, whatever their
    gates. Of a choice: 1 where that is its strongest candidate. Source: Fair DARTS, arXiv 1911.12126, figure 1; taken
    of the edges that the rule darts keeps.
    """
    operations = recorded.operations(label)
    if SKIP not in operations:
        return None
    every = recorded.gates(label)
    if not recorded.is_cell(label):
        return (every[:, 0].argmax(1) == operations.index(SKIP)).astype(int)
    return np.array([sum(e.operation == SKIP for e in keep(gates, "darts", operations=operations)) for gates in every])
