"""The discretisation gap: what a supernet loses when its gates are rounded."""

import copy
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning.utilities import move_data_to_device
from torch import nn
from torchmetrics import Metric

from nni_fairdarts.distributed import average_statistics, batch_norms, processes, total
from nni_fairdarts.errors import InputError
from nni_fairdarts.guests import size_of, training_batches, transferred, validation_batches
from nni_fairdarts.inheritance import reestimate_batch_norm
from nni_fairdarts.recording import RecordsEpochs


class DiscretizationGap:
    """A supernet's metric minus the same with every gate rounded to 0 or 1, weights inherited.

    Of a softmax the chosen operation is 1 and the others are 0. The batch norms are estimated anew from ``count``
    batches of the evaluator's training loader, then ``metric`` is averaged over ``validation`` (None for the
    evaluator's own loader) as its ``validation_step`` logs it. Afterwards everything is as before, random numbers
    included: a search goes the same way with and without.
    """

    def __init__(self, evaluator: Lightning, count: int, metric: str = "val_acc", validation: Iterable | None = None):
        self.evaluator = evaluator
        self.count = count
        self.metric = metric
        self.validation = validation

    def __call__(self, module: RecordsEpochs) -> dict[str, float]:
        """{"discretization_gap": metric - metric when rounded}, of a module whose epoch has just been validated.

        Nothing for a strategy without gates. Raises InputError where ``validation_step`` does not log the metric.
        """
        rounded = list(module.rounded_alphas())
        if not rounded:
            return {}
        owner = module.training_module
        training, validation = training_batches(self.evaluator), self._validation()
        with same_random_numbers(module.device, training, validation), as_before(owner), at(rounded):
            reestimate_batch_norm(owner.model, training, self.count, lambda _, batch: self._step(module, batch))
            average_statistics(batch_norms(owner.model))
            without = self._metric(module, islice(validation, _limit(module.trainer)))
        return {"discretization_gap": float(module.trainer.callback_metrics[self.metric]) - without}

    def _validation(self) -> Iterable:
        loaders = validation_batches(self.evaluator) if self.validation is None else self.validation
        if not isinstance(loaders, list | tuple):
            return loaders
        if len(loaders) > 1:
            raise InputError(
                f"the discretisation gap is measured on one validation loader, the evaluator has {len(loaders)}; give "
                "one, or set search.gap_batches to 0"
            )
        return loaders[0]

    def _step(self, module: RecordsEpochs, batch) -> None:
        """Feed a batch to the network as a training step does."""
        module.resample()
        precision = module.trainer.precision_plugin
        with logged_by(module), precision.train_step_context():
            module.training_module.training_step(precision.convert_input(transferred(self.evaluator, batch)), 0)

    def _metric(self, module: RecordsEpochs, batches: Iterable) -> float:
        """The metric over the batches of all processes: of a torchmetrics object its own, else the examples' mean."""
        summed, examples = 0.0, 0
        precision, owner = module.trainer.precision_plugin, module.training_module
        owner.eval()
        with torch.no_grad():
            for index, batch in enumerate(batches):
                batch = precision.convert_input(transferred(self.evaluator, move_data_to_device(batch, module.device)))
                module.resample()
                with logged_by(module) as logged, precision.val_step_context():
                    owner.validation_step(batch, index)
                if self.metric not in logged:
                    raise InputError(
                        f"metric is {self.metric!r}, which the evaluator's validation_step does not log; it logs: "
                        f"{', '.join(logged) or 'nothing'}"
                    )
                value = logged[self.metric]
                if not isinstance(value, Metric):
                    summed, examples = summed + float(value) * size_of(batch), examples + size_of(batch)
        if isinstance(value, Metric):
            return float(value.compute())
        if processes() > 1:
            both = torch.tensor([summed, examples], dtype=torch.float64, device=module.device)
            summed, examples = total(both).tolist()
        return summed / examples


def _limit(trainer: pl.Trainer) -> int | None:
    """How many batches the trainer validates on; None for all."""
    (count,) = trainer.num_val_batches or (math.inf,)
    return None if math.isinf(count) else int(count)


@contextmanager
def same_random_numbers(device: torch.device | None = None, *loaders) -> Iterator[None]:
    """What is drawn inside leaves torch's, NumPy's and Python's generators, and the loaders' own, as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    generators = [owner.generator for owner in owners if isinstance(getattr(owner, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


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
def as_before(owner: pl.LightningModule) -> Iterator[None]:
    """Buffers, modes, metrics and what the evaluator's module has noted are afterwards what they were."""
    buffers = {name: buffer.detach().clone() for name, buffer in owner.named_buffers()}
    modes = {module: module.training for module in owner.modules()}
    noted = {name: copy.copy(value) for name, value in vars(owner).items() if isinstance(value, NOTES)}
    metrics = {metric: copy.deepcopy(_state(metric)) for metric in owner.modules() if isinstance(metric, Metric)}
    for metric in metrics:
        metric.reset()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in owner.named_buffers():
                buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training
        for metric, state in metrics.items():
            vars(metric).update(state)
        vars(owner).update(noted)


NOTES = (list, set, int, float, str)
"""Kinds of attributes in which a module notes numbers, or outputs, of its steps (its dicts hold its parts)."""


def _state(metric: Metric) -> dict:
    """What a metric has of the batches it has seen."""
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return {name: vars(metric)[name] for name in names if name in vars(metric)}


@contextmanager
def logged_by(module: RecordsEpochs) -> Iterator[dict]:
    """What the evaluator's module logs inside, in place of Lightning's log."""
    owner, logged = module.training_module, {}
    log = vars(owner)["log"]  # NNI's: the search's own
    owner.log = lambda name, value, *args, **kwargs: logged.__setitem__(name, value)
    try:
        yield logged
    finally:
        owner.log = log
