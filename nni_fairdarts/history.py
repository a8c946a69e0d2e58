"""The history of a search: one JSON line per epoch, with every gate, and one line for people."""

import json
import os
from pathlib import Path

from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text


def epoch_line(record: dict, epochs: int | None) -> str:
    """One line about an epoch, for people."""
    parts = [f"epoch {record['epoch'] + 1}" + (f"/{epochs}" if epochs and epochs > 0 else "")]
    for key, value in record.items():
        if value is not None and (key.endswith("_loss") or key.startswith("val_")):
            parts.append(f"{key} {value:.4f}")
    if record.get("discretization_gap") is not None:
        parts.append(f"gap {record['discretization_gap']:.4f}")
    if record.get("expected_cost") is not None:
        parts.append(f"expected_cost {record['expected_cost']:,.0f}")
    skipped = {"α": record.get("skipped_alpha_steps"), "weights": record.get("skipped_weight_steps")}
    if any(skipped.values()):
        parts.append("skipped steps " + " ".join(f"{name} {count}" for name, count in skipped.items() if count))
    if record.get("gates_total"):
        parts.append(f"decided {record['decided_gates']:.1%}")
        parts.append(f"open {record['open_gates']}/{record['gates_total']}")
    skips = record.get("skip_connections")
    if skips:
        shown = skips if len(skips) <= 4 else {"all choices": sum(skips.values())}
        parts.append("skips " + " ".join(f"{label} {count}" for label, count in shown.items()))
    return "  ".join(parts)


def append_epoch(path: Path, record: dict) -> None:
    """Add an epoch to a history file; what a stopped run had written of this epoch or later is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    while lines and not _is_before(lines[-1], record["epoch"]):
        lines.pop()
    write_text(path, "\n".join([*lines, json.dumps(record)]) + "\n")


def _is_before(line: str, epoch: int) -> bool:
    try:
        return json.loads(line)["epoch"] < epoch
    except json.JSONDecodeError:  # cut short by a crash
        return False


def read_history(path: str | Path) -> list[dict]:
    """The epochs of a history file, oldest first; a last line cut short by a crash is left out.

    Raises InputError, naming the line, for any other that is no record of an epoch.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the history {path}: {error.strerror}; give the folder of a search") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode("utf-8"))
            if not isinstance(record, dict) or type(record.get("epoch")) is not int:
                raise ValueError("it has no whole number as its epoch")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"}"):
                break
            raise InputError(
                f"line {number} of the history {path} is no record of an epoch ({error}): the file is damaged, or of "
                "another program; remove what is behind the line before it, or take the file from a copy"
            ) from error
        records.append(record)
    return records


def forget_beginning(path: Path, checkpoints: Path) -> None:
    """Remove the history of a search that was stopped before its first checkpoint. Raises InputError for a longer one.

    ``checkpoints``: the folder that holds none, for the message.
    """
    if path.is_file():
        if len(read_history(path)) > 1:
            raise InputError(
                f"{path} has finished epochs, but {checkpoints} no checkpoint to go on from; derive from them "
                f"(nni-fairdarts derive {path.parent}), or search again under a new --name"
            )
        path.unlink()


def check_new(path: Path, resumed: bool) -> None:
    """Raise InputError, before training, where ``path`` is there already (if not resumed) or cannot be written."""
    if path.exists() and not resumed:
        raise InputError(f"the history file {path} exists already; give another, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"cannot write the history file {path}: its folder cannot be made or written to")


def beside_logs(trainer) -> Path | None:
    """The history file beside the logs of the trainer's first logger; None where it has no logger, or no folder."""
    if not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    if getattr(logger, "log_dir", None):
        return Path(logger.log_dir) / "history.jsonl"
    if not logger.save_dir:
        return None
    # As Lightning's checkpoints: a folder of the run's own, so that no other run's history is replaced.
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir) / str(logger.name) / version / "history.jsonl"
