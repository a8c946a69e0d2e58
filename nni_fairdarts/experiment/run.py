"""One run: a search through NNI, what it derives, and the retraining of that."""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.experiment import NasExperiment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from nni_fairdarts import data, datasets
from nni_fairdarts import folder as run_folder
from nni_fairdarts.config import RetrainConfig, RunConfig, SearchConfig
from nni_fairdarts.discretize import discretize
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.network import (
    DerivedNetwork,
    check_auxiliary_head,
    check_image_size,
    count_multiply_adds,
    count_parameters,
)
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.strategy import FairDARTS
from nni_fairdarts.training import ImageTraining

VERSIONS = ("nni-fairdarts", "nni", "torch", "torchvision", "pytorch-lightning", "numpy")


def run(config: RunConfig) -> tuple[dict, dict]:
    """Search, derive and retrain; returns what both ``result.json`` hold.

    Raises InputError, before anything is trained or written, for what does not fit the search or the retraining.
    """
    retrain_loaders(config, load_images(config))
    searched = search(config)
    genotype = Genotype.load(config.folder / "genotype.json")
    return searched, retrain(config, genotype, config.folder / "retrain")


# -- search --------------------------------------------------------------------------------------------------------


def search(config: RunConfig) -> dict:
    """Search, derive, and leave everything in the run's folder; returns what ``result.json`` holds.

    Raises InputError, before anything is trained or written, for data, sizes and folders that do not fit.
    """
    images = load_images(config)
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
    images = load_images(config)
    return _search(config, images, search_loaders(config, images), folder, checkpoint)


def load_images(config: RunConfig) -> datasets.ImageData:
    """The configured data set. Raises InputError where it, or the device, is not there, or images do not fit."""
    images = datasets.load(
        config.data.name, config.data.root, config.data.download, config.data.image_size, config.seed
    )
    check_image_size(images.image_size, config.space.dataset)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch sees no CUDA device here; use --device auto or cpu")
    return images


def search_loaders(config: RunConfig, images: datasets.ImageData):
    augmentation = data.Augmentation(config.data.crop_padding, config.data.flip, config.search.cutout)
    return data.search_loaders(
        images, config.search.batch_size, augmentation, config.data.workers, config.search.train_portion
    )


def _search(config: RunConfig, images, loaders, folder: Path, checkpoint: Path | None) -> dict:
    _prepare(config)
    settings, began = config.search, time.perf_counter()
    weights_loader, alpha_loader, validation_loader = loaders
    space = DARTS(
        config.space.width,
        config.space.num_cells,
        config.space.dataset,
        num_classes=images.num_classes,
        in_channels=images.in_channels,
    )
    training = _training(images, settings)
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
        validation_dataloaders=validation_loader,
        history=folder / "history.jsonl",
    )
    evaluator = Lightning(
        training,
        _trainer(config, folder, settings.epochs),
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
        "versions": {name: version(name) for name in VERSIONS},
    }
    run_folder.write_json(folder / "result.json", result)
    return result


def _prepare(config: RunConfig) -> None:
    pl.seed_everything(config.seed, workers=True, verbose=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _training(images: datasets.ImageData, settings: SearchConfig | RetrainConfig, **more) -> ImageTraining:
    return ImageTraining(
        images.num_classes,
        settings.learning_rate,
        settings.learning_rate_min,
        settings.momentum,
        settings.weight_decay,
        **more,
    )


def _trainer(config: RunConfig, folder: Path, epochs: int, **options):
    checkpoints = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="epoch{epoch:03d}",
        auto_insert_metric_name=False,
        save_last=True,
        save_on_train_epoch_end=True,  # behind the history: an epoch in the checkpoint is in the history too
    )
    return Trainer(
        max_epochs=epochs,
        accelerator="gpu" if config.device == "cuda" else config.device,
        devices=1,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=[checkpoints],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        **options,
    )


# -- derivation ----------------------------------------------------------------------------------------------------


def derive(folder: Path, discretization: str | None = None, threshold: float | None = None) -> Genotype:
    """Derive a finished search once more, at another rule or threshold, without searching.

    ``folder`` is a run's, or any that holds ``normal_weight.npy`` and ``reduce_weight.npy`` (gates, 14 × 7, as the
    published code saves them). The run's own rule and threshold are the defaults. Raises InputError where it is
    neither.
    """
    rule, level = "sparse", 0.85
    if (folder / "config.yaml").is_file():
        settings = run_folder.run_of(folder).search
        rule, level = settings.discretization, settings.threshold
        gates = run_folder.last_gates(folder)["gates"]
        normal, reduce = gates["normal"], gates["reduce"]
    else:
        normal, reduce = (_published_gates(folder, f"{kind}_weight.npy") for kind in ("normal", "reduce"))
    return discretize(normal, reduce, discretization or rule, level if threshold is None else threshold)


def _published_gates(folder: Path, name: str):
    path = folder / name
    try:
        return np.load(path, allow_pickle=False).astype(float)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is neither a run folder (it has no config.yaml) nor one with normal_weight.npy and "
            "reduce_weight.npy"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read gates from {path}: {error}; it must be a NumPy array of numbers") from error


# -- retraining ----------------------------------------------------------------------------------------------------


def retrain_loaders(config: RunConfig, images: datasets.ImageData):
    """Loaders of the training and the test set. Raises InputError where the settings do not fit the images."""
    settings = config.retrain
    if settings.auxiliary_weight > 0:
        check_auxiliary_head(images.image_size, config.space.dataset)
    augmentation = data.Augmentation(config.data.crop_padding, config.data.flip, settings.cutout)
    return data.retrain_loaders(images, settings.batch_size, augmentation, config.data.workers)


def retrain(config: RunConfig, genotype: Genotype, folder: Path) -> dict:
    """Train the network of ``genotype`` from scratch, with results in the new ``folder``; returns ``result.json``.

    Raises InputError, before anything is trained or written, for data, sizes and folders that do not fit.
    """
    images = load_images(config)
    train_loader, test_loader = retrain_loaders(config, images)
    settings, began = config.retrain, time.perf_counter()
    _prepare(config)
    network = DerivedNetwork(
        genotype,
        settings.width,
        settings.num_cells,
        images.num_classes,
        images.in_channels,
        config.space.dataset,
        auxiliary_loss=settings.auxiliary_weight > 0,
        image_size=images.image_size,
    )
    run_folder.create(folder)
    run_folder.write_config(folder, config)
    genotype.save(folder / "genotype.json")
    training = _training(
        images,
        settings,
        label_smoothing=settings.label_smoothing,
        auxiliary_weight=settings.auxiliary_weight,
        drop_path_prob=settings.drop_path_prob,
    )
    trainer = _trainer(config, folder, settings.epochs, gradient_clip_val=settings.gradient_clip_val or None)
    evaluator = Lightning(training, trainer, train_dataloaders=train_loader, val_dataloaders=test_loader)
    evaluator.evaluate(network)
    network.cpu()
    torch.save(network.state_dict(), folder / "network.pt")
    shape = (images.in_channels, images.image_size, images.image_size)
    result = {
        "folder": str(folder),
        "test_accuracy": float(trainer.callback_metrics["val_acc"]),
        "test_loss": float(trainer.callback_metrics["val_loss"]),
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, shape),
        "genotype": genotype.to_json(),
        "epochs": settings.epochs,
        "seconds": time.perf_counter() - began,
        "seed": config.seed,
        "versions": {name: version(name) for name in VERSIONS},
    }
    run_folder.write_json(folder / "result.json", result)
    return result


# -- for people ----------------------------------------------------------------------------------------------------


def summary(searched: dict | None = None, retrained: dict | None = None) -> str:
    """What came out of a search, of a retraining, or of both, in a few lines."""
    lines = []
    if searched:
        lines.append(f"supernet accuracy   {searched['supernet_accuracy']:.2%} (validation)")
    if retrained:
        size = f"{retrained['parameters']:,} parameters, {retrained['multiply_adds']:,} multiply-adds"
        lines.append(f"derived accuracy    {retrained['test_accuracy']:.2%} (test), {size}")
    if searched:
        lines.append(f"decided gates       {searched['decided_gates']:.1%} (under 0.1 or over 0.9)")
    result = searched or retrained
    lines.append(str(Genotype.from_json(result["genotype"])))
    lines.append(f"run folder          {result['folder']}")
    return "\n".join(lines)
