"""The retraining of a derived network from scratch, through NNI's evaluator."""

import time
from pathlib import Path

import torch
from nni.nas.evaluator.pytorch import Lightning

from nni_fairdarts import data, datasets
from nni_fairdarts import folder as run_folder
from nni_fairdarts.config import RunConfig
from nni_fairdarts.experiment.common import augmentation_of, load_images, prepare, trainer_of, training_of, versions
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.network import DerivedNetwork, check_auxiliary_head, count_multiply_adds, count_parameters


def retrain_loaders(config: RunConfig, images: datasets.ImageData):
    """Loaders of the training and the test set. Raises InputError where the settings do not fit the images."""
    settings = config.retrain
    if settings.auxiliary_weight > 0:
        check_auxiliary_head(images.image_size, config.space.dataset)
    augmentation = augmentation_of(config, settings.cutout)
    return data.retrain_loaders(images, settings.batch_size, augmentation, config.data.workers)


def retrain(config: RunConfig, genotype: Genotype, folder: Path) -> dict:
    """Train the network of ``genotype`` from scratch, with results in the new ``folder``; returns ``result.json``.

    Raises InputError, before anything is trained or written, for data, sizes and folders that do not fit.
    """
    images = load_images(config)
    train_loader, test_loader = retrain_loaders(config, images)
    settings, began = config.retrain, time.perf_counter()
    prepare(config)
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
    training = training_of(
        images,
        settings,
        label_smoothing=settings.label_smoothing,
        auxiliary_weight=settings.auxiliary_weight,
        drop_path_prob=settings.drop_path_prob,
        schedule=settings.schedule,
        learning_rate_decay=settings.learning_rate_decay,
    )
    trainer = trainer_of(config, folder, settings.epochs, gradient_clip_val=settings.gradient_clip_val or None)
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
        "versions": versions(),
    }
    run_folder.write_json(folder / "result.json", result)
    return result
