"""The search of a run, through NNI's experiment."""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import ModelSpace

from nni_fairdarts import data, datasets
from nni_fairdarts import folder as run_folder
from nni_fairdarts.arguments import as_fields
from nni_fairdarts.config import PenaltyConfig, RunConfig
from nni_fairdarts.distributed import naming_the_lost, wait_for_all
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import (
    augmentation_of,
    checkpoints_in,
    device_of,
    load_images,
    logger_in,
    precision_of,
    prepare,
    trainer_of,
    training_of,
    versions,
)
from nni_fairdarts.experiment.environment import record_environment
from nni_fairdarts.experiment.parts import check_strategy, make_space, skip_connections, users_evaluator
from nni_fairdarts.experiment.resuming import carried, check_changes, last_checkpoint, set_aside
from nni_fairdarts.gap import DiscretizationGap
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.history import forget_beginning, read_history
from nni_fairdarts.launched import launched_rank
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.penalty import profiler
from nni_fairdarts.stopping import stoppable
from nni_fairdarts.tensorboard import GateFigures

Listener = Callable[[dict], None]


def search(config: RunConfig, listener: Listener | None = None, logs: Path | None = None) -> dict:
    """Search, derive, and leave everything in the run's folder; returns what ``result.json`` holds.

    ``listener`` gets every epoch's record; TensorBoard's events go to ``logs``, by default into the run's folder.
    Raises InputError, before anything is trained or written, for data, sizes and folders that do not fit.
    """
    parts = check_search(config)
    if launched_rank() != 0:  # the first process has made the folder
        return _search(config, parts, config.folder, None, listener, logs)
    folder = run_folder.create(config.folder)
    with run_folder.locked(folder):
        run_folder.write_config(folder, config)
        return _search(config, parts, folder, None, listener, logs)


def resume(
    folder: Path, config: RunConfig | None = None, listener: Listener | None = None, logs: Path | None = None
) -> dict:
    """Go on with an interrupted search from its last checkpoint; returns what ``result.json`` holds.

    ``config``: another configuration than the run's own, where that may change: more epochs, say, which also go on with
    a search that is finished. Raises InputError for any other change, naming it, and where nothing can be gone on with.
    """
    begun = run_folder.run_of(folder)
    if run_folder.is_retraining(folder):
        raise InputError(f"{folder} is of a retraining; go on with it: nni-fairdarts retrain --resume {folder}")
    config = begun if config is None else config
    check_changes("search", as_fields(begun), config, folder)
    finished = (folder / "result.json").exists()
    if finished and config.search.epochs == begun.search.epochs:
        raise InputError(
            f"the search in {folder} is finished; derive or retrain it, go on with more --search.epochs, or start "
            "another under a new --name"
        )
    if config.search.strategy == "enas":
        raise InputError(
            "NNI's ENAS keeps neither its controller nor its replay buffer in a checkpoint, so a stopped search cannot "
            "be gone on with; remove the folder and search again"
        )
    parts = check_search(config)
    if launched_rank() != 0:  # the first process has prepared the folder
        return _search(config, parts, folder, last_checkpoint("search", config, folder), listener, logs)
    with run_folder.locked(folder):
        checkpoint = last_checkpoint("search", config, folder)
        if checkpoint is None:
            if finished:
                raise InputError(f"{folder / 'checkpoints'} has no checkpoint to go on from; search under a new --name")
            forget_beginning(folder / "history.jsonl", folder / "checkpoints")
        elif (folder / "history.jsonl").exists():
            read_history(folder / "history.jsonl")  # one that is damaged is told of now, not behind an epoch
        if finished:
            set_aside(folder, begun.search.epochs)
        run_folder.write_config(folder, config)
        return _search(config, parts, folder, checkpoint, listener, logs)


class Search(NasExperiment):
    """NNI's experiment of one search, inside a run's folder: it is not put on NNI's list of a user's experiments.

    There it would stand without a name, a port or a manager, one entry for every trial.
    """

    def _start_without_nni_manager(self):
        pass

    def _stop_without_nni_manager(self):
        pass


@dataclass(frozen=True)
class SearchParts:
    """What a search is made of: images and their loaders, or an evaluator of the user's; a space to look at."""

    images: datasets.ImageData | None
    loaders: tuple | None
    evaluator: Lightning | None
    space: ModelSpace


def check_search(config: RunConfig) -> SearchParts:
    """The parts of the configured search. Raises InputError where something is amiss."""
    if config.search.cuda_graphs and device_of(config) != "cuda":
        raise InputError("search.cuda_graphs needs a CUDA device, but the search would run on the CPU; leave it out")
    images = loaders = evaluator = None
    if config.evaluator is None:
        images = search_images(config)
        loaders = search_loaders(config, images)
    else:
        prepare(config)
        evaluator = users_evaluator(config, "search")
    space = make_space(config, images)
    check_strategy(config, space)
    return SearchParts(images, loaders, evaluator, space)


def search_images(config: RunConfig) -> datasets.ImageData:
    """The configured data set, or the part of it that the search sees. Raises InputError where it has not as much."""
    wanted = config.data
    return datasets.search_subset(
        load_images(config), wanted.search_classes, wanted.search_images_per_class, config.seed
    )


def search_loaders(config: RunConfig, images: datasets.ImageData):
    """Loaders of the weights' half, of α's, and of α's to validate on. Raises InputError where sizes do not fit."""
    return data.search_loaders(
        images,
        config.search.batch_size,
        augmentation_of(config, config.search.cutout),
        config.data.workers,
        config.search.train_portion,
        device_of(config),
        config.devices,
        config.seed,
    )


def _penalty(settings: PenaltyConfig, space, images: datasets.ImageData | None) -> dict | None:
    """The strategy's penalty: the configured one, with a profiler of ``space`` for one image."""
    if settings.profiler == "none":
        return None
    if images is None:
        raise InputError("search.penalty profiles the space with an image of data; with evaluator leave it out")
    image = torch.zeros(1, images.in_channels, images.image_size, images.image_size)
    return {**asdict(settings), "profiler": profiler(settings.profiler, space, image)}


def _evaluator(config: RunConfig, parts: SearchParts, folder: Path, checkpoint: Path | None, logs: Path | None):
    """The search's evaluator, and what the supernet is validated on where that is not what α learns from."""
    resumed = {} if checkpoint is None else {"ckpt_path": str(checkpoint)}
    figures = [GateFigures(config.figure_epochs)] if config.figure_epochs else []
    if parts.evaluator is not None:
        evaluator = parts.evaluator
        evaluator.fit_kwargs.update(resumed)
        evaluator.trainer.callbacks += [*figures, checkpoints_in(config, folder)]
        evaluator.trainer.loggers = [*evaluator.trainer.loggers, logger_in(folder, logs)]
        return evaluator, None
    weights_loader, alpha_loader, validation_loader = parts.loaders
    evaluator = Lightning(
        training_of(parts.images, config.search),
        trainer_of(config, folder, config.search.epochs, logs, **precision_of(config)),
        train_dataloaders=weights_loader,
        val_dataloaders=alpha_loader,
        fit_kwargs=resumed,
    )
    evaluator.trainer.callbacks[:0] = figures
    return evaluator, validation_loader


def _search(config: RunConfig, parts: SearchParts, folder: Path, checkpoint: Path | None, listener, logs) -> dict:
    prepare(config)
    if launched_rank() == 0:
        record_environment(folder, config)
    settings, began = config.search, time.perf_counter()
    earlier = 0.0 if checkpoint is None else carried(checkpoint)["seconds"]
    history = folder / "history.jsonl"
    space = make_space(config, parts.images)
    evaluator, validation = _evaluator(config, parts, folder, checkpoint, logs)
    strategy = build(settings, config.metric, _penalty(settings.penalty, space, parts.images))
    strategy.validation_dataloaders = validation
    strategy.history = history
    strategy.listener = _judged(config.metric, listener)
    if settings.gap_batches:
        strategy.measure = DiscretizationGap(evaluator, settings.gap_batches, config.metric, validation)
    first = launched_rank() == 0
    experiment = Search(space, evaluator, strategy)
    with nullcontext(folder / "nni") if first else tempfile.TemporaryDirectory() as place:
        experiment.config.experiment_working_directory = place
        try:
            with stoppable(), naming_the_lost():
                experiment.run()
            (model,) = experiment.export_top_models()
        finally:
            experiment.stop()
    if not first:
        wait_for_all()
        return run_folder.read_json(folder / "result.json")
    module = strategy.oneshot_module
    last = run_folder.last_epoch(folder)
    derived = {}
    if (epoch := getattr(module, "derived_epoch", None)) is not None:
        derived["derived_epoch"] = epoch + 1
        (last_gates,) = (r["gates"] for r in read_history(history) if r["epoch"] == epoch)
    else:
        last_gates = last.get("gates")
    if (strengths := getattr(getattr(module, "moving", None), "ranked", None)) is not None:
        derived["strengths"] = strengths
    sample = dict(model.sample)
    run_folder.write_json(folder / "sample.json", sample)
    result = {
        "folder": str(folder),
        "strategy": settings.strategy,
        "metric": config.metric,
        "supernet_accuracy": _newest(history, config.metric),
        **{key: last[key] for key in ("decided_gates", "open_gates", "discretization_gap") if key in last},
        "skip_connections": skip_connections(parts.space, sample),
        "nni_sample": sample,
        "epochs": last["epoch"] + 1,
        **derived,
        "seconds": earlier + time.perf_counter() - began,
        "seed": config.seed,
        "versions": versions(),
    }
    if isinstance(space, NDS):
        genotype = Genotype.from_sample(sample, nodes=space.num_nodes_per_cell, style=_style(config))
        genotype.save(folder / "genotype.json")
        result["genotype"] = genotype.to_json()
        if last_gates:
            np.save(folder / "normal_weight.npy", np.array(last_gates["normal"]))
            np.save(folder / "reduce_weight.npy", np.array(last_gates["reduce"]))
    run_folder.write_json(folder / "result.json", result)
    wait_for_all()
    return result


def _judged(metric: str, listener: Listener | None) -> Listener:
    """``listener``, but raises InputError for a validation that has not logged ``metric``."""

    def hear(record: dict) -> None:
        logged = [name for name in record if name.startswith("val_")]
        if logged and metric not in logged:
            raise InputError(f"metric is {metric!r}, which the evaluator does not log; it logs: {', '.join(logged)}")
        if listener is not None:
            listener(record)

    return hear


def _newest(history: Path, metric: str) -> float:
    """The metric of the last validation. Raises InputError where there was none."""
    values = [record[metric] for record in read_history(history) if metric in record]
    if not values:
        raise InputError(
            f"no validation has logged {metric!r}: the search ended within its first epoch, or its validation logs "
            "nothing; let one run at each epoch's end (max_steps, max_time, limit_val_batches)"
        )
    return values[-1]


def _style(config: RunConfig) -> str:
    """Where drop path acts in the derived network: on operations for DARTS' rule and NNI's exports, else on nodes."""
    fair = config.search.strategy == "fairdarts" and config.search.discretization != "darts"
    return "fairdarts" if fair else "darts"
