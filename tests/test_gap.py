"""The discretisation gap: rounded gates, inherited weights, batch norms estimated anew, and nothing else changed."""

import copy
import random

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableConv2d, Repeat
from torch import nn
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.config import SearchConfig
from nni_fairdarts.gap import DiscretizationGap, same_random_numbers
from nni_fairdarts.history import read_history
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.spaces import DARTS

FEW = ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]


def measured(space, evaluator, search, path, validation=None, count=2, metric="val_loss", **settings):
    """(strategy, records) of a search that measures its gap."""
    strategy = build(SearchConfig(**settings), metric)
    strategy.history = path
    strategy.validation_dataloaders = validation
    strategy.measure = DiscretizationGap(evaluator, count, metric, validation)
    search(space, evaluator, strategy)
    return strategy, read_history(path)


def averaged_norms(network, batches):
    """The network with each batch norm's statistics averaged, by hand, over what it sees in ``batches``."""
    network = copy.deepcopy(network).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    seen = {norm: [] for norm in norms}
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics are those of the last batch
        if hasattr(norm, "init_arguments"):  # NNI's
            norm.init_arguments["momentum"] = 1.0
    with torch.no_grad():
        for x, _ in batches:
            network(x)
            for norm in norms:
                seen[norm].append((norm.running_mean.clone(), norm.running_var.clone()))
    for norm in norms:
        norm.running_mean.copy_(sum(mean for mean, _ in seen[norm]) / len(seen[norm]))
        norm.running_var.copy_(sum(var for _, var in seen[norm]) / len(seen[norm]))
    return network.eval()


def loss(network, loader):
    with torch.no_grad():
        return sum(float(cross_entropy(network(x), y)) * len(y) for x, y in loader) / len(loader.dataset)


@pytest.mark.parametrize("name", ["fairdarts", "darts"])
def test_the_gap_is_that_of_the_supernet_with_its_gates_set_by_hand(
    name, lightning, training, search, loader, tmp_path
):
    dtype = torch.float64 if name == "fairdarts" else torch.float32  # NNI's supernet is in single precision
    train, val = (loader(batches=3, batch=4, shape=(3, 8, 8), seed=s, dtype=dtype) for s in (1, 2))
    space = DARTS(2, 3, operations=FEW).to(dtype)
    settings = {"strategy": name, "arc_learning_rate": 0.5}
    strategy, records = measured(space, lightning(training(), train, val), search, tmp_path / "h.jsonl", **settings)
    supernet = copy.deepcopy(strategy.supernet)
    with torch.no_grad():  # by hand: what each α has to be for gates of 0 and 1
        for module in supernet.modules():
            if name == "fairdarts" and type(module).__name__ == "GatedCell":
                module.alpha.copy_(torch.where(module.alpha >= 0, 500.0, -800.0))
            elif type(module).__name__ == "DifferentiableMixedCell":
                for alpha in module._arch_alpha.values():
                    chosen = max(range(3), key=lambda i: float(alpha[i]))  # the fourth is "none"
                    alpha.copy_(torch.tensor([900.0 if i == chosen else -900.0 for i in range(4)]))
    batches = [batch for batch, _ in zip(train, range(2), strict=False)]
    expected = loss(strategy.supernet.eval(), val) - loss(averaged_norms(supernet, batches), val)
    assert records[-1]["discretization_gap"] == pytest.approx(expected, abs=1e-5)  # val_loss is logged in float32
    assert abs(expected) > 1e-4


class Everything(ModelSpace):
    """One of each: layers, inputs, a depth, a width."""

    def __init__(self):
        super().__init__()
        import nni

        width = nni.choice("width", [2, 4])
        self.stem = MutableConv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = LayerChoice([nn.Conv2d(4, 4, 1), nn.Identity()], label="layer")
        self.blocks = Repeat(lambda i: nn.Conv2d(4, 4, 3, padding=1), (1, 3), label="depth")
        self.inputs = InputChoice(2, n_chosen=1, label="input")
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(nn.functional.pad(x, (0, 0, 0, 0, 0, 4 - x.shape[1])))
        return self.head(self.inputs([self.first(x), self.blocks(x)]).relu().mean((2, 3)))


def test_choices_of_every_kind_are_rounded(lightning, training, search, tmp_path):
    strategy, records = measured(
        Everything(), lightning(training()), search, tmp_path / "h.jsonl", arc_learning_rate=0.5
    )
    assert records[-1].keys() >= {"discretization_gap"}
    rounded = dict((id(alpha), value) for alpha, value in strategy.oneshot_module.rounded_alphas())
    for label, choice in strategy.oneshot_module.choices().items():
        gates = choice.relaxation(rounded[id(choice.alpha)])
        assert set(gates.tolist()) <= {0.0, 1.0}, label
        if choice.exclusive:
            assert gates.argmax() == choice.gates().argmax()
            assert gates.sum() == 1
        else:
            assert torch.equal(gates, (choice.gates() >= 0.5).float())


@pytest.mark.parametrize("name", ["fairdarts", "gumbel_darts"])
def test_measuring_changes_nothing_of_the_search(name, lightning, training, search, loader, choices, tmp_path):
    def alphas(gap):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        space = DARTS(2, 3, operations=FEW) if name == "fairdarts" else choices()
        evaluator = lightning(training(), loader(2, seed=1), loader(2, seed=2), max_epochs=2)
        strategy = build(SearchConfig(strategy=name, arc_learning_rate=0.1))
        strategy.history = tmp_path / f"{name}-{gap}.jsonl"
        if gap:
            strategy.measure = DiscretizationGap(evaluator, 2, "val_loss")
        search(space, evaluator, strategy)
        drawn = torch.rand(1), np.random.rand(), random.random()
        return strategy.oneshot_module.arch_parameters(), strategy.supernet.state_dict(), drawn

    (plain, weights, drawn), (measured_, weights_, drawn_) = alphas(False), alphas(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured_, strict=True))
    assert all(torch.equal(weights[key], weights_[key]) for key in weights)
    assert drawn == drawn_


def test_random_numbers_are_put_back():
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with same_random_numbers():
        torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_metric_that_nobody_logs_is_named(lightning, training, search, tmp_path):
    with pytest.raises(InputError, match="metric is 'val_acc', which the evaluator's validation_step does not log; it"):
        measured(Everything(), lightning(training()), search, tmp_path / "h.jsonl", metric="val_acc")


def test_a_metric_object_is_computed_over_the_whole_set(classification, search, loader, tmp_path):
    """Where the evaluator logs a torchmetrics object, the mean of the batches' values would be another number."""
    import torchmetrics
    from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer

    class Training(LightningModule):
        def __init__(self):
            super().__init__()
            self.spread = torchmetrics.MeanSquaredError(squared=False)

        def training_step(self, batch, batch_idx):
            return cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.spread(self.model(batch[0])[:, 0], batch[1].float())
            self.log("val_spread", self.spread)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    train, val = loader(2, seed=1), loader(3, seed=2)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    evaluator = Lightning(Training(), trainer, train_dataloaders=train, val_dataloaders=val)
    strategy, records = measured(Everything(), evaluator, search, tmp_path / "h.jsonl", metric="val_spread")
    module = strategy.oneshot_module
    with torch.no_grad():
        for alpha, value in list(module.rounded_alphas()):
            alpha.copy_(value)
        network = averaged_norms(strategy.supernet, list(train))
        outputs = torch.cat([network(x)[:, 0] for x, _ in val])
        targets = torch.cat([y.float() for _, y in val])
    rounded = float(((outputs - targets) ** 2).mean().sqrt())
    assert records[-1]["val_spread"] - records[-1]["discretization_gap"] == pytest.approx(rounded, abs=1e-5)


def test_fairdarts_alone_measures_nothing(classification, search, choices, tmp_path):
    strategy = FairDARTS(history=tmp_path / "h.jsonl")
    search(choices(), classification(), strategy)
    assert "discretization_gap" not in read_history(tmp_path / "h.jsonl")[-1]


class Noting:
    """Mixed into an evaluator's module: dropout, a metric, a list and a count of its own, outside the network."""

    def __init__(self, **sgd):
        super().__init__(**sgd)
        import torchmetrics

        self.dropout = nn.Dropout(0.5)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.outputs, self.steps, self.modes, self.seen = [], 0, [], []

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.modes.append((self.training, self.dropout.training))
        return cross_entropy(self.dropout(self.model(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.model(batch[0])
        self.accuracy.update(logits, batch[1])
        self.outputs.append(len(batch[1]))
        self.log("val_loss", cross_entropy(logits, batch[1]))

    def on_validation_epoch_end(self):
        self.seen.append((sum(self.outputs), int(self.accuracy.tp.sum() + self.accuracy.fn.sum())))
        self.outputs.clear()
        self.accuracy.reset()


@pytest.mark.parametrize("name", ["fairdarts", "darts"])
def test_the_evaluators_own_state_is_left_alone(name, lightning, training, search, loader, choices, tmp_path):
    module = type("Training", (Noting, training), {})()
    evaluator = lightning(module, loader(3), loader(4), max_epochs=3)
    measured(choices(), evaluator, search, tmp_path / "h.jsonl", strategy=name)
    assert set(module.modes) == {(True, True)}
    assert module.seen == [(8, 8)] * 3
    assert module.steps == len(module.modes)


def test_a_loaders_own_generator_is_left_alone(lightning, training, search, loader, choices, tmp_path):
    from nni.nas.evaluator.pytorch import DataLoader

    drawn = []
    for gap in (True, False):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(loader(3).dataset, batch_size=2, shuffle=True, generator=generator)
        evaluator = lightning(training(), train, loader(4), max_epochs=2)
        strategy = build(SearchConfig())
        strategy.history = tmp_path / f"{gap}.jsonl"
        strategy.measure = DiscretizationGap(evaluator, 2, "val_loss") if gap else None
        search(choices(), evaluator, strategy)
        drawn.append(generator.get_state())
    assert torch.equal(*drawn)
    measured_, plain = (read_history(tmp_path / f"{gap}.jsonl") for gap in (True, False))
    assert [r["gates"] for r in measured_] == [r["gates"] for r in plain]


def test_a_limit_on_validation_holds_for_the_gap(lightning, training, search, loader, tmp_path):
    asked = []

    class Training(training):
        def validation_step(self, batch, batch_idx):
            asked.append(batch_idx)
            super().validation_step(batch, batch_idx)

    measured(Everything(), lightning(Training(), val=loader(4), limit_val_batches=2), search, tmp_path / "h.jsonl")
    assert asked == [0, 1, 0, 1]  # Lightning's, and the gap's


def test_several_validation_loaders_are_refused(lightning, training, search, loader, choices, tmp_path):
    evaluator = lightning(training(), loader(2), loader(2))
    strategy = build(SearchConfig())
    strategy.history = tmp_path / "h.jsonl"
    strategy.measure = DiscretizationGap(evaluator, 2, "val_loss", [loader(1), loader(1)])
    with pytest.raises(InputError, match="measured on one validation loader, the evaluator has 2; give one, or set"):
        search(choices(), evaluator, strategy)


def test_of_several_inputs_as_many_are_kept_as_are_chosen(lightning, training, search, tmp_path):
    class Inputs(ModelSpace):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(4))
            self.choice = InputChoice(4, n_chosen=2, label="inputs")
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.choice([part(x) for part in self.parts]).relu().mean((2, 3)))

    strategy, _ = measured(
        Inputs(), lightning(training()), search, tmp_path / "h.jsonl", strategy="darts", arc_learning_rate=0.5
    )
    ((alpha, value),) = strategy.oneshot_module.rounded_alphas()
    chosen = sorted(alpha.topk(2).indices.tolist())
    assert value.softmax(0).tolist() == [0.5 if i in chosen else 0.0 for i in range(4)]
    assert sorted(strategy.oneshot_module.export()["inputs"]) == chosen
