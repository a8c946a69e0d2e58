"""The derivation of a finished search, once more and without searching."""

from pathlib import Path

import numpy as np

from nni_fairdarts import folder as run_folder
from nni_fairdarts.discretize import Discretization, discretize
from nni_fairdarts.edges import OPERATIONS
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype


def derive(folder: Path, discretization: str | None = None, threshold: float | None = None) -> Genotype:
    """Derive a finished search once more, at another rule or threshold, without searching.

    ``folder`` is a run's, or any that holds ``normal_weight.npy`` and ``reduce_weight.npy`` (gates, 14 × 7, as the
    published code saves them). The run's own rule and threshold are the defaults. Raises InputError where it is
    neither.
    """
    rule, level, most = "sparse", 0.85, None
    if (folder / "config.yaml").is_file():
        settings = run_folder.run_of(folder).search
        rule = settings.discretization if settings.strategy == "fairdarts" else "darts"
        level, most = settings.threshold, settings.parts.max_skips
        last = run_folder.derived_gates(folder)
        normal, reduce = last["gates"]["normal"], last["gates"]["reduce"]
        operations = tuple(last.get("operations", {}).get("normal", OPERATIONS))
        where = folder / "history.jsonl"
    else:
        operations, where = OPERATIONS, folder
        normal, reduce = (_published_gates(folder, f"{kind}_weight.npy") for kind in ("normal", "reduce"))
    settings = Discretization(discretization or rule, level if threshold is None else threshold)
    try:
        return discretize(normal, reduce, settings.rule, settings.threshold, operations, most)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _published_gates(folder: Path, name: str):
    path = folder / name
    try:
        gates = np.load(path, allow_pickle=False)
        if not isinstance(gates, np.ndarray) or gates.dtype.kind not in "fiu":
            raise ValueError(f"got {getattr(gates, 'dtype', type(gates).__name__)}")
        return gates.astype(float)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is neither a run folder (it has no config.yaml) nor one with normal_weight.npy and "
            "reduce_weight.npy"
        ) from error
    except Exception as error:  # NumPy raises many kinds for broken files
        raise InputError(f"cannot read gates from {path}: {error}; it must be a NumPy array of numbers") from error
