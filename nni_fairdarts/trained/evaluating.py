"""A trained network's accuracy and loss on its test set."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import pytorch_lightning as pl
import torch
from torch import nn

from nni_fairdarts.checkpoints import numbers
from nni_fairdarts.errors import InputError
from nni_fairdarts.guests import size_of, validation_batches
from nni_fairdarts.metrics import word, written
from nni_fairdarts.trained.loading import Trained


@dataclass(frozen=True)
class Evaluation:
    """What a trained network came to.

    ``accuracy``: what the run is judged by, its ``metric``; of val_acc in [0, 1] of images. ``top5``: that the class is
    among the five likeliest, where there are more than ten classes. ``loss``: mean cross entropy, None where the
    evaluator logs no val_loss. ``seconds``: of the network alone, in all; ``metrics``: all that the evaluator has
    logged.
    """

    accuracy: float
    top5: float | None
    loss: float | None
    images: int
    batch_size: int
    seconds: float
    device: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric: str = "val_acc"

    def to_json(self) -> dict:
        """The evaluation as JSON values."""
        return {**asdict(self), "seconds_per_image": self.seconds / self.images}

    def __str__(self) -> str:
        lines = [(word(self.metric), written(self.accuracy, self.metric))]
        if self.top5 is not None:
            lines.append(("top-5 accuracy", f"{self.top5:.2%}"))
        if self.loss is not None:
            lines.append(("loss", f"{self.loss:.4f}"))
        lines.append(("images", f"{self.images:,}"))
        each = 1000 * self.seconds / self.images
        lines.append(("time per image", f"{each:.3g} ms on {self.device}, in batches of {self.batch_size}"))
        return "\n".join(f"{name:<18}  {value}" for name, value in lines)


def evaluate(trained: Trained) -> Evaluation:
    """Validate a trained network as its retraining does: in the same batches, by the same module of the evaluator.

    The accuracy is that of the retraining's last epoch, digit for digit, on the same machine with as many threads, and
    where that was trained in one process. Raises InputError where the evaluator does not log the run's metric.
    """
    evaluator, network = trained.evaluator, trained.network
    evaluator.module.set_model(network)
    batches = {"datamodule": evaluator.datamodule} if evaluator.datamodule else {}
    clock = Clock()
    evaluator.trainer.callbacks.append(clock)
    try:
        with clock.of(network):
            evaluator.trainer.validate(
                evaluator.module, **(batches or {"dataloaders": validation_batches(evaluator)}), verbose=False
            )
    finally:
        evaluator.trainer.callbacks.remove(clock)
        network.eval()
    metrics = numbers(evaluator.trainer)
    if trained.config.metric not in metrics:
        raise InputError(
            f"metric is {trained.config.metric!r}, which the evaluator does not log; it logs: {', '.join(metrics)}"
        )
    return Evaluation(
        accuracy=metrics[trained.config.metric],
        top5=metrics.get("val_top5"),
        loss=metrics.get("val_loss"),
        images=clock.images,
        batch_size=clock.largest,
        seconds=clock.seconds,
        device=clock.device,
        metrics=metrics,
        metric=trained.config.metric,
    )


class Clock(pl.Callback):
    """Counts the images of a validation, and the time that a network takes for them."""

    images = largest = 0
    seconds = 0.0
    device = "cpu"

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *args):
        self.images += size_of(batch)
        self.largest = max(self.largest, size_of(batch))
        self.device = pl_module.device.type

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Inside, the time of the network's passes is added up; of one on a CUDA device until it is done."""

        def start(*_):
            self._began = self._now(network)

        def stop(*_):
            self.seconds += self._now(network) - self._began

        hooks = [network.register_forward_pre_hook(start), network.register_forward_hook(stop)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _now(network: nn.Module) -> float:
        if any(parameter.is_cuda for parameter in network.parameters()):
            torch.cuda.synchronize()
        return time.perf_counter()
