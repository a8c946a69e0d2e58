"""The scripts under examples/: what they print and return, at sizes of seconds, against versions of the test's own."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

from nni_fairdarts import FairDARTS, Genotype
from nni_fairdarts.datasets import load, search_subset

EXAMPLES = Path(__file__).parents[1] / "examples"
REGRESSION = {"search_epochs": 4, "width": 16, "depth": 2}
CUSTOM = {"search_epochs": 2, "retrain_epochs": 8, "width": 4, "images": 384}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder of the test's own: some scripts write logs where they are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few_digits(monkeypatch):
    """Scripts that are loaded now find 30 digits of each class."""
    few = search_subset(load("digits"), None, 30, seed=0)
    monkeypatch.setattr("nni_fairdarts.datasets.load", lambda name: {"digits": few}[name])


@pytest.fixture(scope="module")
def regression():
    return example("regression")


@pytest.fixture(scope="module")
def custom():
    return example("custom_evaluator")


# -- regression ----------------------------------------------------------------------------------------------------


def test_regression_is_as_good_as_linear_regression(regression, capsys, elsewhere):
    sample, network, errors = regression.main(**REGRESSION)
    x, y, held_x, held_y = (part.double() for part in regression.diabetes(seed=0))
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    weights = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    linear = held_x @ weights[:-1] + weights[-1]
    with torch.no_grad():
        expected = {
            "mean": float(((y.mean() - held_y) ** 2).mean()),
            "linear": float(((linear - held_y) ** 2).mean()),
            "derived": float(((network.double()(held_x) - held_y) ** 2).mean()),
        }
    assert errors == pytest.approx(expected, rel=1e-5)
    assert errors["derived"] < 0.75 * errors["mean"]
    assert errors["derived"] < 1.15 * errors["linear"]
    printed = capsys.readouterr().out
    for text in ("epoch 4/4", "val_mse", str(sample), f"derived  mean squared error {errors['derived']:.3f} on 111"):
        assert text in printed
    assert not list(elsewhere.iterdir())


def test_regression_derives_what_the_dict_says(regression):
    sample, network, _ = regression.main(**REGRESSION, retrain_epochs=1)
    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "gated": nn.GLU}
    assert list(sample) == ["layer_0", "layer_1"]
    assert len(network.layers) == 2
    for layer, name in zip(network.layers, sample.values(), strict=True):
        assert isinstance(layer, nn.Identity) if name == "skip_connect" else isinstance(layer[-1], kinds[name])
    assert not [m for m in network.modules() if isinstance(m, LayerChoice)]
    assert network(torch.randn(5, 10)).shape == (5, 1)


def test_regression_data_is_standardised_and_disjoint(regression):
    x, y, held_x, held_y = regression.diabetes(seed=3)
    assert (x.shape, y.shape, held_x.shape, held_y.shape) == ((331, 10), (331, 1), (111, 10), (111, 1))
    for part in (x, y):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(part.shape[1]), rtol=0, atol=1e-6)
    raw = np.sort(load_diabetes().target)
    scale = (raw.max() - raw.min()) / float(torch.cat([y, held_y]).max() - torch.cat([y, held_y]).min())
    together = torch.cat([y, held_y]).flatten().sort().values * scale
    np.testing.assert_allclose(together - together.min(), raw - raw.min(), atol=1e-3)  # every patient, once


# -- a custom evaluator --------------------------------------------------------------------------------------------


def by_hand(network, left, right, merges):
    """What ``TwoHalves`` computes, written out; ``merges``: the function of the join that was chosen."""
    views = []
    for i, half in enumerate((left, right)):
        maps = network.branches[i](network.stems[i](half))
        views.append(nn.functional.adaptive_avg_pool2d(maps, (4, 2)).reshape(len(half), -1))
    embedding = torch.tanh(network.join.embed(merges(*views)))
    return {"logits": network.join.classify(embedding), "embedding": embedding}


def naive_spread(embedding, labels):
    total = 0.0
    for e, label in zip(embedding, labels, strict=True):
        kin = [other for other, one in zip(embedding, labels, strict=True) if one == label]
        total += float(((e - sum(kin) / len(kin)) ** 2).mean())
    return total / len(labels)


def test_custom_evaluator_learns_and_reports_its_own_metrics(custom, capsys, elsewhere):
    sample, network, metrics = custom.main(**CUSTOM)
    printed = capsys.readouterr().out
    assert list(sample) == ["branch", "join"]
    merges = {"concatenate": lambda a, b: torch.cat([a, b], 1), "add": torch.add, "multiply": torch.mul}
    images = torch.tensor(load_digits().images[288:384], dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(load_digits().target[288:384])
    network.eval()
    with torch.no_grad():
        outputs = network(images[..., :4], images[..., 4:])
        expected = by_hand(network, images[..., :4], images[..., 4:], merges[sample["join"]])
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"logits": (96, 10), "embedding": (96, 16)}
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value)
    accuracy = float((outputs["logits"].argmax(1) == labels).float().mean())
    spread = naive_spread(outputs["embedding"], labels)
    loss = float(nn.functional.cross_entropy(outputs["logits"], labels)) + 0.1 * spread
    assert metrics == pytest.approx({"val_loss": loss, "val_spread": spread, "val_acc": accuracy}, abs=1e-5)
    assert accuracy > 0.5  # chance is a tenth
    for text in ("epoch 2/2", "val_spread", "arch_loss", str(sample), f"val_acc {accuracy:.3f} on 96 images held out"):
        assert text in printed
    assert not list(elsewhere.iterdir())


def test_custom_evaluator_derives_what_the_dict_says(custom):
    for branch, join in (("conv_5x5", "multiply"), ("max_pool_3x3", "concatenate"), ("skip_connect", "add")):
        network = custom.TwoHalves(4).freeze({"branch": branch, "join": join})
        for chosen in network.branches:
            kinds = {"max_pool_3x3": nn.MaxPool2d, "skip_connect": nn.Identity}
            assert chosen[1].kernel_size == (5, 5) if branch == "conv_5x5" else isinstance(chosen, kinds[branch])
        assert network.join.embed.in_features == (64 if join == "concatenate" else 32)
        assert network.join.merge is {"multiply": torch.mul, "add": torch.add}.get(join, custom.concatenated)
        outputs = network(torch.randn(3, 1, 8, 4), torch.randn(3, 1, 8, 4))
        assert {name: tuple(value.shape) for name, value in outputs.items()} == {
            "logits": (3, 10),
            "embedding": (3, 16),
        }


def test_a_choice_of_modules_with_two_inputs_sums_their_dicts_entry_by_entry(custom):
    torch.manual_seed(2)
    space = FairDARTS().mutate_model(custom.TwoHalves(4)).double()
    candidates = {name: space.join[name] for name in ("concatenate", "add", "multiply")}
    space.join.alpha.data = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    left, right = torch.randn(2, 5, 32, dtype=torch.float64)
    found = space.join(left, right)
    assert list(found) == ["logits", "embedding"]
    for entry, value in found.items():
        expected = sum(
            candidates[name](left, right)[entry] / (1 + np.exp(-alpha))
            for name, alpha in (("concatenate", 0.3), ("add", -1.0), ("multiply", 2.0))
        )
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    found["embedding"].sum().backward()  # either entry reaches α
    assert (space.join.alpha.grad != 0).all()


def test_the_spread_is_that_of_every_class_around_its_mean(custom):
    torch.manual_seed(1)
    embedding, labels = torch.randn(12, 3, dtype=torch.float64), torch.randint(4, (12,))
    assert float(custom.spread(embedding, labels)) == pytest.approx(naive_spread(embedding, labels), abs=1e-12)
    assert custom.spread(embedding, torch.arange(12) % 10)[None].isfinite().all()
    assert float(custom.spread(embedding[:5], torch.arange(5))) == 0  # each alone in its class


# -- all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sizes"), [("regression", REGRESSION), ("custom_evaluator", CUSTOM)])
def test_the_same_seed_gives_the_same_result(name, sizes):
    sizes = {**sizes, "search_epochs": 2, "retrain_epochs": 2}
    first, again, other = (example(name).main(**sizes, seed=seed) for seed in (4, 4, 5))
    assert first[0] == again[0]
    assert first[2] == again[2]
    assert first[2] != other[2]
    for one, two in zip(first[1].state_dict().values(), again[1].state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_the_scripts_take_their_arguments_from_the_command_line(elsewhere):
    """In processes of their own, with nothing imported before."""
    flags = ["--search_epochs=1", "--retrain_epochs=1", "--width=2", "--seed=3"]
    runs = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", EXAMPLES / f"{name}.py", *flags, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, more in (("regression", ["--depth=1"]), ("custom_evaluator", ["--images=64"]))
    }
    printed = {}
    for name, process in runs.items():
        printed[name], errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert "{'layer_0': " in printed["regression"]
    assert "on 111 patients held out" in printed["regression"]
    assert "{'branch': " in printed["custom_evaluator"]
    assert "on 16 images held out" in printed["custom_evaluator"]
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["regression", "custom_evaluator", "s2_search", "small_network"])
def test_the_scripts_tell_their_arguments(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert left.value.code == 0
    assert "search (type: int, default: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
@pytest.mark.usefixtures("few_digits")
def test_nnis_script_runs_with_one_word_changed(monkeypatch, capsys, elsewhere):
    monkeypatch.setattr(sys, "argv", ["swap_darts.py", "1"])
    left = runpy.run_path(str(EXAMPLES / "swap_darts.py"))
    printed = capsys.readouterr().out
    genotype = left["network"].genotype
    assert isinstance(genotype, Genotype)
    assert "epoch 1/1" in printed
    assert str(genotype.to_sample()) in printed
    assert str(genotype) in printed
    assert left["network"](torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert [path.name for path in elsewhere.rglob("history.jsonl")] == ["history.jsonl"]


@pytest.mark.usefixtures("few_digits")
def test_the_penalty_makes_the_network_smaller(capsys):
    results = example("small_network").main(search_epochs=1, retrain_epochs=1, width=2, scale=5.0)
    plain, small = results["without penalty"], results["with penalty"]
    assert small["multiply_adds"] < plain["multiply_adds"]
    printed = capsys.readouterr().out
    for found in (plain, small):
        assert f"{found['accuracy']:.2%} (test), {found['parameters']:,} parameters" in printed


@pytest.mark.usefixtures("few_digits")
def test_s2_is_searched_and_its_chain_printed(capsys, elsewhere):
    sample, network = example("s2_search").main(epochs=1)
    printed = capsys.readouterr().out
    assert list(sample) == [f"layer_{i}" for i in range(8)]
    for label, choice in sample.items():
        assert f"{label:8} {choice}" in printed
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in printed
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert not list(elsewhere.iterdir())
