"""A space and an exported sample -> the network that they stand for, with fresh weights."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from nni.mutable import SampleValidationError
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, ParametrizedModule
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.nn.pytorch.choice import ChosenInputs
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts._nni import weighted_sum
from nni_fairdarts.errors import InputError
from nni_fairdarts.network import derive_network
from nni_fairdarts.supernet.norm import CANDIDATE_NORMS, normalize_pooling
from nni_fairdarts.supernet.plain import torch_layer


class KeptOperations(nn.Module):
    """The sum of several operations on the same input: Σ_o o(x) over what a choice keeps."""

    def __init__(self, operations: Mapping[str, nn.Module]):
        super().__init__()
        self.operations = nn.ModuleDict(operations)

    def forward(self, *args, **kwargs):
        """Takes what each operation takes; tensors, or lists, tuples and dicts of tensors, are summed."""
        return weighted_sum([operation(*args, **kwargs) for operation in self.operations.values()])


def freeze(space: ModelSpace, sample: Mapping, style: str = "fairdarts", candidate_norm: str = "space") -> nn.Module:
    """The network of ``sample``, of its own weights; ``space`` stays as it is.

    Beside what NNI's ``space.freeze`` takes: a list of candidates for a ``LayerChoice`` (their sum), a list of any
    length for an ``InputChoice``, cells whose nodes have none, one or more than two inputs (``style``: see
    ``Genotype``). Labels that the space does not have are passed over. ``candidate_norm`` "paper": a ``LayerChoice``
    keeps the batch norm that a search with that setting puts behind pooling, for inherited weights.
    Raises InputError for values that it does not have, and for labels that the sample lacks.
    """
    if not isinstance(space, ModelSpace):
        raise InputError(f"freeze takes a model space of NNI's, got {type(space).__name__}")
    if candidate_norm not in CANDIDATE_NORMS:
        raise InputError(f"unknown candidate_norm {candidate_norm!r}; known: {', '.join(CANDIDATE_NORMS)}")
    if isinstance(space, NDS):
        return derive_network(space, sample, style)
    _check_values(space, sample)
    space = copy.deepcopy(space)
    if candidate_norm == "paper":
        for choice in [m for m in space.modules() if isinstance(m, LayerChoice)]:
            normal = normalize_pooling({name: choice[name] for name in choice.names}, (), repr(choice.label))
            for name, candidate in normal.items():
                choice[name] = candidate
    _resolve(space, sample)
    settled = [m for m in space.modules() if isinstance(m, ParametrizedModule) and not m.mutables]
    for module in settled:  # NNI would make even these anew
        module.freeze = partial(_itself, module)
    like = next((p for p in space.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        network = space.freeze(dict(sample)).to(like)  # NNI makes layers on the CPU, in single precision
    except SampleValidationError as error:
        raise InputError(f"the sample does not fit {type(space).__name__}: {error}; {EXPORTED}") from error
    for module in {*settled, *network.modules()}:
        module.__dict__.pop("freeze", None)
    return network


EXPORTED = "give the dict that a search in this space has exported"


def _check_values(space: ModelSpace, sample: Mapping) -> None:
    """Raise InputError where a choice of one is given a value that it does not have; ``_several`` sees to lists."""
    choices = [m for m in space.modules() if isinstance(m, LayerChoice | InputChoice)]
    several = {m.label for m in choices if isinstance(sample.get(m.label), list | tuple) or isinstance(m, InputChoice)}
    for label, leaf in space.simplify().items():
        if label in sample and label not in several and (error := leaf.check_contains(sample)):
            raise InputError(f"the sample does not fit {type(space).__name__} in {label!r}: {error}; {EXPORTED}")


def _itself(module: nn.Module, sample: Mapping) -> nn.Module:
    """``module``, with the choices inside it made."""
    return recursive_freeze(module, dict(sample), include_root=False)[0]


def _resolve(module: nn.Module, sample: Mapping) -> None:
    """Put the result in place of what NNI's freeze cannot express, or would spoil, inside ``module``; inner first."""
    for name, child in list(module.named_children()):
        _resolve(child, sample)
        several = isinstance(child, LayerChoice) and isinstance(sample.get(child.label), list | tuple)
        if several or isinstance(child, InputChoice) and child.label in sample:
            setattr(module, name, _several(child, sample[child.label]))
        elif isinstance(child, ParametrizedModule) and child.should_invoke_fixed_module():
            labels = child.simplify().keys()
            spoilt = isinstance(child, _BatchNorm) and labels <= sample.keys()
            if spoilt or not labels:
                setattr(module, name, torch_layer(child, sample))


def _several(choice: LayerChoice | InputChoice, kept) -> nn.Module:
    """What a choice becomes that keeps a list."""
    layers = isinstance(choice, LayerChoice)
    known = choice.names if layers else list(range(choice.n_candidates))
    kept = kept if isinstance(kept, list | tuple) else [kept]
    if not kept or len(set(kept)) != len(kept) or not all(entry in known for entry in kept):
        raise InputError(
            f"the sample keeps {list(kept)} of {choice.label!r}; give at least one of {', '.join(map(str, known))}, "
            "each once"
        )
    if layers:
        return KeptOperations({str(entry): choice[entry] for entry in kept})
    return ChosenInputs(list(kept), choice.reduction)
