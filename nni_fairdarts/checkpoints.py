"""Checkpoints that a training goes on from exactly: written whole, the last two kept, damaged ones passed over."""

import math
import os
import re
import time
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loops.loop import _Loop

from nni_fairdarts.errors import InputError, SaveError
from nni_fairdarts.randomness import Place, random_state, set_random_state
from nni_fairdarts.stopping import Stopped, requested, take_over

KEY = "nni_fairdarts"
"""Under this key a checkpoint has what this package needs beside Lightning's."""

_PARTS = {"random", "seed", "epoch", "batches", "batches_per_epoch", "stopping", "plateaus_wait", "seconds", "metrics"}
KEPT = 2
_NAME = re.compile(r"epoch(\d+)-step(\d+)\.ckpt")


class Checkpoints(Checkpoint):
    """Saves a training behind every epoch, every so many steps, and when it is asked to stop; goes on from there.

    What a checkpoint has beside Lightning's: the random states of all processes, the place in the data, metrics,
    seconds and ``carried``. On a CPU a training that goes on from one ends with the numbers of one that was never
    interrupted, bit for bit.

    Parameters
    ----------
    place
        Of the ``SeededLoaders`` that the training draws from.
    folder
        Where ``epoch003-step00000120.ckpt`` and the one before it are kept; None saves nothing, and what others save
        can be gone on from.
    every_n_steps
        Saves within epochs too; 0 for not.
    carried
        Plain values that every checkpoint carries: the configuration, versions.
    """

    def __init__(self, place: Place, folder: Path | None = None, every_n_steps: int = 0, carried: Mapping = {}):
        self.place = place
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.carried = dict(carried)
        self.seconds = 0.0  # of training, those of earlier lives included
        self._running_since: float | None = None
        self.last_model_path = ""  # NNI, and the message about a loss that is no number, look for it here
        self._resumed: dict | None = None
        self._within_epoch = False

    # -- going on ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        # Lightning's hyper-parameters are for load_from_checkpoint; classes among them would make the file unreadable.
        for name in ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_name"):
            checkpoint.pop(name, None)
        for name in ("optimizer_states", "lr_schedulers", "callbacks"):
            checkpoint[name] = _plain(checkpoint.get(name, []))
        within = trainer.fit_loop.epoch_loop.batch_progress.current.ready if self._within_epoch else 0
        checkpoint[KEY] = {
            **self.carried,
            "random": _of_all_processes(random_state()),
            "seed": self.place.seed,
            "epoch": trainer.current_epoch + (not within),
            "batches": within,
            "batches_per_epoch": trainer.num_training_batches,
            "stopping": trainer.should_stop,
            "plateaus_wait": pl_module.automatic_optimization and not within,
            "seconds": self.seconds + time.perf_counter() - self._running_since,
            "metrics": numbers(trainer),
        }

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        if trainer.state.fn != "fit" or KEY not in checkpoint:  # a checkpoint of another program has no random states
            return
        self._resumed = checkpoint[KEY]
        self.seconds = self._resumed["seconds"]
        self.place.seed, self.place.epoch, self.place.batches = (
            self._resumed[name] for name in ("seed", "epoch", "batches")
        )
        # Lightning cannot know that ``SeededLoaders`` pass over the batches that there were.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
        trainer.should_stop = self._resumed["stopping"]  # EarlyStopping's word, of which Lightning keeps nothing

    def on_train_start(self, trainer, pl_module):
        take_over()
        if self._resumed is None:
            return
        if (earlier := self._resumed["batches_per_epoch"]) != trainer.num_training_batches:
            raise InputError(
                f"the checkpoint is of a training with {earlier} batches an epoch, but the loaders give "
                f"{trainer.num_training_batches}; set data and batch size back to go on with it, or begin anew"
            )
        if self._resumed["batches"]:
            pl_module.on_train_epoch_start()  # Lightning leaves it out where it goes on within an epoch
        elif trainer.max_steps != -1:
            _behind_the_epoch(trainer.fit_loop)
        if self._resumed["plateaus_wait"]:
            self._step_plateaus(trainer, pl_module)
        self._bring_back(trainer)

    def _step_plateaus(self, trainer, pl_module) -> None:
        """Step the schedules that wait for a metric: Lightning does so behind the checkpoint of the epoch's end."""
        for config in trainer.lr_scheduler_configs:
            due = config.interval == "epoch" and self._resumed["epoch"] % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in self._resumed["metrics"]:
                pl_module.lr_scheduler_step(config.scheduler, self._resumed["metrics"][config.monitor])

    def on_train_epoch_start(self, trainer, pl_module):
        self.place.epoch = trainer.current_epoch

    def on_fit_end(self, trainer, pl_module):
        self._bring_back(trainer)  # where nothing was left to be trained
        self.seconds += time.perf_counter() - self._running_since

    def _bring_back(self, trainer) -> None:
        """The random states, behind all that is built anew, loaders and optimizers, and may have drawn."""
        if self._resumed is None:
            return
        states, self._resumed = self._resumed["random"], None
        if len(states) != trainer.world_size:
            warnings.warn(
                f"the checkpoint is of {len(states)} processes and is gone on with by {trainer.world_size}: random "
                "numbers will be others than without the interruption",
                RuntimeWarning,
                stacklevel=1,
            )
        if trainer.global_rank < len(states):
            set_random_state(states[trainer.global_rank])

    # -- saving -----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer, pl_module):
        self._running_since = time.perf_counter()
        if self.folder is not None and trainer.is_global_zero:
            with suppress(OSError):  # a folder that cannot be read is said when something is to be saved
                for left in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                    left.unlink()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if self.folder is None or progress.is_last_batch or progress.current.ready == trainer.num_training_batches:
            return  # behind the last batch the epoch's own checkpoint is next
        if progress.current.ready % trainer.accumulate_grad_batches or _validates(trainer, progress.current.ready):
            return  # a checkpoint has no gradients, and not that a validation is due
        signum = _agreed(trainer, requested())
        if signum or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._within_epoch = True
            try:
                self._save(trainer)
            finally:
                self._within_epoch = False
        if signum:
            raise Stopped(signum, self.last_model_path)

    def on_train_epoch_end(self, trainer, pl_module):
        # Lightning calls a Checkpoint's behind the module's own: an epoch in the checkpoint is in the history too.
        if self.folder is None:
            return
        self._save(trainer)
        if signum := _agreed(trainer, requested()):
            raise Stopped(signum, self.last_model_path)

    def _save(self, trainer: pl.Trainer) -> None:
        path = self.folder / f"epoch{trainer.current_epoch:03d}-step{trainer.global_step:08d}.ckpt"
        temporary = self.folder / f".{path.name}.tmp"
        try:
            if trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                self._prove(temporary)
                _settle(temporary, path)
                for old in saved(self.folder)[KEPT:]:
                    old.unlink()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise SaveError.of(path, error, self.last_model_path) from error
        self.last_model_path = str(path)

    def _prove(self, path: Path) -> None:
        """Raise InputError where the first checkpoint of a training could not be read again."""
        if not self.last_model_path:
            try:
                read(path)
            except InputError as error:
                path.unlink()
                raise InputError(
                    f"this training cannot be saved, for its checkpoint could not be read again: {error}. Keep to "
                    "numbers, strings, tensors, lists and dicts in what on_save_checkpoint, callbacks, optimizers and "
                    "schedules keep"
                ) from error


def _plain(value):
    """``value`` with Python's numbers in the place of numpy's, which are not read as plain data."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _behind_the_epoch(loop) -> None:
    """Let Lightning's loop go on behind the epoch that it has ended.

    With ``max_steps`` it would take up the end of that epoch again, without its start (Lightning 2.6, _FitLoop).
    """
    for part in (loop, loop.epoch_loop):
        _Loop.restarting.fset(part, False)
        part.reset_restart_stage()
    for progress in (loop.epoch_progress.current, loop.epoch_progress.total):
        progress.completed = progress.processed


def _validates(trainer: pl.Trainer, batches: int) -> bool:
    """Whether a validation within the epoch is due behind so many batches."""
    every = trainer.val_check_batch
    return every not in (None, math.inf) and batches % every == 0


def _settle(temporary: Path, path: Path) -> None:
    """Move a file into its place once the disk has all of it."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _of_all_processes(state: dict) -> list[dict]:
    """``state`` of every process of the group, by rank; all of them must be here."""
    if not torch.distributed.is_initialized():
        return [state]
    states = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _agreed(trainer: pl.Trainer, signum: int | None) -> int:
    """The signal that any process of the group was sent; 0 for none."""
    if trainer.world_size == 1:
        return signum or 0
    numbers = torch.tensor(signum or 0, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(numbers, reduce_op="max"))


def checkpoints_of(trainer: pl.Trainer) -> Checkpoints | None:
    """The ``Checkpoints`` among a trainer's callbacks; None where it has none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)


def numbers(trainer: pl.Trainer) -> dict[str, float]:
    """What has been logged last, of all that is one number."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}


# -- reading ----------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first, whole or not."""
    names = {path: _NAME.fullmatch(path.name) for path in folder.glob("*.ckpt")}
    return sorted((p for p, name in names.items() if name), key=lambda p: [*map(int, names[p].groups())], reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None where there is none at all.

    Damaged ones are passed over with a warning. Raises InputError where all are damaged.
    """
    errors = []
    for path in saved(folder):
        try:
            read(path)
        except InputError as error:
            errors.append(error)
        else:
            for error in errors:
                warnings.warn(f"{error}; the one before it is taken", RuntimeWarning, stacklevel=2)
            return path
    if errors:
        raise InputError(
            f"{errors[0]}: it is damaged, or of another program, and no other in its folder is whole; put a copy in "
            "its place, or search again under a new --name"
        ) from errors[0]
    return None


def read(path: Path) -> dict:
    """What a checkpoint holds. Raises InputError where it is damaged, no checkpoint, or carries code.

    Nothing in it is run: only tensors and plain values are read, and the sums that the file carries are compared.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} has changed since it was written")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not {"state_dict", "loops"} <= content.keys():
            raise ValueError("it is no checkpoint of a training")
        own = content.get(KEY)
        if not (isinstance(own, dict) and own.keys() >= _PARTS and isinstance(own.get("config", {}), dict)):
            raise ValueError(f"it lacks what this package saves, {', '.join(sorted(_PARTS))}")
    except Exception as error:  # zipfile and torch raise many kinds for a broken file
        reason = str(error).split("\n")[0]
        if "Weights only load failed" in str(error):
            reason = "it has more than tensors and plain values in it, which could be code"
        raise InputError(f"cannot read the checkpoint {path}: {reason}") from error
    return content
