"""The command line as a user meets it: whole small jobs on digits, and what it says to bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from experiments import IMAGES
from reference import OPERATIONS, kept

from nni_fairdarts import FairDARTS
from nni_fairdarts.checkpoints import newest, saved
from nni_fairdarts.cli import main
from nni_fairdarts.genotype import Genotype, published
from nni_fairdarts.history import read_history
from nni_fairdarts.network import DerivedNetwork, count_parameters

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "device": "cpu",
    "threads": 1,
    "figure_epochs": 0,
    "data": {"name": "digits", "flip": False, "crop_padding": 1, "search_images_per_class": 15},
    "space": {"width": 2, "num_cells": 3},
    "search": {"epochs": 2, "batch_size": 40, "arc_learning_rate": 0.5, "learning_rate": 0.05},
    "retrain": {
        "width": 2, "num_cells": 3, "epochs": 1, "batch_size": 300, "cutout": 0, "auxiliary_weight": 0,
        "drop_path_prob": 0.1,
    },
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The path of a tiny configuration, with runs under the test's own folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished tiny run: searched, derived, retrained."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "--config", "tiny.yaml", "--name", "whole"]) == 0
    return folder / "runs" / "whole"


def copied(run: Path, into: Path) -> Path:
    """A copy of a run without its results of retraining."""
    target = into / "copy"
    target.mkdir()
    for name in ("config.yaml", "history.jsonl", "genotype.json", "normal_weight.npy", "reduce_weight.npy"):
        (target / name).write_bytes((run / name).read_bytes())
    return target


# -- whole jobs -----------------------------------------------------------------------------------------------------


def test_run_leaves_everything_in_its_folder(finished, capsys):
    history = read_history(finished / "history.jsonl")
    result = json.loads((finished / "result.json").read_text())
    genotype = Genotype.load(finished / "genotype.json")
    assert [record["epoch"] for record in history] == [0, 1]
    assert result["supernet_accuracy"] == history[-1]["val_acc"]
    assert result["decided_gates"] == history[-1]["decided_gates"]
    assert result["genotype"] == genotype.to_json()
    assert Genotype.from_sample(result["nni_sample"]).to_json() == genotype.to_json()
    assert yaml.safe_load((finished / "config.yaml").read_text())["search"]["epochs"] == 2
    assert [path.name for path in saved(finished / "checkpoints")] == [
        "epoch001-step00000004.ckpt",
        "epoch000-step00000002.ckpt",
    ]
    assert list((finished / "tensorboard").glob("events*"))
    for kind in ("normal", "reduce"):
        np.testing.assert_array_equal(np.load(finished / f"{kind}_weight.npy"), history[-1]["gates"][kind])

    retrained = json.loads((finished / "retrain" / "result.json").read_text())
    network = DerivedNetwork(genotype, 2, 3, 10, 1)
    weights = torch.load(finished / "retrain" / "network.pt", weights_only=True)
    network.load_state_dict(weights)
    assert retrained["parameters"] == count_parameters(network)
    assert accuracy_on_digits(network) == pytest.approx(retrained["test_accuracy"], abs=1e-6)
    torch.load(newest(finished / "retrain" / "checkpoints"), weights_only=True)


def accuracy_on_digits(network) -> float:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    _, images, _, labels = train_test_split(
        digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    pixels = np.round(images * 255 / 16) / 255
    inputs = torch.tensor((pixels - 0.305434) / 0.375957, dtype=torch.float32).unsqueeze(1)
    with torch.no_grad():
        predicted = network.eval()(inputs).argmax(1).numpy()
    return float((predicted == labels).mean())


@pytest.mark.parametrize(("rule", "threshold"), [("sparse", 0.6), ("edge", 0.7), ("darts", 0.85)])
def test_derive_again_at_another_rule_and_threshold(finished, capsys, rule, threshold, tmp_path):
    out = tmp_path / "again.json"
    arguments = ["--threshold", str(threshold), "--discretization", rule, "--output", str(out)]
    assert main(["derive", str(finished), *arguments]) == 0
    found = Genotype.load(out)
    gates = read_history(finished / "history.jsonl")[-1]["gates"]
    for kind in ("normal", "reduce"):
        naive = kept(gates[kind], rule, threshold, OPERATIONS)
        assert [(e.operation, e.node, e.source) for e in getattr(found, kind)] == naive
    assert found.to_text() in capsys.readouterr().out
    assert main(["derive", str(finished), *arguments]) == 2
    assert f"{out} exists already; choose another --output" in capsys.readouterr().err


def test_derive_from_the_authors_files(finished, tmp_path, capsys):
    for kind in ("normal", "reduce"):
        (tmp_path / f"{kind}_weight.npy").write_bytes((finished / f"{kind}_weight.npy").read_bytes())
    assert main(["derive", str(tmp_path), "--threshold", "0.6"]) == 0
    from_files = capsys.readouterr().out
    assert main(["derive", str(finished), "--threshold", "0.6"]) == 0
    assert capsys.readouterr().out == from_files


def test_retrain_of_a_run_takes_its_configuration_and_flags_over_it(finished, tmp_path, capsys):
    run = copied(finished, tmp_path)
    flags = ["--retrain.batch_size", "400", "--genotype", "FairDARTS_b", "--into", "b"]
    assert main(["retrain", str(run), *flags]) == 0
    config = yaml.safe_load((run / "b" / "config.yaml").read_text())
    assert config["retrain"]["batch_size"] == 400
    assert config["data"]["name"] == "digits"
    assert Genotype.load(run / "b" / "genotype.json") == published("FairDARTS_b")
    assert "derived accuracy" in capsys.readouterr().out


def test_a_penalty_and_recomputation_by_flags(tiny, tmp_path, capsys):
    flags = ["--search.penalty.profiler=flops", "--search.penalty.baseline=1e5", "--search.recompute=true"]
    assert main(["search", "--config", tiny, "--name", "small", *flags]) == 0
    run = tmp_path / "runs" / "small"
    costs = [record["expected_cost"] for record in read_history(run / "history.jsonl")]
    assert costs[1] < costs[0]
    assert f"expected_cost {costs[0]:,.0f}" in capsys.readouterr().out
    assert main(["retrain", str(run)]) == 0
    penalty = yaml.safe_load((run / "retrain" / "config.yaml").read_text())["search"]["penalty"]
    kept = {"profiler": "flops", "baseline": 1e5, "scale": 1.0, "nonlinear": "linear", "aggregate": "add"}
    assert penalty == kept


def test_published_retraining_settings_on_images_of_32_pixels(tiny, capsys, tmp_path):
    (tmp_path / "few_of_test_cli.py").write_text(IMAGES)  # 160 to train
    flags = "--data.name few_of_test_cli:digits --data.image_size 32 --retrain.auxiliary_weight 0.4 --retrain.cutout 16"
    flags += " --retrain.drop_path_prob 0.2 --retrain.epochs 2 --retrain.num_cells 5 --retrain.batch_size 80"
    flags += " --name published"
    assert main(["retrain", "--config", tiny, "--genotype", "DARTS_V2", *flags.split()]) == 0
    weights = torch.load(tmp_path / "runs" / "published" / "network.pt", weights_only=True)
    assert weights["auxiliary_head.classifier.weight"].shape == (10, 768)


def folder_of_digits(root: Path, size: int = 16) -> None:
    """An image folder of three digits, a few dozen images each."""
    from sklearn.datasets import load_digits
    from torchvision.transforms.functional import resize
    from torchvision.utils import save_image

    digits = load_digits()
    for label in (0, 1, 7):
        for number, image in enumerate(digits.images[digits.target == label][:40]):
            path = root / ("test" if number < 10 else "train") / f"digit{label}"
            path.mkdir(parents=True, exist_ok=True)
            save_image(resize(torch.tensor(image[None] / 16), [size, size]), path / f"{number}.png")


def test_a_folder_of_images_and_a_function_of_the_user(tiny, tmp_path, capsys):
    folder_of_digits(tmp_path / "images")
    flags = "--data.name folder --data.root images --data.image_size 16 --search.batch_size 20 --search.epochs 1"
    flags += " --retrain.batch_size 45 --name pictures"
    assert main(["run", "--config", tiny, *flags.split()]) == 0
    weights = torch.load(tmp_path / "runs" / "pictures" / "retrain" / "network.pt", weights_only=True)
    assert weights["stem.0.weight"].shape[1] == 3
    assert weights["classifier.weight"].shape[0] == 3

    (tmp_path / "mine_of_test_cli.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def pairs(root):\n"
        "    images = (torch.arange(40 * 2 * 8 * 8) % 251).to(torch.uint8).reshape(40, 2, 8, 8)\n"
        "    labels = torch.arange(40) % 2\n"
        "    return TensorDataset(images, labels), TensorDataset(images, labels), 2\n"
    )
    flags = "--data.name mine_of_test_cli:pairs --search.batch_size 15 --search.epochs 1 --name mine"
    assert main(["search", "--config", tiny, *flags.split()]) == 0
    state = torch.load(newest(tmp_path / "runs" / "mine" / "checkpoints"), weights_only=True)["state_dict"]
    shapes = {name.rpartition("_model.")[2]: value.shape for name, value in state.items()}
    assert shapes["stem.0.weight"][1] == 2
    assert shapes["classifier.weight"][0] == 2


def test_same_seed_same_numbers(finished, tiny, tmp_path):
    assert main(["search", "--config", tiny, "--name", "twin"]) == 0
    first, second = (read_history(p / "history.jsonl") for p in (finished, tmp_path / "runs" / "twin"))
    for a, b in zip(first, second, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_resume_after_a_kill(tiny, tmp_path, capsys):
    command = [sys.executable, "-m", "nni_fairdarts.cli", "search", "--config", tiny, "--search.epochs", "3"]
    process = subprocess.Popen([*command, "--name", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = tmp_path / "runs" / "killed"
    deadline = time.monotonic() + 240
    while not saved(run / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saved(run / "checkpoints")
    assert not (run / "result.json").exists()
    assert main(["search", "--config", tiny, "--name", "killed"]) == 2
    assert f"go on with it: nni-fairdarts search --resume {Path('runs') / 'killed'}" in capsys.readouterr().err
    assert main(["search", "--resume", str(run)]) == 0
    assert [record["epoch"] for record in read_history(run / "history.jsonl")] == [0, 1, 2]
    assert main(["search", "--resume", str(run)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path):
    command = [sys.executable, "-m", "nni_fairdarts.cli", "search", "--config", tiny, "--search.epochs", "100"]
    process = subprocess.Popen(
        [*command, "--name", "stopped"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while not saved(tmp_path / "runs/stopped/checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "stopping behind this step; once more stops at once" in error
    (checkpoint,) = re.findall(r"nni-fairdarts: error: stopped; saved in (\S+); go on with: (.*)", error)
    assert checkpoint == (str(saved(Path("runs/stopped/checkpoints"))[0]), "nni-fairdarts search --resume runs/stopped")
    assert "Traceback" not in error


def test_an_exploding_loss_stops_the_run(tiny, tmp_path, capsys):
    flags = ["--search.learning_rate", "1e30", "--search.gradient_clip_val", "0", "--name", "exploding"]
    assert main(["search", "--config", tiny, *flags]) == 1
    error = capsys.readouterr().err
    assert "nni-fairdarts: error: " in error
    assert re.search("(train|arch)_loss is (nan|inf) in epoch 0, batch 1 ", error), error
    assert "Traceback" not in error
    flags = ["--genotype", "DARTS_V2", "--retrain.learning_rate", "1e30", "--retrain.gradient_clip_val", "0"]
    assert main(["retrain", "--config", tiny, *flags, "--name", "too"]) == 1
    assert re.search("train_loss is (nan|inf) in epoch 0, batch 1 ", capsys.readouterr().err)


# -- bad input ------------------------------------------------------------------------------------------------------

BAD_FLAGS = {
    "--serch.epochs 2": "unknown name 'serch.epochs', did you mean search.epochs? Known: name, runs, seed",
    "--search.epoch 2": "unknown name 'search.epoch', did you mean search.epochs? Known: search.strategy",
    "--search.epochs two": "search.epochs",
    "--search.zero_one_loss l3": "Expected one of 'l2', 'l1', 'none'. Got value: l3",
    "--search.threshold 1.5": "search.threshold must be in (0, 1), got 1.5; the paper uses 0.85",
    "--search.zero_one_weight -1": "search.zero_one_weight must be 0 or more, got -1.0",
    "--search.arc_learning_rate 0": "search.arc_learning_rate must be more than 0, got 0.0",
    "--search.penalty.basline 3": "did you mean search.penalty.baseline? Known: search.penalty.profiler",
    "--search.penalty.baseline 3": "search.penalty.profiler must be flops or params, got none beside a baseline",
    "--search.penalty.profiler flops": "search.penalty.baseline must be more than 0, got 0.0",
    "--search.penalty.profiler latency": "Expected one of 'none', 'flops', 'params'. Got value: latency",
    "--search.train_portion 1": "search.train_portion must be in (0, 1), got 1.0",
    "--search.batch_size 76": "batch_size 76 is larger than the 75 images of the alpha half; at most 75 works",
    "--search.batch_size 0": "search.batch_size must be at least 1, got 0",
    "--search.cutout 8": "cutout must be smaller than the images' 8 pixels",
    "--space.width 3": "space.width must be an even number, at least 2, got 3",
    "--space.num_cells 2": "space.num_cells must be at least 3",
    "--space.dataset imagenet": "images of 8×8 are too small for the imagenet stem",
    "--data.image_size 3": "images of 3×3 are too small for the cifar stem and two reduction cells",
    "--data.name digit": "unknown data set 'digit'; known: digits, cifar10, cifar100, folder, or module:function",
    "--data.name cifar10": "cifar-10-python.tar.gz",
    "--data.name cifar100": "cifar-100-python.tar.gz",
    "--data.name folder": "needs image_size",
    "--name a/b": "a folder's name without slashes",
    "--runs taken": "cannot make the folder taken/search",
    "--seed -1": "run.seed must be 0 or more",
    "--threads 0": "run.threads must be at least 1, or unset, got 0",
    "--config nothere.yaml": "nothere.yaml",
    "--resume runs/tiny": "there is no run folder runs/tiny",
}
if not torch.cuda.is_available():
    BAD_FLAGS["--device cuda"] = "torch sees no CUDA device here; use --device auto or cpu"


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(tiny, tmp_path, capsys, flags):
    (tmp_path / "taken").write_text("a file where a folder should be")
    assert main(["search", "--config", tiny, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nni-fairdarts: error: ")
    assert BAD_FLAGS[flags] in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists(), "something was written before the error"


BAD_FILES = {
    "serach: {epochs: 2}": "unknown name 'serach.epochs', did you mean search.epochs?",
    "search: {epoch: 2}": "Known: search.strategy, search.epochs, search.batch_size",
    "space: {wdth: 2}": "unknown name 'space.wdth', did you mean space.width? Known: space.name, space.arguments",
    "search: {epochs: 2": "bad.yaml is not YAML: while parsing a flow mapping",
    "search: 3": "search",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_configuration_files(tmp_path, capsys, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    assert main(["search", "--config", "bad.yaml"]) == 2
    assert BAD_FILES[text] in capsys.readouterr().err


BAD_RETRAININGS = {
    "": "retrain needs a run's folder, or --genotype",
    "--genotype nothere": "is neither the path of a genotype file",
    "--into ../x --genotype FairDARTS_a": "--into must be a folder's name without slashes, got '../x'",
    "--genotype FairDART_a": "known names: FairDARTS_a",
    "--genotype newer.json": "upgrade nni-fairdarts",
    "--genotype broken.json": "broken.json holds no genotype",
    "--genotype strange.json": "unknown operation 'conv_9x9'; known: max_pool_3x3",
    "--genotype empty.json": "the normal cell of this genotype keeps no operation that its inputs reach",
    "--genotype FairDARTS_a --retrain.auxiliary_weight 0.4": "needs a map of 8×8",
    "--genotype FairDARTS_a --retrain.cutout 16": "cutout must be smaller than the images' 8 pixels",
    "runs/nothere": "there is no run folder runs/nothere",
    "emptied": "is no run folder: it has no config.yaml",
}


@pytest.mark.parametrize("flags", BAD_RETRAININGS)
def test_bad_retrainings(tiny, tmp_path, capsys, flags):
    (tmp_path / "emptied").mkdir()
    genotype = published("FairDARTS_a").to_json()
    (tmp_path / "newer.json").write_text(json.dumps({**genotype, "version": 2}))
    (tmp_path / "broken.json").write_text('{"version": 1, ')
    (tmp_path / "strange.json").write_text(json.dumps({**genotype, "normal": [["conv_9x9", 2, 0]]}))
    (tmp_path / "empty.json").write_text(json.dumps({**genotype, "normal": [["skip_connect", 3, 2]]}))
    assert main(["retrain", *flags.split(), "--config", tiny]) == 2
    assert BAD_RETRAININGS[flags] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


BAD_DERIVATIONS = {
    "--threshold 2": "threshold must be in (0, 1), got 2.0; the paper uses 0.85",
    "--threshold high": "threshold",
    "--discretization spars": "unknown rule 'spars'; known: darts, sparse, edge",
}


@pytest.mark.parametrize("flags", BAD_DERIVATIONS)
def test_bad_derivations(finished, capsys, flags):
    assert main(["derive", str(finished), *flags.split()]) == 2
    assert BAD_DERIVATIONS[flags] in capsys.readouterr().err


def test_resume_of_what_is_no_run(tmp_path, capsys):
    assert main(["search", "--resume", str(tmp_path / "nothere")]) == 2
    assert "there is no run folder" in capsys.readouterr().err
    assert main(["search", "--resume", str(tmp_path), "--search.epochs", "9"]) == 2
    assert f"{tmp_path} is no run folder: it has no config.yaml" in capsys.readouterr().err


def test_a_damaged_checkpoint_or_history_is_named(finished, tmp_path, capsys):
    run = copied(finished, tmp_path)
    (run / "checkpoints").mkdir()
    damaged = run / "checkpoints" / "epoch000-step00000002.ckpt"
    damaged.write_bytes(b"no checkpoint")
    assert main(["search", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"nni-fairdarts: error: cannot read the checkpoint {damaged}: File is not a zip file: it is damaged" in error
    (run / "history.jsonl").write_text('{"epoch": 1}\n')
    assert main(["derive", str(run)]) == 2
    assert "has no gates of a normal and a reduce cell: the search was of another space" in capsys.readouterr().err


def test_a_search_stopped_before_its_result_is_finished_by_resume(finished, tmp_path, capsys):
    """Killed between the last checkpoint and result.json: nothing is left to train, and nothing is lost."""
    run = tmp_path / "unfinished"
    shutil.copytree(finished, run)
    before = (run / "history.jsonl").read_text()
    for name in ("result.json", "genotype.json"):
        (run / name).unlink()
    assert main(["search", "--resume", str(run)]) == 0
    assert "warning" not in capsys.readouterr().err
    assert Genotype.load(run / "genotype.json") == Genotype.load(finished / "genotype.json")
    assert (run / "history.jsonl").read_text() == before


BAD_RUNS = {
    "--retrain.cutout 8": "cutout must be smaller than the images' 8 pixels",
    "--retrain.batch_size 5000": "batch_size 5000 is larger than the 1437 images of the training set",
    "--retrain.auxiliary_weight 0.4": "the auxiliary head of the cifar stem needs a map of 8×8",
}


@pytest.mark.parametrize("flags", BAD_RUNS)
def test_run_looks_at_the_retraining_before_it_searches(tiny, tmp_path, capsys, flags):
    assert main(["run", "--config", tiny, *flags.split()]) == 2
    assert BAD_RUNS[flags] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_one_class(tiny, tmp_path, capsys):
    folder_of_digits(tmp_path / "images")
    for part in ("train", "test"):
        for label in (1, 7):
            shutil.rmtree(tmp_path / "images" / part / f"digit{label}")
    flags = "--data.name folder --data.root images --data.image_size 16"
    assert main(["search", "--config", tiny, *flags.split()]) == 2
    assert "a data set needs at least 2 classes, 'folder' has 1" in capsys.readouterr().err


def test_tensorboard_has_losses_and_gates(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    last = read_history(finished / "history.jsonl")[-1]
    shown = [events.Scalars(f"prob/normal/3_2/{operation}")[-1].value for operation in OPERATIONS]
    np.testing.assert_allclose(shown, last["gates"]["normal"][4], rtol=1e-6)
    for name in ("train_loss", "arch_loss", "val_loss", "val_acc", "zero_one_loss"):
        assert events.Scalars(name)[-1].value == pytest.approx(last[name], rel=1e-5)


def test_plot_draws_a_run(finished, tmp_path, capsys):
    folder = copied(finished, tmp_path)
    assert main(["plot", str(folder), "--format", "png"]) == 0
    names = (
        "cell_normal, cell_reduce, gates_normal, gates_reduce, trajectories_normal, trajectories_reduce, histogram, "
        "decided, skips, accuracy, losses, gap"
    )
    assert capsys.readouterr().out == f"{folder}/plots: {names} (png)\n"
    written = {path.name: path.read_bytes() for path in (folder / "plots").iterdir()}
    assert written.keys() == {f"{name}.png" for name in names.split(", ")}
    (folder / "genotype.json").unlink()  # as of a search that runs still
    (folder / "plots" / "gap.png").write_text("an earlier one")
    assert main(["plot", str(folder), "--format", "png", "--only", "cell", "gap"]) == 0
    assert capsys.readouterr().out == f"{folder}/plots: cell_normal, cell_reduce, gap (png)\n"
    assert (folder / "plots" / "gap.png").read_bytes() == written["gap.png"]
    assert (folder / "plots" / "cell_normal.png").read_bytes() != written["cell_normal.png"]
    history = str(folder / "history.jsonl")
    assert main(["plot", history, "--output", str(tmp_path / "other"), "--edge", "reduce", "1", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "trajectory_reduce_1_2.png",
        "trajectory_reduce_1_2.svg",
    ]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--format", "pdf"], "unknown format 'pdf'; known: png, svg"),
        (["--only", "gate"], "has no figure 'gate'; it has: cell_normal, cell_reduce, gates_normal"),
        (["--edge", "normal", "1"], "--edge takes LABEL SOURCE NODE, such as normal 0 3, or a choice's label; got"),
        (["--edge", "normal", "3", "0"], "the edge of normal must be one of 0 → 2, 1 → 2, 0 → 3"),
        (["--edge", "normal"], "4 → 5; got none"),
        (["--edge", "choice"], "unknown label 'choice'; known: normal, reduce"),
    ],
)  # fmt: skip
def test_bad_plots(finished, capsys, flags, says):
    assert main(["plot", str(finished), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (finished / "plots").exists()


def test_folders_that_hold_no_gates(tmp_path, capsys):
    assert main(["derive", str(tmp_path)]) == 2
    assert "nor one with normal_weight.npy and reduce_weight.npy" in capsys.readouterr().err
    np.save(tmp_path / "normal_weight.npy", np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    assert main(["derive", str(tmp_path)]) == 2
    assert "cannot read gates from" in capsys.readouterr().err


def test_an_existing_run_is_never_overwritten(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    arguments = ["--config", str(finished.parent.parent / "tiny.yaml"), "--runs", str(finished.parent)]
    assert main(["search", *arguments, "--name", finished.name]) == 2
    assert "a run is never overwritten; give another --name" in capsys.readouterr().err
    assert main(["retrain", str(finished)]) == 2
    assert "(in a run: another --into)" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "folder"])
def test_every_recipe_is_read(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["search", "--config", str(EXAMPLES / f"{name}.yaml"), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["name"] == name
    if name == "cifar10":  # the published settings are the defaults
        with pytest.raises(SystemExit):
            main(["search", "--print_config"])
        defaults = yaml.safe_load(capsys.readouterr().out)
        assert defaults["search"].pop("arc_learning_rate") is None  # the strategy's own
        assert printed["search"].pop("arc_learning_rate") == 3e-3 == FairDARTS().arc_learning_rate
        for section in ("space", "search", "retrain"):
            assert printed[section] == defaults[section]


# -- going on with a whole run, as a trial of NNI's does ------------------------------------------------------------


def test_going_on_with_a_run_that_was_stopped_anywhere(finished, tmp_path, monkeypatch):
    from nni_fairdarts import InputError, experiment
    from nni_fairdarts.arguments import changed
    from nni_fairdarts.folder import run_of

    monkeypatch.chdir(tmp_path)
    expected = json.loads((finished / "retrain" / "result.json").read_text())

    def stopped(name, *missing):
        """A copy of the run without what a kill would have left unwritten, and its configuration."""
        shutil.copytree(finished, tmp_path / name)
        for path in missing:
            (tmp_path / name / path).unlink()
        return changed(run_of(tmp_path / name), {"runs": str(tmp_path), "name": name})

    _, retrained = experiment.go_on(stopped("whole"))
    assert retrained == expected  # nothing was left to do
    _, retrained = experiment.go_on(stopped("behind-the-last-epoch", "retrain/result.json"))
    assert retrained["test_accuracy"] == expected["test_accuracy"]
    assert retrained["test_loss"] == expected["test_loss"]
    config = stopped("damaged", "retrain/result.json")
    for path in saved(config.folder / "retrain" / "checkpoints"):
        path.unlink()
    _, retrained = experiment.go_on(config)  # the retraining begins anew, with the run's seed
    assert retrained["test_accuracy"] == expected["test_accuracy"]
    config = changed(stopped("edited", "retrain/result.json"), {"seed": 77, "search.strategy": "darts"})
    with pytest.raises(InputError) as error:
        experiment.go_on(config)
    for text in ("was begun with other settings", "seed (2, now 77)", "search.strategy ('fairdarts', now 'darts')"):
        assert text in str(error.value)
