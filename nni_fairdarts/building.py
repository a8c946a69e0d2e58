"""What a strategy makes of a model space: a supernet, or one for each stage."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import Cell
from torch import Tensor, nn

from nni_fairdarts._nni import OneShotStrategy, without_warnings_about
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import RELAXATIONS
from nni_fairdarts.requirements import channels_last, check_images, like
from nni_fairdarts.spaces import resized
from nni_fairdarts.stages import Stage
from nni_fairdarts.supernet import (
    HOOKS,
    OPTIONS_KEY,
    REPLACED,
    GatedCell,
    SupernetOptions,
    ValuePolicy,
    choices_of,
    compile_cells,
    read_whole_cells,
    refuse,
    refuse_twins,
    settle,
)
from nni_fairdarts.supernet.fused import fuse


class BuildsSupernets:
    """Mixed into a one-shot strategy of NNI's, before it: gates in place of choices, as its settings say."""

    def configure_softmax(self) -> nn.Module:
        """For mutation hooks written for NNI's DARTS, which ask for a softmax: they get what makes the gates."""
        return nn.Softmax(-1) if RELAXATIONS[self.relaxation].shared else nn.Sigmoid()

    def default_mutation_hooks(self) -> list:
        return list(HOOKS)

    def mutate_model(self, model):
        """Put gates in place of the choices of ``model``, in place; returns it. Raises InputError for other choices.

        Of a search in stages the first one's supernet is returned, and ``model`` stays as it is.
        """
        if any(choices_of(module) for module in model.modules()):
            raise InputError("this model space is a FairDARTS supernet already; make a new space for a new search")
        # Of a hub space only the sizes are read again.
        self._original_space = model if isinstance(model, NDS) else copy.deepcopy(model)
        refuse(model, "", {}, {})
        refuse_twins(model)
        return self._staged(model) if self.stages else self._gated(model, Stage(), {})

    def _staged(self, model):
        """The first stage's supernet. Raises InputError where any of the supernets cannot be built."""
        self._original_space = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            for stage in self.stages[1:]:
                self._gated(self._space_of(stage), replace(stage, operations=None), {})
        supernet = self.supernet_of(0, {})
        for label, choice in {c.label: c for m in supernet.modules() for c in choices_of(m) if c.rows}.items():
            if self.stages[0].operations is not None and self.stages[0].operations < choice.alpha.shape[-1]:
                raise InputError(
                    f"the first stage has nothing to choose by: {label!r} has {choice.alpha.shape[-1]} operations on "
                    f"each edge, but the stage {self.stages[0].operations}; leave its operations out"
                )
        return supernet

    def _space_of(self, stage: Stage):
        sizes = {name: size for name, size in (("num_cells", stage.cells), ("width", stage.width)) if size is not None}
        return resized(self._original_space, **sizes) if sizes else copy.deepcopy(self._original_space)

    def supernet_of(self, stage: int, left: Mapping[str, Tensor]):
        """The supernet of a stage, by its number, whose edges have what is ``left``; with fresh weights and α."""
        model = self._gated(self._space_of(self.stages[stage]), self.stages[stage], left)
        if self._mutated_model_space is not None:  # what NNI knows as the supernet
            self._mutated_model_space.model_space = model
        return model

    def _gated(self, model, stage: Stage, left: Mapping[str, Tensor]):
        """``model`` with gates in place of its choices, in place."""
        dropout = {} if stage.skip_dropout is None else {"skip_dropout": stage.skip_dropout}
        self.moving.disturbance = replace(self.disturbance, **dropout)
        self._options = SupernetOptions(
            RELAXATIONS[self.relaxation],
            self.candidate_norm,
            self.discretization,
            self.alpha_init,
            like(model),
            self.export,
            self.recompute,
            self.alpha_spread,
            stage.partial_channels or self.partial_channels,
            self.edge_normalization,
            self.moving,
            left,
        )
        # Hooks written for NNI's DARTS look their α up by the label of the choice.
        self._arch_parameters = {
            label: self._options.new_alpha((len(mutable.values),))
            for label, mutable in model.simplify().items()
            if hasattr(mutable, "values")
        }
        with without_warnings_about(settled := set()):
            self._settled = settled
            OneShotStrategy.mutate_model(self, model)
        self._check_cells(model, stage)
        read_whole_cells(model)
        if self.fused:
            fuse(model)
        if self.compile:
            compile_cells(model, self.compile)
        if self._options.relaxation.draw is not None:
            model.register_forward_pre_hook(self.moving.forget)
            model.register_forward_hook(self.moving.forget, always_call=True)
        if isinstance(model, NDS):
            model.register_forward_pre_hook(check_images)
            if self.fused:
                model.register_forward_pre_hook(channels_last)
        return model

    def _check_cells(self, supernet, stage: Stage) -> None:
        """Raise InputError where settings are of cells, and there are none."""
        if any(isinstance(module, GatedCell) for module in supernet.modules()):
            return
        of_cells = {
            "partial_channels": self._options.partial_channels > 1,
            "edge_normalization": self.edge_normalization,
            "a stage's operations": any(stage.operations is not None for stage in self.stages),
        }
        if given := [name for name, there in of_cells.items() if there]:
            raise InputError(
                f"{given[0]} is of the cells of NNI's hub spaces, but {type(supernet).__name__} has none that are "
                "searched; leave it out"
            )

    def run_hook(self, hook, name, module, memo):
        if not memo.get("_validated"):
            memo.update(self._arch_parameters)
            memo["_validated"] = True
        hook = getattr(REPLACED.get(getattr(hook, "__self__", None)), "mutate", hook)
        if (
            hook not in self.extra_mutation_hooks
            and isinstance(module, Cell)
            and not isinstance(self._original_space, NDS)
        ):
            raise InputError(
                f"FairDARTS searches Cell in NNI's hub spaces (DARTS, PNAS and their kin), but "
                f"{type(self._original_space).__name__} has one of its own at {name!r}: only the hub tells how the "
                "next cell narrows when nodes are dropped. Use LayerChoice, or derive your space from "
                "nni.nas.hub.pytorch.nasnet.NDS"
            )
        kwargs = {
            "mixed_op_sampling": ValuePolicy,
            "softmax": self.configure_softmax(),
            OPTIONS_KEY: self._options,
        }
        made = hook(module, name, memo, kwargs)
        if hook is settle and made is not None:
            self._settled.add(name)
        return made
