"""Losses of a CUDA device, watched without waiting: found late, but before anything is validated, recorded or saved.

There is no device here: losses say that they are on one, and what stands for its event arrives as late as a test asks.
"""

import math

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint, ProgressBar

from nni_fairdarts import FairDARTS, watch
from nni_fairdarts.errors import NonFiniteLoss
from nni_fairdarts.history import read_history
from nni_fairdarts.training import ImageTraining


class OfDevice(torch.Tensor):
    """A tensor that says it is on a CUDA device, and must not be read within an epoch."""

    is_cuda, readable = True, False

    def __float__(self):
        assert self.readable, "the host would wait for the device"
        return super().__float__()


class Event:
    """Over after so many queries, or once it is waited for."""

    def __init__(self, queries):
        self.left = queries

    def query(self):
        self.left -= 1
        return self.left < 0

    def synchronize(self):
        self.left = 0


@pytest.fixture
def device(monkeypatch):
    """device(queries): copies from it arrive after so many queries."""

    def make(queries):
        def arriving(value):
            return value.as_subclass(torch.Tensor).clone(), Event(queries)

        monkeypatch.setattr(watch, "arriving", arriving)

    return make


@pytest.fixture
def poisoned(training):
    """poisoned(at): a module whose loss is NaN in epoch 1, step ``at``, and notes when it trains and validates."""

    class Poisoned(training):
        def __init__(self, at):
            super().__init__()
            self.at, self.seen = at, []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.trainer.current_epoch, batch_idx))
            wrong = math.nan if self.seen[-1] == (1, self.at) else 1.0
            return (super().training_step(batch, batch_idx) * wrong).as_subclass(OfDevice)

        def on_train_epoch_start(self):
            OfDevice.readable = False

        def on_train_epoch_end(self):
            OfDevice.readable = True

        def validation_step(self, batch, batch_idx):
            self.seen.append((self.trainer.current_epoch, "validation"))
            return super().validation_step(batch, batch_idx)

    return Poisoned


@pytest.mark.parametrize(
    ("at", "queries", "name", "last"),
    [
        (2, 0, "arch_loss", (1, 2)),
        (2, 1, "arch_loss", (1, 3)),  # by the next loss
        (3, 1, "train_loss", (1, 4)),
        (2, math.inf, "arch_loss", (1, 5)),  # never by itself: before the validation
        (5, math.inf, "train_loss", (1, 5)),
    ],
)
def test_a_late_loss_stops_before_anything_is_saved(
    choices, poisoned, device, lightning, loader, search, tmp_path, at, queries, name, last
):
    device(queries)
    module = poisoned(at)
    checkpoints = [ModelCheckpoint(tmp_path, save_last=True), OnExceptionCheckpoint(tmp_path)]
    evaluator = lightning(module, loader(3), loader(3), max_epochs=3, enable_checkpointing=True, callbacks=checkpoints)
    with pytest.raises(NonFiniteLoss) as stopped:
        search(choices(), evaluator, FairDARTS(history=tmp_path / "h.jsonl"))
    where = (
        f"{name} is nan in epoch 1, batch {at // 2} (both counted from 0); found behind the optimizer's step, before"
    )
    assert where in str(stopped.value)
    assert str(stopped.value).endswith(f"The last checkpoint is {tmp_path / 'last.ckpt'}")
    assert module.seen[-1] == last
    assert [r["epoch"] for r in read_history(tmp_path / "h.jsonl")] == [0]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "on_exception.ckpt").exists()


def test_a_checkpoint_within_an_epoch_waits(choices, poisoned, device, lightning, loader, search, tmp_path):
    device(math.inf)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    evaluator = lightning(poisoned(2), loader(3), loader(3), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    with pytest.raises(NonFiniteLoss, match="arch_loss is nan in epoch 1, batch 1"):
        search(choices(), evaluator, FairDARTS())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_the_numbers_are_those_of_the_cpu(choices, poisoned, training, device, lightning, loader, search, tmp_path):
    records = {}
    for name, module in (("late", poisoned(-1)), ("now", training())):
        device(1)
        torch.manual_seed(0)
        strategy = FairDARTS(history=tmp_path / name)
        search(choices(), lightning(module, loader(3, seed=1), loader(3, seed=2), max_epochs=2), strategy)
        records[name] = [{k: v for k, v in r.items() if k != "seconds"} for r in read_history(tmp_path / name)]
    assert records["late"] == records["now"]


def test_what_has_arrived_is_on_the_progress_bar(choices, poisoned, device, lightning, loader, search):
    class Bar(ProgressBar):
        is_enabled = False  # it prints nothing

        def on_train_batch_end(self, trainer, module, *args):
            shown.append({k: v for k, v in self.get_metrics(trainer, module).items() if k.endswith("loss")})

    shown = []
    device(1)
    evaluator = lightning(poisoned(-1), loader(2), enable_progress_bar=True, callbacks=[Bar()])
    search(choices(), evaluator, FairDARTS())
    assert [set(s) for s in shown] == [{"arch_loss"}, {"arch_loss", "train_loss"}]  # each when the next one comes
    assert all(isinstance(value, float) for s in shown for value in s.values())


class Retrained(ImageTraining):
    """Logs nothing that would be read, as a loss of a device would not be; its loss is NaN from step 4 on."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return (loss * (math.nan if self.trainer.global_step >= 4 else 1)).as_subclass(OfDevice)


def test_a_retraining_is_watched_too(device, lightning, loader, tmp_path):
    device(math.inf)
    module = Retrained(num_classes=10, learning_rate=0.1)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    evaluator = lightning(module, loader(3), loader(1), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    with pytest.raises(NonFiniteLoss, match="train_loss is nan in epoch 1, batch 1 .* before anything was saved"):
        evaluator.evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_the_device(choices, loader, lightning, search):
    class Strict(ImageTraining):
        def on_train_batch_start(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error" if batch_idx >= 2 else "default")  # the first ones make their memory

        def on_train_batch_end(self, *args):
            torch.cuda.set_sync_debug_mode("default")

    pinned = loader(6, seed=1)
    pinned.pin_memory = True
    evaluator = lightning(Strict(10, 0.1), pinned, loader(6, seed=2), accelerator="gpu")
    try:
        search(choices(), evaluator, FairDARTS(log_prob_every_n_step=0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
