"""What a search has left behind, for figures, reports and analysis: its history, settings and results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from nni_fairdarts.config import OURS, RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.folder import read_json, run_of
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.history import read_history


@dataclass(frozen=True)
class Recorded:
    """A search, finished or not, as its files tell it. ``history``: one record per epoch, never empty.

    ``config`` is None for a search of a Python user's, of which there is only a history. ``genotype``: None for a
    space that is not of cells, and before the search is finished; ``result`` and ``retrained``: the contents of the
    ``result.json`` of the search and of its retraining, None before they are finished.
    """

    name: str
    history: tuple[dict, ...]
    folder: Path | None = None
    config: RunConfig | None = None
    genotype: Genotype | None = None
    result: dict | None = None
    retrained: dict | None = None
    environment: dict = field(default_factory=dict)

    @property
    def strategy(self) -> str:
        return "fairdarts" if self.config is None else self.config.search.strategy

    @property
    def threshold(self) -> float:
        """The gate from which an operation counts as kept; the paper's where no configuration says another."""
        return 0.85 if self.config is None else self.config.search.threshold

    @property
    def softmax(self) -> bool:
        """Whether a choice's gates share 1 among them (built-in DARTS and its kin), or each has its own sigmoid."""
        if self.config is None or self.strategy not in OURS:
            return self.strategy != "fairdarts"
        relaxation = self.config.search.parts.relaxation
        return self.strategy != "fairdarts" if relaxation is None else relaxation != "sigmoid"

    @cached_property
    def epochs(self) -> np.ndarray:
        """Numbers of the recorded epochs, from 1: (epochs,)."""
        return np.array([record["epoch"] + 1 for record in self.history])

    @property
    def stage_begins(self) -> tuple[int, ...]:
        """The first epoch, from 1, of each stage of a search but the first; nothing of a search without stages."""
        stages = [record.get("stage", 1) for record in self.history]
        return tuple(int(self.epochs[k]) for k in range(1, len(stages)) if stages[k] != stages[k - 1])

    @property
    def derived_epoch(self) -> int:
        """The epoch, from 1, whose architecture is derived: the last one, or what early stopping has chosen."""
        return (self.result or {}).get("derived_epoch", int(self.epochs[-1]))

    @property
    def by_strength(self) -> bool:
        """Whether operations were kept by their strength, not by their gates."""
        return "strengths" in (self.result or {})

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of what has gates: kinds of cells ("normal", "reduce") and choices; none of a random search."""
        return tuple(self.history[-1].get("gates", {}))

    def is_cell(self, label: str) -> bool:
        """Whether ``label`` is a kind of cell, with edges, or a single choice."""
        return np.ndim(self.history[-1]["gates"][label][0]) == 1

    def operations(self, label: str) -> tuple[str, ...]:
        """Names of what the gates of ``label`` stand for, in their order: operations, inputs, widths or depths."""
        return tuple(str(name) for name in self.history[-1]["operations"][label])

    def edges(self, label: str) -> tuple[tuple[int, int], ...]:
        """(node, source) of every edge of a kind of cell, in the order of its gates; of a choice nothing."""
        if not self.is_cell(label):
            return ()
        count, edges, node = len(self.history[-1]["gates"][label]), [], 2
        while len(edges) < count:
            edges += [(node, source) for source in range(node)]
            node += 1
        return tuple(edges)

    def gates(self, label: str) -> np.ndarray:
        """The gates of ``label`` behind every epoch: (epochs, edges, operations); a choice has one edge."""
        values = np.array([record["gates"][label] for record in self.history], dtype=float)
        return values.reshape(len(self.history), -1, values.shape[-1])

    def series(self, key: str) -> np.ndarray:
        """An entry of every epoch's record: (epochs,), NaN where an epoch has none, or what is no number."""
        return np.array([_number(record.get(key)) for record in self.history])


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def read_recorded(path: Path) -> Recorded:
    """Read a run's folder, or a history file, or the folder of one.

    Raises InputError where nothing is there, no epoch is finished, or a file is damaged.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    file = path if path.is_file() else folder / "history.jsonl"
    if not file.is_file():
        raise InputError(f"there is no history.jsonl in {path}; give the folder of a search, such as runs/NAME")
    history = tuple(read_history(file))
    if not history:
        raise InputError(f"{file} holds no finished epoch, so there is nothing to show; let the search run")
    _check(history, file)
    config = run_of(folder) if (folder / "config.yaml").is_file() else None
    whole = {key: _json(folder / name) for key, name in FILES.items()}
    genotype = folder / "genotype.json"
    return Recorded(
        name=folder.resolve().name,
        history=history,
        folder=folder,
        config=config,
        genotype=Genotype.load(genotype) if genotype.is_file() else None,
        result=whole["result"],
        retrained=whole["retrained"],
        environment=whole["environment"] or {},
    )


FILES = {"result": "result.json", "retrained": "retrain/result.json", "environment": "environment.json"}


def _json(path: Path) -> dict | None:
    return read_json(path) if path.is_file() else None


def _check(history: tuple[dict, ...], file: Path) -> None:
    """Raise InputError for gates whose shape is not that of all epochs, or that are none."""
    shapes = None
    for number, record in enumerate(history, 1):
        try:
            gates, operations = record.get("gates", {}), record.get("operations", {})
            here = {label: np.array(values, dtype=float).shape for label, values in gates.items()}
            fits = all(0 < len(shape) < 3 and shape[-1] == len(operations[label]) for label, shape in here.items())
            if not fits or here != (shapes or here):
                raise ValueError("others than in the first line" if fits else "not one for every operation")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"line {number} of {file} has gates that cannot be read ({error}): the file is damaged, or of "
                "another program; take it from a copy"
            ) from error
        shapes = here
