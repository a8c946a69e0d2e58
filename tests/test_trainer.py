"""Lightning's features in a search, one row each: it works, or is refused with a sentence that says what to use.

Two strategies that take their steps by hand, ours and one of NNI's, and one whose steps Lightning takes.
"""

from collections import Counter
from collections.abc import Callable
from csv import DictReader
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.config import SearchConfig
from nni_fairdarts.history import read_history
from nni_fairdarts.nni_strategies import build

BATCHES = 4  # of each loader; the search's epochs are as long
BY_HAND = ("fairdarts", "darts")
ALL = (*BY_HAND, "random")


@dataclass
class Seen:
    """What came of a search."""

    trainer: pl.Trainer
    records: list[dict]
    events: Counter
    images: list[torch.Tensor]

    @property
    def rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def rates(self) -> list[float]:
        return [record["learning_rate"] for record in self.records]

    def logged(self) -> list[dict]:
        return list(DictReader((Path(self.trainer.loggers[0].log_dir) / "metrics.csv").read_text().splitlines()))

    def callback(self, kind: type) -> Callback:
        return next(callback for callback in self.trainer.callbacks if isinstance(callback, kind))


@dataclass
class Row:
    """A feature: settings of the trainer, what the module configures, and what is to be seen with which strategies.

    ``check`` holds afterwards, where it works; ``refused`` is in the text with which strategies by hand refuse it, or,
    without a ``check``, all.
    """

    trainer: dict = field(default_factory=dict)
    configure: str = "plain"
    check: Callable[["Seen"], bool] | None = None
    refused: str | None = None
    strategies: tuple[str, ...] = BY_HAND


# -- what evaluators configure -----------------------------------------------------------------------------------------


def sgd(module):
    return torch.optim.SGD(module.parameters(), 0.08)


def plateau(module, **schedule):
    """Nothing is an improvement after the first value."""
    optimizer = sgd(module)
    waiting = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e6, threshold_mode="abs")
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": waiting, **schedule}}


def stepwise(module):
    optimizer = sgd(module)
    return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step", "frequency": 3}]


def two(module):
    parameters = list(module.parameters())
    return [torch.optim.SGD(part, 0.08) for part in (parameters[:2], parameters[2:])]


CONFIGURED = {
    "plain": sgd,
    "plateau": lambda module: plateau(module, monitor="val_loss"),
    "plateau every second epoch": lambda module: plateau(module, monitor="val_loss", frequency=2),
    "plateau each step": lambda module: plateau(module, monitor="loss", interval="step"),
    "plateau without": lambda module: plateau(module, monitor="val_lost"),
    "stepwise": stepwise,
    "two": two,
    "none": lambda module: None,
    "lbfgs": lambda module: torch.optim.LBFGS(module.parameters()),
}


class Validations(Callback):
    """Counts the validation hooks that a callback has."""

    def __init__(self):
        self.seen = Counter()

    def on_validation_start(self, trainer, module):
        self.seen["start"] += 1

    def on_validation_batch_end(self, trainer, module, *args):
        self.seen["batch"] += 1

    def on_validation_epoch_end(self, trainer, module):
        assert "val_loss" in trainer.callback_metrics
        self.seen["end"] += 1


# -- the table ---------------------------------------------------------------------------------------------------------

STEPS = "but a search takes its steps itself"
STOPPING = {"monitor": "val_loss", "patience": 0, "min_delta": 1e6}


def close(*rates):
    return pytest.approx(list(rates))


FEATURES = {
    # schedules
    "ReduceLROnPlateau": Row(
        {"max_epochs": 4}, "plateau", lambda s: s.rates() == close(0.08, 0.08, 0.04, 0.02), strategies=ALL
    ),
    "ReduceLROnPlateau each step": Row(
        {}, "plateau each step", lambda s: s.rate == pytest.approx(0.01), strategies=ALL
    ),
    "ReduceLROnPlateau, seldom validated": Row(
        {"max_epochs": 5, "check_val_every_n_epoch": 2},
        "plateau every second epoch",
        lambda s: s.rates() == close(0.08, 0.08, 0.08, 0.08, 0.04),
    ),
    "ReduceLROnPlateau without its metric": Row(
        {}, "plateau without", refused="waits for 'val_lost', which nothing has logged; .* one of: .*val_loss"
    ),
    "schedule per step": Row({"max_epochs": 2}, "stepwise", lambda s: s.rates() == close(0.08, 0.04), strategies=ALL),
    "LearningRateMonitor": Row(
        {"callbacks": lambda: [LearningRateMonitor("step")], "logger": True, "log_every_n_steps": 1},
        "stepwise",
        lambda s: [float(row["lr-SGD"]) for row in s.logged() if row["lr-SGD"]] == close(0.08, 0.08, 0.08, 0.04),
    ),
    # optimizers
    "several optimizers": Row(
        configure="two", refused="one optimizer for the weights, but .* gives 2; give one, with a group", strategies=ALL
    ),
    "no optimizer": Row(configure="none", refused="one optimizer for the weights, but .* gives 0; give one"),
    "LBFGS": Row(configure="lbfgs", refused="LBFGS, which computes the loss several times .*; give one such as SGD"),
    # gradients
    "gradient_clip_val": Row(
        {"gradient_clip_val": 1.0}, refused=f"gradient_clip_val=1.0, {STEPS}; leave it out there and use .*val=1.0"
    ),
    "gradient_clip_val 0": Row(
        {"gradient_clip_val": 0}, refused=f"gradient_clip_val=0, {STEPS}; leave it out there and use .*val=(None|0)"
    ),
    "gradient_clip_algorithm": Row(
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, refused=f"gradient_clip_val=1.0, {STEPS}"
    ),
    "accumulate_grad_batches": Row(
        {"accumulate_grad_batches": 2},
        check=lambda s: s.trainer.global_step == 2,
        refused=f"accumulate_grad_batches=2, {STEPS}, .*make the loaders' batches larger",
        strategies=ALL,
    ),
    "GradientAccumulationScheduler": Row(
        {"callbacks": lambda: [GradientAccumulationScheduler({0: 2})]},
        check=lambda s: s.trainer.global_step == 2,
        refused=f"callback GradientAccumulationScheduler, {STEPS}, .* make the loaders' batches larger",
        strategies=ALL,
    ),
    "detect_anomaly": Row({"detect_anomaly": True}, check=lambda s: s.events["step"] == BATCHES),
    # averages and searches of settings
    "StochasticWeightAveraging": Row(
        {"callbacks": lambda: [StochasticWeightAveraging(0.01)]},
        refused="callback StochasticWeightAveraging, but .* two optimizers; leave it out, and give it to the evaluator",
    ),
    "LearningRateFinder": Row(
        {"callbacks": lambda: [LearningRateFinder()]},
        refused=f"callback LearningRateFinder, {STEPS}; find the learning rate by training a single network",
    ),
    "BatchSizeFinder": Row(
        {"callbacks": lambda: [BatchSizeFinder()]},
        refused="callback BatchSizeFinder, but a search has two loaders; find the size by training a single network",
    ),
    # how long
    "max_steps": Row(
        {"max_epochs": -1, "max_steps": 6},
        check=lambda s: (s.trainer.global_step, s.events["step"], len(s.records)) == (6, 6, 2),
        strategies=ALL,
    ),
    "max_time": Row(
        {"max_epochs": -1, "max_time": timedelta(milliseconds=150)},
        check=lambda s: 0 < s.events["step"] == s.trainer.global_step and "val_loss" in s.records[0],
    ),
    "EarlyStopping": Row(
        {"max_epochs": 9, "callbacks": lambda: [EarlyStopping(**STOPPING)]}, check=lambda s: len(s.records) == 2
    ),
    "min_epochs": Row(
        {"min_epochs": 3, "max_epochs": 9, "callbacks": lambda: [EarlyStopping(**STOPPING)]},
        check=lambda s: len(s.records) == 3,
    ),
    "fast_dev_run": Row(
        {"fast_dev_run": True, "max_epochs": 5},
        check=lambda s: (s.events["step"], s.events["validated"], len(s.records)) == (1, 1, 1),
    ),
    "limit_train_batches": Row(
        {"limit_train_batches": 3}, check=lambda s: (s.events["step"], s.events["validated"]) == (3, BATCHES)
    ),
    "limit_train_batches, a share": Row({"limit_train_batches": 0.5}, check=lambda s: s.events["step"] == BATCHES / 2),
    "limit_val_batches": Row({"limit_val_batches": 1}, check=lambda s: s.events["validated"] == 1),
    "limit_val_batches 0": Row(
        {"limit_val_batches": 0}, check=lambda s: s.events["validated"] == 0 and "val_loss" not in s.records[0]
    ),
    "overfit_batches": Row(
        {"overfit_batches": 1, "max_epochs": 3},
        check=lambda s: s.events["step"] == 3 and len({x.sum().item() for x in s.images}) == 2,  # α's and the weights'
    ),
    # when is validated, and what callbacks see of it
    "num_sanity_val_steps": Row(
        {"num_sanity_val_steps": 2}, check=lambda s: s.events["validated"] == 2 + BATCHES and len(s.records) == 1
    ),
    "val_check_interval": Row({"val_check_interval": 0.5}, check=lambda s: s.events["validated"] == 2 * BATCHES),
    "check_val_every_n_epoch": Row(
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        check=lambda s: ["val_loss" in record for record in s.records] == [False, True, False, True],
    ),
    "validation hooks of callbacks": Row(
        {"callbacks": lambda: [Validations()], "max_epochs": 2},
        check=lambda s: s.callback(Validations).seen == {"start": 2, "batch": 2 * BATCHES, "end": 2},
    ),
    "ModelCheckpoint of the best": Row(
        {"enable_checkpointing": True, "callbacks": lambda: [ModelCheckpoint("kept", monitor="val_loss")]},
        check=lambda s: s.callback(ModelCheckpoint).best_model_score.item() == s.records[0]["val_loss"],
    ),
    "ModelCheckpoint within an epoch": Row(
        {"enable_checkpointing": True, "callbacks": lambda: [ModelCheckpoint("kept", "{step}", every_n_train_steps=3)]},
        check=lambda s: Path(s.callback(ModelCheckpoint).best_model_path).name == "step=3.ckpt",
    ),
    "reload_dataloaders_every_n_epochs": Row(
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, check=lambda s: s.events["train_dataloader"] == 3
    ),
}
if averaging := getattr(pl.callbacks, "WeightAveraging", None):  # newer versions of Lightning have it
    FEATURES["WeightAveraging"] = Row(
        {"callbacks": lambda: [averaging()]},
        refused="callback WeightAveraging, but .*two optimizers; leave it out, .*averaged α that no record shows",
    )


@pytest.fixture
def run(choices, training, lightning, loader, search, tmp_path, monkeypatch):
    """run(strategy, row): what came of a search."""
    monkeypatch.chdir(tmp_path)
    events, images = Counter(), []

    class Watched(training):
        def training_step(self, batch, batch_idx):
            images.append(batch[0])
            loss = cross_entropy(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            events["validated"] += 1
            return super().validation_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer):
            events["step"] += 1

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            events["train_dataloader"] += 1
            return loader(BATCHES, seed=1)

        def val_dataloader(self):
            return loader(BATCHES, seed=2)

    def search_with(name, row):
        strategy = FairDARTS() if name == "fairdarts" else build(SearchConfig(strategy=name))
        strategy.history = tmp_path / "h.jsonl"
        settings = {key: value() if callable(value) else value for key, value in row.trainer.items()}
        if settings.get("logger"):
            settings["logger"] = CSVLogger(tmp_path)
        module = Watched()
        module.configure_optimizers = lambda: CONFIGURED[row.configure](module)
        evaluator = lightning(module, **settings)
        evaluator.datamodule = Data()
        torch.manual_seed(0)
        search(choices(), evaluator, strategy)
        return Seen(evaluator.trainer, read_history(strategy.history), events, images)

    return search_with


@pytest.mark.parametrize(
    ("feature", "strategy"), [(name, strategy) for name, row in FEATURES.items() for strategy in row.strategies]
)
def test_features_of_the_trainer(feature, strategy, run):
    row = FEATURES[feature]
    if row.refused and not (row.check and strategy == "random"):
        with pytest.raises(InputError, match=row.refused):
            run(strategy, row)
    else:
        assert row.check(run(strategy, row))


@pytest.mark.parametrize("strategy", ALL)
def test_a_module_that_takes_its_steps_itself_is_refused(strategy, training, lightning, choices, search):
    module = training()
    module.automatic_optimization = False
    strategy = FairDARTS() if strategy == "fairdarts" else build(SearchConfig(strategy=strategy))
    with pytest.raises(InputError, match="Training has automatic_optimization=False, .*; return the loss from train"):
        search(choices(), lightning(module), strategy)


def test_a_temperature_needs_a_last_epoch(training, lightning, choices, search):
    with pytest.raises(InputError, match="up to the last epoch, but .* has max_epochs=-1; give it a number of epochs"):
        search(choices(), lightning(training(), max_epochs=-1), build(SearchConfig(strategy="gumbel_darts")))
