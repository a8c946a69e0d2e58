"""What a search asks of its settings, its evaluator and its images; raised before anything is trained."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from nni.nas.hub.pytorch.nasnet import NDS
from pytorch_lightning import callbacks
from torch import Tensor, nn

from nni_fairdarts.distributed import check_strategy
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import RELAXATIONS
from nni_fairdarts.network import check_image_size, stem_channels
from nni_fairdarts.stages import Stage, first_epochs


def check_images(space: NDS, inputs: tuple) -> None:
    """Raise InputError, before a first step is taken, for images that the space's stem cannot take."""
    images = inputs[0]
    wanted = stem_channels(space)
    if images.ndim != 4 or images.shape[1] != wanted:
        raise InputError(
            f"this space takes images (N, {wanted}, H, W), but the evaluator's loader gives {tuple(images.shape)}; for "
            "another number of channels use nni_fairdarts.spaces.DARTS(in_channels=...)"
        )
    for side in images.shape[-2:]:
        check_image_size(side, space.dataset)


def channels_last(space: NDS, inputs: tuple) -> tuple:
    """The images in the order that the fused cells work in, so that nothing on the way is copied."""
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def check_one_loader(who: str, name: str, loaders) -> None:
    if isinstance(loaders, list | tuple | dict):
        raise InputError(
            f"{who} from one loader, but the evaluator's {name} are {len(loaders)}; give one for the images of all "
            "(torch.utils.data.ConcatDataset)"
            + (", and those to validate on as FairDARTS(validation_dataloaders=...)" if name[0] == "v" else "")
        )


def check_together(settings: dict) -> None:
    """Raise InputError for settings of a strategy that contradict each other, with the reason."""
    for when, why in CONTRADICTIONS:
        if all(allows(settings[name]) for name, allows in when.items()):
            named = ", ".join(f"{name}={settings[name]!r}" for name in when)
            raise InputError(f"{named} do not go together: {why}")


def _dropping(stages: Sequence[Stage]) -> bool:
    return any(stage.operations is not None for stage in stages)


def _shared(relaxation: str) -> bool:
    return RELAXATIONS[relaxation].shared


def check_stages(stages: Sequence[Stage], none: bool, skips_limited: bool) -> None:
    """Raise InputError for what are no stages, and where one leaves the edges too little to derive from.

    ``none``: "none" is one of an edge's operations; ``skips_limited``: skip connections may have to give way.
    """
    if odd := [stage for stage in stages if not isinstance(stage, Stage)]:
        raise InputError(f"stages must be a list of nni_fairdarts.stages.Stage, got {type(odd[0]).__name__}")
    for before, stage in pairwise(stages):
        if stage.keep and stage.width != before.width:
            raise InputError(
                f"a stage of width {stage.width} cannot keep the weights of one of width {before.width}: behind every "
                "concatenation they would meet other channels than theirs; leave out keep, or the width"
            )
    most = math.inf
    for stage in stages:
        if (stage.operations or 0) > most:
            raise InputError(
                f"a stage cannot have {stage.operations} operations on each edge behind one with {most}: what was "
                "dropped does not come back"
            )
        most = stage.operations or most
    needed = 1 + none + skips_limited
    for stage in stages:
        if stage.operations is not None and stage.operations < needed:
            beside = [*(["'none'"] if none else []), *(["a skip connection, where max_skips bars it"] * skips_limited)]
            raise InputError(
                f"a stage's operations must be at least {needed} here, one to derive"
                + "".join(f" and {what}" for what in beside)
                + f", got {stage.operations}"
            )


def check_warm_up(stages: Sequence[Stage], epochs: int | None, warm_up: int) -> None:
    """Raise InputError where α would never learn, in a search of so many epochs or in one of its stages.

    Also where a stage would have no epoch, or the trainer knows no number of ``epochs``.
    """
    firsts = first_epochs(stages, epochs) if stages else [0, epochs]
    if None in firsts or -1 in firsts or not warm_up:
        return
    for number, (first, behind) in enumerate(pairwise(firsts), 1):
        if warm_up >= behind - first:
            where = f"stage {number} has {behind - first} epochs" if stages else f"the search has {behind - first}"
            raise InputError(
                f"warmup_epochs={warm_up} leaves α no epoch to learn in: {where}; give more, or a shorter warm-up"
            )


CONTRADICTIONS: tuple[tuple[dict, str], ...] = (
    (
        {"relaxation": _shared, "zero_one_weight": bool},
        "the zero-one loss pushes each gate to 0 or 1 by itself, but of gates that share 1 at most one can reach 1; "
        "set zero_one_weight=0",
    ),
    (
        {"relaxation": _shared, "discretization": lambda rule: rule != "darts"},
        "a threshold asks each gate whether it is open, but gates that share 1 are small where many are; use the rule "
        "'darts', which takes the strongest",
    ),
    (
        {"relaxation": _shared, "export": lambda export: export == "multi"},
        "of gates that share 1 one is kept; use export='single'",
    ),
    (
        {"edge_normalization": bool, "discretization": lambda rule: rule != "darts"},
        "an operation is then ranked by its gate times the weight of its edge, and those into a node share 1, so that "
        "few reach a threshold; use the rule 'darts'",
    ),
    (
        {"partial_channels": lambda part: part > 1, "inherit_weights": bool},
        "the supernet's operations are narrower than those of the network; give it fresh weights",
    ),
    (
        {"relaxation": lambda relaxation: relaxation != "dirichlet", "divergence_weight": bool},
        "the divergence is of Dirichlet distributions; use relaxation='dirichlet', or divergence_weight=0",
    ),
    (
        {"relaxation": lambda relaxation: RELAXATIONS[relaxation].draw is not None, "cuda_graphs": bool},
        "a draw is not part of a graph",
    ),
    (
        {"disturbed": bool, "cuda_graphs": bool},
        "how strong a disturbance is changes from epoch to epoch, and a graph keeps what it was captured with",
    ),
    (
        {"selection": lambda selection: selection == "strength", "discretization": lambda rule: rule != "darts"},
        "a threshold is one of gates; use the rule 'darts', which takes the strongest",
    ),
    (
        {"stages": bool, "early_stopping": bool},
        "the epoch that early stopping returns to may be of a stage with other operations",
    ),
    (
        {"stages": bool, "inherit_weights": bool},
        "the last stage's supernet has other sizes than the network; give it fresh weights",
    ),
    (
        {"relaxation": lambda relaxation: relaxation == "sparsemax", "stages": _dropping},
        "sparsemax makes gates exactly 0, as those of dropped operations are; use 'softmax'",
    ),
    (
        {"alpha_gradient": lambda gradient: gradient != "first", "single_level": bool},
        "a gradient of second order looks at how the weights' step changes the loss in validation, which single_level "
        "leaves out",
    ),
    (
        {"alpha_gradient": lambda gradient: gradient != "first", "cuda_graphs": bool},
        "the weights move within a step, for which no graph is captured",
    ),
    (
        {"alpha_gradient": lambda gradient: gradient == "exact", "compile": bool},
        "torch.compile's backward passes cannot be gone through backwards; use 'second'",
    ),
)
"""Settings that contradict each other: what their values are then, and why."""


BY_HAND = "a search takes its steps itself"
TWO = "a search learns α and weights by two optimizers; leave it out, and give it to the evaluator that trains the "
NOT_IN_A_SEARCH = {
    "GradientAccumulationScheduler": f"{BY_HAND}, one for every batch; make the loaders' batches larger",
    "StochasticWeightAveraging": f"{TWO}derived network",
    "WeightAveraging": f"{TWO}derived network, for what is derived here would be of averaged α that no record shows",
    "LearningRateFinder": f"{BY_HAND}; find the learning rate by training a single network of the space",
    "BatchSizeFinder": "a search has two loaders; find the size by training a single network of the space",
}
"""Callbacks of Lightning's that do not go with a search, and why. By name: older versions lack some."""


def check_trainer(trainer, bound: str, no_bound: str) -> None:
    """Raise InputError for settings of a trainer that a search, which takes its steps itself, could not follow.

    ``bound``: the search's own setting for the bound on gradients, with {} for the number; ``no_bound``: for none.
    """
    check_strategy(trainer)
    if trainer.gradient_clip_val is not None:
        given = trainer.gradient_clip_val
        raise InputError(
            f"the evaluator's trainer has gradient_clip_val={given}, but {BY_HAND}; leave it out there and use "
            f"{bound.format(given) if given else no_bound}"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            f"the evaluator's trainer has accumulate_grad_batches={trainer.accumulate_grad_batches}, but {BY_HAND}, "
            "one for every batch; leave it out and make the loaders' batches larger"
        )
    for callback in trainer.callbacks:
        for name, why in NOT_IN_A_SEARCH.items():
            if isinstance(callback, getattr(callbacks, name, ())):
                raise InputError(f"the evaluator's trainer has the callback {type(callback).__name__}, but {why}")


def check_module(module) -> None:
    """Raise InputError for an evaluator's module that takes its steps itself."""
    if not module.automatic_optimization:
        raise InputError(
            f"the evaluator's {type(module).__name__} has automatic_optimization=False, but {BY_HAND}, α's and "
            "the weights' in turn; return the loss from training_step and leave the steps to it"
        )


def like(model: nn.Module) -> Tensor:
    """One of the model's floating-point parameters, for its dtype and device; an empty tensor where it has none."""
    return next((p.detach() for p in model.parameters() if p.is_floating_point()), torch.empty(0))


def check_number(name: str, value, expected: str, fits, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and fits(value)):
        raise InputError(f"{name} must be {'a whole number, ' if whole else ''}{expected}, got {value!r}")


def known(name: str, value: str, known) -> None:
    if value not in tuple(known):
        raise InputError(f"unknown {name} {value!r}; known: {', '.join(known)}")
