"""Several processes, one search: real ones of gloo, against one process that averages by hand."""

import copy
import json
import math
import os
import subprocess
import sys
from itertools import chain

import pytest
import ranks
import torch
import yaml
from experiments import command
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, InputError, data
from nni_fairdarts.cli import main
from nni_fairdarts.config import from_mapping
from nni_fairdarts.distributed import Shard
from nni_fairdarts.history import read_history
from nni_fairdarts.watch import LossWatch

# -- the same search as in one process --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(folder, [what ``ranks.searches`` returned in each process])."""
    folder = tmp_path_factory.mktemp("searched")
    found = ranks.together(ranks.searches, folder)
    assert all(isinstance(one, dict) for one in found), found
    return folder, found


def by_hand(case):
    """A case in one process: every process's batch through a copy of its own, gradients averaged, the same steps.

    (the supernet's state, with the statistics averaged at the end; the mean training loss of each epoch)
    """
    _, options, epochs, _ = ranks.CASES[case]
    space, strategy = ranks.made(case, seed=0)
    copies = [strategy.mutate_model(space)]
    copies.append(copy.deepcopy(copies[0]))
    alphas = [[p for name, p in c.named_parameters() if name.endswith("alpha")] for c in copies]
    weights = [[p for name, p in c.named_parameters() if not name.endswith("alpha")] for c in copies]
    adams = [torch.optim.Adam(a, 0.1, weight_decay=1e-3) for a in alphas]
    sgds = [torch.optim.SGD(w, **ranks.SGD) for w in weights]
    train, val, losses = ranks.images(1), ranks.images(2), []
    for epoch in range(epochs):
        warm, noted = epoch >= options.get("warmup_epochs", 0), []
        for step in range(ranks.STEPS):
            both = [[batch_of(images, step, rank) for rank in (0, 1)] for images in (val, train)]
            if options.get("single_level"):
                lost = [loss(c, batch) for c, batch in zip(copies, both[1], strict=True)]
                totals = [x + more(c) for x, c in zip(lost, copies, strict=True)] if warm else lost
                learning = [a + w for a, w in zip(alphas, weights, strict=True)] if warm else weights
                average(totals, learning)
            else:
                if warm:
                    totals = [total(c, batch, strategy.penalty) for c, batch in zip(copies, both[0], strict=True)]
                    average(totals, alphas)
                    [adam.step() for adam in adams]
                lost = [loss(c, batch) for c, batch in zip(copies, both[1], strict=True)]
                average(lost, weights)
            [clip(w, 0.4) for w in weights]
            [sgd.step() for sgd in sgds]
            if options.get("single_level") and warm:
                [adam.step() for adam in adams]
            noted.append(sum(x.item() for x in lost) / 2)
        losses.append(sum(noted) / len(noted))
    states = [c.state_dict() for c in copies]
    return {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}, losses


def batch_of(images, step, rank):
    """Of a process: every second image from its own number on."""
    first = rank + 2 * ranks.BATCH * step
    return images[first : first + 2 * ranks.BATCH : 2]


def loss(supernet, batch):
    output = supernet(batch[0])
    return cross_entropy(output[0] if isinstance(output, tuple) else output, batch[1])


def more(supernet):
    """Ten times the zero-one loss."""
    gates = torch.cat([p.sigmoid().flatten() for name, p in supernet.named_parameters() if name.endswith("alpha")])
    return -10 * (gates - 0.5).square().mean()


def total(supernet, batch, penalty):
    value = loss(supernet, batch)
    if penalty is not None:
        alphas = {name.split(".")[0]: p for name, p in supernet.named_parameters() if name.endswith("alpha")}
        gates = {label: alpha.sigmoid() for label, alpha in alphas.items()}
        value, _ = penalty.forward(value, {label: (tuple(range(len(g))), g) for label, g in gates.items()})
    return value + more(supernet)


def average(losses, parameters):
    """Put the mean of both losses' gradients on both copies' parameters."""
    gradients = [
        torch.autograd.grad(value, own, allow_unused=True) for value, own in zip(losses, parameters, strict=True)
    ]
    for ours, theirs, one, other in zip(*parameters, *gradients, strict=True):
        ours.grad, theirs.grad = (None, None) if one is None else ((one + other) / 2, (one + other) / 2)


def clip(parameters, bound):
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    for gradient in gradients:
        gradient *= min(1, bound / (norm + 1e-6))


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_take_the_steps_of_one_with_averaged_gradients(case, searched):
    folder, (first, second) = searched
    (state, exported), (other, as_well) = first[case], second[case]
    assert exported == as_well
    for name in state:
        assert (state[name] == other[name]).all(), f"{name} differs between the processes"
    if "stages" in ranks.CASES[case][1]:
        assert sum(".edges." in name for name in state) < sum(".edges." in name for name in first["cells"][0])
        return  # what begins afresh in a stage was compared above
    expected, losses = by_hand(case)
    for name, value in expected.items():
        if not name.endswith("running_var"):
            torch.testing.assert_close(torch.from_numpy(state[name]).to(value), value, rtol=0, atol=1e-10)
    history = read_history(folder / f"{case} 0.jsonl")
    assert [record["train_loss"] for record in history] == pytest.approx(losses, abs=1e-10)
    assert not (folder / f"{case} 1.jsonl").exists()


# -- data, metrics, random numbers ------------------------------------------------------------------------------------


def test_parts_have_nothing_in_common(monkeypatch):
    def parts(count, seed, epoch=0):
        found = []
        for rank in range(3):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            shard = Shard(range(count), 3, seed)
            shard.set_epoch(epoch)
            found.append(list(shard))
            assert len(shard) == len(found[-1])
        return found

    assert parts(8, None) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    for epoch in (0, 1):
        shuffled = parts(8, 5, epoch)
        assert [len(part) for part in shuffled] == [2, 2, 2]  # equally many, or they would wait for each other
        assert len(set(chain(*shuffled))) == 6
    assert parts(8, 5, 0) != parts(8, 5, 1)
    assert parts(8, 5, 0) != parts(8, 6, 0)
    assert parts(8, 5, 0) == parts(8, 5, 0)


def test_a_search_shares_out_its_data_and_agrees_on_what_comes_of_them(tmp_path):
    """Of 23 images in each half, the first process has 12 to validate on, the second 11; both train on 11."""
    first, second = ranks.together(ranks.shared_out, tmp_path / "history.jsonl")
    for half in ("alpha", "weights"):
        for epoch in (0, 1):
            one, other = (rank["seen"][half][11 * epoch : 11 * (epoch + 1)] for rank in (first, second))
            assert len({*one, *other}) == len(one) + len(other) == 22
        assert len(first["seen"][half]) == 22
    assert first["seen"]["validation"] == 2 * list(range(0, 23, 2))
    assert second["seen"]["validation"] == 2 * list(range(1, 23, 2))
    assert first["seen"]["alpha"][:11] != first["seen"]["weights"][:11]
    assert not set(first["drawn"]) & set(second["drawn"])  # or they would augment alike
    records = read_history(tmp_path / "history.jsonl")
    assert first["gaps"] == second["gaps"] == [{"discretization_gap": r["discretization_gap"]} for r in records]
    assert first["logged"] == second["logged"] == records[-1]["val_loss"]
    assert first["logged"] == pytest.approx(first["by hand"], rel=1e-6)


def test_a_batch_that_a_part_cannot_fill_is_refused():
    with pytest.raises(
        InputError, match="batch_size 12 is larger than the 11 images of .* each of 2 processes has; at"
    ):
        data.search_loaders(ranks.numbered(), 12, None, devices=2)
    with pytest.raises(
        InputError, match="than the 23 images of the training set that each of 2 processes has; at most"
    ):
        data.retrain_loaders(ranks.numbered(), 24, None, devices=2)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_in_one_process_stops_all():
    first, second = ranks.together(ranks.failing, "is NaN")
    assert first == second
    kind, text = first
    assert kind == "NonFiniteLoss"
    assert text.startswith("arch_loss is nan in epoch 0, batch 1 (both counted from 0); stopped before")


def test_a_process_that_dies_stops_the_other():
    first, second = ranks.together(ranks.failing, "dies", seconds=30)
    assert second is None
    assert first[0] == "LostProcess"
    assert first[1].startswith("another process of this training has ended, so this one stops too")


class Late:
    """A number of a CUDA device whose event is over only when it is waited for."""

    def __init__(self):
        self.waited = False

    def query(self):
        return False

    def synchronize(self):
        self.waited = True


def test_processes_look_at_losses_at_the_same_steps(monkeypatch):
    """Whatever has arrived: the host waits for all but the last two."""

    class OfDevice(torch.Tensor):
        is_cuda = True

    events = [Late() for _ in range(4)]
    left = iter(events)
    monkeypatch.setattr("nni_fairdarts.watch.arriving", lambda value: (torch.tensor(1.0), next(left)))
    trainer = type("Trainer", (), {"current_epoch": 0, "progress_bar_callback": None})()
    watch = LossWatch(together=True)
    for batch in range(4):
        watch.see("train_loss", torch.tensor(1.0).as_subclass(OfDevice), trainer, batch)
    assert [event.waited for event in events] == [True, True, False, False]


class Own(DDPStrategy):
    pass


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (Own(), "a search on several devices goes with Lightning's DDP, .* has Own; give it strategy='ddp'"),
        (DDPStrategy(static_graph=True), "averages gradients itself, where static_graph of .* leave it out"),
        (DDPStrategy(ddp_comm_hook=print), "averages gradients itself, where ddp_comm_hook of .* leave it out"),
    ],
)
def test_strategies_that_a_search_cannot_follow(strategy, text, classification, search, choices):
    with pytest.raises(InputError, match=text):
        search(choices(), classification(strategy=strategy, devices=2), FairDARTS())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"devices": 0}, "run.devices must be at least 1, got 0"),
        (
            {"devices": 2, "search": {"strategy": "darts"}},
            "run.devices must be 1 with darts, got 2; fairdarts and its kin",
        ),
        ({"devices": 2, "search": {"cuda_graphs": True}}, "cuda_graphs must be false with devices 2, got True"),
    ],
)
def test_settings_that_do_not_fit(values, text):
    with pytest.raises(InputError, match=text):
        from_mapping(values)


def test_more_devices_than_there_are(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["search", "--data.name", "digits", "--devices", "2"]) == 2
    assert "devices 2 were asked for, but torch sees 1 CUDA devices here" in capsys.readouterr().err


def test_a_trial_is_one_process(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "one")
    assert main(["trial", "--data.name", "digits", "--devices", "2"]) == 2
    assert "a trial is one process on one device, but devices is 2; leave it out" in capsys.readouterr().err


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_starts_the_others_which_write_and_print_nothing(tmp_path):
    tiny = {
        "device": "cpu", "threads": 1, "devices": 2, "runs": str(tmp_path), "name": "two",
        "data": {"name": "digits", "flip": False, "crop_padding": 1, "search_images_per_class": 31},
        "space": {"width": 2, "num_cells": 3, "operations": ["sep_conv_3x3", "skip_connect"]},
        "search": {"epochs": 1, "batch_size": 77, "gap_batches": 1, "threshold": 0.4},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    done = command("nni-fairdarts", "search", "--config", tmp_path / "tiny.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "two"
    assert done.stdout.count("epoch 1/1") == done.stdout.count("supernet accuracy") == 1
    result, (record,) = json.loads((folder / "result.json").read_text()), read_history(folder / "history.jsonl")
    assert result["supernet_accuracy"] == record["val_acc"]
    assert record["val_acc"] * 155 == pytest.approx(round(record["val_acc"] * 155), abs=1e-4)  # of the whole half
    for written in ("nni/*", "tensorboard/events*", "checkpoints/epoch*.ckpt", "genotype.json"):
        assert len(list(folder.glob(written))) == 1, written


def test_a_process_ends_behind_the_one_that_started_it():
    """Where it waits in a CUDA collective nothing else ends it."""
    wait = "import sys, time; from nni_fairdarts.launched import end_with_parent; end_with_parent(0.05, 0.1)"
    wait += "; print('waits', file=sys.stderr, flush=True); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {wait!r}]); sys.stdin.read()"
    environment = {**os.environ, "LOCAL_RANK": "1"}
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", start], env=environment, text=True, **pipes) as first:
        assert first.stderr.readline() == "waits\n"
        first.stdin.close()  # and it ends
        assert first.stderr.read() == "nni-fairdarts: error: process 1: the first process is gone\n"
