"""Losses watched for NaN and infinity; those on a CUDA device without the host waiting for it."""

from collections import deque
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor

from nni_fairdarts.errors import require_finite

UNDER_WAY = 2
"""How many losses may be on their way to the host where several processes train together: those of one step."""
LATE = "found behind the optimizer's step, before anything was saved"


class LossWatch:
    """Raises NonFiniteLoss for a loss that is NaN or infinite.

    On the CPU at once, before the step that it would have spoilt. Reading a loss of a CUDA device would make the host
    wait for all that it has asked of the device, so there a copy is asked for, and looked at when it has arrived: by
    the next loss at the earliest, and at the latest when ``look(wait=True)`` is called, which is to be done before
    anything is validated, recorded or saved. A loss that was found stays found: every later look raises again.
    What has arrived goes to the progress bar, for Lightning too would wait for every number that is logged to it.

    ``together``: several processes watch the same losses, so all are to find one at the same step. What has arrived
    differs between them; the host waits for the losses before the last ``UNDER_WAY``.
    """

    def __init__(self, together: bool = False):
        self._together = together
        self._late: deque[_Late] = deque()

    def see(self, name: str, loss: Tensor, trainer: pl.Trainer, batch_idx: int) -> None:
        """Watch ``loss``, one number, detached, of the trainer's epoch and batch ``batch_idx``."""
        if not loss.is_cuda:
            require_finite(name, float(loss), trainer, trainer.current_epoch, batch_idx)
            return
        self._late.append(_Late(name, trainer, trainer.current_epoch, batch_idx, *arriving(loss)))
        self.look(wait=self._together, keep=UNDER_WAY if self._together else 0)

    def look(self, wait: bool = False, keep: int = 0) -> None:
        """Check the losses that have arrived; with ``wait`` all that are under way, but for the last ``keep``."""
        while len(self._late) > keep and (wait or self._late[0].arrived.query()):
            late = self._late[0]
            late.arrived.synchronize()
            require_finite(late.name, float(late.value), late.trainer, late.epoch, late.batch_idx, LATE)
            if late.trainer.progress_bar_callback is not None:
                late.trainer.progress_bar_metrics[late.name] = float(late.value)
            self._late.popleft()


@dataclass(frozen=True)
class _Late:
    """A loss on its way to the host: ``value`` may be read once the event ``arrived`` is over."""

    name: str
    trainer: pl.Trainer
    epoch: int
    batch_idx: int
    value: Tensor
    arrived: torch.cuda.Event


def arriving(value: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy of ``value`` in pinned host memory, and the event behind which it is there; the host does not wait."""
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    copy.copy_(value, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(value.device))
    return copy, arrived
