"""What an interrupted search or retraining may go on with."""

import warnings
from pathlib import Path

from nni_fairdarts.arguments import as_fields
from nni_fairdarts.checkpoints import KEY, newest, read
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError

HARMLESS = ("data.root", "data.download", "checkpoint_steps", "figure_epochs")
"""Fields that may change on the way and change no number."""

ROUNDING = ("threads", "device", "deterministic", "data.workers")
"""Fields that may change, and numbers with them: in their last digits, or as other random numbers would."""

OTHERS = {"search": "retrain.", "retrain": "search."}
"""What the fields of the stage that is not gone on with begin with."""


def check_changes(stage: str, begun: dict, now: RunConfig, where: Path) -> None:
    """Raise InputError, naming what differs, where fields that may not change are others than those of ``begun``.

    ``stage``: "search" or "retrain", of which there may be more epochs; the other stage's fields may change at will.
    ``begun``: the fields by their dotted names. ``where``: what they are from, for the message.
    """
    differing, rounding = [], []
    for name, value in as_fields(now).items():
        if name not in begun or _plain(begun[name]) == _plain(value):  # not there: newer than the run
            continue
        if name.startswith(OTHERS[stage]) or name in HARMLESS:
            continue
        if name in ROUNDING:
            rounding.append(name)
        elif name != f"{stage}.epochs" or value < begun[name]:
            differing.append(f"{name} ({begun[name]!r}, now {value!r})")
    if differing:
        raise InputError(
            f"{where} was begun with other settings: {', '.join(differing)}; set them back to go on with it (more "
            f"{stage}.epochs would do), or begin anew under another --name"
        )
    if rounding:
        warnings.warn(
            f"{', '.join(rounding)} changed: the numbers will not be those of an uninterrupted run, bit for bit",
            RuntimeWarning,
            stacklevel=2,
        )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def last_checkpoint(stage: str, config: RunConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from; None where none was saved yet. Raises InputError where ``config`` does not fit."""
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is not None:
        check_changes(stage, carried(checkpoint).get("config", {}), config, checkpoint)
    return checkpoint


def carried(checkpoint: Path) -> dict:
    """What this package keeps in a checkpoint beside Lightning's."""
    return read(checkpoint).get(KEY, {})


def set_aside(folder: Path, epochs: int) -> None:
    """Move what a finished search of ``epochs`` came to, its retraining too, into a folder of its own."""
    aside = folder / f"after-{epochs}-epochs"
    aside.mkdir(exist_ok=True)
    # The result last: without it the search counts as unfinished, and what was moved would be missed.
    for name in ("retrain", "genotype.json", "sample.json", "normal_weight.npy", "reduce_weight.npy", "result.json"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
