"""Search, derivation and retraining as one run, and what came out of it."""

import shutil
from pathlib import Path

from nni_fairdarts.arguments import as_fields
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import is_readable
from nni_fairdarts.experiment.retraining import architecture_of, check_retraining, retrain
from nni_fairdarts.experiment.searching import Listener, resume, search
from nni_fairdarts.folder import read_json, resumable, run_of
from nni_fairdarts.genotype import Genotype


def run(config: RunConfig, listener: Listener | None = None, logs: Path | None = None) -> tuple[dict, dict]:
    """Search, derive and retrain; returns what both ``result.json`` hold.

    ``listener`` gets every epoch's record of the search; TensorBoard's events go to ``logs``/search and
    ``logs``/retrain, by default into the run's folder. Raises InputError, before anything is trained or written, for
    what does not fit the search or the retraining.
    """
    check_retraining(config)
    return search(config, listener, _part(logs, "search")), _retrained(config, logs)


def go_on(config: RunConfig, listener: Listener | None = None, logs: Path | None = None) -> tuple[dict, dict]:
    """``run``, from where an earlier one in the same folder was stopped.

    Raises InputError where that had other settings.
    """
    _check_same(config)
    finished, retraining = config.folder / "result.json", config.folder / "retrain"
    if finished.is_file():
        searched = read_json(finished, "supernet_accuracy", "skip_connections", "nni_sample", "seconds")
    elif resumable(config.folder) and config.search.strategy != "enas":  # see resume
        searched = resume(config.folder, listener, _part(logs, "search"))
    else:
        shutil.rmtree(config.folder, ignore_errors=True)  # no epoch was finished
        return run(config, listener, logs)
    if (retraining / "result.json").is_file():
        return searched, read_json(
            retraining / "result.json", "test_accuracy", "parameters", "multiply_adds", "seconds"
        )
    checkpoint = retraining / "checkpoints" / "last.ckpt"
    if not is_readable(checkpoint):
        shutil.rmtree(retraining, ignore_errors=True)
        checkpoint = None
    return searched, _retrained(config, logs, checkpoint)


def _check_same(config: RunConfig) -> None:
    """Raise InputError, naming what differs, where the run's folder holds one with other settings."""
    if not (config.folder / "config.yaml").is_file():
        return
    begun, now = (as_fields(each) for each in (run_of(config.folder), config))
    differing = [f"{name} ({begun[name]!r}, now {now[name]!r})" for name in now if begun[name] != now[name]]
    if differing:
        raise InputError(
            f"the run in {config.folder} was begun with other settings: {', '.join(differing)}; set them back to go on "
            "with it, or remove the folder to begin anew"
        )


def _retrained(config: RunConfig, logs: Path | None, checkpoint: Path | None = None) -> dict:
    """The retraining of what the run's search derived, from the beginning or from a checkpoint."""
    folder = config.folder / "retrain"
    return retrain(config, architecture_of(config.folder), folder, _part(logs, "retrain"), checkpoint)


def _part(logs: Path | None, name: str) -> Path | None:
    return None if logs is None else logs / name


def summary(searched: dict | None = None, retrained: dict | None = None) -> str:
    """What came out of a search, of a retraining, or of both, in a few lines."""
    lines = []
    if searched:
        lines.append(f"supernet accuracy   {searched['supernet_accuracy']:.2%} (validation)")
    if searched and "discretization_gap" in searched:
        lines.append(f"discretisation gap  {searched['discretization_gap']:.2%} (lost when gates are rounded)")
    if retrained:
        size = f"{retrained['parameters']:,} parameters, {retrained['multiply_adds']:,} multiply-adds"
        lines.append(f"derived accuracy    {retrained['test_accuracy']:.2%} (test), {size}")
    if searched and searched.get("decided_gates") is not None:
        lines.append(f"decided gates       {searched['decided_gates']:.1%} (under 0.1 or over 0.9)")
    result = searched or retrained
    if "genotype" in result:
        lines.append(str(Genotype.from_json(result["genotype"])))
    else:
        lines += [f"{label} = {choice}" for label, choice in result["nni_sample"].items()]
    lines.append(f"run folder          {result['folder']}")
    return "\n".join(lines)
