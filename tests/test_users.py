"""A space and an evaluator of the user's, named in the configuration: module:Class, module:function."""

import json

import pytest
import torch
import yaml

from nni_fairdarts import freeze
from nni_fairdarts.cli import main
from nni_fairdarts.history import read_history

MODULE = '''
"""Two points of view on digits: a space of layers over two inputs, and an evaluator that hands it both."""

import torch
import torchmetrics
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, Subset

CALLS = []


class Pairs(Dataset):
    def __init__(self):
        images, self.classes = load_digits(return_X_y=True)
        self.images = torch.tensor(images, dtype=torch.float32) / 16

    def __len__(self):
        return 240

    def __getitem__(self, index):
        return {"left": self.images[index], "right": self.images[index].flip(0), "class": int(self.classes[index])}


class Space(ModelSpace):
    def __init__(self, width=8):
        super().__init__()
        deep = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.left = LayerChoice({"flat": nn.Linear(64, width), "deep": deep}, label="left")
        self.right = LayerChoice({"flat": nn.Linear(64, width), "bare": nn.Linear(64, width, False)}, label="right")
        self.head = nn.Linear(width, 10)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).relu())


class Training(LightningModule):
    def __init__(self):
        super().__init__()
        self.score = torchmetrics.Accuracy("multiclass", num_classes=10)

    def step(self, batch):
        return self.model(batch["left"], batch["right"])

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.step(batch), batch["class"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.score(self.step(batch), batch["class"])
        self.log("val_score", self.score)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def evaluator(stage, config):
    CALLS.append((stage, config.seed))
    train, test = Subset(Pairs(), range(120)), Subset(Pairs(), range(120, 240))
    epochs = config.search.epochs if stage == "search" else config.retrain.epochs
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)
    return Lightning(Training(), trainer, DataLoader(train, 40), DataLoader(test, 60))


def seldom(stage, config):
    made = evaluator(stage, config)
    made.trainer.check_val_every_n_epoch = 2
    return made


def never(stage, config):
    made = evaluator(stage, config)
    made.trainer.limit_val_batches = 0
    return made


def short(stage, config):
    made = evaluator(stage, config)
    made.trainer.fit_loop.epoch_loop.max_steps = 1
    return made


def nothing(stage, config):
    return None


def no_space():
    return 3
'''
CONFIG = {
    "device": "cpu",
    "threads": 1,
    "figure_epochs": 0,
    "seed": 5,
    "space": "theirs:Space",
    "evaluator": "theirs:evaluator",
    "metric": "val_score",
    "search": {"epochs": 2, "arc_learning_rate": 0.2, "gap_batches": 2},
    "retrain": {"epochs": 3},
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder with the user's module, run from there: write(changes) -> the path of a configuration."""
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "theirs", raising=False)

    def write(**changes):
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
        return str(tmp_path / "theirs.yaml")

    return write


@pytest.mark.parametrize("strategy", ["fairdarts", "darts"])
def test_a_run_of_the_users_own_space_and_evaluator(strategy, theirs, tmp_path, capsys):
    search = {**CONFIG["search"], "strategy": strategy}
    space = {"name": "theirs:Space", "arguments": {"width": 12}} if strategy == "darts" else CONFIG["space"]
    assert main(["run", "--config", theirs(search=search, space=space)]) == 0, capsys.readouterr().err
    import theirs as module

    assert module.CALLS == [("retrain", 5), ("search", 5), ("retrain", 5)]  # the first to see whether it works
    run = tmp_path / "runs" / "search"
    sample = json.loads((run / "sample.json").read_text())
    assert sample.keys() == {"left", "right"}
    searched, retrained = (json.loads((run / part / "result.json").read_text()) for part in ("", "retrain"))
    records = read_history(run / "history.jsonl")
    assert [record["epoch"] for record in records] == [0, 1]
    assert searched["supernet_accuracy"] == records[-1]["val_score"]
    assert records[-1].keys() >= {"discretization_gap", "decided_gates"}
    network = freeze(module.Space(12 if strategy == "darts" else 8), sample)
    network.load_state_dict(torch.load(run / "retrain" / "network.pt", weights_only=True))
    network.eval()
    data = [module.Pairs()[i] for i in range(120, 240)]
    with torch.no_grad():
        scores = network(torch.stack([d["left"] for d in data]), torch.stack([d["right"] for d in data]))
    accuracy = float((scores.argmax(1) == torch.tensor([d["class"] for d in data])).double().mean())
    assert retrained["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert retrained["multiply_adds"] == sum(
        m.in_features * m.out_features for m in network.modules() if hasattr(m, "in_features")
    )
    assert retrained["epochs"] == 3
    assert list((run / "checkpoints").iterdir())
    assert list((run / "tensorboard").iterdir())
    printed = capsys.readouterr().out
    assert f"left = {sample['left']}" in printed
    score, gap = searched["supernet_accuracy"], searched["discretization_gap"]
    # Theirs is no accuracy: its name, and no percentages.
    assert f"supernet val_score  {score:.6g} (validation)\ndiscretisation gap  {gap:.6g} (lost" in printed
    assert f"\nderived val_score   {retrained['test_accuracy']:.6g} (test), " in printed
    assert main(["evaluate", "runs/search", "--json", "out.json"]) == 0
    assert f"val_score           {retrained['test_accuracy']:.6g}\n" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "out.json").read_text())
    assert (evaluation["accuracy"], evaluation["images"]) == (retrained["test_accuracy"], 120)
    assert evaluation["loss"] is None  # their evaluator logs none
    assert main(["analyse", "runs/search", "--hessian_batches", "2", "--json", "analysis.json"]) == 0
    assert f"supernet val_score  {score:.6g} (validation)\ndiscretisation gap  " in capsys.readouterr().out
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    assert numbers["accuracy"] == searched["supernet_accuracy"]
    assert numbers["curvature"]["scale"] > 0
    assert main(["export", "runs/search", "--format", "torch", "--output", "mine.pt2"]) == 2
    assert "export takes networks of one tensor, the first of the evaluator's batches, got dict" in (
        capsys.readouterr().err
    )


def test_it_can_be_retrained_again(theirs, tmp_path, capsys):
    assert main(["search", "--config", theirs()]) == 0
    assert main(["retrain", "runs/search", "--into", "again"]) == 0
    assert (tmp_path / "runs" / "search" / "again" / "network.pt").is_file()
    assert main(["derive", "runs/search"]) == 2
    assert "no gates of a normal and a reduce cell: the search was of another space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"space": "theirs:Spaces"}, "cannot import the model space 'theirs:Spaces': AttributeError"),
        ({"space": "nowhere:Space"}, "cannot import the model space 'nowhere:Space': ModuleNotFoundError"),
        ({"space": "theirs:CALLS"}, "the model space 'theirs:CALLS' must be a class, got list"),
        ({"space": "theirs:no_space"}, "theirs:no_space must make a model space of NNI's, got int"),
        (
            {"space": {"name": "theirs:Space", "arguments": {"depth": 3}}},
            "space theirs:Space: TypeError: Space.__init__() got an unexpected keyword argument 'depth'; give its",
        ),
        ({"space": "mine"}, "space.name must be darts, or module:Class of yours, got 'mine'"),
        ({"space": {"arguments": {"width": 3}}}, "space.arguments must be empty for darts"),
        ({"evaluator": "theirs"}, "run.evaluator must be module:function, or unset, got 'theirs'"),
        ({"evaluator": "theirs:nobody"}, "cannot import the evaluator 'theirs:nobody': AttributeError"),
        ({"evaluator": "theirs:nothing"}, "theirs:nothing must return NNI's Lightning evaluator"),
        ({"metric": "score"}, "run.metric must be a name that begins with val_, as logged in validation, got 'score'"),
        ({"evaluator": "theirs:seldom"}, "its trainer has check_val_every_n_epoch=2; leave it at 1"),
        ({"evaluator": "theirs:never"}, "limit_val_batches=0; let it validate, for a run is judged by 'val_score'"),
        ({"metric": "val_acc"}, "metric is 'val_acc', which the evaluator's validation_step does not log; it logs: "),
        (
            {"metric": "val_acc", "search": {"gap_batches": 0}},
            "metric is 'val_acc', which the evaluator does not log; it logs: val_score",
        ),
        ({"evaluator": "theirs:short"}, "no validation has logged 'val_score': the search ended within its first ep"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(changes, text, theirs, tmp_path, capsys):
    assert main(["run", "--config", theirs(**changes)]) == 2
    assert text in capsys.readouterr().err
    if changes.get("metric") != "val_acc" and changes.get("evaluator") != "theirs:short":  # known in the search
        assert not (tmp_path / "runs").exists()
