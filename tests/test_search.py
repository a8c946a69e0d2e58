"""The bilevel step and what it leaves behind: gradients, equality with a plain version, order, history, NaN."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import DARTS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from reference import OPERATIONS, bilevel, choices_logits, kept
from torch import nn

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.errors import NonFiniteLoss
from nni_fairdarts.history import append_epoch, epoch_line, read_history


def alphas_of(strategy):
    return {label: module.alpha for label, module in strategy.oneshot_module.choices().items()}


# -- which gradients -----------------------------------------------------------------------------------------------


@pytest.fixture
def watched(training):
    """Notes for every backward pass what needs a gradient, and whose gradient it changes."""

    class Watched(training):
        seen = []

        def groups(self):
            named = list(self.model.named_parameters())
            return {kind: [p for n, p in named if n.endswith("alpha") == (kind == "alpha")] for kind in ("alpha", "w")}

        def training_step(self, batch, batch_idx):
            needs = {kind: {p.requires_grad for p in ps} for kind, ps in self.groups().items()}
            self.seen.append({"batch_idx": batch_idx, "needs": needs, "training": self.model.training})
            return {"loss": super().training_step(batch, batch_idx)}

        def on_before_backward(self, loss):
            self.before = {
                k: [p.grad if p.grad is None else p.grad.clone() for p in ps] for k, ps in self.groups().items()
            }

        def on_after_backward(self):
            def same(p, old):
                return p.grad is old if old is None else torch.equal(p.grad, old)

            self.seen[-1]["changed"] = {
                kind: {not same(p, old) for p, old in zip(ps, self.before[kind], strict=True)}
                for kind, ps in self.groups().items()
            }

    Watched.seen = []
    return Watched


def test_each_step_computes_its_own_gradients_only(choices, watched, lightning, loader, search):
    module = watched()
    search(choices(), lightning(module, loader(2, seed=1), loader(2, seed=2), max_epochs=2), FairDARTS())
    assert [s["batch_idx"] for s in module.seen] == [0, 1, 2, 3] * 2  # NNI's numbers: α 2k, weights 2k + 1
    for step in module.seen:
        learns, rests = ("alpha", "w") if step["batch_idx"] % 2 == 0 else ("w", "alpha")
        assert step["needs"] == {learns: {True}, rests: {False}}
        assert step["changed"] == {learns: {True}, rests: {False}}
        assert step["training"]
    assert all(p.requires_grad for p in module.model.parameters())  # afterwards all is as it was


@pytest.mark.parametrize("single_level", [False, True])
def test_alpha_rests_while_warming_up(choices, watched, lightning, loader, search, single_level):
    module = watched()
    strategy = FairDARTS(warmup_epochs=1, single_level=single_level)
    search(choices(), lightning(module, max_epochs=2), strategy)
    warming, *after = module.seen
    assert warming["changed"] == {"w": {True}, "alpha": {False}}
    if single_level:
        assert [s["changed"] for s in after] == [{"w": {True}, "alpha": {True}}]
    else:
        assert [s["changed"]["alpha"] for s in after] == [{True}, {False}]


def test_parameters_that_a_user_froze_stay_frozen(choices, training, lightning, search):
    space = choices()
    space.stem[0].weight.requires_grad_(False)
    before = space.stem[0].weight.clone()
    search(space, lightning(training()), FairDARTS())
    assert not space.stem[0].weight.requires_grad
    assert torch.equal(space.stem[0].weight, before)


# -- equal to a plain version --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "options"),
    [
        (1, {}),
        (1, {"zero_one_loss": "l1", "zero_one_weight": 3.0}),
        (1, {"zero_one_loss": "none"}),
        (1, {"gradient_clip_val": None, "alpha_init": 0.4}),
        (2, {"gradient_clip_val": 0.01, "arc_betas": (0.5, 0.9), "arc_weight_decay": 0.1, "arc_learning_rate": 0.05}),
        (2, {"warmup_epochs": 1, "alpha_init": -1.0}),
        (1, {"single_level": True, "alpha_init": 0.2}),
        (2, {"single_level": True, "warmup_epochs": 1, "zero_one_loss": "l1", "gradient_clip_val": 0.05}),
    ],
    ids=str,
)
def test_two_steps_equal_the_plain_version(choices, training, lightning, loader, search, tmp_path, epochs, options):
    torch.manual_seed(7)
    space, history = choices().double(), tmp_path / "history.jsonl"
    before = {name: p.detach().clone() for name, p in space.named_parameters()}
    train, val = (loader(2, 4, seed=seed, dtype=torch.float64) for seed in (1, 2))
    strategy = FairDARTS(history=history, **options)
    module = training(lr=0.1, momentum=0.9, weight_decay=3e-2)
    search(space, lightning(module, train, val, max_epochs=epochs, precision="64-true"), strategy)

    start = torch.tensor(options.get("alpha_init", 0.0), dtype=torch.float64)
    weights, alphas, means = bilevel(
        choices_logits, before, {"first": start.repeat(3), "second": start.repeat(2)}, list(train), list(val),
        epochs=epochs, lr=0.1, momentum=0.9, decay=3e-2,
        alpha_lr=options.get("arc_learning_rate", 3e-3), betas=options.get("arc_betas", (0.9, 0.999)),
        alpha_decay=options.get("arc_weight_decay", 1e-3), w01=options.get("zero_one_weight", 10.0),
        zero_one=options.get("zero_one_loss", "l2"), clip=options.get("gradient_clip_val", 5.0),
        single_level=options.get("single_level", False), warmup_epochs=options.get("warmup_epochs", 0),
    )  # fmt: skip
    close = {"rtol": 0, "atol": 1e-10}
    found = dict(space.named_parameters())
    assert {name for name in found if "alpha" not in name} == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(found[name].detach(), value, **close)
        assert (value - before[name]).abs().max() > 1e-6  # there was something to compare
    for label, value in alphas.items():
        torch.testing.assert_close(alphas_of(strategy)[label].detach(), value, **close)
        assert (value - start).abs().max() > 1e-6
    for record, expected in zip(read_history(history), means, strict=True):
        for name, value in expected.items():
            assert record[name] == (value if value is None else pytest.approx(value, abs=1e-10)), name


@pytest.mark.parametrize(("train", "val"), [(3, 2), (2, 3), (1, 3)])
def test_the_shorter_half_starts_again(choices, training, lightning, loader, search, train, val):
    class Noting(training):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    seen, halves = [], (loader(train, seed=1), loader(val, seed=2))
    search(choices(), lightning(Noting(), *halves), FairDARTS())
    of_weights, of_alpha = ([x for x, _ in half] for half in halves)
    expected = []
    for step in range(max(train, val)):
        expected += [of_alpha[step % val], of_weights[step % train]]
    assert len(seen) == len(expected)
    assert all(map(torch.equal, seen, expected))


def test_a_schedule_per_epoch_is_followed(choices, training, lightning, loader, search, tmp_path):
    class Scheduled(training):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}

    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    search(choices(), lightning(Scheduled(lr=0.08), loader(2, seed=1), max_epochs=3), strategy)
    assert [r["learning_rate"] for r in read_history(tmp_path / "h.jsonl")] == pytest.approx([0.08, 0.04, 0.02])


# -- order and seeds -----------------------------------------------------------------------------------------------


def test_the_order_of_alpha_is_that_of_the_space(training):
    """NNI's is a set's. In every process: ``test_determinism.py``."""

    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            for size, label in enumerate("qzmab", 2):
                setattr(self, label, LayerChoice([nn.Identity() for _ in range(size)], label=label))

    strategy, module = FairDARTS(), training()
    module.set_model(strategy.mutate_model(Space()))
    optimizer = strategy.configure_oneshot_module(module).configure_architecture_optimizers()
    assert [len(p) for group in optimizer.param_groups for p in group["params"]] == [2, 3, 4, 5, 6]


def test_the_same_seed_gives_the_same_search(classification, search, tmp_path):
    def run(seed, name):
        pl.seed_everything(seed, verbose=False)
        search(DARTS(4, 3, "cifar"), classification(max_epochs=2), FairDARTS(history=tmp_path / name))
        return [{k: v for k, v in record.items() if k != "seconds"} for record in read_history(tmp_path / name)]

    first, again, other = run(2, "first"), run(2, "again"), run(3, "other")
    assert first == again
    assert first[0]["gates"] != first[1]["gates"]
    assert first[-1]["gates"] != other[-1]["gates"]


# -- history -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["sparse", "edge"])
def test_history_has_every_gate_of_every_epoch(classification, loader, search, tmp_path, rule, capsys):
    strategy = FairDARTS(threshold=0.5, discretization=rule, arc_learning_rate=0.8, log_prob_every_n_step=1)
    logger = CSVLogger(tmp_path, name="logs")
    evaluator = classification(loader(2, seed=1), max_epochs=2, logger=logger, log_every_n_steps=1)
    search(DARTS(4, 3, "cifar"), evaluator, strategy)
    path = tmp_path / "logs" / "version_0" / "history.jsonl"  # by default beside the logger's files
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["epoch"] for r in records] == [0, 1]
    assert records[-1]["gates"] == {k: torch.sigmoid(a).tolist() for k, a in alphas_of(strategy).items()}
    assert records[0]["gates"] != records[1]["gates"]
    for record in records:
        assert set(record["gates"]) == {"normal", "reduce"}
        assert record["operations"] == {"normal": OPERATIONS, "reduce": OPERATIONS}
        gates = [g for cell in record["gates"].values() for row in cell for g in row]
        assert len(gates) == record["gates_total"] == 196
        assert record["decided_gates"] == sum(g < 0.1 or g > 0.9 for g in gates) / 196
        assert record["open_gates"] == sum(g >= 0.5 for g in gates)
        assert record["zero_one_loss"] == pytest.approx(-sum((g - 0.5) ** 2 for g in gates) / 196, abs=1e-7)
        for label, cell in record["gates"].items():
            skips = sum(op == "skip_connect" for op, *_ in kept(cell, rule, 0.5, OPERATIONS))
            assert record["skip_connections"][label] == skips
        assert record["seconds"] > 0
        assert 0 <= record["val_acc"] <= 1
        assert math.isfinite(record["val_loss"])
    assert 0 < records[-1]["decided_gates"] < 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert lines[1] == epoch_line(records[1], 2)
    for text in (
        "epoch 2/2",
        f"val_acc {records[1]['val_acc']:.4f}",
        f"open {records[1]['open_gates']}/196",
        "normal ",
    ):
        assert text in lines[1]
    logged = (path.parent / "metrics.csv").read_text().splitlines()
    columns = logged[0].split(",")
    assert {"arch_loss", "zero_one_loss", "decided_gates", "open_gates", "val_loss"} <= set(columns)
    assert sum(name.startswith("prob/") for name in columns) == 196
    place = columns.index("prob/reduce/5_3/dil_conv_3x3")
    last = [float(line.split(",")[place]) for line in logged[1:] if line.split(",")[place]][-1]
    assert last == pytest.approx(records[-1]["gates"]["reduce"][12][5], abs=1e-6)


def test_no_logger_and_no_path_is_no_history(choices, classification, search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search(choices(), classification(), FairDARTS(log_prob_every_n_step=0))
    assert not list(tmp_path.rglob("history*"))


def test_history_of_a_run_that_goes_on(tmp_path):
    """What a stopped run had written of the epoch that is done again, or later, is replaced; so is a cut line."""
    path = tmp_path / "new" / "history.jsonl"
    for epoch in (0, 1, 2):
        append_epoch(path, {"epoch": epoch, "run": 1})
    append_epoch(path, {"epoch": 1, "run": 2})
    assert read_history(path) == [{"epoch": 0, "run": 1}, {"epoch": 1, "run": 2}]
    path.write_text(path.read_text() + '{"epoch": 2, "ru')
    assert [r["epoch"] for r in read_history(path)] == [0, 1]
    append_epoch(path, {"epoch": 2, "run": 3})
    assert [r["run"] for r in read_history(path)] == [1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["history.jsonl"]


# -- a loss that is no number --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("options", "at", "name"),
    [({}, 2, "arch_loss"), ({}, 3, "train_loss"), ({"single_level": True}, 1, "train_loss")],
    ids=["alpha", "weights", "single"],
)
def test_a_loss_that_is_no_number_stops(
    choices, training, lightning, loader, search, tmp_path, options, at, name, wrong
):
    class Poisoned(training):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.trainer.current_epoch == 1 and batch_idx == at:
                before.update({n: p.detach().clone() for n, p in self.model.named_parameters()})
                return loss * wrong
            return loss

    before, space = {}, choices()
    checkpoints = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    evaluator = lightning(
        Poisoned(), loader(3), loader(3), max_epochs=3, enable_checkpointing=True, callbacks=[checkpoints]
    )
    with pytest.raises(NonFiniteLoss) as stopped:
        search(space, evaluator, FairDARTS(history=tmp_path / "h.jsonl", **options))
    where = f"{name} is {wrong} in epoch 1, batch 1 (both counted from 0); stopped before the optimizer's step"
    assert where in str(stopped.value)
    assert str(stopped.value).endswith(f"The last checkpoint is {tmp_path / 'last.ckpt'}")
    assert all(torch.equal(before[n], p) and p.isfinite().all() for n, p in space.named_parameters())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"] > 0) == (0, True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert [r["epoch"] for r in read_history(tmp_path / "h.jsonl")] == [0]


def test_a_loss_that_is_no_number_without_a_checkpoint(choices, training, lightning, loader, search):
    bad = loader()
    bad.dataset.tensors[0].fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match="in epoch 0, batch 0 .* No checkpoint had been saved yet"):
        search(choices(), lightning(training(), bad, bad), FairDARTS())


def test_a_space_without_a_choice_is_refused(training, lightning, search):
    class Plain(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(InputError, match="nothing to search: .*give it a LayerChoice, or use a hub space"):
        search(Plain(), lightning(training()), FairDARTS())
