"""``FairDARTS``: the strategy that takes the place of ``nni.nas.strategy.DARTS``."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import nni.nas.strategy
import torch
from nni.nas.evaluator.pytorch import Lightning

from nni_fairdarts.alpha_gradients import GRADIENTS
from nni_fairdarts.building import BuildsSupernets
from nni_fairdarts.checkpoints import Checkpoints
from nni_fairdarts.discretize import Discretization
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.errors import InputError
from nni_fairdarts.exports import DerivedModelSpace
from nni_fairdarts.gates import LOSSES, RELAXATIONS
from nni_fairdarts.going_on import GoesOn
from nni_fairdarts.guests import search_data
from nni_fairdarts.penalty import ResourcePenalty
from nni_fairdarts.randomness import Place, SeededLoaders
from nni_fairdarts.requirements import (
    check_module,
    check_number,
    check_one_loader,
    check_stages,
    check_together,
    check_trainer,
    check_warm_up,
    known,
)
from nni_fairdarts.search import FairDartsModule
from nni_fairdarts.stages import Stage
from nni_fairdarts.strength import OperationStrength
from nni_fairdarts.supernet import EXPORTS
from nni_fairdarts.supernet.moving import Disturbance, Moving
from nni_fairdarts.supernet.norm import CANDIDATE_NORMS

SELECTIONS = ("gates", "strength")
"""By what operations are kept: their gates, or what the loss loses without them."""


class GatedSearch(BuildsSupernets, GoesOn, nni.nas.strategy.DARTS):
    """A one-shot search by gates: what ``FairDARTS`` and its kin in ``nni_fairdarts.family`` are settings of.

    The defaults are FairDARTS'. What does not go together is refused, with the reason.

    Parameters
    ----------
    arc_learning_rate, arc_betas, arc_weight_decay
        Adam's settings for α.
    arc_gradient_clip_val
        Bound on the norm of α's gradient; None for no bound.
    zero_one_weight
        Weight of the zero-one loss, w01 >= 0.
    zero_one_loss
        "l2" (the method), "l1" (the paper's negative example) or "none".
    threshold
        A gate at or over it, in (0, 1), is kept.
    discretization
        "sparse" (the method), "edge" or "darts": see ``nni_fairdarts.discretize``.
    alpha_init, alpha_spread
        Mean and standard deviation of what α is drawn from at the start; 0 and 0 are gates of 0.5, all alike.
    relaxation
        How α becomes gates: "sigmoid" (the method), or shares of 1 among an edge's operations: "softmax" (DARTS, with a
        share for "none"), "sparsemax" (likewise, many of them 0), "dirichlet" (DrNAS: drawn in each forward pass). The
        zero-one loss is of sigmoids only.
    alpha_gradient
        "first" (the method), or of second order: "second", a finite difference as DARTS published it, or "exact", by
        going backwards twice, by slower cells; or "zeroth", from values of the loss alone. See
        ``nni_fairdarts.alpha_gradients``.
    temperature
        Of the first epoch, and of the last one: α is divided by it before it becomes gates, falling by the same factor
        in each epoch.
    divergence_weight
        With the relaxation "dirichlet": weight of KL(Dirichlet(elu(α) + 1) || Dirichlet(1)) in α's loss.
    disturbance
        Noise on skip connections, dropout of them, of operations and of edges, falling over the epochs: see
        ``nni_fairdarts.supernet.moving.Disturbance``.
    early_stopping
        Rules that end the search behind an epoch, and say whose architecture is derived: see
        ``nni_fairdarts.early.EarlyStopping``.
    selection
        By what operations are kept: "gates" or, with the rule "darts", "strength", what the loss in validation loses
        without them (see ``nni_fairdarts.strength``, with ``strength_batches``).
    max_skips
        Most skip connections of the derived normal cell; None for any number.
    partial_channels
        K: the operations of cells see 1/K of the channels, the rest passes by (PC-DARTS); 1 for all. Of NNI's hub.
    edge_normalization
        The edges into a node of a cell have weights, softmax(β), by which the rule "darts" ranks with the gates.
    single_level
        One batch of the training loader updates weights and α together.
    warmup_epochs
        Epochs at the start, and at that of each stage, in which α rests.
    stages
        Parts of the epochs that have supernets of their own: see ``nni_fairdarts.stages.Stage``. One after the other
        within one search; the last one is derived from. Empty for one supernet.
    gradient_clip_val
        Bound on the norm of the weights' gradient; None for no bound.
    candidate_norm
        "paper": inside cells and choices no learnable batch-norm scales, a batch norm after each pooling candidate;
        "unscaled": no scales either, poolings as the space built them (DrNAS); "space": all as the space built it.
    export
        "single": what NNI's samples can say, the strongest candidate of a ``LayerChoice``; "multi": every candidate
        (and input of an ``InputChoice``) whose gate reaches the threshold, for ``nni_fairdarts.freeze``.
    inherit_weights
        The exported network has the supernet's weights in place of fresh ones.
    reestimate_batches
        With inherited weights: batches of the evaluator's training loader from which the exported network's batch
        norms are estimated anew; 0 keeps the supernet's.
    recompute
        Compute candidates again in the backward pass in place of keeping what they compute inside: less memory, more
        time, the same numbers.
    fused
        Compute together what candidates share, with the gates folded into their last batch norms: the same mathematics
        in less time and memory. False computes every candidate on its own.
    compile
        Compile every cell by ``torch.compile``: True for its own backend, or a backend's name. For CUDA; on a CPU the
        first steps take many minutes. The same mathematics, in another order of rounding.
    cuda_graphs
        Launch the supernet's passes as CUDA graphs, see ``nni_fairdarts.graphs``. Not yet run on a device.
    log_prob_every_n_step
        Steps between two records of every gate in Lightning's loggers; 0 for none.
    mutation_hooks
        NNI's: tried before this strategy's own, for choices of your own kind.
    penalty
        What the network may cost: NNI's dict of ``profiler``, ``baseline``, ``scale``, ``nonlinear``, ``aggregate``,
        or its ``ExpectationProfilerPenalty``; see ``nni_fairdarts.penalty``. Here it reaches α.
    validation_dataloaders
        Loaders for the validation after each epoch. By default the evaluator's ``val_dataloaders``, which α learns
        from, as the published code does; give those images without augmentation, or a set of your own.
    history
        File for one JSON line per epoch; by default ``history.jsonl`` beside the logs of Lightning's first logger.
    checkpoints
        Folder for the last two checkpoints, from which ``NasExperiment.resume`` goes on exactly. By default ``resume``
        beside Lightning's logs (or, without a logger, ``resume-…`` beside its checkpoints), where the trainer saves
        checkpoints at all. With them Ctrl-C and SIGTERM wait for the step
        and save: ``nni_fairdarts.stopping.Stopped`` is raised then.
    checkpoint_steps
        Steps of the weights between two checkpoints within an epoch; 0 for none but at the epochs' ends.

    Raises
    ------
    InputError
        For values outside these ranges.
    """

    def __init__(
        self,
        *,
        arc_learning_rate: float = 3e-3,
        arc_gradient_clip_val: float | None = None,
        arc_betas: tuple[float, float] = (0.9, 0.999),
        arc_weight_decay: float = 1e-3,
        zero_one_weight: float = 10.0,
        zero_one_loss: str = "l2",
        threshold: float = 0.85,
        discretization: str = "sparse",
        alpha_init: float = 0.0,
        alpha_spread: float = 0.0,
        relaxation: str = "sigmoid",
        alpha_gradient: str = "first",
        temperature: tuple[float, float] = (1.0, 1.0),
        divergence_weight: float = 0.0,
        disturbance: Disturbance | None = None,
        early_stopping: EarlyStopping | None = None,
        selection: str = "gates",
        strength_batches: int = 5,
        max_skips: int | None = None,
        partial_channels: int = 1,
        edge_normalization: bool = False,
        single_level: bool = False,
        warmup_epochs: int = 0,
        stages: Sequence[Stage] = (),
        gradient_clip_val: float | None = 5.0,
        candidate_norm: str = "paper",
        export: str = "single",
        inherit_weights: bool = False,
        reestimate_batches: int = 0,
        recompute: bool = False,
        fused: bool = True,
        compile: bool | str = False,
        cuda_graphs: bool = False,
        log_prob_every_n_step: int = 10,
        mutation_hooks: list | None = None,
        penalty=None,
        validation_dataloaders=None,
        history: str | Path | None = None,
        checkpoints: str | Path | None = None,
        checkpoint_steps: int = 0,
    ):
        check_number("arc_weight_decay", arc_weight_decay, "0 or more", lambda v: v >= 0)
        check_number("zero_one_weight", zero_one_weight, "0 or more", lambda v: v >= 0)
        check_number("warmup_epochs", warmup_epochs, "0 or more", lambda v: v >= 0, whole=True)
        check_number("log_prob_every_n_step", log_prob_every_n_step, "0 or more", lambda v: v >= 0, whole=True)
        check_number("checkpoint_steps", checkpoint_steps, "0 or more", lambda v: v >= 0, whole=True)
        check_number("arc_learning_rate", arc_learning_rate, "more than 0", lambda v: v > 0)
        check_number("alpha_init", alpha_init, "a finite number", lambda v: True)
        check_number("alpha_spread", alpha_spread, "0 or more", lambda v: v >= 0)
        check_number("divergence_weight", divergence_weight, "0 or more", lambda v: v >= 0)
        if not isinstance(temperature, tuple | list) or len(temperature) != 2:
            raise InputError(f"temperature must be two numbers, of the first and the last epoch, got {temperature!r}")
        for value in temperature:
            check_number("temperature", value, "more than 0", lambda v: v > 0)
        check_number("partial_channels", partial_channels, "at least 1", lambda v: v >= 1, whole=True)
        for name, bound in (("gradient_clip_val", gradient_clip_val), ("arc_gradient_clip_val", arc_gradient_clip_val)):
            if bound is not None:
                check_number(name, bound, "more than 0", lambda v: v > 0)
        pair = isinstance(arc_betas, tuple | list) and len(arc_betas) == 2
        if not pair or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in arc_betas):
            raise InputError(f"arc_betas must be two numbers in [0, 1), got {arc_betas}; the paper uses (0.9, 0.999)")
        known("zero_one_loss", zero_one_loss, LOSSES)
        known("candidate_norm", candidate_norm, CANDIDATE_NORMS)
        known("export", export, EXPORTS)
        known("relaxation", relaxation, RELAXATIONS)
        known("alpha_gradient", alpha_gradient, GRADIENTS)
        known("selection", selection, SELECTIONS)
        check_number("strength_batches", strength_batches, "at least 1", lambda v: v >= 1, whole=True)
        check_number("reestimate_batches", reestimate_batches, "0 or more", lambda v: v >= 0, whole=True)
        if reestimate_batches and not inherit_weights:
            raise InputError(
                "reestimate_batches estimates batch norms for inherited weights; give inherit_weights=True, or leave "
                "it at 0 for a network with fresh weights"
            )
        if compile is not True and compile:
            known("compile", compile, torch.compiler.list_backends(exclude_tags=()))
        if cuda_graphs and recompute:
            raise InputError("cuda_graphs does not go with recompute, which looks at the random state in every step")
        if not isinstance(stages or (), list | tuple):
            raise InputError(f"stages must be a list of nni_fairdarts.stages.Stage, got {type(stages).__name__}")
        stages = tuple(stages or ())
        check_stages(stages, RELAXATIONS[relaxation].none, max_skips is not None)
        self.discretization = Discretization(discretization, threshold, max_skips)
        check_together(
            {
                "relaxation": relaxation,
                "alpha_gradient": alpha_gradient,
                "divergence_weight": divergence_weight,
                "stages": stages,
                "early_stopping": early_stopping,
                "disturbed": bool(disturbance) or any(stage.skip_dropout for stage in stages),
                "selection": selection,
                "zero_one_weight": zero_one_weight if zero_one_loss != "none" else 0,
                "discretization": discretization,
                "export": export,
                "inherit_weights": inherit_weights,
                "partial_channels": partial_channels,
                "edge_normalization": edge_normalization,
                "single_level": single_level,
                "cuda_graphs": cuda_graphs,
                "compile": compile,
            }
        )
        super().__init__(
            mutation_hooks=mutation_hooks,
            arc_learning_rate=arc_learning_rate,
            gradient_clip_val=gradient_clip_val,
            log_prob_every_n_step=log_prob_every_n_step,
            warmup_epochs=warmup_epochs,
        )
        self.stages = stages
        self.arc_gradient_clip_val = arc_gradient_clip_val
        self.arc_betas = tuple(arc_betas)
        self.arc_weight_decay = arc_weight_decay
        self.zero_one_weight = zero_one_weight
        self.zero_one_loss = zero_one_loss
        self.alpha_init = alpha_init
        self.alpha_spread = alpha_spread
        self.relaxation = relaxation
        self.alpha_gradient = alpha_gradient
        self.divergence_weight = divergence_weight
        self.disturbance = Disturbance() if disturbance is None else disturbance
        self.moving = Moving(self.disturbance, tuple(temperature))
        self.early_stopping = early_stopping
        self.selection = selection
        self.strength_batches = strength_batches
        self.partial_channels = partial_channels
        self.edge_normalization = edge_normalization
        self.single_level = single_level
        self.candidate_norm = candidate_norm
        self.export = export
        self.inherit_weights = inherit_weights
        self.reestimate_batches = reestimate_batches
        self.recompute = recompute
        self.fused = fused
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.validation_dataloaders = validation_dataloaders
        self.history = None if history is None else Path(history)
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        self.checkpoint_steps = checkpoint_steps
        self.penalty = None if penalty is None else ResourcePenalty.of(penalty)
        self._original_space = None
        self._sharpness: Callable | None = None
        self._strength: OperationStrength | None = None
        self._checkpoints = Checkpoints(Place())

    def extra_repr(self) -> str:
        return (
            f"zero_one_loss={self.zero_one_loss!r}, zero_one_weight={self.zero_one_weight}, "
            f"{self.discretization}, candidate_norm={self.candidate_norm!r}"
        )

    # -- search -----------------------------------------------------------------------------------------------------

    def configure_oneshot_module(self, training_module) -> FairDartsModule:
        return FairDartsModule(
            training_module,
            arc_learning_rate=self.arc_learning_rate,
            arc_betas=self.arc_betas,
            arc_weight_decay=self.arc_weight_decay,
            zero_one_weight=self.zero_one_weight,
            zero_one_loss=self.zero_one_loss,
            threshold=self.discretization.threshold,
            single_level=self.single_level,
            alpha_gradient=self.alpha_gradient,
            divergence_weight=self.divergence_weight,
            moving=self.moving,
            early_stopping=self.early_stopping,
            strength=self._strength,
            sharpness=self._sharpness,
            gradient_clip_val=self.gradient_clip_val,
            arc_gradient_clip_val=self.arc_gradient_clip_val,
            stages=self.stages,
            build=self.supernet_of,
            log_prob_every_n_step=self.log_prob_every_n_step,
            warmup_epochs=self.warmup_epochs,
            history=self.history,
            penalty=self.penalty,
            cuda_graphs=self.cuda_graphs,
            checkpoints=self._own_checkpoints,
            more_settings={
                "discretization": self.discretization.rule,
                "candidate_norm": self.candidate_norm,
                "alpha_init": self.alpha_init,
                "alpha_spread": self.alpha_spread,
                "relaxation": self.relaxation,
                "partial_channels": self.partial_channels,
                "edge_normalization": self.edge_normalization,
                "temperature": self.moving.temperature,
                "disturbance": asdict(self.disturbance),
                "penalty": None if self.penalty is None else self.penalty.settings(),
            },
        )

    def mutate_evaluator(self, evaluator):
        if isinstance(evaluator, Lightning):
            check_trainer(evaluator.trainer, "FairDARTS(gradient_clip_val={})", "FairDARTS(gradient_clip_val=None)")
            check_module(evaluator.module)
            check_warm_up(self.stages, evaluator.trainer.max_epochs, self.warmup_epochs)
            self._strength = (
                OperationStrength(evaluator, self.strength_batches) if self.selection == "strength" else None
            )
            self._sharpness = self._sharpness_of(evaluator)
            with search_data(evaluator):
                return super().mutate_evaluator(evaluator)
        return super().mutate_evaluator(evaluator)

    def _sharpness_of(self, evaluator: Lightning):
        """What else to measure behind every epoch: {name: number} of the one-shot module; None for nothing."""

    def train_dataloader(self, train_dataloader_fn, val_dataloader_fn):
        if self.single_level:
            return SeededLoaders({"train": train_dataloader_fn()}, self._checkpoints.place)
        loaders = super().train_dataloader(train_dataloader_fn, val_dataloader_fn)
        check_one_loader("α learns", "val_dataloaders", loaders["val"])
        check_one_loader("the weights learn", "train_dataloaders", loaders["train"])
        return SeededLoaders(loaders, self._checkpoints.place)

    def val_dataloader(self, train_dataloader_fn, val_dataloader_fn):
        return val_dataloader_fn() if self.validation_dataloaders is None else self.validation_dataloaders

    # -- result -----------------------------------------------------------------------------------------------------

    def list_models(self, sort: bool = True, limit: int | None = 1):
        """The derived model, once: NNI's exports go through here, and all agree with the threshold."""
        self.oneshot_module.set_model(self.supernet)
        sample = self.oneshot_module.export()
        style = "darts" if self.discretization.rule == "darts" else "fairdarts"
        yield DerivedModelSpace(
            self._original_space,
            self.model_space.evaluator,
            sample,
            style,
            self.supernet if self.inherit_weights else None,
            self.candidate_norm,
            self.reestimate_batches,
        )


class FairDARTS(GatedSearch):
    """Fair DARTS (arXiv 1911.12126, ECCV 2020) as a one-shot strategy of NNI.

    Every candidate has its own gate σ(α); a zero-one loss pushes the gates to 0 or 1; a threshold derives the network.
    Use it where NNI's ``DARTS()`` stands: ``NasExperiment(space, evaluator, FairDARTS())``. The settings are those of
    ``GatedSearch``, whose defaults are those of the published search on CIFAR-10.
    """


def register() -> None:
    """Make the strategy importable as ``nni.nas.strategy.FairDARTS``."""
    nni.nas.strategy.FairDARTS = FairDARTS
