"""The user's evaluator inside a search: its hooks, its data module, its losses; its trainer: ``test_trainer.py``."""

import collections
import re

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.history import read_history

NO_LOSS = "training_step must return its loss, a tensor with one number, or a mapping with such a tensor under 'loss'"


@pytest.fixture
def records(choices, search, tmp_path):
    """records(evaluator, ...): the history of a search with it."""

    def run(evaluator, **options):
        search(choices(), evaluator, FairDARTS(history=tmp_path / "h.jsonl", **options))
        return read_history(tmp_path / "h.jsonl")

    return run


# -- hooks of the evaluator's module -------------------------------------------------------------------------------


def test_callbacks_of_the_module_run(training, lightning, records):
    class Stopping(training):
        def configure_callbacks(self):
            return [EarlyStopping("val_loss", patience=1, min_delta=1e6)]

    assert len(records(lightning(Stopping(), max_epochs=6))) == 2


def test_hooks_around_the_step_are_for_the_weights(training, lightning, loader, records):
    class Noting(training):
        def on_before_optimizer_step(self, optimizer):
            seen["step", type(optimizer)] += 1

        def backward(self, loss, *args, **kwargs):
            seen["backward"] += 1
            super().backward(loss, *args, **kwargs)

    seen = collections.Counter()
    records(lightning(Noting(), loader(3, seed=1)))
    assert seen == {("step", torch.optim.SGD): 3, "backward": 6}  # α's own Adam is not the evaluator's


def test_the_module_keeps_things_of_its_own_in_checkpoints(training, lightning, choices, search, tmp_path):
    class Keeping(training):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 7

        def on_load_checkpoint(self, checkpoint):
            loaded.append(checkpoint["mine"])

    loaded, checkpoints = [], {"enable_checkpointing": True}
    for epochs, more in ((1, None), (2, tmp_path / "last.ckpt")):
        keep = ModelCheckpoint(tmp_path, save_last=True)
        evaluator = lightning(Keeping(), max_epochs=epochs, callbacks=[keep], **checkpoints)
        evaluator.fit_kwargs["ckpt_path"] = more
        search(choices(), evaluator, FairDARTS())
    assert loaded == [7]


@pytest.mark.parametrize("of", ["module", "datamodule"])
def test_transfer_hooks_get_the_evaluators_own_batches(training, lightning, loader, records, quiet, of):
    class Doubling:
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            seen.append(tuple(images.shape))
            return images * 2, labels

    class Neither:
        pass

    class Noting(training):
        def training_step(self, batch, batch_idx):
            inputs.append(batch[0])
            return super().training_step(batch, batch_idx)

    class Module(Doubling if of == "module" else Neither, Noting):
        pass

    class Data(Doubling if of == "datamodule" else Neither, pl.LightningDataModule):
        def train_dataloader(self):
            return loader(2, seed=1)

        def val_dataloader(self):
            return loader(2, seed=2)

    seen, inputs = [], []
    evaluator = lightning(Module(), **quiet)
    evaluator.datamodule = Data()
    records(evaluator)
    assert seen == [(2, 3, 8, 8)] * 6  # two steps of two halves, two of the validation
    expected = [x * 2 for pair in zip(loader(2, seed=2), loader(2, seed=1), strict=True) for x, _ in pair]
    assert all(map(torch.equal, inputs, expected))


def test_the_module_can_be_trained_again(training, lightning, choices, search):
    module = training()
    search(choices(), lightning(module), FairDARTS())
    again = lightning(module)
    again.evaluate(choices().freeze({"first": 0, "second": "a"}))
    assert "val_loss" in again.trainer.callback_metrics


# -- data modules --------------------------------------------------------------------------------------------------


def test_a_data_module_is_left_as_it_was(loader, choices, search, quiet):
    class Data(pl.LightningDataModule):
        def prepare_data(self):
            calls.append("prepare")

        def setup(self, stage):
            calls.append(f"{stage.value}, {self.trainer.max_epochs} epochs")
            self.halves = loader(seed=1), loader(seed=2)

        def teardown(self, stage):
            calls.append("teardown")

        def train_dataloader(self):
            return self.halves[0]

        def val_dataloader(self):
            return self.halves[1]

    calls, data = [], Data()
    for _ in range(2):
        evaluator = Classification(num_classes=10, datamodule=data, max_epochs=1, **quiet)
        search(choices(), evaluator, FairDARTS())
        assert evaluator.datamodule is data
    assert calls == ["prepare", "fit, 1 epochs", "teardown"] * 2
    assert data.train_dataloader() is data.halves[0]
    Classification(num_classes=10, datamodule=data, max_epochs=1, **quiet).evaluate(
        choices().freeze({"first": 0, "second": "a"})
    )


# -- steps, schedules, losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_level", [False, True])
def test_max_steps_are_steps_of_the_weights(training, lightning, loader, records, single_level):
    class Counting(training):
        def optimizer_step(self, *args, **kwargs):
            steps.append(self.global_step)
            super().optimizer_step(*args, **kwargs)

    steps = []
    evaluator = lightning(Counting(), loader(3, seed=1), max_epochs=-1, max_steps=5)
    found = records(evaluator, single_level=single_level)
    assert steps == [0, 1, 2, 3, 4]
    assert evaluator.trainer.global_step == 5
    assert [record["epoch"] for record in found] == [0, 1]


@pytest.mark.parametrize(
    ("spoil", "came"),
    [
        (lambda loss: None, "got NoneType"),
        (lambda loss: {"ce": loss, "kd": loss}, "got a mapping with ce, kd"),
        (lambda loss: {"loss": {"ce": loss}}, "got a mapping with loss"),
        (lambda loss: loss.repeat(3), "got one of shape (3,)"),
    ],
    ids=["none", "no loss", "nested", "vector"],
)
def test_what_is_no_loss(training, lightning, records, spoil, came):
    class Spoilt(training):
        def training_step(self, batch, batch_idx):
            return spoil(super().training_step(batch, batch_idx))

    with pytest.raises(InputError, match=re.escape(f"{NO_LOSS}; {came}")):
        records(lightning(Spoilt()))


def test_any_mapping_with_a_loss_will_do(training, lightning, records):
    class Mapped(training):
        def training_step(self, batch, batch_idx):
            return collections.UserDict(loss=super().training_step(batch, batch_idx))

    assert len(records(lightning(Mapped()))) == 1


# -- loaders, loggers, batches -------------------------------------------------------------------------------------


def test_several_loaders_for_alpha_are_refused(training, lightning, loader, records):
    both = [loader(seed=2), loader(seed=3)]
    with pytest.raises(
        InputError, match="α learns from one loader, but the evaluator's val_dataloaders are 2; .*Concat"
    ):
        records(lightning(training(), val=both))


def test_a_logger_without_folders_of_runs_gets_one(training, lightning, choices, search, tmp_path):
    class Plain(Logger):
        save_dir, name = tmp_path, "project"

        def __init__(self, version):
            super().__init__()
            self.number = version

        @property
        def version(self):
            return self.number

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    for version, epochs in ((0, 2), ("b", 1)):
        search(choices(), lightning(training(), logger=Plain(version), max_epochs=epochs), FairDARTS())
    assert len(read_history(tmp_path / "project" / "version_0" / "history.jsonl")) == 2
    assert len(read_history(tmp_path / "project" / "b" / "history.jsonl")) == 1


def test_batch_norms_are_estimated_from_batches_of_any_kind(choices, training, lightning, search):
    """The evaluator's own ``training_step`` feeds them to the network; its log and its model are left alone."""

    class Dicts(training):
        def training_step(self, batch, batch_idx):
            loss = super().training_step((batch["x"], batch["y"]), batch_idx)
            self.log("loss", loss)
            return loss

        validation_step = None

    torch.manual_seed(0)
    batches = [{"x": torch.randn(4, 3, 8, 8), "y": torch.zeros(4, dtype=torch.long)} for _ in range(3)]
    module = Dicts()
    strategy = FairDARTS(inherit_weights=True, reestimate_batches=2)
    loader = DataLoader(batches, batch_size=None)
    evaluator = lightning(module, loader, loader, limit_val_batches=0)
    experiment = search(choices(), evaluator, strategy)
    (network,) = experiment.export_top_models(formatter="instance")
    outputs = [network.stem[0](batch["x"]) for batch in batches[:2]]
    expected = sum(output.mean((0, 2, 3)) for output in outputs) / 2
    torch.testing.assert_close(network.stem[1].running_mean, expected, rtol=0, atol=1e-6)
    assert module.model is strategy.supernet
    assert "log" not in vars(module)
