"""A run's folder: ``config.yaml``, ``history.jsonl``, ``checkpoints/``, ``tensorboard/``, genotype and result."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from nni_fairdarts.arguments import read_config
from nni_fairdarts.config import RunConfig, to_yaml
from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text
from nni_fairdarts.history import read_history
from nni_fairdarts.launched import launched_rank


def create(folder: Path) -> Path:
    """Make a new, empty ``folder``. Raises InputError where something is there or it cannot be made."""
    # Hidden files: what was being written when a process was killed before it had written anything else.
    # os, not Path: those raise where a name is too long, or a parent folder may not be entered.
    if os.path.lexists(folder) and not (
        os.path.isdir(folder) and all(name.startswith(".") for name in os.listdir(folder))
    ):
        hint = "give another --name (in a run: another --into)"
        if command := going_on(folder):
            hint += f", or go on with it: {command}"
        raise InputError(f"{folder} exists already, and a run is never overwritten; {hint}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}; choose a place that you may write to with --runs"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {folder}: permission denied; choose another place with --runs")
    return folder


def unfinished(folder: Path) -> bool:
    """Whether ``folder`` holds a search or a retraining that was stopped: it can be gone on with."""
    return (folder / "config.yaml").is_file() and not (folder / "result.json").exists()


def going_on(folder: Path) -> str | None:
    """The command that goes on with what was stopped in ``folder``; None where nothing was."""
    if not unfinished(folder):
        return None
    return f"nni-fairdarts {'retrain' if is_retraining(folder) else 'search'} --resume {folder}"


def is_retraining(folder: Path) -> bool:
    """Whether ``folder`` holds a retraining: it has its architecture from the beginning, and no history."""
    derived = (folder / "genotype.json").exists() or (folder / "sample.json").exists()
    return derived and not (folder / "history.jsonl").exists()


def retraining_in(folder: Path) -> Path:
    """The retraining's folder: ``folder`` where it is one, else RUN/retrain, which may not be there."""
    return folder if is_retraining(folder) else folder / "retrain"


def trained_config(folder: Path) -> RunConfig:
    """The configuration that the network in ``folder``, a run's or a retraining's, was trained with.

    The run's where it has not been retrained. Raises InputError where ``folder`` is neither.
    """
    retraining = retraining_in(folder)
    return run_of(retraining if (retraining / "config.yaml").is_file() else folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, this process alone works in ``folder``. Raises InputError where another one does."""
    if fcntl is None or launched_rank() != 0:  # another process of the same training
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process is at work in {folder}; wait for it, or stop it") from None
        _held.add(held)
        yield
    finally:
        _held.discard(held)
        os.close(held)


_held: set[int] = set()


def _let_go() -> None:
    """In a loader's worker: it could outlive its parent, and would keep the folder locked."""
    for lock in _held:
        os.close(lock)


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


def write_config(folder: Path, config: RunConfig) -> None:
    """Write the run's ``config.yaml``."""
    write_text(folder / "config.yaml", to_yaml(config))


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` as readable JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, *keys: str) -> dict:
    """What ``write_json`` wrote, with all of ``keys``. Raises InputError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}; the run is not finished, or the file is damaged") from error
    return content


def run_of(folder: Path) -> RunConfig:
    """The configuration of an existing run. Raises InputError where ``folder`` is none."""
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}; give the folder of a search, such as runs/NAME")
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} is no run folder: it has no config.yaml; give the folder of a search, such as runs/NAME"
        )
    return read_config(folder / "config.yaml")


def last_epoch(folder: Path) -> dict:
    """The last epoch of a run's history. Raises InputError where no epoch was finished."""
    path = folder / "history.jsonl"
    records = read_history(path) if path.exists() else []
    if not records:
        raise InputError(f"{path} holds no finished epoch, so there are no gates to derive from; let the search run")
    return records[-1]


def derived_gates(folder: Path) -> dict:
    """The epoch of a run's history that it derives from, with gates of cells: the last, or what early stopping chose.

    Where operations were kept by their strength, that is in the place of their gates. Raises InputError where there are
    no gates.
    """
    last = last_epoch(folder)
    result = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
    if "derived_epoch" in result:
        records = {record["epoch"] + 1: record for record in read_history(folder / "history.jsonl")}
        last = records.get(result["derived_epoch"], last)
    if "strengths" in result:
        last = {**last, "gates": result["strengths"]}
    gates, operations = last.get("gates"), last.get("operations", {})
    named = isinstance(operations, dict) and all(isinstance(names, list) for names in operations.values())
    if not (named and isinstance(gates, dict) and {"normal", "reduce"} <= gates.keys()):
        chosen = folder / "sample.json"
        hint = f"; what it chose is in {chosen}" if chosen.is_file() else ""
        raise InputError(
            f"the last line of {folder / 'history.jsonl'} has no gates of a normal and a reduce cell: the search "
            f"was of another space or by a strategy without gates, or the file is damaged{hint}"
        )
    return last
