"""A run's folder: ``config.yaml``, ``history.jsonl``, ``checkpoints/``, ``tensorboard/``, genotype and result."""

import json
import os
from pathlib import Path

from nni_fairdarts.arguments import read_config
from nni_fairdarts.config import RunConfig, to_yaml
from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text
from nni_fairdarts.history import read_history


def create(folder: Path) -> Path:
    """Make a new, empty ``folder``. Raises InputError where something is there or it cannot be made."""
    # os, not Path: those raise where a name is too long, or a parent folder may not be entered.
    if os.path.lexists(folder) and (not os.path.isdir(folder) or any(folder.iterdir())):
        hint = "give another --name (in a run: another --into)"
        if resumable(folder):
            hint += f", or go on with it: nni-fairdarts search --resume {folder}"
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


def resumable(folder: Path) -> bool:
    """Whether ``folder`` holds a search that was stopped and can be gone on with."""
    return (
        (folder / "checkpoints" / "last.ckpt").is_file()
        and (folder / "history.jsonl").is_file()
        and not (folder / "result.json").exists()
    )


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


def last_gates(folder: Path) -> dict:
    """The last epoch of a run's history, with gates of cells. Raises InputError where it has none."""
    last = last_epoch(folder)
    gates, operations = last.get("gates"), last.get("operations", {})
    named = isinstance(operations, dict) and all(isinstance(names, list) for names in operations.values())
    if not (named and isinstance(gates, dict) and {"normal", "reduce"} <= gates.keys()):
        raise InputError(
            f"the last line of {folder / 'history.jsonl'} has no gates of a normal and a reduce cell: the search "
            "was of another space or by a strategy without gates, or the file is damaged"
        )
    return last
