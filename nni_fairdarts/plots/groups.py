"""What a record's gates belong to, as figures show them: kinds of cells, and choices with the same candidates."""

from dataclasses import dataclass

import numpy as np

from nni_fairdarts.plots.colors import Look, looks
from nni_fairdarts.recorded import Recorded


@dataclass(frozen=True)
class Group:
    """Edges of a kind of cell, or choices, that have their operations in common.

    gates: (epochs, rows, operations). ``edges``: (node, source) of each row of a cell, nothing of choices.
    """

    rows: tuple[str, ...]
    operations: tuple[str, ...]
    gates: np.ndarray
    edges: tuple[tuple[int, int], ...] = ()


def sheets(recorded: Recorded) -> dict[str, tuple[Group, ...]]:
    """{a label of cells, or "choices" for all choices: its groups}, in the record's order."""
    found: dict[str, tuple[Group, ...]] = {}
    choices: dict[tuple[str, ...], list[str]] = {}
    for label in recorded.labels:
        operations = recorded.operations(label)
        if recorded.is_cell(label):
            edges = recorded.edges(label)
            rows = tuple(f"{source} → {node}" for node, source in edges)
            found[label] = (Group(rows, operations, recorded.gates(label), edges),)
        else:
            choices.setdefault(operations, []).append(label)
    if choices:
        found["choices"] = tuple(
            Group(tuple(labels), operations, np.concatenate([recorded.gates(label) for label in labels], axis=1))
            for operations, labels in choices.items()
        )
    return found


def looks_of(recorded: Recorded) -> dict[str, Look]:
    """The look of every operation of a record, the same in all of its figures."""
    return looks(name for label in recorded.labels for name in recorded.operations(label))


def title_of(label: str) -> str:
    """What a sheet shows, for its title."""
    if label == "choices":
        return "the choices"
    return f"the {'reduction' if label == 'reduce' else label} cell"
