"""What Lightning and this package do around a step: no more than is needed, and nothing that changes what comes out."""

import collections

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from pytorch_lightning.loggers.logger import Logger

from nni_fairdarts import FairDARTS
from nni_fairdarts.recording import RecordsEpochs


class Noting(Logger):
    """Keeps what Lightning gives it."""

    name, version = "noting", 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_loggers_get_what_nnis_own_logging_gives_them(
    choices, training, lightning, loader, search, monkeypatch, every, precision
):
    def run():
        torch.manual_seed(0)
        logger = Noting()
        evaluator = lightning(
            training(), loader(5, seed=1), loader(5, seed=2), logger=logger, log_every_n_steps=2, max_epochs=2,
            precision=precision,
        )  # fmt: skip
        search(choices(), evaluator, FairDARTS(arc_learning_rate=0.1, log_prob_every_n_step=every))
        return logger.calls, {name: float(value) for name, value in evaluator.trainer.callback_metrics.items()}

    found = run()
    monkeypatch.setattr(RecordsEpochs, "log_probs", BaseOneShotLightningModule.log_probs)
    assert found == run()
    gates = [metrics["prob/first/0"] for _, metrics in found[0] if "prob/first/0" in metrics]
    assert len(gates) >= 4
    assert len(set(gates)) > 2


def test_a_gate_goes_through_lightnings_log_once(choices, training, lightning, loader, search, monkeypatch):
    def counting(self, name, *args, **kwargs):
        asked[name, self._current_fx_name] += 1
        return log(self, name, *args, **kwargs)

    asked, log = collections.Counter(), pl.LightningModule.log
    monkeypatch.setattr(pl.LightningModule, "log", counting)
    search(choices(), lightning(training(), loader(6), max_epochs=2), FairDARTS(log_prob_every_n_step=1))
    of_gates = {where: count for (name, where), count in asked.items() if name == "prob/second/a"}
    assert of_gates == {"training_step": 1, "on_train_epoch_end": 2}  # of twelve steps, of two epochs


def test_in_half_precision_alpha_and_what_it_learns_by_stay_in_float32(choices, training, lightning, loader, search):
    class Mixed(training):
        def training_step(self, batch, batch_idx):
            logits.append(self.model(batch[0]).dtype)
            return super().training_step(batch, batch_idx)

        def on_before_backward(self, loss):
            losses.append(loss.dtype)

    class Product(FairDARTS):
        """A zero-one loss that autocast would compute in half precision."""

        def configure_oneshot_module(self, training_module):
            module = super().configure_oneshot_module(training_module)
            module.zero_one_loss = product
            return module

    def product(gates):
        value = gates @ (1 - gates)
        products.append((value.dtype, value.item(), (gates * (1 - gates)).sum().item()))
        return value

    logits, losses, products = [], [], []
    evaluator = lightning(Mixed(momentum=0.9), loader(3), loader(3), precision="bf16-mixed")
    strategy = Product(arc_learning_rate=0.1)
    search(choices(), evaluator, strategy)
    assert set(logits) == {torch.bfloat16}
    assert set(losses) == {torch.float32}
    for dtype, found, expected in products:
        assert (dtype, found) == (torch.float32, pytest.approx(expected, rel=1e-6))
    assert {c.alpha.dtype for c in strategy.oneshot_module.choices().values()} == {torch.float32}
    states = [value for o in evaluator.trainer.optimizers for s in o.state.values() for value in s.values()]
    assert {value.dtype for value in states} == {torch.float32}
    assert len(states) > 8
