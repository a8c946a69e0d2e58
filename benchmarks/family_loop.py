"""Steps of any strategy, each as ``nni-fairdarts search`` takes it, and what a search computes besides."""

import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import memory
import pytorch_lightning as pl
import torch
from lightning_loop import WARM, Training, random_images
from loops import CLASSES, SGD, space_of, synchronize
from nni.nas.evaluator.pytorch import Lightning, Trainer
from variants import Size

from nni_fairdarts.config import RunConfig
from nni_fairdarts.data import Augmentation, search_loaders
from nni_fairdarts.experiment.searching import Search
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.parameters import applied

BESIDES = ("sharpness", "strength")
"""What a search's module calls behind an epoch, or at its end: the Hessian's eigenvalue, the operations' strengths."""


class Stopwatch(pl.Callback):
    """Seconds of every epoch's steps, their peak memory, and the same of what is computed besides.

    Of a CPU's single thread they are those that it computed, which other work on the machine disturbs less.
    ``before``: bytes in use behind the imports, which are taken off. ``whole``: or else nothing is computed besides.
    """

    def __init__(self, device: str, before: int, whole: bool):
        self.device, self.before, self.whole = device, before, whole
        self.clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        self.epochs: list[dict] = []
        self.besides: dict[str, dict] = {}

    def on_fit_start(self, trainer, pl_module):
        for name in BESIDES:
            if (work := getattr(pl_module, name, None)) is not None:
                setattr(pl_module, name, self._measured(name, work) if self.whole else None)
        if not self.whole:
            pl_module.early_stopping = None  # a rule may ask for it

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append({"times": []})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        synchronize(self.device)
        if batch_idx == WARM:
            memory.forget_peak(self.device)
        self._began = self.clock()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        synchronize(self.device)
        if batch_idx >= WARM:
            self.epochs[-1]["times"].append(self.clock() - self._began)
            self.epochs[-1]["peak_bytes"] = memory.peak(self.device) - self.before

    def _measured(self, name: str, work):
        def measured(module):
            memory.forget_peak(self.device)
            began = self.clock()
            found = work(module)
            synchronize(self.device)
            seconds = self.clock() - began
            self.besides[name] = {"seconds": seconds, "peak_bytes": memory.peak(self.device) - self.before}
            return found

        return measured


def searched(parameters: dict, size: Size, device: str, steps: int, before: int, whole: bool) -> Stopwatch:
    """A search with a trial's ``parameters``, of one epoch for each of its stages, of ``steps`` timed steps each.

    No epoch is a warm-up, nothing is validated, and the images are random ones. The batches are as far as the loaders
    bring them when a step begins.
    """
    settings = applied(RunConfig(), parameters).search
    epochs = len(getattr(settings.parts, "stages", None) or [0])
    settings = replace(settings, warmup_epochs=0, epochs=epochs, batch_size=size.batch)
    watch = Stopwatch(device, before, whole)
    images = random_images(2 * size.batch * (WARM + steps))
    weights, alphas, _ = search_loaders(images, size.batch, Augmentation(), device=device)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=epochs,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        training = Training(CLASSES, SGD["lr"], 0.001, SGD["momentum"], SGD["weight_decay"])
        evaluator = Lightning(training, trainer, train_dataloaders=weights, val_dataloaders=alphas)
        experiment = Search(space_of(size), evaluator, build(settings))
        experiment.config.experiment_working_directory = Path(folder) / "nni"
        try:
            experiment.run()
        finally:
            experiment.stop()
    return watch
