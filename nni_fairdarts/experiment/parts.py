"""What is searched and how it is trained: the project's own parts, or the user's ``module:name``."""

import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, MutableModule
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nni_fairdarts.config import OURS, RunConfig
from nni_fairdarts.datasets import ImageData
from nni_fairdarts.errors import InputError
from nni_fairdarts.failures import DEBUG
from nni_fairdarts.family import RandomSearch
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.guests import size_of, transferred, validation_batches
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.users import called, imported


def make_space(config: RunConfig, images: ImageData | None) -> ModelSpace:
    """A new model space: NNI's DARTS for ``images``, or the user's. Raises InputError where it is none.

    Where the user's class takes ``num_classes`` or ``in_channels`` and the configuration does not give them,
    they are those of the images.
    """
    settings = config.space
    sizes = {} if images is None else {"num_classes": images.num_classes, "in_channels": images.in_channels}
    if settings.name == "darts":
        return DARTS(settings.width, settings.num_cells, settings.dataset, operations=settings.operations, **sizes)
    space = _made(settings.name, {**sizes, **settings.arguments}, sizes.keys() - settings.arguments.keys())
    if not isinstance(space, ModelSpace):
        raise InputError(f"{settings.name} must make a model space of NNI's, got {type(space).__name__}")
    return space


def _made(name: str, arguments: dict, optional: set[str]) -> ModelSpace:
    """The space of the user's class, without those of ``optional`` that it does not take.

    NNI's model spaces hide their signature behind (*args, **kwargs), so it is tried out.
    """
    try:
        return imported(name, "model space")(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        for key in sorted(optional):
            if isinstance(error, TypeError) and f"unexpected keyword argument {key!r}" in str(error):
                return _made(name, {k: v for k, v in arguments.items() if k != key}, optional - {key})
        raise InputError(
            f"cannot make the model space {name}: {type(error).__name__}: {error}; give its arguments as "
            f"space.arguments, got {arguments or 'none'} ({DEBUG}=1 shows where it was raised)"
        ) from error


def check_strategy(config: RunConfig, space: ModelSpace) -> None:
    """Raise InputError for a strategy that cannot search ``space``, or lacks a package."""
    name = config.search.strategy
    cells = any(isinstance(module, Cell) for module in space.modules())
    if name == "proxyless" and cells:
        raise InputError(
            "NNI's Proxyless cannot search cells (it samples the operations inside them apart from their inputs); "
            "take another strategy, or a space of LayerChoice such as nni_fairdarts.spaces:S2"
        )
    if name == "enas":
        try:
            import tianshou  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"NNI's ENAS needs tianshou ({error}): pip install 'tianshou>=0.5,<0.6' gym; or take another strategy"
            ) from error
    strategy = build(config.search, config.metric)  # raises for parts that do not go together
    if isinstance(strategy, RandomSearch):
        strategy.check_space(space)
    if name not in OURS and not any(isinstance(m, MutableModule) and m.mutables for m in space.modules()):
        raise InputError("nothing to search: the space has no choice; give it a LayerChoice, or use a hub space")


def users_evaluator(config: RunConfig, stage: str) -> Lightning:
    """What the user's function makes for "search" or "retrain". Raises InputError where it is no evaluator of NNI's."""
    evaluator = called(config.evaluator, "evaluator", stage, config)
    if not isinstance(evaluator, Lightning):
        raise InputError(
            f"{config.evaluator} must return NNI's Lightning evaluator (nni.nas.evaluator.pytorch), got "
            f"{type(evaluator).__name__} for the stage {stage!r}"
        )
    if evaluator.trainer.check_val_every_n_epoch != 1:
        raise InputError(
            f"{config.evaluator}: its trainer has check_val_every_n_epoch="
            f"{evaluator.trainer.check_val_every_n_epoch}; leave it at 1, for every epoch is recorded with its metric"
        )
    if evaluator.trainer.limit_val_batches == 0:
        raise InputError(
            f"{config.evaluator}: its trainer has limit_val_batches=0; let it validate, for a run is judged by "
            f"{config.metric!r}"
        )
    if evaluator.datamodule is None and (evaluator.train_dataloaders is None or evaluator.val_dataloaders is None):
        raise InputError(f"{config.evaluator} must give train_dataloaders and val_dataloaders for the stage {stage!r}")
    return evaluator


# -- what came out ---------------------------------------------------------------------------------------------------


def skip_connections(space: ModelSpace, sample: dict) -> dict[str, int]:
    """How many skip connections a sample keeps: of each kind of cell, or of all choices of layers together."""
    if isinstance(space, NDS):
        return Genotype.from_sample(sample, nodes=space.num_nodes_per_cell).skip_connections()
    choices = {module.label: module for module in space.modules() if isinstance(module, LayerChoice)}
    return {"layers": sum(_is_skip(choice, sample.get(label)) for label, choice in choices.items())}


def _is_skip(choice: LayerChoice, chosen) -> bool:
    return chosen == "skip_connect" or (chosen in choice.names and isinstance(choice[chosen], nn.Identity))


def multiply_adds_of_step(evaluator: Lightning, network: nn.Module) -> int:
    """Multiply-adds of convolutions and linear layers for one example of the evaluator's first validation batch."""
    loaders = validation_batches(evaluator)
    batch = next(iter(loaders[0] if isinstance(loaders, list | tuple) else loaders))
    module = evaluator.module.cpu().eval()
    module.set_model(network)
    module.log = lambda *args, **kwargs: None
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module.validation_step(transferred(evaluator, batch), 0)
    finally:
        del module.log
    return counter.get_total_flops() // 2 // size_of(batch)  # the counter takes a multiply-add for two operations
