"""What a search and a retraining have in common: images, seeds, the evaluator's parts, versions."""

import os
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from nni_fairdarts import data, datasets
from nni_fairdarts.arguments import as_fields
from nni_fairdarts.checkpoints import Checkpoints
from nni_fairdarts.config import RetrainConfig, RunConfig, SearchConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.network import check_image_size
from nni_fairdarts.randomness import Place
from nni_fairdarts.training import ImageTraining
from nni_fairdarts.users import imported


def versions() -> dict[str, str]:
    """Versions of this package and of those its numbers depend on."""
    names = ("nni-fairdarts", "nni", "torch", "torchvision", "pytorch-lightning", "numpy")
    return {name: version(name) for name in names}


def load_images(config: RunConfig) -> datasets.ImageData:
    """The configured data set. Raises InputError where it, or the device, is not there, or images do not fit."""
    settings = config.data
    images = datasets.load(
        settings.name,
        settings.root,
        settings.download,
        settings.image_size,
        config.seed,
        as_stored=settings.augmentation == "imagenet",  # its random crops see the whole image
    )
    check_image_size(images.image_size, config.space.dataset)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch sees no CUDA device here; use --device auto or cpu")
    if device_of(config) == "cuda" and config.devices > torch.cuda.device_count():
        raise InputError(
            f"devices {config.devices} were asked for, but torch sees {torch.cuda.device_count()} CUDA devices here; "
            "use fewer, or --device cpu"
        )
    return images


def prepare(config: RunConfig) -> None:
    """Set the seed of everything random, the threads, and whether CUDA devices are to be deterministic."""
    for name, what in ((config.evaluator, "evaluator"), (config.space.name, "model space")):
        if name is not None and ":" in name:
            imported(name, what)  # first: what a module draws when it is imported is drawn once
    pl.seed_everything(config.seed, workers=True, verbose=False)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        if config.devices > 1:
            os.environ["OMP_NUM_THREADS"] = str(config.threads)  # or Lightning shares all out among the processes


def augmentation_of(config: RunConfig, cutout: int) -> data.Augmentation:
    """The configured augmentation, with the search's or the retraining's ``cutout``."""
    return data.Augmentation(config.data.crop_padding, config.data.flip, cutout, config.data.augmentation)


def processes_of(config: RunConfig, plugins: list) -> dict:
    """The trainer's arguments for its processes: torchrun starts them, or Lightning here, whatever Slurm says."""
    if config.devices > 1 and not TorchElasticEnvironment.detect():
        plugins = [*plugins, LightningEnvironment()]
    return {"devices": config.devices, "strategy": "ddp" if config.devices > 1 else "auto", "plugins": plugins}


def device_of(config: RunConfig) -> str:
    """Where the configured trainer puts the network, as far as the loaders care: "cuda" or "cpu"."""
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(config: RunConfig) -> dict:
    """The trainer's argument for the search's precision. On a CPU Lightning itself takes bfloat16 for "16-mixed"."""
    if config.search.precision == "16-mixed":
        return {"plugins": [MixedPrecision("16-mixed", device_of(config))]}
    return {"precision": config.search.precision}


def training_of(images: datasets.ImageData, settings: SearchConfig | RetrainConfig, **more) -> ImageTraining:
    """The evaluator's module with the settings that searching and retraining share, and ``more``."""
    return ImageTraining(
        images.num_classes,
        settings.learning_rate,
        settings.learning_rate_min,
        settings.momentum,
        settings.weight_decay,
        **more,
    )


def checkpoints_in(config: RunConfig, folder: Path) -> Checkpoints:
    """Keeps the last two checkpoints in ``folder``, with the configuration and the versions in them."""
    carried = {"config": as_fields(config), "versions": versions()}
    return Checkpoints(Place(), folder / "checkpoints", config.checkpoint_steps, carried)


def logger_in(folder: Path, logs: Path | None) -> TensorBoardLogger:
    """Writes TensorBoard's events into ``folder/tensorboard`` or, where that is given, into ``logs``."""
    if logs is None:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    return TensorBoardLogger(logs.parent, name=logs.name, version="")


def trainer_of(config: RunConfig, folder: Path, epochs: int, logs: Path | None, **options) -> Trainer:
    """A trainer that leaves checkpoints in ``folder`` and TensorBoard's events as ``logger_in`` says."""
    return Trainer(
        max_epochs=epochs,
        accelerator="gpu" if config.device == "cuda" else config.device,
        **processes_of(config, options.pop("plugins", [])),
        logger=logger_in(folder, logs),
        callbacks=[checkpoints_in(config, folder)],
        enable_model_summary=False,
        enable_progress_bar=logs is None,  # a trial's output is a file
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        **options,
    )
