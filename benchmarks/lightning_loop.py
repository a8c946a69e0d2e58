"""The same step through NNI's experiment and Lightning, in turn with the bare loop's."""

import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytorch_lightning as pl
import torch
from loops import CLASSES, IMAGE, SGD, BareLoop, deterministic, prepare, space_of, strategy_of, synchronize
from nni.nas.evaluator.pytorch import Lightning, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.profilers import SimpleProfiler
from variants import Size, Variant

from nni_fairdarts.data import Augmentation, search_loaders
from nni_fairdarts.datasets import ImageData
from nni_fairdarts.datasets.images import Arrays
from nni_fairdarts.experiment.searching import Search
from nni_fairdarts.training import ImageTraining

WARM = 2
"""Steps at the start that are not timed."""

LOADING = ("train_dataloader_next", "batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer")
"""What Lightning's profiler calls the ways of a batch from the data set to the step."""


class Alternating(pl.Callback):
    """Times Lightning's steps, each from the end of what was before it, and behind each one of the bare loop's."""

    def __init__(self, bare: BareLoop, variant: Variant):
        self.bare, self.variant = bare, variant
        self.through: list[float] = []
        self.alone: list[float] = []

    def on_fit_start(self, trainer, pl_module):
        prepare(pl_module.model, self.variant)

    def on_train_epoch_start(self, trainer, pl_module):
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, *args):
        synchronize(self.bare.device)
        ended = time.perf_counter()
        self.bare.step()
        synchronize(self.bare.device)
        now = time.perf_counter()
        self.through.append(ended - self._began)
        self.alone.append(now - ended)
        self._began = now


class WaitingProfiler(SimpleProfiler):
    """Lightning's, whose notes are only read."""

    def describe(self):
        """Prints nothing."""

    def loading(self, steps: int) -> list[float]:
        """Seconds that each of the last ``steps`` steps spent on getting its batches."""
        waits = [
            times[-steps:] for name, times in self.recorded_durations.items() if any(part in name for part in LOADING)
        ]
        return [sum(times) for times in zip(*(times for times in waits if len(times) == steps), strict=True)]


class Training(ImageTraining):
    """The evaluator's module of ``nni-fairdarts search``; a few steps have no result to report to NNI."""

    def on_fit_end(self):
        """Reports nothing."""


def through_lightning(variant: Variant, size: Size, device: str, repeats: int) -> dict:
    """Seconds of ``repeats`` steps through ``NasExperiment`` and Lightning, bare, and of loading in the former.

    The evaluator is that of ``nni-fairdarts search``: its images (random ones here) are augmented and loaded in the
    main process, on the device; TensorBoard's events are written.
    """
    steps = WARM + repeats
    alternating = Alternating(BareLoop(variant, size, device), variant)
    profiler = WaitingProfiler()
    weights, alphas, _ = search_loaders(
        random_images(2 * size.batch * steps), size.batch, Augmentation(), device=device
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if variant.bf16 else "32-true",
            logger=TensorBoardLogger(folder, name="tensorboard", version=""),
            callbacks=[alternating],
            profiler=profiler,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        training = Training(CLASSES, SGD["lr"], 0.001, SGD["momentum"], SGD["weight_decay"])
        evaluator = Lightning(training, trainer, train_dataloaders=weights, val_dataloaders=alphas)
        experiment = Search(space_of(size), evaluator, strategy_of(variant))
        experiment.config.experiment_working_directory = Path(folder) / "nni"
        try:
            with deterministic() if variant.deterministic else nullcontext():
                experiment.run()
        finally:
            experiment.stop()
    if len(alternating.through) != steps:
        raise RuntimeError(f"Lightning took {len(alternating.through)} steps, expected {steps}")
    return {
        "through": alternating.through[WARM:],
        "bare": alternating.alone[WARM:],
        "loading": profiler.loading(repeats),
    }


def random_images(count: int) -> ImageData:
    """A data set of random images in memory."""
    images = torch.randint(0, 256, (count, *IMAGE), dtype=torch.uint8)
    data = Arrays(images, torch.randint(CLASSES, (count,)))
    return ImageData(data, data, CLASSES, IMAGE[0], IMAGE[1], (0.5,) * IMAGE[0], (0.25,) * IMAGE[0], "random")
