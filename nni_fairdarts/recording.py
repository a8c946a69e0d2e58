"""The record of a search's epoch, whatever the strategy: losses, metrics, gates; to the console, a file, a listener."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from nni_fairdarts.checkpoints import KEY, Checkpoints
from nni_fairdarts.distributed import AmongProcesses, mean, processes
from nni_fairdarts.errors import SaveError
from nni_fairdarts.history import append_epoch, beside_logs, check_new, epoch_line
from nni_fairdarts.scaling import SKIPPED, ScaledSteps
from nni_fairdarts.watch import LossWatch

LOGGED = (
    "train_loss",
    "arch_loss",
    "zero_one_loss",
    "decided_gates",
    "open_gates",
    "discretization_gap",
    *SKIPPED.values(),
)
"""Entries of an epoch's record that go to Lightning's loggers, beside every gate; the evaluator logs its own."""


BEGUN = "fairdarts_epoch"
"""Under this key a checkpoint has what was noted of the epoch that it was saved in."""


class RecordsEpochs(AmongProcesses, ScaledSteps):
    """Mixed into a one-shot module of NNI's: writes each epoch's record once the epoch is validated.

    ``history``: the file, one JSON line per epoch; None for one beside Lightning's logs. ``measure``: what else is to
    be known of the module at an epoch's end, {name: number}. ``listener`` gets each record. ``checkpoints``: given to
    the trainer; None where it has its own.
    """

    history: Path | None = None
    measure: Callable[["RecordsEpochs"], dict[str, float]] | None = None
    listener: Callable[[dict], None] | None = None
    checkpoints: Checkpoints | None = None
    _begun: dict | None = None  # of the epoch that a checkpoint was saved in: what had been noted by then

    # -- what the strategies say of themselves -----------------------------------------------------------------------

    def record_made(self, record: dict) -> None:
        """What is to be done with an epoch's record, in every process, before it is told."""

    def restore_supernet(self, checkpoint: Mapping) -> None:
        """Build the supernet that a checkpoint is of, where it is not the one that stands."""

    def loss_record(self) -> dict:
        """The entries about losses: means over the epoch's batches."""
        return {"train_loss": self.mean("train_loss")}

    def gate_record(self) -> dict:
        """The entries about gates; none of a strategy that has no gates."""
        return {}

    def rounded_alphas(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Every α, and its value at which the gates are 0 or 1; nothing of a strategy that has no gates."""
        return iter(())

    @cached_property
    def _watch(self) -> LossWatch:
        return LossWatch()

    # -- hooks -------------------------------------------------------------------------------------------------------

    def configure_callbacks(self):
        callbacks = super().configure_callbacks() or []
        callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        return [*callbacks, *([] if self.checkpoints is None else [self.checkpoints])]

    def on_fit_start(self):
        # Of this run: what an earlier one has found is its own.
        self._watch = LossWatch(together=processes() > 1)
        if self.history is not None and self.trainer.is_global_zero:
            check_new(self.history, resumed=self.trainer.ckpt_path is not None)
        if processes() > 1:  # Lightning asks for means over processes, two exchanges each, of what is the same in all
            names = "|".join(("prob/", *(f"{name}'" for name in LOGGED)))
            warnings.filterwarnings("ignore", message=rf".*recommended to use `self.log\('({names})")
        return super().on_fit_start()

    def on_train_epoch_start(self):
        begun, self._begun = self._begun or {"sums": {}, "batches": 0, "seconds": 0.0}, None
        self._sums: dict[str, Tensor] = {name: value.to(self.device) for name, value in begun["sums"].items()}
        self._batches = begun["batches"]
        self._validated = False
        self._epoch_began = time.perf_counter() - begun["seconds"]
        # Noted now: at the end of the epoch the schedulers have gone on to the next one's.
        self._learning_rate = begun.get("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().on_train_epoch_start()

    def on_validation_start(self):
        self._watch.look(wait=True)
        return super().on_validation_start()

    def on_save_checkpoint(self, checkpoint):
        self._watch.look(wait=True)
        seconds = time.perf_counter() - self._epoch_began
        checkpoint[BEGUN] = {
            "sums": {name: value.as_subclass(Tensor) for name, value in self._sums.items()},  # as plain data
            "batches": self._batches,
            "seconds": seconds,
            "learning_rate": float(self._learning_rate),
        }
        return super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint):
        within_epoch = checkpoint.get(KEY, {}).get("batches")
        self._begun = checkpoint[BEGUN] if within_epoch else None
        return super().on_load_checkpoint(checkpoint)

    def on_validation_epoch_end(self):
        self._validated = True
        return super().on_validation_epoch_end()

    def on_train_epoch_end(self):
        self._watch.look(wait=True)
        self.check_scale()
        result = super().on_train_epoch_end()
        record = self.epoch_record()
        self.record_made(record)
        self.log_dict({key: float(record[key]) for key in LOGGED if record.get(key) is not None})
        if self.trainer.is_global_zero:
            self.print(epoch_line(record, self.trainer.max_epochs))
            path = self.history or beside_logs(self.trainer)
            if path is not None:
                self._append(path, record)
            if self.listener is not None:
                self.listener(record)
        return result

    def _append(self, path: Path, record: dict) -> None:
        try:
            append_epoch(path, record)
        except OSError as error:
            saved = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
            raise SaveError.of(path, error, saved) from error

    def on_fit_end(self):
        try:
            return super().on_fit_end()
        except KeyError as missing:
            # NNI's evaluators report a metric here that nothing has computed where no validation has run: after a
            # few steps of ``max_steps``, or between validations.
            if str(missing).strip("'") in self.trainer.callback_metrics:
                raise
            if not hasattr(self, "_sums"):  # resumed behind the last epoch, whose result is known
                return
            warnings.warn(
                f"no final result is reported to NNI: no validation has given {missing}; let a validation run in the "
                "last epoch (check_val_every_n_epoch, max_epochs)",
                RuntimeWarning,
                stacklevel=1,  # the caller is Lightning
            )

    # -- gates to Lightning's loggers ---------------------------------------------------------------------------------

    def log_probs(self, probs):
        """NNI's, but without Lightning's checks where a step has logged the same before: they take longer than a step.

        What loggers get, and when, is the same. The values stay on the host, where loggers read them one by one.
        """
        names = [f"prob/{label}/{name}" for label, shares in probs.items() for name in shares]
        gates = [gate for shares in probs.values() for gate in shares.values()]
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # as Lightning has it
        values = dict(zip(names, torch.tensor(gates, dtype=dtype).unbind(), strict=True))
        if not self._log_again(values):
            self.log_dict(values)

    def _log_again(self, values: dict[str, Tensor]) -> bool:
        """Give Lightning new values of what ``training_step`` has logged before; False where it has not."""
        results = self.trainer._results
        if self._current_fx_name != "training_step" or not all(f"training_step.{name}" in results for name in values):
            return False
        for name, value in values.items():
            results.update_metrics(f"training_step.{name}", value, 1)
        return True

    # -- record ------------------------------------------------------------------------------------------------------

    def note_loss(self, name: str, loss: Tensor, batch_idx: int) -> None:
        """Note a batch's loss, one number; of several processes their mean.

        Raises NonFiniteLoss, in all of them, where it is none, on a CUDA device somewhat later.
        """
        value = mean(loss.detach())
        self._watch.see(name, value, self.trainer, batch_idx)
        self.note(name, value)

    def note(self, name: str, value: Tensor) -> None:
        """Add a batch's number to what the epoch's record has the mean of."""
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def epoch_record(self) -> dict:
        """What the epoch that ends was like: losses, the validation's metrics, gates and what they decide now."""
        seconds = time.perf_counter() - self._epoch_began
        measured = self.measure(self) if self.measure is not None and self._validated else {}
        metrics = {
            name: float(value)
            for name, value in self.trainer.callback_metrics.items()
            if self._validated and name.startswith("val_") and torch.as_tensor(value).numel() == 1
        }
        return {
            "epoch": self.trainer.current_epoch,
            **self.loss_record(),
            **self.skip_record(self._sums),
            **metrics,
            **measured,
            "learning_rate": self._learning_rate,
            "seconds": seconds,
            **self.gate_record(),
        }

    def mean(self, name: str) -> float | None:
        """The epoch's mean of what was noted; None where nothing was."""
        return float(self._sums[name]) / self._batches if name in self._sums and self._batches else None
