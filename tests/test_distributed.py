"""Several processes, one search: real ones of gloo, against one process that averages by hand."""

import copy
import json
import math
import subprocess
import sys
import time
from itertools import chain

import pytest
import ranks
import torch
import yaml
from experiments import ENVIRONMENT, command
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from nni_fairdarts import FairDARTS, InputError, data
from nni_fairdarts.cli import main
from nni_fairdarts.config import from_mapping
from nni_fairdarts.distributed import Shard
from nni_fairdarts.history import read_history
from nni_fairdarts.watch import LossWatch


# -- the same search as in one process ---------------------------------------------------------------------------------


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
    expected, losses = by_hand(case)
    for name, value in expected.items():
        if not name.endswith("running_var"):
            torch.testing.assert_close(torch.from_numpy(state[name]).to(value), value, rtol=0, atol=1e-10)
    history = read_history(folder / f"{case} 0.jsonl")
    assert [record["train_loss"] for record in history] == pytest.approx(losses, abs=1e-10)
    assert not (folder / f"{case} 1.jsonl").exists()
