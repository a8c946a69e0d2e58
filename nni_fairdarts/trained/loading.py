"""A trained derived network from a run's folder, or from a genotype and a file of weights."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchmetrics
from nni.nas.evaluator.pytorch import Lightning, Trainer
from torch import Tensor, nn

from nni_fairdarts import data
from nni_fairdarts.config import RunConfig
from nni_fairdarts.datasets import ImageData
from nni_fairdarts.edges import shortened
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment import architecture_of
from nni_fairdarts.experiment.common import device_of, load_images, prepare, training_of
from nni_fairdarts.experiment.parts import users_evaluator
from nni_fairdarts.experiment.retraining import fresh_network
from nni_fairdarts.folder import going_on, is_retraining, read_json, retraining_in, trained_config
from nni_fairdarts.genotype import Genotype, resolve


@dataclass(frozen=True)
class Trained:
    """A trained derived network, without its auxiliary head, and what it is judged on.

    ``evaluator``: its validation batches are those of the test set, or of the user's evaluator, where ``images`` is
    None. ``architecture``: a genotype, or the sample of a space that is not of cells.
    """

    network: nn.Module
    architecture: Genotype | Mapping
    config: RunConfig
    weights: Path
    evaluator: Lightning
    images: ImageData | None


def load(what: str | Path | Genotype, weights: str | Path | None = None, config: RunConfig | None = None) -> Trained:
    """The trained network of a run, or of a genotype and the file of its weights.

    ``what``: the folder of a run or of its retraining, whose network.pt is taken where no ``weights`` are given; or a
    genotype, its file, its published name or text, built at the sizes of ``config.retrain`` for the images of
    ``config.data``. ``config``: by default what the folder's network was trained with. Nothing of the weights' file is
    run, and those of an auxiliary head are passed over. Raises InputError for what is missing, and for weights of
    another network, naming the first that does not fit.
    """
    folder = Path(what) if not isinstance(what, Genotype) and os.path.isdir(what) else None
    if folder is not None:
        config = trained_config(folder) if config is None else config
        architecture = _architecture_in(folder)
        weights = _weights_in(folder) if weights is None else Path(weights)
    else:
        architecture = what if isinstance(what, Genotype) else _named(what)
        if weights is None:
            raise InputError(
                "a genotype alone has no weights; give --weights FILE, of a network that was trained, or a run's folder"
            )
        config, weights = config or RunConfig(), Path(weights)
    config = replace(config, devices=1)
    tensors = _read(weights)
    images, evaluator = _judge(config)
    headless = replace(config, retrain=replace(config.retrain, auxiliary_weight=0.0))
    network = fresh_network(headless, architecture, images)
    _fill(network, tensors, weights, config, images)
    return Trained(network.eval(), architecture, config, weights, evaluator, images)


# -- what is given ----------------------------------------------------------------------------------------------------


def _named(what) -> Genotype:
    try:
        return resolve(what)
    except InputError as error:
        raise InputError(f"{error}; nor is it the folder of a run") from error


def _architecture_in(folder: Path) -> Genotype | dict:
    """What the network in a run's or a retraining's folder was built from."""
    retraining = retraining_in(folder)
    if (retraining / "genotype.json").is_file():
        return Genotype.load(retraining / "genotype.json")
    if (retraining / "sample.json").is_file():
        return read_json(retraining / "sample.json")
    return architecture_of(folder)


def _weights_in(folder: Path) -> Path:
    retraining = retraining_in(folder)
    if (retraining / "network.pt").is_file():
        return retraining / "network.pt"
    command = going_on(retraining) or ("" if is_retraining(folder) else f"nni-fairdarts retrain {folder}")
    raise InputError(
        f"{folder} has no trained network: there is no {retraining / 'network.pt'}; train it"
        + (f" ({command})" if command else "")
        + ", or give --weights FILE"
    )


def _judge(config: RunConfig) -> tuple[ImageData | None, Lightning]:
    """The images that networks are judged on, None where the user's evaluator has them, and what validates there."""
    if config.evaluator is not None:
        prepare(config)
        return None, users_evaluator(config, "retrain")
    images = load_images(config)
    training = training_of(images, config.retrain)
    if images.num_classes > 10:
        training.metrics["top5"] = torchmetrics.Accuracy("multiclass", num_classes=images.num_classes, top_k=5)
    loader = data.evaluation_loader(images, config.retrain.batch_size, config.data.workers, device_of(config))
    trainer = Trainer(
        accelerator="gpu" if config.device == "cuda" else config.device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    return images, Lightning(training, trainer, val_dataloaders=loader)


# -- weights ----------------------------------------------------------------------------------------------------------

HEAD = "auxiliary_head."


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a file. Raises InputError where it is none, or carries code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).split("\n")[0]
        if "Weights only load failed" in str(error):
            reason = "it has more than tensors and plain values in it, which could be code"
        raise InputError(f"cannot read the weights {path}: {reason}; {SAVED}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold a network's state dict, got {type(content).__name__}; {SAVED}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} must hold a network's state dict, names and tensors, but {shortened(name)} is "
                f"{type(value).__name__}; {SAVED}"
            )
    return {name: tensor for name, tensor in content.items() if not name.startswith(HEAD)}


SAVED = "save the network alone: torch.save(network.state_dict(), FILE)"


def _fill(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, config: RunConfig, images: ImageData | None
) -> None:
    """Load ``tensors`` into the network. Raises InputError, naming the first that is missing, too many or misshapen."""
    own = network.state_dict()
    problem = next(
        (f"{name} is missing" for name in own if name not in tensors),
        next((f"{name} is unexpected" for name in tensors if name not in own), None),
    )
    if problem is None:
        problem = next(
            (
                f"{name} is {_shape(tensors[name])}, but {_shape(own[name])} in the network"
                for name in own
                if tensors[name].shape != own[name].shape
            ),
            None,
        )
    if problem is not None:
        raise InputError(f"the weights {path} are of another network: {problem}; {_sizes(config, images)}")
    network.load_state_dict(tensors)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _sizes(config: RunConfig, images: ImageData | None) -> str:
    """What the network was built from, and so what may have to be another."""
    if config.space.name != "darts":
        return f"the network is that of the space {config.space.name}; give the one, and the sample, they are of"
    settings = config.retrain
    return (
        f"the network is of the genotype given with --retrain.width {settings.width}, --retrain.num_cells "
        f"{settings.num_cells}, --space.dataset {config.space.dataset}, for the {images.num_classes} classes and "
        f"{images.in_channels} channels of --data.name {config.data.name}; give what the weights were trained with"
    )
