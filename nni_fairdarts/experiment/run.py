"""Search, derivation and retraining as one run, and what came out of it."""

import shutil
from pathlib import Path

from nni_fairdarts.arguments import as_fields
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.resuming import check_changes
from nni_fairdarts.experiment.retraining import architecture_of, check_retraining, resume_retraining, retrain
from nni_fairdarts.experiment.searching import Listener, resume, search
from nni_fairdarts.folder import read_json, run_of, unfinished, write_config
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.launched import launched_rank
from nni_fairdarts.metrics import word, written
from nni_fairdarts.stopping import stoppable

SEARCHED = ("supernet_accuracy", "skip_connections", "nni_sample", "seconds")
RETRAINED = ("test_accuracy", "parameters", "multiply_adds", "seconds")
"""What is needed of a search's and of a retraining's result."""


def run(config: RunConfig, listener: Listener | None = None, logs: Path | None = None) -> tuple[dict, dict]:
    """Search, derive and retrain; returns what both ``result.json`` hold.

    ``listener`` gets every epoch's record of the search; TensorBoard's events go to ``logs``/search and
    ``logs``/retrain, by default into the run's folder. Raises InputError, before anything is trained or written, for
    what does not fit the search or the retraining.
    """
    check_retraining(config)
    with stoppable():
        return search(config, listener, _part(logs, "search")), _retrained(config, logs)


def go_on(config: RunConfig, listener: Listener | None = None, logs: Path | None = None) -> tuple[dict, dict]:
    """``run``, from where an earlier one in the same folder was stopped; from the beginning where none was begun.

    Raises InputError, naming what differs, where that had settings that may not change.
    """
    if not (config.folder / "config.yaml").is_file():
        return run(config, listener, logs)
    begun, retraining = run_of(config.folder), config.folder / "retrain"
    check_changes("search", as_fields(begun), config, config.folder)
    with stoppable():
        if unfinished(config.folder) or config.search.epochs > begun.search.epochs:
            searched = resume(config.folder, config, listener, _part(logs, "search"))
        else:
            _check_retrained(retraining, config)
            searched = read_json(config.folder / "result.json", *SEARCHED)
            if launched_rank() == 0:
                write_config(config.folder, config)
        if (retraining / "result.json").is_file():
            return searched, read_json(retraining / "result.json", *RETRAINED)
        if (retraining / "config.yaml").is_file():
            return searched, resume_retraining(retraining, config, _part(logs, "retrain"))
        if launched_rank() == 0:
            shutil.rmtree(retraining, ignore_errors=True)  # stopped before anything of it was begun
        return searched, _retrained(config, logs)


def _check_retrained(folder: Path, config: RunConfig) -> None:
    """Raise InputError where the retraining in ``folder``, if there is one, cannot become that of ``config``."""
    if (folder / "config.yaml").is_file():
        begun = run_of(folder)
        check_changes("retrain", as_fields(begun), config, folder)
        if not unfinished(folder) and config.retrain.epochs > begun.retrain.epochs:
            raise InputError(f"the retraining in {folder} is finished; retrain into another folder (retrain --into)")


def _retrained(config: RunConfig, logs: Path | None) -> dict:
    """The retraining of what the run's search derived."""
    folder = config.folder / "retrain"
    return retrain(config, architecture_of(config.folder), folder, _part(logs, "retrain"))


def _part(logs: Path | None, name: str) -> Path | None:
    return None if logs is None else logs / name


def summary(searched: dict | None = None, retrained: dict | None = None) -> str:
    """What came out of a search, of a retraining, or of both, in a few lines."""
    lines = []
    metric = (searched or retrained).get("metric")
    if searched:
        name, score = f"supernet {word(metric)}", written(searched["supernet_accuracy"], metric)
        lines.append(f"{name:<18}  {score} (validation)")
    if searched and "discretization_gap" in searched:
        gap = written(searched["discretization_gap"], metric)
        lines.append(f"discretisation gap  {gap} (lost when gates are rounded)")
    if retrained:
        size = f"{retrained['parameters']:,} parameters, {retrained['multiply_adds']:,} multiply-adds"
        name, score = f"derived {word(metric)}", written(retrained["test_accuracy"], metric)
        lines.append(f"{name:<18}  {score} (test), {size}")
    if searched and searched.get("decided_gates") is not None:
        lines.append(f"decided gates       {searched['decided_gates']:.1%} (under 0.1 or over 0.9)")
    result = searched or retrained
    if "genotype" in result:
        lines.append(str(Genotype.from_json(result["genotype"])))
    else:
        lines += [f"{label} = {choice}" for label, choice in result["nni_sample"].items()]
    lines.append(f"run folder          {result['folder']}")
    return "\n".join(lines)
