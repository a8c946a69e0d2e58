"""Searches in float16: scaled losses, steps that are skipped where gradients overflow, and what both leave alone."""

import itertools
import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, InputError, experiment
from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig, SearchConfig
from nni_fairdarts.errors import NonFiniteLoss
from nni_fairdarts.history import read_history
from nni_fairdarts.nni_strategies import build


def float16(scale=2.0**16, **scaler) -> MixedPrecision:
    """Lightning's plugin, on a CPU: asked for by name it takes bfloat16 there."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", scale, **scaler))


@pytest.fixture
def searched(choices, lightning, loader, search, tmp_path):
    """searched(module, strategy, plugin, ...): the evaluator and the history of a search in the small space."""

    number = itertools.count()

    def run(module, strategy, plugin=None, batches=3, fit=None, **trainer):
        strategy.history = tmp_path / f"{next(number)}.jsonl"
        torch.manual_seed(0)
        trainer = {"plugins": None if plugin is None else [plugin], **trainer}
        evaluator = lightning(module, loader(batches, 4, seed=1), loader(batches, 4, seed=2), **trainer)
        evaluator.fit_kwargs.update(fit or {})
        search(choices(), evaluator, strategy)
        return evaluator, read_history(strategy.history)

    return run


class Notes(Callback):
    """Notes the gradients before every step, α's and the weights', and all parameters behind every batch."""

    def __init__(self):
        self.gradients, self.values = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.gradients.append(torch.cat([gradient.flatten() for gradient in gradients]))

    def on_train_batch_end(self, trainer, module, *args):
        self.values.append({name: p.detach().clone() for name, p in module.model.named_parameters()})


def named(strategy, **arguments):
    """FairDARTS, or NNI's strategy of that name as a run has it."""
    if strategy == "fairdarts":
        return FairDARTS(**arguments)
    if strategy == "single_level":
        return FairDARTS(single_level=True, **arguments)
    return build(SearchConfig(strategy=strategy, **arguments))


NAMES = ["fairdarts", "single_level", "darts", "proxyless", "random"]


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_float32(name, training, searched):
    """Losses, clipped gradients and steps agree as far as float16 goes, whatever the scale, and while it grows."""
    found = {}
    for plugin in (None, float16(2.0**3), float16(2.0**4, growth_interval=1)):
        notes = Notes()
        strategy = named(name, gradient_clip_val=0.1)
        _, (record,) = searched(training(lr=0.02), strategy, plugin, callbacks=[notes])
        found[plugin] = notes, record
    plain, expected = found.pop(None)
    assert not any("skipped" in key for key in expected)
    for notes, record in found.values():
        assert [record[key] for key in record if "skipped" in key] == [0] * (1 if name == "random" else 2)
        for key in ("train_loss", "arch_loss", "val_loss"):
            assert record.get(key) == (pytest.approx(expected[key], rel=5e-3) if key in expected else None), key
        assert len(notes.gradients) == len(plain.gradients) == (3 if name == "random" else 6)
        for gradient, exact in zip(notes.gradients, plain.gradients, strict=True):
            assert (gradient - exact).norm() < 2e-2 * exact.norm()
        for key, value in plain.values[-1].items():
            assert notes.values[-1][key].dtype == torch.float32
            torch.testing.assert_close(notes.values[-1][key], value, rtol=0, atol=2e-3)
    assert list(found)[-1].scaler.get_scale() == 2.0 ** (7 if name in ("random", "single_level") else 10)
    if name != "random":  # whose trainer clips
        assert plain.gradients[-1 if name != "single_level" else -2].norm() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_whose_gradients_overflow_is_skipped_and_counted(name, training, searched, capsys):
    """From a scale far too large, which every step that is skipped halves; nothing changes until none is."""
    notes, plugin, batches = Notes(), float16(2.0**40), 8
    strategy = named(name, gradient_clip_val=0.5)
    evaluator, records = searched(training(), strategy, plugin, batches, max_epochs=5, callbacks=[notes])
    kinds = [key for key in records[0] if key.startswith("skipped")]
    assert kinds == [f"skipped_{kind}_steps" for kind in (["weight"] if name == "random" else ["alpha", "weight"])]
    assert [records[0][kind] for kind in kinds] == [batches] * len(kinds)
    begun, unchanged, before, last = (list(notes.values[k].values()) for k in (0, batches - 1, -2, -1))
    assert all(map(torch.equal, begun, unchanged))
    assert [records[-1][kind] for kind in kinds] == [0] * len(kinds)
    assert not all(map(torch.equal, before, last))
    halved = sum(record[kind] for record in records for kind in kinds)
    if name == "single_level":  # both step by one scale, which falls once where either is skipped
        halved = max(sum(record[kind] for record in records) for kind in kinds)
    assert plugin.scaler.get_scale() == 2.0 ** (40 - halved)
    assert evaluator.trainer.global_step == 5 * batches  # one that is skipped counts
    assert all(value.isfinite().all() for value in last)
    assert all(math.isfinite(record[key]) for record in records for key in record if key.endswith("_loss"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    said = " ".join(f"{ {'alpha': 'α', 'weight': 'weights'}[kind.split('_')[1]] } {batches}" for kind in kinds)
    assert f"skipped steps {said}" in lines[0]
    assert "skipped" not in lines[-1]


def test_a_search_goes_on_with_its_scale(training, searched, tmp_path):
    """Three epochs in one go, and one with two more from its checkpoint: the same numbers, the same scale."""
    found = {}
    for epochs, more in ((3, None), (1, None), (3, tmp_path / "1" / "last.ckpt")):
        keep = ModelCheckpoint(tmp_path / str(epochs), save_last=True)
        plugin = float16(2.0**24, growth_interval=5)
        strategy = FairDARTS()
        trainer = {"max_epochs": epochs, "enable_checkpointing": True, "callbacks": [keep]}
        fit = {} if more is None else {"ckpt_path": more}
        _, records = searched(training(momentum=0.9), strategy, plugin, fit=fit, **trainer)
        values = {name: p.detach() for name, p in strategy.supernet.named_parameters()}
        found[epochs, more] = [{**record, "seconds": None} for record in records], values, plugin.scaler.state_dict()
    whole, begun, gone_on = found.values()
    assert begun[0] + gone_on[0] == whole[0]
    assert begun[0][0]["skipped_weight_steps"] > 0
    assert gone_on[2] == whole[2]
    assert all(torch.equal(value, gone_on[1][name]) for name, value in whole[1].items())


def test_a_fused_optimizer_that_skips_by_itself_is_counted(training, searched):
    class Fused(training):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01, fused=True)

    _, records = searched(Fused(), FairDARTS(gradient_clip_val=None), float16(2.0**40), 8, max_epochs=5)
    assert records[0]["skipped_weight_steps"] == 8
    assert records[-1]["skipped_weight_steps"] == 0


# -- what no scale mends -------------------------------------------------------------------------------------------


def test_gradients_that_stay_infinite_stop(training, searched):
    """The loss is finite, but not its gradient: every step is skipped, and the scale falls to nothing."""

    class Steep(training):
        def training_step(self, batch, batch_idx):
            nothing = 0 * self.model.classifier.weight.sum()
            return super().training_step(batch, batch_idx) + nothing.abs().sqrt()

    with pytest.raises(NonFiniteLoss, match=r"float16's scale has fallen to 1\.5e-05: .* precision bf16-mixed or 32-t"):
        searched(Steep(), FairDARTS(), float16(2.0**-4), batches=4, max_epochs=20)


@pytest.mark.parametrize("name", ["fairdarts", "darts"])
def test_a_loss_that_overflows_stops(name, training, searched):
    """Batch norms have taken in what made it infinite: their statistics would stay so."""

    class Huge(training):
        def training_step(self, batch, batch_idx):
            logits = self.model(batch[0])
            assert logits.dtype == torch.float16
            return cross_entropy(logits, batch[1]) + (logits * 1e6).square().mean().half()

    with pytest.raises(NonFiniteLoss, match=r"arch_loss is inf in epoch 0, batch 0 .*; or precision bf16-mixed, for"):
        searched(Huge(), named(name), float16())


# -- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_in_float16(tmp_path):
    values = {
        "device": "cpu", "threads": 1, "figure_epochs": 0, "runs": str(tmp_path),
        "data.name": "digits", "data.search_classes": 3, "data.search_images_per_class": 10,
        "space.width": 2, "space.num_cells": 3, "search.epochs": 1,
        "search.batch_size": 15, "search.gap_batches": 1, "search.precision": "16-mixed",
    }  # fmt: skip
    config = changed(RunConfig(), values)
    experiment.search(config)
    (record,) = read_history(config.folder / "history.jsonl")
    skipped = record["skipped_alpha_steps"] + record["skipped_weight_steps"]
    saved = torch.load(next((config.folder / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert saved["MixedPrecision"]["scale"] == 2.0 ** (16 - skipped)  # float16's; bfloat16 has none
    assert all(gate.dtype == torch.float32 for name, gate in saved["state_dict"].items() if name.endswith("alpha"))


def test_enas_is_refused():
    with pytest.raises(InputError, match="search.precision must be 32-true or bf16-mixed with enas; NNI trains"):
        SearchConfig(strategy="enas", precision="16-mixed")
