"""Several processes of gloo that train together, and what the tests let them do: searches small and exact."""

import logging
import math
import multiprocessing
import os
import signal
import time
import traceback
import warnings

import torch
from experiments import free_port
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from nni_fairdarts import FairDARTS, data
from nni_fairdarts.config import SearchConfig
from nni_fairdarts.datasets.images import Arrays, ImageData
from nni_fairdarts.distributed import Shard
from nni_fairdarts.gap import DiscretizationGap
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.penalty import profiler
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.stages import Stage
from nni_fairdarts.training import ImageTraining

BATCH, STEPS, SGD = 3, 2, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def together(task, *args, processes=2, seconds=120):
    """What ``task(*args)`` returns, or the (kind, text) of what it raises, in each of several processes.

    None for one that just ends. Every process is a fresh one, forked from one that has imported what they need.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nni_fairdarts.experiment", "nni.nas.experiment", "sklearn.datasets"])
    port, ends = free_port(), [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=_one, args=(rank, processes, port, end, task, args))
        for rank, (_, end) in enumerate(ends)
    ]
    for process, (_, end) in zip(started, ends, strict=True):
        process.start()
        end.close()
    results, limit = [], time.monotonic() + seconds
    try:
        for answer, _ in ends:
            assert answer.poll(limit - time.monotonic()), "a process hangs"
            try:
                results.append(answer.recv())
            except EOFError:
                results.append(None)
    finally:
        for process in started:
            process.join(5)
            process.kill()
    return results


def _one(rank, processes, port, end, task, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(processes), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("nni", "pytorch_lightning", "lightning_fabric", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    try:
        end.send(task(*args))
    except Exception as error:
        traceback.print_exc()
        end.send((type(error).__name__, str(error)))


def search(space, evaluator, strategy):
    experiment = NasExperiment(space, evaluator, strategy)
    try:
        experiment.run()
    finally:
        experiment.stop()
    return experiment


def trainer(strategy="ddp", **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return Trainer(**quiet, devices=2, strategy=strategy, **options)


# -- exact searches ----------------------------------------------------------------------------------------------------


class Choices(ModelSpace):
    """Two choices between layers, batch norms inside; images (N, 3, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.first = LayerChoice([nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.Identity()], label="first")
        self.second = LayerChoice([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)], label="second")
        self.classifier = nn.Linear(4, 10)
        self.unused = nn.Parameter(torch.ones(4))  # torch's DDP would wait for its gradient

    def forward(self, x):
        return self.classifier(self.second(self.first(self.stem(x))).mean((2, 3)))


def cells():
    return DARTS(2, 3, operations=["sep_conv_3x3", "max_pool_3x3", "skip_connect"])


CASES = {  # the space, options of FairDARTS, epochs, the trainer's strategy
    "plain": (Choices, {}, 1, "ddp"),
    "warm-up": (Choices, {"warmup_epochs": 1}, 2, "ddp"),
    "unused": (Choices, {"warmup_epochs": 1}, 2, "ddp_find_unused_parameters_true"),
    "single level": (Choices, {"single_level": True, "warmup_epochs": 1}, 2, "ddp"),
    "penalty": (Choices, {"penalty": "params"}, 1, "ddp"),
    "cells": (cells, {"fused": False}, 1, "ddp"),
    "fused": (cells, {}, 1, "ddp"),
    "stages": (cells, {"stages": (Stage(), Stage(operations=2))}, 2, "ddp"),
    "recompute": (cells, {"recompute": True}, 1, "ddp_find_unused_parameters_true"),
}


def made(case, seed):
    """The space and the strategy of a case in float64; the parameters are the seed's."""
    torch.manual_seed(seed)
    space, options, _, _ = CASES[case]
    space = space().double()
    if "penalty" in options:
        cost = profiler(options["penalty"], space, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        options = {**options, "penalty": {"profiler": cost, "baseline": 50, "scale": 0.3}}
    return space, FairDARTS(arc_learning_rate=0.1, gradient_clip_val=0.4, log_prob_every_n_step=0, **options)


def images(seed):
    """What STEPS steps of all processes see together."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 * BATCH * STEPS
    return TensorDataset(
        torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64),
        torch.randint(10, (count,), generator=generator),
    )


def loaders():
    """The weights' and α's: every process's part in the order of ``images``."""
    return [DataLoader(part, BATCH, sampler=Shard(part, 2)) for part in (images(1), images(2))]


class Training(LightningModule):
    """Cross entropy and SGD."""

    def training_step(self, batch, batch_idx):
        output = self.model(batch[0])
        return cross_entropy(output[0] if isinstance(output, tuple) else output, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **SGD)


def searches(folder):
    """{case: (state of the supernet, what is exported)}, one after another in these processes."""
    found, rank = {}, int(os.environ["LOCAL_RANK"])
    for case, (_, _, epochs, strategy) in CASES.items():
        space, fair = made(case, seed=rank)  # the first process's parameters are all processes'
        fair.history = folder / f"{case} {rank}.jsonl"
        evaluator = Lightning(Training(), trainer(strategy, max_epochs=epochs), *loaders())
        experiment = search(space, evaluator, fair)
        state = {name: tensor.numpy() for name, tensor in fair.supernet.state_dict().items()}
        found[case] = state, experiment.export_top_models(formatter="dict")
    return found


# -- data, metrics, random numbers ---------------------------------------------------------------------------------


class Seen(ImageTraining):
    """Notes the classes that it trains and validates on, and a random number of every training step.

    But for those of the gap.
    """

    measuring = False

    def __init__(self):
        super().__init__(num_classes=23, learning_rate=0.05)
        self.seen = {"alpha": [], "weights": [], "validation": []}
        self.drawn = []

    def training_step(self, batch, batch_idx):
        if not self.measuring:
            self.seen["weights" if batch_idx % 2 else "alpha"] += batch[1].tolist()
            self.drawn.append(float(torch.rand(())))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if not self.measuring:
            self.seen["validation"] += batch[1].tolist()
        return super().validation_step(batch, batch_idx)


def numbered():
    """46 images, each half with a class of its own for every one: 23 is no multiple of 2."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (46, 3, 8, 8), generator=generator, dtype=torch.uint8)
    arrays = Arrays(pixels, list(range(23)) * 2)
    return ImageData(arrays, arrays, 23, 3, 8, (0.5,) * 3, (0.5,) * 3, "numbered")


def shared_out(history):
    """What a process sees in two epochs of a run's loaders, the gaps it measures, and val_loss: logged, and by hand."""
    torch.manual_seed(0)
    train, val, validation = data.search_loaders(numbered(), 3, None, devices=2, seed=5)
    module, gaps = Seen(), []
    evaluator = Lightning(module, trainer(max_epochs=2), train, val)
    strategy = build(SearchConfig(arc_learning_rate=0.1, threshold=0.6), "val_acc")
    strategy.history, strategy.validation_dataloaders = history, validation
    gap = DiscretizationGap(evaluator, 2, "val_acc", validation)

    def measure(searched):
        module.measuring = True
        gaps.append(gap(searched))
        module.measuring = False
        return gaps[-1]

    strategy.measure = measure
    search(DARTS(2, 3, num_classes=23, operations=["sep_conv_3x3", "skip_connect"]), evaluator, strategy)
    logged = float(evaluator.trainer.callback_metrics["val_loss"])
    network = strategy.supernet.eval()
    with torch.no_grad():
        alone = data.search_loaders(numbered(), 3, None)[2]
        loss = sum(float(cross_entropy(network(x), y, reduction="sum")) for x, y in alone) / 23
    return {"seen": module.seen, "drawn": module.drawn, "gaps": gaps, "logged": logged, "by hand": loss}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Failing(Training):
    """In its third batch, in the second process: a loss that is NaN, or the end of the process."""

    def __init__(self, how):
        super().__init__()
        self.how, self.batches = how, 0

    def training_step(self, batch, batch_idx):
        self.batches += 1
        loss = super().training_step(batch, batch_idx)
        if self.batches == 3 and os.environ["LOCAL_RANK"] == "1":
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            return loss * math.nan
        return loss


def failing(how):
    """Search with a process that fails."""
    space, strategy = made("plain", seed=0)
    search(space, Lightning(Failing(how), trainer(max_epochs=1), *loaders()), strategy)
