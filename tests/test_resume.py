"""Going on: whatever was interrupted ends, bit for bit, as if nothing had happened."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from nni_fairdarts import FairDARTS, InputError, experiment
from nni_fairdarts.arguments import changed
from nni_fairdarts.checkpoints import KEPT, KEY, Checkpoints, newest, read, saved
from nni_fairdarts.cli import main
from nni_fairdarts.config import RunConfig
from nni_fairdarts.folder import locked, run_of
from nni_fairdarts.history import read_history
from nni_fairdarts.randomness import Place, SeededLoaders
from nni_fairdarts.stopping import Stopped, stoppable

TINY = {
    "device": "cpu",
    "threads": 1,
    "figure_epochs": 0,
    "checkpoint_steps": 2,
    "data.name": "digits",
    "data.crop_padding": 1,
    "data.search_images_per_class": 14,
    "space.width": 2,
    "space.num_cells": 3,
    "space.operations": ["max_pool_3x3", "skip_connect", "sep_conv_3x3"],
    "search.epochs": 2,
    "search.batch_size": 25,
    "search.arc_learning_rate": 0.05,
    "search.gap_batches": 2,
    "retrain.width": 2,
    "retrain.num_cells": 3,
    "retrain.epochs": 2,
    "retrain.batch_size": 500,
    "retrain.cutout": 2,
    "retrain.auxiliary_weight": 0,
    "retrain.drop_path_prob": 0.3,
}


def configured(runs: Path, name: str, **more) -> RunConfig:
    more = {key.replace("__", "."): value for key, value in more.items()}
    return changed(RunConfig(), {"runs": str(runs), "name": name, **TINY, **more})


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    """photographed(name, **settings): a whole run, and copies of its folder as a kill would leave it.

    One copy behind every checkpoint: {the checkpoint's path in the run: the copy's folder}.
    """
    runs = tmp_path_factory.mktemp("runs")

    def make(name, **settings):
        config, photos = configured(runs, name, **settings), {}
        save = Checkpoints._save

        def photograph(self, trainer):
            save(self, trainer)
            path = Path(self.last_model_path).relative_to(config.folder)
            photos[str(path)] = Path(shutil.copytree(config.folder, runs / f"{name}-{len(photos)}"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "_save", photograph)
            experiment.run(config)
        return config, photos

    return make


@pytest.fixture(scope="module")
def whole(photographed):
    return photographed("whole", data__workers=2)


def outcome(folder: Path) -> dict:
    """All that a run came to, but times and places."""
    if not (folder / "result.json").exists():
        return {}
    found = {
        "checkpoint": read(newest(folder / "checkpoints")),
        "result": json.loads((folder / "result.json").read_text()),
        **{path.name: path.read_text() for path in folder.glob("[gs]*.json")},  # the genotype, NNI's sample
        **{path.name: torch.from_numpy(np.load(path)) for path in folder.glob("*.npy")},
    }
    if (folder / "history.jsonl").exists():
        found["history"] = read_history(folder / "history.jsonl")
    return found | {"retrain": outcome(folder / "retrain")}


def differences(one, other, where="") -> list[str]:
    """Where two outcomes differ, to the bit."""
    if isinstance(one, dict):
        keys = (one.keys() | other.keys()) - {"seconds", "folder"}
        return [d for key in sorted(keys, key=str) for d in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where} has {len(one)} and {len(other)} entries"]
        return [d for k, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}/{k}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other or (one != one and other != other) else [f"{where}: {one!r} and {other!r}"]


def test_outcomes_are_compared_to_the_bit(whole):
    config, _ = whole
    one, other = outcome(config.folder), outcome(config.folder)
    assert one["retrain"]["checkpoint"]["state_dict"]
    assert differences(one, other) == []
    weights = other["checkpoint"]["state_dict"]
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    other["history"][0]["val_acc"] += 1e-12
    assert len(differences(one, other)) == 2


@pytest.mark.parametrize(
    "stopped_at",
    [
        "checkpoints/epoch000-step00000002.ckpt",
        "checkpoints/epoch000-step00000003.ckpt",
        "checkpoints/epoch001-step00000006.ckpt",
        "retrain/checkpoints/epoch000-step00000002.ckpt",
        "retrain/checkpoints/epoch001-step00000006.ckpt",
    ],
)
def test_a_run_killed_behind_a_checkpoint_ends_as_if_it_had_not_been(whole, stopped_at, tmp_path):
    """Within and behind epochs, of the search and the retraining; with workers, shuffling, augmentation, drop path."""
    config, photos = whole
    folder = Path(shutil.copytree(photos[stopped_at], tmp_path / "run"))
    assert outcome(folder).get("retrain", {}) == {}
    experiment.go_on(changed(config, {"runs": str(tmp_path), "name": "run"}))
    assert differences(outcome(folder), outcome(config.folder)) == []


def test_the_first_checkpoint_was_not_reached(whole, tmp_path):
    config, _ = whole
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(config.folder / "config.yaml", folder)
    (folder / ".history.jsonl.7.tmp").write_text("half a li")
    (folder / "history.jsonl").write_text(json.dumps({"epoch": 0}) + "\n")
    searched = experiment.resume(folder)
    assert differences(searched, json.loads((config.folder / "result.json").read_text())) == []


def test_history_without_checkpoints_is_not_thrown_away(whole, tmp_path):
    config, _ = whole
    for name in ("config.yaml", "history.jsonl"):
        shutil.copy(config.folder / name, tmp_path)
    with pytest.raises(InputError, match=r"has finished epochs, but .*checkpoints no checkpoint to go on from; derive"):
        experiment.resume(tmp_path)
    assert len(read_history(tmp_path / "history.jsonl")) == 2


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a search that was stopped behind its first epoch."""
    _, photos = whole
    return Path(shutil.copytree(photos["checkpoints/epoch000-step00000003.ckpt"], tmp_path / "run"))


def test_the_last_two_are_kept_and_carry_what_they_are_of(whole):
    config, _ = whole
    found = saved(config.folder / "checkpoints")
    assert [path.name for path in found] == ["epoch001-step00000006.ckpt", "epoch001-step00000004.ckpt"]
    assert len(found) == KEPT
    carried = read(found[0])[KEY]
    assert carried["config"]["search.batch_size"] == 25
    assert carried["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(carried["random"]) == 1
    assert {"python", "numpy", "torch", "cuda"} == carried["random"][0].keys()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[content.index(archive.read(largest)) + 1] ^= 1  # of a weight, not of the zeros between two
    path.write_bytes({"truncated": content[: len(content) // 2], "emptied": b"", "one bit flipped": content}[how])


@pytest.mark.parametrize("how", ["truncated", "emptied", "one bit flipped"])
def test_a_damaged_checkpoint_is_passed_over(run, how):
    latest, before = saved(run / "checkpoints")
    damage(latest, how)
    with pytest.warns(RuntimeWarning, match=f"cannot read the checkpoint {latest}: .*; the one before it is taken"):
        assert newest(run / "checkpoints") == before
    damage(before, how)
    nothing = f"cannot read the checkpoint {latest}: .*, and no other in its folder is whole"
    with pytest.raises(InputError, match=nothing):
        newest(run / "checkpoints")


class Trap:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['TRAP']}",)


def test_a_checkpoint_that_carries_code_is_refused(run, tmp_path, monkeypatch, capsys):
    sprung = tmp_path / "sprung"
    monkeypatch.setenv("TRAP", str(sprung))
    latest, before = saved(run / "checkpoints")
    content = torch.load(latest, weights_only=True)
    torch.save({**content, "hyper_parameters": Trap()}, latest)
    torch.load(latest, weights_only=False)  # it is a trap
    assert sprung.exists()
    sprung.unlink()
    with pytest.raises(InputError, match="it has more than tensors and plain values in it, which could be code"):
        read(latest)
    before.unlink()
    assert main(["search", "--resume", str(run)]) == 2
    assert "which could be code" in capsys.readouterr().err
    assert not sprung.exists()


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch, capsys):
    """The disk itself is filled in tests/test_faults.py; here just the move into place fails."""
    before = {path.name: path.read_bytes() for path in saved(run / "checkpoints")}

    def full(temporary, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nni_fairdarts.checkpoints._settle", full)
    assert main(["search", "--resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert "epoch001-step00000004.ckpt: No space left on device; no checkpoint had been saved yet" in error
    assert f"go on with: nni-fairdarts search --resume {run}" in error
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before


# -- what may change -----------------------------------------------------------------------------------------------


def test_other_settings_are_named_and_refused(run, capsys):
    before = (run / "config.yaml").read_text()
    flags = ["--search.zero_one_weight", "3", "--seed", "9", "--retrain.epochs", "7"]
    assert main(["search", "--resume", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert f"{run} was begun with other settings: seed (2, now 9), search.zero_one_weight (10.0, now 3.0)" in error
    assert "retrain" not in error
    assert main(["search", "--resume", str(run), "--search.epochs", "1"]) == 2
    assert "search.epochs (2, now 1)" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    (run / "config.yaml").write_text(before.replace("zero_one_weight: 10.0", "zero_one_weight: 9.0"))
    assert main(["search", "--resume", str(run)]) == 2
    assert "search.zero_one_weight (10.0, now 9.0)" in capsys.readouterr().err


def test_more_epochs(whole, tmp_path, capsys):
    """A finished search goes on: along the cosine of the longer one, with what it had come to set aside."""
    config, _ = whole
    run = Path(shutil.copytree(config.folder, tmp_path / "longer"))
    short = json.loads((run / "result.json").read_text())
    longer = {"search.epochs": 3, "data.workers": 1, "retrain.epochs": 1, "runs": str(tmp_path), "name": "longer"}
    with pytest.warns(RuntimeWarning, match="data.workers changed: the numbers will not be those of an uninterrupted"):
        searched, retrained = experiment.go_on(changed(config, longer))
    history = read_history(run / "history.jsonl")
    assert history[:2] == read_history(config.folder / "history.jsonl")
    low, high = config.search.learning_rate_min, config.search.learning_rate
    expected = low + (high - low) * (1 + np.cos(2 / 3 * np.pi)) / 2
    assert history[2]["learning_rate"] == pytest.approx(expected, rel=1e-12)
    assert json.loads((run / "after-2-epochs" / "result.json").read_text()) == short
    assert json.loads((run / "result.json").read_text())["epochs"] == 3
    assert run_of(run).search.epochs == 3
    # What is retrained is what was derived now; the earlier retraining went with the earlier result.
    assert retrained["genotype"] == searched["genotype"]
    assert json.loads((run / "after-2-epochs" / "retrain" / "result.json").read_text())["genotype"] == short["genotype"]
    assert experiment.go_on(changed(config, longer)) == (searched, retrained)  # nothing is left to do
    assert main(["run", "--resume", str(run), "--retrain.epochs", "2"]) == 2
    assert f"the retraining in {run / 'retrain'} is finished" in capsys.readouterr().err
    assert main(["run", "--resume", str(run), "--retrain.width", "4"]) == 2
    assert "retrain.width (2, now 4)" in capsys.readouterr().err
    assert main(["search", "--resume", str(run / "retrain")]) == 2
    assert f"go on with it: nni-fairdarts retrain --resume {run / 'retrain'}" in capsys.readouterr().err


def test_one_process_at_a_time(run, capsys):
    with locked(run):
        assert main(["search", "--resume", str(run)]) == 2
    assert f"another process is at work in {run}; wait for it, or stop it" in capsys.readouterr().err


# -- being stopped -------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_the_step_and_what_follows_is_the_same(whole, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the search, SIGTERM in the retraining, of one run."""
    config, _ = whole
    config = changed(config, {"runs": str(tmp_path), "name": "run", "checkpoint_steps": 0})
    run_folder, steps = config.folder, []
    step = Checkpoints.on_train_batch_start

    def counted(self, *args):
        steps.append(self.folder.parent.name)
        if signum := {5: signal.SIGINT, 11: signal.SIGTERM}.get(len(steps)):
            os.kill(os.getpid(), signum)
        step(self, *args)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", counted)
    with pytest.raises(Stopped) as stopped:
        experiment.run(config)
    assert (stopped.value.signal, Path(stopped.value.checkpoint).name) == (signal.SIGINT, "epoch001-step00000005.ckpt")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["run", "--resume", str(run_folder)]) == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert f"; go on with: nni-fairdarts run --resume {run_folder}" in error
    assert re.search("stopped; saved in .*/retrain/checkpoints/epoch001-step00000005.ckpt; go on", error), error
    assert main(["retrain", "--resume", str(run_folder / "retrain")]) == 0
    expected = outcome(whole[0].folder)
    for part in (expected, expected["retrain"]):
        part["checkpoint"].pop(KEY)  # how often it is saved is in there
    found = outcome(run_folder)
    for part in (found, found["retrain"]):
        part["checkpoint"].pop(KEY)
    assert differences(found, expected) == []


def test_the_second_signal_stops_at_once():
    with stoppable(), stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit, match="130"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- NNI's own resume -----------------------------------------------------------------------------------------------

SEARCH = """
import os, signal, sys
import pytorch_lightning as pl
from nni.nas.experiment import NasExperiment
from pytorch_lightning.loggers import CSVLogger
from test_resume import searching

class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    searching(sys.argv[1], [Kill()]).run()
"""


def searching(folder: str, callbacks=(), trainer=None, loading=None, **more) -> NasExperiment:
    """An experiment of a user's, in two epochs of three steps, with drop-out and shuffling.

    trainer: more of its settings. loading: makes a loader's settings out of its data set.
    """
    from nni.nas.evaluator.pytorch import Classification
    from nni.nas.evaluator.pytorch import DataLoader as TracedLoader
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from torch.utils.data import TensorDataset

    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            layers = [torch.nn.Linear(4, 8), torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))]
            self.layer = LayerChoice(layers, label="layer")
            self.head = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.layer(x))

    pl.seed_everything(1)
    data = TensorDataset(torch.randn(48, 4), torch.randint(3, (48,)))
    loading = loading or (lambda data: {"batch_size": 16, "shuffle": True})
    loaders = [TracedLoader(data, **loading(data)) for _ in range(2)]
    evaluator = Classification(
        train_dataloaders=loaders[0],
        val_dataloaders=loaders[1],
        num_classes=3,
        logger=CSVLogger(folder),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        accelerator="cpu",
        **{"max_epochs": 2, **(trainer or {})},
    )
    strategy = FairDARTS(history=f"{folder}/history.jsonl", **more)
    found = NasExperiment(Space(), evaluator, strategy, id="killed")
    found.config.experiment_working_directory = folder
    return found


def test_nni_resumes_what_was_killed(tmp_path):
    """NNI saves its state at the start and the end only: it has not heard of the checkpoint."""
    (tmp_path / "script.py").write_text(SEARCH)
    whole, killed = searching(str(tmp_path / "whole")), tmp_path / "killed"
    whole.run()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(tmp_path / "script.py"), str(killed)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert [path.name for path in saved(killed / "lightning_logs/version_0/resume")] == ["epoch000-step00000003.ckpt"]
    other = searching(str(killed), zero_one_weight=2.0)
    with pytest.raises(InputError, match=r"of a search with other settings: zero_one_weight \(10.0, now 2.0\)"):
        other.resume()
    resumed = searching(str(killed))
    resumed.resume()
    records = [read_history(folder / "history.jsonl") for folder in (tmp_path / "whole", killed)]
    assert differences(*records) == []
    states = [each.strategy.supernet.state_dict() for each in (whole, resumed)]
    assert differences(*states) == []


class Drawing(pl.Callback):
    """Draws at the beginning of epochs and of batches, and spoils what it draws for."""

    def on_train_epoch_start(self, trainer, module):
        self.much = float(torch.rand(()))

    def on_train_batch_start(self, trainer, module, batch, index):
        batch["train"][0].add_(torch.rand(()))


def with_generator(data):
    return {"batch_size": 16, "shuffle": True, "generator": torch.Generator().manual_seed(7)}


def with_batch_sampler(data):
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(7))
    return {"batch_sampler": BatchSampler(sampler, 16, drop_last=False)}


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer": {"max_steps": 5, "max_epochs": -1}},
        {"trainer": {"val_check_interval": 2}},
        {"loading": with_generator},
        {"loading": with_batch_sampler},
        {"callbacks": [Drawing()]},
        {"callbacks": [EarlyStopping("val_loss", min_delta=99.0, patience=1)], "trainer": {"max_epochs": 9}},
    ],
    ids=["max_steps", "val_check_interval", "generator", "batch_sampler", "callback", "early_stopping"],
)
def test_what_users_bring_goes_on_exactly(tmp_path, monkeypatch, settings):
    """From every checkpoint of a search, within and behind its epochs."""
    photos, save = [], Checkpoints._save

    def photograph(self, trainer):
        save(self, trainer)
        if self.folder.is_relative_to(tmp_path / "whole"):
            photos.append(shutil.copy(self.last_model_path, tmp_path))

    monkeypatch.setattr(Checkpoints, "_save", photograph)
    whole = searching(str(tmp_path / "whole"), checkpoint_steps=1, **copy.deepcopy(settings))
    whole.run()
    assert len(photos) >= 4
    expected = {"step": whole.evaluator.trainer.global_step, **whole.strategy.supernet.state_dict()}
    for number, photo in enumerate(photos):
        again = searching(str(tmp_path / f"again-{number}"), checkpoint_steps=1, **copy.deepcopy(settings))
        again.evaluator.fit_kwargs["ckpt_path"] = photo
        again.run()
        found = {"step": again.evaluator.trainer.global_step, **again.strategy.supernet.state_dict()}
        assert differences(found, expected) == [], photo


def test_what_cannot_be_read_again_is_told_with_the_first_checkpoint(tmp_path):
    class Odd(pl.Callback):
        def state_dict(self):
            return {"kept": Path("somewhere")}

    with pytest.raises(InputError, match="this training cannot be saved, .* more than tensors and plain values"):
        searching(str(tmp_path), [Odd()]).run()


def test_samplers_know_their_epoch_before_they_are_iterated():
    sampler = DistributedSampler(range(10), num_replicas=2, rank=0)
    loaders = SeededLoaders(DataLoader(range(10), sampler=sampler), Place(seed=1, epoch=3))
    order = [int(batch) for batch, _, _ in loaders]
    sampler.set_epoch(3)
    assert order == list(sampler)
