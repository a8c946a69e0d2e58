"""The errors that users of the package meet."""

import math


class InputError(ValueError):
    """What a user gave cannot be used; the message says what was expected, what came, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str):
        if message.startswith("Caught InputError in "):  # of a loader's worker: torch puts its traceback before it
            self.__notes__ = [message]  # Python shows it below this one's traceback, from 3.11 on
            message = message.rpartition(f"\n{__name__}.InputError: ")[2]
        super().__init__(message)


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite: training stopped before anything that it spoils was saved.

    On the CPU before the step that would have spoilt the weights; see ``nni_fairdarts.watch`` for CUDA devices.
    """


class SaveError(OSError):
    """Something could not be written: no space, no permission. What was written before is whole."""

    @classmethod
    def of(cls, path, error: OSError, checkpoint: str = "") -> "SaveError":
        """What to say where ``path`` could not be written; ``checkpoint``: the last one that was saved."""
        kept = f"the checkpoint before it is whole: {checkpoint}" if checkpoint else "no checkpoint had been saved yet"
        return cls(
            f"cannot write {path}: {error.strerror or error}; {kept}. Make room, or the folder writable, and go on"
        )


class LostProcess(RuntimeError):
    """A process has ended that this one cannot go on without: another that trains, or a worker that loads data."""


class ExportError(RuntimeError):
    """A network that was written to a file does not put out what it should when it is read back; the file is gone."""


class ManagerError(RuntimeError):
    """NNI's manager did not start, or gave up; the message says why and where its log is."""


def require_finite(
    name: str, loss: float, trainer, epoch: int, batch_idx: int, found: str = "stopped before the optimizer's step"
) -> None:
    """Raise NonFiniteLoss, saying where that was, when it was found, and what is saved, unless ``loss`` is finite."""
    if math.isfinite(loss):
        return
    float16 = getattr(trainer.precision_plugin, "scaler", None) is not None
    callback = trainer.checkpoint_callback
    checkpoint = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    raise NonFiniteLoss(
        f"{name} is {loss} in epoch {epoch}, batch {batch_idx} (both counted from 0); {found}. "
        "Try a smaller learning rate, or look for bad values in the data"
        + ("; or precision bf16-mixed, for float16 ends at 65504. " if float16 else ". ")
        + (f"The last checkpoint is {checkpoint}" if checkpoint else "No checkpoint had been saved yet")
    )
