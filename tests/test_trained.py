"""``evaluate`` and ``export``: a trained derived network on its test set, and as a file that others run."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from nni_fairdarts.cli import main
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.network import DerivedNetwork

MODULE = '''
"""Images of twelve classes, and spaces of layers on them."""

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.utils.data import TensorDataset

SEEDS = {"train": 1, "test": 2}


def part(name, count):
    generator = torch.Generator().manual_seed(SEEDS[name])
    classes = torch.arange(count) % 12
    noise = torch.randint(0, 120, (count, 3, 8, 8), generator=generator)
    noise[torch.arange(count), classes % 3, classes // 3] += 130  # a class: a bright row of a channel
    return TensorDataset(noise.to(torch.uint8), classes)


def images(root):
    return part("train", 96), part("test", 50), 12


class Space(ModelSpace):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        wide, deep = nn.Conv2d(in_channels, 4, 3, padding=1), nn.Conv2d(in_channels, 4, 1)
        self.first = LayerChoice({"wide": wide, "deep": deep}, label="first")
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).relu().mean((2, 3)))


class Unfaithful(Space):
    def forward(self, x):
        scores = super().forward(x)
        return 1.5 * scores if torch.compiler.is_exporting() else scores


class Counting(Space):
    def forward(self, x):
        return super().forward(x) * (2 if x.shape[0] == 2 else 1)
'''
CONFIG = {
    "device": "cpu",
    "threads": 1,
    "data": {"name": "twelve:images", "crop_padding": 0, "flip": False},
    "space": {"width": 2, "num_cells": 3},
    "retrain": {
        "width": 4, "num_cells": 3, "epochs": 2, "batch_size": 16, "cutout": 0, "auxiliary_weight": 0,
        "drop_path_prob": 0,
    },
}  # fmt: skip
GENOTYPE = Genotype(
    normal=[("skip_connect", 2, 0), ("sep_conv_3x3", 3, 2), ("avg_pool_3x3", 3, 1)],
    reduce=[("skip_connect", 2, 1), ("dil_conv_3x3", 2, 0), ("max_pool_3x3", 4, 2)],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two retrainings: ``runs/cells`` of GENOTYPE, ``runs/layers`` of a space that is not of cells."""
    from nni_fairdarts import experiment
    from nni_fairdarts.arguments import changed
    from nni_fairdarts.config import RunConfig

    folder = tmp_path_factory.mktemp("trained")
    (folder / "twelve.py").write_text(MODULE)
    GENOTYPE.save(folder / "cells.json")
    (folder / "cells.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert main(["retrain", "--config", "cells.yaml", "--genotype", "cells.json", "--name", "cells"]) == 0
        fields = {"data": CONFIG["data"], "retrain": CONFIG["retrain"], "device": "cpu", "space.name": "twelve:Space"}
        experiment.retrain(changed(RunConfig(), fields), {"first": "wide"}, Path("runs/layers"))
        yield folder
    sys.modules.pop("twelve", None)


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def network(folder):
    """The trained network, and what the test set of ``MODULE`` is for it, without this package's data code."""
    import twelve

    trained = DerivedNetwork(GENOTYPE, 4, 3, 12, 3)
    trained.load_state_dict(torch.load(folder / "runs/cells/network.pt", weights_only=True))
    pixels, classes = twelve.part("test", 50).tensors
    return trained.eval(), (pixels.float() / 255 - 0.5) / 0.5, classes


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_a_runs_network_is_as_good_as_recorded_digit_for_digit(there, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["evaluate", "runs/cells", "--json", str(out)]) == 0
    found, recorded = json.loads(out.read_text()), json.loads((there / "runs/cells/result.json").read_text())
    assert found["accuracy"] == recorded["test_accuracy"]
    assert found["loss"] == recorded["test_loss"]
    assert (found["images"], found["batch_size"], found["device"]) == (50, 16, "cpu")

    trained, images, classes = network(there)
    with torch.no_grad():
        logits = trained(images)
    likeliest = logits.argsort(1, descending=True)
    assert found["accuracy"] == pytest.approx(float((likeliest[:, 0] == classes).double().mean()), abs=1e-6)
    among = (likeliest[:, :5] == classes[:, None]).any(1)
    assert found["top5"] == pytest.approx(float(among.double().mean()), abs=1e-6)
    assert found["loss"] == pytest.approx(float(cross_entropy(logits, classes)), abs=1e-5)
    assert found["top5"] > found["accuracy"] > 1 / 12
    printed = capsys.readouterr().out
    assert f"accuracy            {found['accuracy']:.2%}\ntop-5 accuracy      {found['top5']:.2%}\n" in printed
    assert main(["evaluate", "runs/cells", "--json", str(out)]) == 2
    assert f"{out} exists already; choose another --json" in capsys.readouterr().err


def test_a_run_is_searched_for_its_retraining(there, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "history.jsonl").write_text("{}\n")
    for name in ("config.yaml", "genotype.json"):
        shutil.copy(there / "runs/cells" / name, run)
    assert main(["evaluate", str(run)]) == 2
    assert f"there is no {run}/retrain/network.pt; train it (nni-fairdarts retrain {run})" in capsys.readouterr().err
    shutil.copytree(there / "runs/cells", run / "retrain")
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "retrain": {**CONFIG["retrain"], "width": 8}}))
    assert main(["evaluate", str(run)]) == 0  # at the size that the retraining says


def test_a_genotype_is_built_at_the_flags_sizes_and_takes_any_file_of_weights(there, tmp_path, capsys):
    recorded = json.loads((there / "runs/cells/result.json").read_text())
    trained = DerivedNetwork(GENOTYPE, 4, 3, 12, 3, auxiliary_loss=True)  # the head has no part in it
    trained.load_state_dict(torch.load("runs/cells/network.pt", weights_only=True), strict=False)
    torch.save(trained.state_dict(), tmp_path / "mine.pt")
    sizes = ["--retrain.width", "4", "--retrain.num_cells", "3", "--retrain.batch_size", "16", "--device", "cpu"]
    flags = ["--weights", str(tmp_path / "mine.pt"), "--data.name", "twelve:images", *sizes]
    for n, genotype in enumerate(("cells.json", GENOTYPE.to_text())):
        assert main(["evaluate", genotype, *flags, "--json", str(tmp_path / f"{n}.json")]) == 0
        assert json.loads((tmp_path / f"{n}.json").read_text())["accuracy"] == recorded["test_accuracy"]


def test_a_network_that_is_not_of_cells_is_evaluated_as_well(there, tmp_path):
    assert main(["evaluate", "runs/layers", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["accuracy"] == json.loads((there / "runs/layers/result.json").read_text())["test_accuracy"]


def without_the_last(state):
    state.popitem()


def with_another(state):
    state["more.weight"] = torch.zeros(3)


def of_another_shape(state):
    state["classifier.weight"] = torch.zeros(7, 3)


def with_a_number(state):
    state["epoch"] = 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_the_last, "are of another network: classifier.bias is missing; the network is of the genotype given"),
        (with_another, "are of another network: more.weight is unexpected; the network is of the genotype given with"),
        (of_another_shape, "classifier.weight is 7×3, but 12×32 in the network; the network is of the genotype given "
            "with --retrain.width 4, --retrain.num_cells 3, --space.dataset cifar, for the 12 classes and 3 channels "
            "of --data.name twelve:images; give what the weights were trained with"),
        (with_a_number, "must hold a network's state dict, names and tensors, but 'epoch' is int; save the ne"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused_by_their_first_misfit(change, text, there, tmp_path, capsys):
    state = torch.load("runs/cells/network.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "mine.pt")
    assert main(["evaluate", "runs/cells", "--weights", str(tmp_path / "mine.pt")]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cells.json"], "a genotype alone has no weights; give --weights FILE"),
        ([], "give the folder of a run, such as runs/NAME, or a genotype with --weights FILE"),
        (["runs/nobody"], "nor is it the folder of a run"),
        (["runs"], "runs is no run folder: it has no config.yaml"),
        (["runs/cells", "--weights", "nowhere.pt"], "cannot read the weights nowhere.pt: No such file or directory"),
        (["runs/cells", "--weights", "cells.yaml"], "cannot read the weights cells.yaml: "),
        (["runs/cells", "--weights", "code.pt"], "it has more than tensors and plain values in it, which could be "),
        (["runs/cells", "--data.name", "digits"], "for the 10 classes and 1 channels of --data.name digits"),
        (["runs/layers", "--weights", "runs/cells/network.pt"], "the network is that of the space twelve:Space; give"),
    ],
)
def test_what_cannot_be_evaluated_is_named(arguments, text, there, capsys):
    torch.save({"weight": torch.zeros(1), "code": Path}, "code.pt")
    assert main(["evaluate", *arguments]) == 2
    assert text in capsys.readouterr().err


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_file_puts_out_what_the_network_does(format, there, tmp_path, capsys):
    name = {"onnx": "mine.onnx", "torch": "mine.pt2"}[format]
    out = tmp_path / name
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    assert main(["export", "runs/cells", "--format", format, "--output", str(out)]) == 0
    assert "checked on 32 images, random and real, in batches of 1, 3, 16" in capsys.readouterr().out
    trained, images, _ = network(there)
    with torch.no_grad():
        expected = trained(images)  # all 50: a batch that the export has not seen
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        inside = session.get_modelmeta().custom_metadata_map["nni_fairdarts.json"]
    else:
        inside = {"nni_fairdarts.json": ""}
        with torch.no_grad():
            found = torch.export.load(out, extra_files=inside).module()(images)
        inside = inside["nni_fairdarts.json"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))

    description = json.loads((tmp_path / f"{name}.json").read_text())
    checked = description.pop("checked")
    assert description == json.loads(inside)
    assert 0 <= checked["deviation"] < 1e-5 < checked["tolerance"] == 1e-4
    scaling = {"pixels": "from 0 to 1", "subtract_mean": [0.5] * 3, "divide_by_std": [0.5] * 3}
    assert description["input"] == {
        "name": "images", "shape": ["batch", 3, 8, 8], "dtype": "float32", "preprocessing": scaling,
    }  # fmt: skip
    assert description["output"] == {"name": "logits", "classes": 12}
    assert Genotype.from_json(description["architecture"]) == GENOTYPE
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]
    before = out.read_bytes()
    assert main(["export", "runs/cells", "--format", format, "--output", str(out)]) == 2
    assert f"{out} exists already; choose another --output" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("space", "code", "text"),
    [
        ("Space", 0, ""),
        ("Unfaithful", 1, "does not put out what the network does: on 1 images outputs differ by "),
        ("Counting", 2, "torch cannot export this network for batches of any size: "),
    ],
)
def test_what_does_not_agree_is_deleted(space, code, text, there, tmp_path, capsys):
    flags = ["--format", "torch", "--space.name", f"twelve:{space}", "--output", str(tmp_path / "mine.pt2")]
    assert main(["export", "runs/layers", *flags]) == code
    assert text in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == (0 if code else 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "export needs --output FILE"),
        (["--output", "mine.pt"], "a file of the format onnx ends in .onnx, got mine.pt"),
        (["--output", "nowhere/mine.onnx"], "nowhere must be a folder that can be written to"),
        (["--format", "tf", "--output", "mine.onnx"], "unknown format 'tf'; known: onnx, torch"),
    ],
)
def test_what_cannot_be_exported_is_named(arguments, text, there, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", "runs/cells", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_without_the_extra_onnx_is_refused_by_its_name(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is not installed
    assert main(["export", "runs/cells", "--output", str(tmp_path / "mine.onnx")]) == 2
    assert "needs onnxscript: pip install 'nni-fairdarts[export]'; or take --format torch" in capsys.readouterr().err
