"""A space and an exported sample -> the network that they stand for, with fresh weights."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from nni.nas.hub.pytorch.nasnet import NDS
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, ParametrizedModule
from nni.nas.nn.pytorch.choice import ChosenInputs
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts._nni import weighted_sum
from nni_fairdarts.errors import InputError
from nni_fairdarts.network import derive_network
from nni_fairdarts.supernet.norm import drop_scales


class KeptOperations(nn.Module):
    """The sum of several operations on the same input: Σ_o o(x) over what a choice keeps."""

    def __init__(self, operations: Mapping[str, nn.Module]):
        super().__init__()
        self.operations = nn.ModuleDict(operations)

    def forward(self, *args, **kwargs):
        """Takes what each operation takes; tensors, or lists, tuples and dicts of tensors, are summed."""
        return weighted_sum([operation(*args, **kwargs) for operation in self.operations.values()])


def freeze(space: ModelSpace, sample: Mapping, style: str = "fairdarts") -> nn.Module:
    """The network of ``sample``, of its own weights; ``space`` stays as it is.

    Beside what NNI's ``space.freeze`` takes: a list of candidates for a ``LayerChoice`` (their sum), a list of any
    length for an ``InputChoice``, cells whose nodes have none, one or more than two inputs (``style``: see
    ``Genotype``). Raises InputError for candidates that the space does not have.
    """
    if not isinstance(space, ModelSpace):
        raise InputError(f"freeze takes a model space of NNI's, got {type(space).__name__}")
    if isinstance(space, NDS):
        return derive_network(space, sample, style)
    space = copy.deepcopy(space)
    _resolve(space, sample)
    settled = [m for m in space.modules() if isinstance(m, ParametrizedModule) and not m.mutables]
    for module in settled:  # NNI would make even these anew
        module.freeze = partial(_itself, module)
    network = space.freeze(dict(sample))
    for module in settled:
        del module.freeze
    return network


def _itself(module: nn.Module, sample: Mapping) -> nn.Module:
    return module


def _resolve(module: nn.Module, sample: Mapping) -> None:
    """Put the result in place of what NNI's freeze cannot express, or would spoil, inside ``module``; inner first."""
    for name, child in list(module.named_children()):
        _resolve(child, sample)
        if isinstance(child, LayerChoice | InputChoice) and isinstance(sample.get(child.label), list | tuple):
            setattr(module, name, _several(child, sample[child.label]))
        elif isinstance(child, ParametrizedModule) and child.should_invoke_fixed_module():
            labels = child.simplify().keys()
            spoilt = isinstance(child, _BatchNorm) and labels <= sample.keys()
            if spoilt or not labels:
                setattr(module, name, _layer(child, sample))


def _several(choice: LayerChoice | InputChoice, kept) -> nn.Module:
    """What a choice becomes that keeps a list."""
    layers = isinstance(choice, LayerChoice)
    known = choice.names if layers else list(range(choice.n_candidates))
    if not kept or len(set(kept)) != len(kept) or not all(entry in known for entry in kept):
        raise InputError(
            f"the sample keeps {list(kept)} of {choice.label!r}; give at least one of {', '.join(map(str, known))}, "
            "each once"
        )
    if layers:
        return KeptOperations({str(entry): choice[entry] for entry in kept})
    return ChosenInputs(list(kept), choice.reduction)


def _layer(module: ParametrizedModule, sample: Mapping) -> nn.Module:
    """The torch layer of ``sample``'s sizes. NNI makes it anew and loses what the space set after construction."""
    layer = module.freeze(dict(sample))
    if isinstance(layer, _BatchNorm):
        layer.eps, layer.momentum = module.eps, module.momentum
        if not module.affine:
            drop_scales(layer)
    if not module.simplify():
        layer.to(next(iter(module.state_dict().values()), torch.empty(0)))
        layer.load_state_dict(module.state_dict())
    return layer
