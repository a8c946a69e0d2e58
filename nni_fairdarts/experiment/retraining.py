"""The retraining of a derived network from scratch, through NNI's evaluator."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from nni.nas.evaluator.pytorch import Lightning
from torch import nn

from nni_fairdarts import data, datasets
from nni_fairdarts import folder as run_folder
from nni_fairdarts.arguments import as_fields
from nni_fairdarts.checkpoints import KEY, checkpoints_of, numbers, read
from nni_fairdarts.config import RunConfig
from nni_fairdarts.distributed import naming_the_lost, wait_for_all
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import (
    augmentation_of,
    checkpoints_in,
    device_of,
    load_images,
    logger_in,
    prepare,
    trainer_of,
    training_of,
    versions,
)
from nni_fairdarts.experiment.environment import record_environment
from nni_fairdarts.experiment.parts import make_space, multiply_adds_of_step, users_evaluator
from nni_fairdarts.experiment.resuming import carried, check_changes, last_checkpoint
from nni_fairdarts.freezing import freeze
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.guests import seed_training
from nni_fairdarts.launched import launched_rank
from nni_fairdarts.network import DerivedNetwork, check_auxiliary_head, count_multiply_adds, count_parameters
from nni_fairdarts.randomness import SeededLoaders
from nni_fairdarts.stopping import stoppable


def check_retraining(config: RunConfig):
    """(images, their loaders), or (None, the user's evaluator). Raises InputError where something is amiss."""
    if config.evaluator is not None:
        prepare(config)
        return None, users_evaluator(config, "retrain")
    images = load_images(config)
    return images, retrain_loaders(config, images)


def retrain_loaders(config: RunConfig, images: datasets.ImageData):
    """Loaders of the training and the test set. Raises InputError where the settings do not fit the images."""
    settings = config.retrain
    if settings.auxiliary_weight > 0 and config.space.name == "darts":
        check_auxiliary_head(images.image_size, config.space.dataset)
    augmentation = augmentation_of(config, settings.cutout)
    return data.retrain_loaders(
        images,
        settings.batch_size,
        augmentation,
        config.data.workers,
        device_of(config),
        config.devices,
        config.seed,
    )


def retrain(
    config: RunConfig,
    architecture: Genotype | Mapping,
    folder: Path,
    logs: Path | None = None,
) -> dict:
    """Train a network from scratch, with results in the new ``folder``; returns ``result.json``.

    ``architecture``: a genotype, built at retrain's width and cells, or the sample of a space of the user's, built at
    the space's size. ``logs``: for TensorBoard, by default in the folder. Raises InputError, before anything is trained
    or written, for data, sizes and folders that do not fit.
    """
    parts = check_retraining(config)
    network = fresh_network(config, architecture, parts[0])
    if launched_rank() == 0:
        run_folder.create(folder)
    with run_folder.locked(folder):
        return _retrain(config, parts, architecture, network, folder, None, logs)


def resume_retraining(folder: Path, config: RunConfig | None = None, logs: Path | None = None) -> dict:
    """Go on with an interrupted retraining from its last checkpoint; returns what ``result.json`` holds.

    ``config``: another configuration than the retraining's own, where that may change, such as more epochs. Raises
    InputError for any other change, naming it, and where nothing is to be gone on with.
    """
    begun = run_folder.run_of(folder)
    config = begun if config is None else config
    check_changes("retrain", as_fields(begun), config, folder)
    if (folder / "result.json").exists():
        raise InputError(f"the retraining in {folder} is finished; retrain into another folder (--into, --name)")
    if (folder / "genotype.json").is_file():
        architecture = Genotype.load(folder / "genotype.json")
    elif (folder / "sample.json").is_file():
        architecture = run_folder.read_json(folder / "sample.json")
    else:
        raise InputError(f"{folder} holds no retraining that was begun: it has no genotype.json; give RUN/retrain")
    parts = check_retraining(config)
    network = fresh_network(config, architecture, parts[0])
    with run_folder.locked(folder):
        checkpoint = last_checkpoint("retrain", config, folder)
        return _retrain(config, parts, architecture, network, folder, checkpoint, logs)


def _retrain(
    config: RunConfig,
    parts: tuple,
    architecture: Genotype | Mapping,
    network: nn.Module,
    folder: Path,
    checkpoint: Path | None,
    logs: Path | None,
) -> dict:
    images, loaders_or_evaluator = parts
    began = time.perf_counter()
    earlier = 0.0 if checkpoint is None else carried(checkpoint)["seconds"]
    if launched_rank() == 0:
        _write_architecture(folder, architecture)
        record_environment(folder, config)
        run_folder.write_config(folder, config)  # last: what has a configuration can be gone on with
    evaluator = _evaluator(config, images, loaders_or_evaluator, folder, logs)
    with naming_the_lost():
        epochs, metrics = _train(evaluator, network, checkpoint)
    if launched_rank() != 0:
        wait_for_all()
        return run_folder.read_json(folder / "result.json")
    network.cpu()
    torch.save(network.state_dict(), folder / "network.pt")
    if config.metric not in metrics:
        raise InputError(
            f"metric is {config.metric!r}, which the evaluator does not log; it logs: {', '.join(metrics)}"
        )
    if images is None:
        multiply_adds = multiply_adds_of_step(evaluator, network)
    else:
        multiply_adds = count_multiply_adds(network, (images.in_channels, images.image_size, images.image_size))
    cells = isinstance(architecture, Genotype)
    result = {
        "folder": str(folder),
        "metric": config.metric,
        "test_accuracy": metrics[config.metric],
        **({"test_loss": metrics["val_loss"]} if "val_loss" in metrics else {}),
        "parameters": count_parameters(network),
        "multiply_adds": multiply_adds,
        **({"genotype": architecture.to_json()} if cells else {"nni_sample": dict(architecture)}),
        "epochs": epochs,
        "seconds": earlier + time.perf_counter() - began,
        "seed": config.seed,
        "versions": versions(),
    }
    run_folder.write_json(folder / "result.json", result)
    wait_for_all()
    return result


def _is_done(trainer, content: dict) -> bool:
    """Whether nothing is left to be trained behind a checkpoint."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    last = 0 <= epochs <= content[KEY]["epoch"] or 0 <= trainer.max_steps <= content["global_step"]
    return last or content[KEY]["stopping"]


def _write_architecture(folder: Path, architecture: Genotype | Mapping) -> None:
    if isinstance(architecture, Genotype):
        architecture.save(folder / "genotype.json")
    else:
        run_folder.write_json(folder / "sample.json", dict(architecture))


def _train(evaluator: Lightning, network: nn.Module, checkpoint: Path | None) -> tuple[int, dict[str, float]]:
    """Train from the beginning or from a checkpoint; the number of epochs and the last one's metrics."""
    if checkpoint is not None:
        content = read(checkpoint)
        if _is_done(evaluator.trainer, content):
            evaluator.module.set_model(network)
            evaluator.module.load_state_dict(content["state_dict"])
            return content[KEY]["epoch"], content[KEY]["metrics"]
        evaluator.fit_kwargs["ckpt_path"] = str(checkpoint)
    with stoppable():
        evaluator.evaluate(network)
    return evaluator.trainer.current_epoch, numbers(evaluator.trainer)


def architecture_of(folder: Path) -> Genotype | dict:
    """What the search in ``folder`` derived: a genotype of cells, or the sample of a space of the user's.

    Raises InputError where it is not finished.
    """
    if run_folder.run_of(folder).space.name == "darts":
        return Genotype.load(folder / "genotype.json")
    return run_folder.read_json(folder / "sample.json")


def fresh_network(config: RunConfig, architecture: Genotype | Mapping, images: datasets.ImageData | None) -> nn.Module:
    """The derived network with fresh weights, drawn first with the run's seed. Raises InputError for misfits."""
    prepare(config)
    if not isinstance(architecture, Genotype):
        return freeze(make_space(config, images), architecture)
    if images is None:
        raise InputError(
            "a derived cell network is built for the images of data; with evaluator name your own space too (space)"
        )
    settings = config.retrain
    return DerivedNetwork(
        architecture,
        settings.width,
        settings.num_cells,
        images.num_classes,
        images.in_channels,
        config.space.dataset,
        auxiliary_loss=settings.auxiliary_weight > 0,
        image_size=images.image_size,
    )


def _evaluator(config: RunConfig, images, loaders_or_evaluator, folder: Path, logs: Path | None) -> Lightning:
    if images is None:
        evaluator = loaders_or_evaluator
        checkpoints = checkpoints_in(config, folder)
        evaluator.trainer.callbacks.append(checkpoints)
        evaluator.trainer.loggers = [*evaluator.trainer.loggers, logger_in(folder, logs)]
        seed_training(evaluator, checkpoints.place)
        return evaluator
    settings = config.retrain
    cells = config.space.name == "darts"
    training = training_of(
        images,
        settings,
        label_smoothing=settings.label_smoothing,
        auxiliary_weight=settings.auxiliary_weight if cells else 0.0,
        drop_path_prob=settings.drop_path_prob if cells else 0.0,
        schedule=settings.schedule,
        learning_rate_decay=settings.learning_rate_decay,
    )
    trainer = trainer_of(config, folder, settings.epochs, logs, gradient_clip_val=settings.gradient_clip_val or None)
    train_loader, test_loader = loaders_or_evaluator
    seeded = SeededLoaders(train_loader, checkpoints_of(trainer).place)
    return Lightning(training, trainer, train_dataloaders=seeded, val_dataloaders=test_loader)
