"""The discretisation gap: what a supernet loses when its gates are rounded."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.utilities import move_data_to_device
from torch import nn
from torchmetrics import Metric

from nni_fairdarts.errors import InputError
from nni_fairdarts.guests import size_of, training_batches, transferred, validation_batches
from nni_fairdarts.inheritance import reestimate_batch_norm
from nni_fairdarts.recording import RecordsEpochs


class DiscretizationGap:
    """A supernet's metric minus the same with every gate rounded to 0 or 1, weights inherited.

    Of a softmax the chosen operation is 1 and the others are 0. The batch norms are estimated anew from ``count``
    batches of the evaluator's training loader, then ``metric`` is averaged over ``validation`` (None for the
    evaluator's own loader) as its ``validation_step`` logs it. Afterwards α, buffers and random numbers are as before:
    a search goes the same way with and without.
    """

    def __init__(self, evaluator: Lightning, count: int, metric: str = "val_acc", validation: Iterable | None = None):
        self.evaluator = evaluator
        self.count = count
        self.metric = metric
        self.validation = validation

    def __call__(self, module: RecordsEpochs) -> dict[str, float]:
        """{"discretization_gap": metric - metric when rounded}, of a module whose epoch has just been validated.

        Nothing for a strategy without gates. Raises InputError where the evaluator does not log the metric.
        """
        rounded = list(module.rounded_alphas())
        if not rounded:
            return {}
        known = module.trainer.callback_metrics
        if self.metric not in known:
            raise InputError(
                f"metric is {self.metric!r}, which the evaluator's validation_step does not log; it logs: "
                f"{', '.join(known)}"
            )
        with same_random_numbers(), _restored(module.training_module.model), at(rounded):
            network, batches = module.training_module.model, training_batches(self.evaluator)
            reestimate_batch_norm(network, batches, self.count, lambda _, batch: self._step(module, batch))
            return {"discretization_gap": float(known[self.metric]) - self._mean_metric(module)}

    def _mean_metric(self, module: RecordsEpochs) -> float:
        """The metric over the validation set: of a torchmetrics object its own, else the mean over examples."""
        total, examples = 0.0, 0
        module.training_module.eval()
        with torch.no_grad():
            for index, batch in enumerate(self._validation_batches()):
                batch = transferred(self.evaluator, move_data_to_device(batch, module.device))
                module.resample()
                with _logs(module) as logged:
                    module.training_module.validation_step(batch, index)
                value = logged[self.metric]
                if not isinstance(value, Metric):
                    total, examples = total + float(value) * size_of(batch), examples + size_of(batch)
        metrics = [value for value in logged.values() if isinstance(value, Metric)]
        try:
            return float(value.compute()) if isinstance(value, Metric) else total / examples
        finally:
            for metric in metrics:
                metric.reset()

    def _validation_batches(self) -> Iterable:
        loaders = validation_batches(self.evaluator) if self.validation is None else self.validation
        return chain.from_iterable(loaders) if isinstance(loaders, list | tuple) else loaders

    def _step(self, module: RecordsEpochs, batch) -> None:
        """Feed a batch to the network as a training step does."""
        module.resample()
        with _logs(module):
            module.training_module.training_step(transferred(self.evaluator, batch), 0)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """What is drawn inside leaves torch's, NumPy's and Python's generators as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def at(alphas: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> Iterator[None]:
    """Inside, each α is at the value beside it."""
    alphas = list(alphas)
    kept = [alpha.detach().clone() for alpha, _ in alphas]
    try:
        with torch.no_grad():
            for alpha, value in alphas:
                alpha.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for (alpha, _), value in zip(alphas, kept, strict=True):
                alpha.copy_(value)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """The network's buffers and modes are afterwards what they were."""
    buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training


@contextmanager
def _logs(module: RecordsEpochs) -> Iterator[dict]:
    """What the evaluator's module logs inside, in place of Lightning's log."""
    owner, logged = module.training_module, {}
    log = vars(owner)["log"]  # NNI's: the search's own
    owner.log = lambda name, value, *args, **kwargs: logged.__setitem__(name, value)
    try:
        yield logged
    finally:
        owner.log = log
