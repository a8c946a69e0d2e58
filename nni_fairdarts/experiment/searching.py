"""The search of a run, through NNI's experiment."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.experiment import NasExperiment

from nni_fairdarts import data, datasets
from nni_fairdarts import folder as run_folder
from nni_fairdarts.config import PenaltyConfig, RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import augmentation_of, load_images, prepare, trainer_of, training_of, versions
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.penalty import profiler
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.strategy import FairDARTS


def search(config: RunConfig) -> dict:
    """Search, derive, and leave everything in the run's folder; returns what ``result.json`` holds.

    Raises InputError, before anything is trained or written, for data, sizes and folders that do not fit.
    """
    images = search_images(config)
    loaders = search_loaders(config, images)
    folder = run_folder.create(config.folder)
    run_folder.write_config(folder, config)
    return _search(config, images, loaders, folder, None)


def resume(folder: Path) -> dict:
    """Go on with an interrupted search from its last finished epoch; returns what ``result.json`` holds."""
    config = run_folder.run_of(folder)
    if (folder / "result.json").exists():
        raise InputError(
            f"the search in {folder} is finished; derive or retrain it, or start another under a new --name"
        )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise InputError(f"{folder} has no checkpoint (no epoch was finished); remove the folder and search again")
    try:  # Lightning reads what this has shown to be plain data
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise InputError(
            f"cannot read the checkpoint {checkpoint} ({type(error).__name__}): it is damaged, or not one of this "
            "package's; put one of the others in its folder in its place, or search again under a new --name"
        ) from error
    images = search_images(config)
    return _search(config, images, search_loaders(config, images), folder, checkpoint)


def search_images(config: RunConfig) -> datasets.ImageData:
    """The configured data set, or the part of it that the search sees. Raises InputError where it has not as much."""
    wanted = config.data
    return datasets.search_subset(
        load_images(config), wanted.search_classes, wanted.search_images_per_class, config.seed
    )


def search_loaders(config: RunConfig, images: datasets.ImageData):
    """Loaders of the weights' half, of α's, and of α's to validate on. Raises InputError where sizes do not fit."""
    augmentation = augmentation_of(config, config.search.cutout)
    return data.search_loaders(
        images, config.search.batch_size, augmentation, config.data.workers, config.search.train_portion
    )


def _penalty(settings: PenaltyConfig, space: DARTS, images: datasets.ImageData) -> dict | None:
    """The strategy's penalty: the configured one, with a profiler of ``space`` for one image."""
    if settings.profiler == "none":
        return None
    image = torch.zeros(1, images.in_channels, images.image_size, images.image_size)
    return {**asdict(settings), "profiler": profiler(settings.profiler, space, image)}


def _search(config: RunConfig, images, loaders, folder: Path, checkpoint: Path | None) -> dict:
    prepare(config)
    settings, began = config.search, time.perf_counter()
    weights_loader, alpha_loader, validation_loader = loaders
    space = DARTS(
        config.space.width,
        config.space.num_cells,
        config.space.dataset,
        num_classes=images.num_classes,
        in_channels=images.in_channels,
    )
    training = training_of(images, settings)
    strategy = FairDARTS(
        arc_learning_rate=settings.arc_learning_rate,
        arc_betas=settings.arc_betas,
        arc_weight_decay=settings.arc_weight_decay,
        zero_one_weight=settings.zero_one_weight,
        zero_one_loss=settings.zero_one_loss,
        threshold=settings.threshold,
        discretization=settings.discretization,
        alpha_init=settings.alpha_init,
        single_level=settings.single_level,
        warmup_epochs=settings.warmup_epochs,
        gradient_clip_val=settings.gradient_clip_val or None,
        candidate_norm=settings.candidate_norm,
        recompute=settings.recompute,
        penalty=_penalty(settings.penalty, space, images),
        validation_dataloaders=validation_loader,
        history=folder / "history.jsonl",
    )
    evaluator = Lightning(
        training,
        trainer_of(config, folder, settings.epochs),
        train_dataloaders=weights_loader,
        val_dataloaders=alpha_loader,
        fit_kwargs={} if checkpoint is None else {"ckpt_path": str(checkpoint)},
    )
    experiment = NasExperiment(space, evaluator, strategy)
    try:
        experiment.run()
        (model,) = experiment.export_top_models()
    finally:
        experiment.stop()
    last = run_folder.last_gates(folder)
    genotype = Genotype.from_sample(model.sample, style=model.style)
    genotype.save(folder / "genotype.json")
    np.save(folder / "normal_weight.npy", np.array(last["gates"]["normal"]))
    np.save(folder / "reduce_weight.npy", np.array(last["gates"]["reduce"]))
    result = {
        "folder": str(folder),
        "supernet_accuracy": last["val_acc"],
        "decided_gates": last["decided_gates"],
        "open_gates": last["open_gates"],
        "skip_connections": genotype.skip_connections(),
        "genotype": genotype.to_json(),
        "nni_sample": model.sample,
        "epochs": last["epoch"] + 1,
        "seconds": time.perf_counter() - began,
        "seed": config.seed,
        "versions": versions(),
    }
    run_folder.write_json(folder / "result.json", result)
    return result
