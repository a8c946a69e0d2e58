"""A search in float16: the scale of its losses, and the steps that are skipped where gradients overflow.

Lightning's ``MixedPrecision("16-mixed", device)`` multiplies every loss by the scale of torch's ``GradScaler`` before
its backward pass, so that small gradients do not vanish, and divides them by it before the step. Where one of them is
not finite the step is skipped and the scale halved: an overflow is nothing unusual. α's steps and the weights' share
the scale. A loss that is not finite is something else, which no scale mends, and stops the search (``watch.py``).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from nni_fairdarts.errors import NonFiniteLoss

LEAST_SCALE = torch.finfo(torch.float16).smallest_normal
"""The gradient of the scaled loss by the loss is the scale; below this float16 does not even hold that one."""

SKIPPED = {True: "skipped_alpha_steps", False: "skipped_weight_steps"}
"""{whether an optimizer is α's: the entry of an epoch's record that counts its skipped steps}."""


def scaler_of(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """The trainer's scaler; None where it does not train in float16."""
    return getattr(trainer.precision_plugin, "scaler", None)


def unscaled(loss: Tensor, trainer: pl.Trainer) -> Tensor:
    """The loss in what Lightning hands to ``on_before_backward``: there it is multiplied by the scale."""
    scaler = scaler_of(trainer)
    return loss if scaler is None else loss / scaler.scale(torch.ones_like(loss))  # a device is not waited for


class ScaledSteps(pl.LightningModule):
    """Mixed into a one-shot module of NNI's, which knows of no scale: its steps by scaled losses, and a count of them.

    ``note`` is to add a number to what the epoch has under a name.
    """

    def on_fit_start(self):
        self._scaler = scaler_of(self.trainer)
        self.count_steps()
        return super().on_fit_start()

    def count_steps(self) -> None:
        """Watch the trainer's optimizers: once for each of them."""
        if self._scaler is not None:
            for optimizer in self.trainer.optimizers:
                optimizer.register_step_post_hook(self._stepped)

    def scaled(self, bound: float) -> float:
        """A bound for gradients that are still multiplied by the scale."""
        return bound if self._scaler is None else bound * self._scaler.get_scale()

    def advance_optimization(self, loss, batch_idx, gradient_clip_val=None, gradient_clip_algorithm=None):
        """NNI's, which clips gradients while they are still multiplied by the scale: so is the bound."""
        if gradient_clip_val is not None:
            gradient_clip_val = self.scaled(gradient_clip_val)
        return super().advance_optimization(loss, batch_idx, gradient_clip_val, gradient_clip_algorithm)

    @contextmanager
    def scale_kept(self) -> Iterator[None]:
        """A step inside leaves the scale as it is, for a second one with gradients of the same backward pass."""
        if self._scaler is not None:
            self._scaler.update = _nothing  # Lightning's plugin calls it behind every step
        try:
            yield
        finally:
            if self._scaler is not None:
                del self._scaler.update

    # -- skipped steps -----------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: Optimizer):
        if self._scaler is not None:
            self.note(_counted_as(optimizer), torch.ones(()))
        return super().on_before_optimizer_step(optimizer)

    def _stepped(self, optimizer: Optimizer, *_) -> None:
        """Behind a step: the scaler has not skipped it. A fused optimizer is told, and skips by itself."""
        found = getattr(optimizer, "found_inf", None)
        self.note(_counted_as(optimizer), (torch.zeros(()) if found is None else found.detach().clone()) - 1)

    def skip_record(self, sums: dict[str, Tensor]) -> dict[str, int]:
        """How many steps of each optimizer were skipped, out of the epoch's ``sums``; nothing but in float16."""
        if self._scaler is None:
            return {}
        names = sorted({_counted_as(optimizer) for optimizer in self.trainer.optimizers})
        return {name: int(sums.get(name, 0)) for name in names}

    def check_scale(self) -> None:
        """Raise NonFiniteLoss where gradients went on to overflow when no scale was left to make them smaller."""
        if self._scaler is None or (scale := self._scaler.get_scale()) >= LEAST_SCALE:
            return
        raise NonFiniteLoss(
            f"gradients were NaN or infinite in so many steps, all of them skipped, that float16's scale has fallen to "
            f"{scale:.1e}: it is not the scale that they overflow by. Compute what overflows in float32, or search "
            "with precision bf16-mixed or 32-true"
        )


def _counted_as(optimizer: Optimizer) -> str:
    return SKIPPED[getattr(optimizer, "is_arch_optimizer", False)]


def _nothing() -> None:
    """Does nothing."""
