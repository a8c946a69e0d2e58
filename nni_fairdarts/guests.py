"""The user's evaluator inside a search: hooks, losses and schedules of its module, and its data module."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nni_fairdarts._nni import DartsLightningModule
from nni_fairdarts.errors import InputError
from nni_fairdarts.randomness import Place, SeededLoaders

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Lightning's hooks that take a batch, first, and return one."""


class ForwardedHooks(pl.LightningModule):
    """Mixed into a one-shot module: hands on to the evaluator's module the hooks that NNI's one-shot modules swallow.

    NNI forwards the others. Those around an optimizer's step are for the weights' steps only.
    """

    def teardown(self, stage: str | None = None):
        try:
            return super().teardown(stage)
        finally:
            # NNI's setup put the search's log there; with it the module could never log for another trainer.
            vars(self.training_module).pop("log", None)

    def prepare_data(self):
        return self.training_module.prepare_data()

    def configure_callbacks(self):
        return self.training_module.configure_callbacks()

    def backward(self, loss, *args, **kwargs):
        return self.training_module.backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer):
        if not getattr(optimizer, "is_arch_optimizer", False):
            self.training_module.on_before_optimizer_step(optimizer)

    def on_save_checkpoint(self, checkpoint):
        return self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint):
        return self.training_module.on_load_checkpoint(checkpoint)

    # -- optimizers and schedules -------------------------------------------------------------------------------------

    def configure_optimizers(self):
        configuration = super().configure_optimizers()
        check_optimizers([o for o in _optimizers(configuration) if not getattr(o, "is_arch_optimizer", False)])
        if not self.automatic_optimization:
            # Lightning drops what a schedule waits for where steps are taken by hand.
            self._monitors = dict(_take_monitors(configuration))
        return configuration

    def architecture_optimizers(self):
        """α's optimizer. Its steps are not counted: ``max_steps`` and ``global_step`` are the weights' steps."""
        optimizer = super().architecture_optimizers()
        if optimizer is not None:
            # Lightning hangs its count on every optimizer before each batch.
            optimizer._on_before_step = optimizer._on_after_step = _nothing
        return optimizer

    def advance_lr_schedulers(self, batch_idx: int):
        """NNI's; it steps those that wait for a metric without one, and they raise. At an epoch's end they wait."""
        self._step_schedulers("step", batch_idx)
        if self.trainer.is_last_batch:
            self._step_schedulers("epoch", self.trainer.current_epoch, plateaus=False)

    def advance_plateaus(self):
        """Step the schedules that wait for a metric of the epoch, behind its validation."""
        if not self.automatic_optimization:  # else Lightning does
            self._step_schedulers("epoch", self.trainer.current_epoch, others=False)

    def _step_schedulers(self, interval: str, index: int, plateaus: bool = True, others: bool = True) -> None:
        for config in self.trainer.lr_scheduler_configs:
            waits = isinstance(config.scheduler, ReduceLROnPlateau)
            due = config.interval == interval and (index + 1) % config.frequency == 0
            if due and (plateaus if waits else others):
                metric = self._monitored(config.scheduler) if waits else None
                self.training_module.lr_scheduler_step(config.scheduler, metric)

    def _monitored(self, scheduler: ReduceLROnPlateau) -> Tensor:
        """The metric that a schedule of the evaluator waits for."""
        known = self.trainer.callback_metrics
        name = self._monitors.get(scheduler)
        if name not in known:
            raise InputError(
                f"the evaluator's ReduceLROnPlateau waits for {name!r}, which nothing has logged; give its 'monitor' "
                f"as one of: {', '.join(known)}"
            )
        return known[name]

    # -- validation: NNI's one-shot modules have none -----------------------------------------------------------------

    def validation_step(self, *args, **kwargs):
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_start(self):
        return self.training_module.on_validation_epoch_start()

    def on_validation_epoch_end(self):
        return self.training_module.on_validation_epoch_end()

    def on_validation_batch_start(self, *args, **kwargs):
        return self.training_module.on_validation_batch_start(*args, **kwargs)

    def on_validation_batch_end(self, *args, **kwargs):
        return self.training_module.on_validation_batch_end(*args, **kwargs)


class EvaluatorHooks(ForwardedHooks, DartsLightningModule):
    """NNI's DARTS as a guest of the evaluator: its hooks and its batch transfers."""

    def __init__(self, training_module, **kwargs):
        super().__init__(training_module, **kwargs)
        wrap_transfers(self, training_module)

    def on_train_epoch_start(self):
        # NNI's DARTS freezes α here while it warms up; the steps of a search say themselves what learns.
        return self.training_module.on_train_epoch_start()


def loss_of(result) -> Tensor:
    """The loss in what a Lightning ``training_step`` returned: a tensor, or a mapping with ``loss``.

    Raises InputError where that is not one number.
    """
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"a mapping with {', '.join(map(str, result))}" if isinstance(result, Mapping) else type(result).__name__
        if isinstance(loss, Tensor):
            came = f"one of shape {tuple(loss.shape)}"
        raise InputError(
            "the evaluator's training_step must return its loss, a tensor with one number, or a mapping with such a "
            f"tensor under 'loss'; got {came}"
        )
    return loss


class SearchData(pl.LightningDataModule):
    """Stands for the user's data module in a search: NNI plants its loaders on this one, the user's stays as it is."""

    def __init__(self, datamodule: pl.LightningDataModule):
        super().__init__()
        self.datamodule = datamodule
        wrap_transfers(self, datamodule)

    def __getattr__(self, name: str):
        if name == "datamodule":
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    def prepare_data(self):
        self.datamodule.prepare_data()

    def setup(self, stage: str):
        self.datamodule.trainer = self.trainer
        self.datamodule.setup(stage)

    def teardown(self, stage: str):
        self.datamodule.teardown(stage)

    def train_dataloader(self):
        return self.datamodule.train_dataloader()

    def val_dataloader(self):
        return self.datamodule.val_dataloader()

    def state_dict(self):
        return self.datamodule.state_dict()

    def load_state_dict(self, state_dict):
        self.datamodule.load_state_dict(state_dict)


class SeededData(SearchData):
    """Stands for the user's data module in a training: its training batches are drawn from seeds of the epochs' own."""

    def __init__(self, datamodule: pl.LightningDataModule, place: Place):
        super().__init__(datamodule)
        self.place = place

    def train_dataloader(self):
        return SeededLoaders(super().train_dataloader(), self.place)


def seed_training(evaluator, place: Place) -> None:
    """Let the training batches of an evaluator be drawn from seeds of the epochs' own; see ``SeededLoaders``."""
    if evaluator.datamodule is not None:
        evaluator.datamodule = SeededData(evaluator.datamodule, place)
    elif evaluator.train_dataloaders is not None:
        evaluator.train_dataloaders = SeededLoaders(evaluator.train_dataloaders, place)


@contextmanager
def search_data(evaluator) -> Iterator[None]:
    """Inside, a ``SearchData`` is the evaluator's data module, where it has one."""
    module = evaluator.datamodule
    if module is not None:
        evaluator.datamodule = SearchData(module)
    try:
        yield
    finally:
        evaluator.datamodule = module


def training_batches(evaluator):
    """The evaluator's training loader, or its data module's."""
    module = evaluator.datamodule
    return evaluator.train_dataloaders if module is None else module.train_dataloader()


def validation_batches(evaluator):
    """The evaluator's validation loader, or loaders, or its data module's."""
    module = evaluator.datamodule
    return evaluator.val_dataloaders if module is None else module.val_dataloader()


def transferred(evaluator, batch):
    """What the transfer hooks of the evaluator's data module, or of its module, make of a batch."""
    owners = [owner for owner in (evaluator.datamodule, evaluator.module) if owner is not None]
    for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
        owner = next((owner for owner in owners if is_overridden(name, owner)), evaluator.module)
        batch = getattr(owner, name)(batch, 0)
    return batch


def size_of(batch) -> int:
    """Number of examples in a batch: the length of its first tensor."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def wrap_transfers(owner, user) -> None:
    """Give ``owner`` the transfer hooks that ``user`` has of its own; others stay Lightning's."""
    for name in TRANSFER_HOOKS:
        if is_overridden(name, user):
            setattr(owner, name, _each_half(owner, getattr(user, name)))


def _each_half(owner, hook: Callable) -> Callable:
    """``hook`` for batches of a search step, {"train": batch, "val": batch}, and for those of a validation."""

    def on_halves(batch, *args):
        if owner.trainer.training and isinstance(batch, dict) and batch.keys() <= {"train", "val"}:
            return {half: hook(part, *args) for half, part in batch.items()}
        if owner.trainer.training and isinstance(batch, tuple | list) and isinstance(batch[-1], str):  # of enas
            return (hook(batch[0], *args), batch[-1])
        return hook(batch, *args)

    return on_halves


def check_optimizers(optimizers: list[Optimizer]) -> None:
    """Raise InputError unless the evaluator's optimizers are one, and one that steps by given gradients."""
    if len(optimizers) != 1:
        raise InputError(
            f"a search takes one optimizer for the weights, but the evaluator's configure_optimizers gives "
            f"{len(optimizers)}; give one, with a group of parameters for each part that is to learn otherwise"
        )
    if isinstance(optimizers[0], LBFGS):
        raise InputError(
            "the evaluator's optimizer is LBFGS, which computes the loss several times a step, but a search computes "
            "it once; give one such as SGD or Adam"
        )


def _optimizers(configuration) -> Iterator[Optimizer]:
    """The optimizers in what ``configure_optimizers`` returned."""
    if isinstance(configuration, Optimizer):
        yield configuration
    elif isinstance(configuration, list | tuple):
        for part in configuration:
            yield from _optimizers(part)
    elif isinstance(configuration, dict):
        yield from _optimizers(configuration.get("optimizer"))


def _nothing() -> None:
    """Does nothing."""


def _take_monitors(configuration) -> Iterator[tuple[ReduceLROnPlateau, str]]:
    """Take ``monitor`` and ``strict`` out of what ``configure_optimizers`` returned; every plateau and its metric."""
    if isinstance(configuration, list | tuple):
        for part in configuration:
            yield from _take_monitors(part)
    elif isinstance(configuration, dict):
        schedule = configuration.get("lr_scheduler", configuration.get("scheduler"))
        if isinstance(schedule, ReduceLROnPlateau):
            yield schedule, configuration.pop("monitor", None)
            configuration.pop("strict", None)
        else:
            yield from _take_monitors(schedule)
