"""What the architectures of several searches have in common, pair by pair."""

from collections.abc import Mapping, Sequence

import numpy as np

from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import CELLS, Genotype


def edge_agreement(genotypes: Sequence[Genotype]) -> dict[str, np.ndarray]:
    """How alike the cells of n genotypes are: {"normal", "reduce", "together": (n, n)}, in [0, 1].

    J(A, B) = |A ∩ B| / |A ∪ B| (Jaccard) of the edges (operation, node, source) as they are built, which leaves nodes
    without inputs out; 1 for two cells without edges. "together": of the edges of both kinds of cells in one set.
    """
    edges = [{kind: set(getattr(genotype.pruned(), kind)) for kind in CELLS} for genotype in genotypes]
    sets = {kind: [one[kind] for one in edges] for kind in CELLS}
    sets["together"] = [{(kind, edge) for kind in CELLS for edge in one[kind]} for one in edges]
    return {name: _pairwise(_jaccard, those) for name, those in sets.items()}


def choice_agreement(samples: Sequence[Mapping]) -> np.ndarray:
    """The share of choices that n samples of one space, {label: chosen}, have made alike: (n, n), in [0, 1].

    Of a list of chosen inputs or operations the order does not count. A label that only one of two has counts as
    different; of samples without any choice all is alike.
    """
    return _pairwise(_alike, samples)


def between_pairs(matrix: np.ndarray) -> np.ndarray:
    """The entries of a matrix (n, n) for two different ones, each pair once: (n (n - 1) / 2,).

    Raises InputError where there are no two.
    """
    if len(matrix) < 2:
        raise InputError(f"agreement is between two architectures or more, got {len(matrix)}; give several seeds")
    return np.asarray(matrix)[np.triu_indices(len(matrix), 1)]


def _pairwise(of, those: Sequence) -> np.ndarray:
    return np.array([[of(one, other) for other in those] for one in those], dtype=float).reshape(len(those), -1)


def _jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _alike(one: Mapping, other: Mapping) -> float:
    labels = one.keys() | other.keys()
    same = [label in one and label in other and _plain(one[label]) == _plain(other[label]) for label in labels]
    return sum(same) / len(same) if same else 1.0


def _plain(chosen):
    return sorted(map(repr, chosen)) if isinstance(chosen, list | tuple) else chosen
