"""The derivation of a finished search, once more and without searching."""

from pathlib import Path

import numpy as np

from nni_fairdarts import folder as run_folder
from nni_fairdarts.discretize import discretize
from nni_fairdarts.edges import OPERATIONS
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype


def derive(folder: Path, discretization: str | None = None, threshold: float | None = None) -> Genotype:
    """Derive a finished search once more, at another rule or threshold, without searching.

    ``folder`` is a run's, or any that holds ``normal_weight.npy`` and ``reduce_weight.npy`` (gates, 14 × 7, as the
    published code saves them). The run's own rule and threshold are the defaults. Raises InputError where it is
    neither.
    """
    rule, level = "sparse", 0.85
    if (folder / "config.yaml").is_file():
        settings = run_folder.run_of(folder).search
        rule, level = settings.discretization, settings.threshold
        last = run_folder.last_gates(folder)
        normal, reduce = last["gates"]["normal"], last["gates"]["reduce"]
        operations = tuple(last.get("operations", {}).get("normal", OPERATIONS))
    else:
        operations = OPERATIONS
        normal, reduce = (_published_gates(folder, f"{kind}_weight.npy") for kind in ("normal", "reduce"))
    level = level if threshold is None else threshold
    return discretize(normal, reduce, discretization or rule, level, operations)


def _published_gates(folder: Path, name: str):
    path = folder / name
    try:
        return np.load(path, allow_pickle=False).astype(float)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is neither a run folder (it has no config.yaml) nor one with normal_weight.npy and "
            "reduce_weight.npy"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read gates from {path}: {error}; it must be a NumPy array of numbers") from error
