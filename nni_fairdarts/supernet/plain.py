"""NNI's layers without a choice among their arguments."""

from collections.abc import Mapping

import torch
from nni.nas.nn.pytorch import ParametrizedModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_fairdarts.supernet.norm import drop_scales


def settle(module: nn.Module, name: str, memo: dict, mutate_kwargs: dict) -> nn.Module | None:
    """NNI's mutation hook: a layer of NNI's whose arguments are fixed becomes torch's, with its weights.

    NNI's own freeze would make it anew, and lose them.
    """
    fixed = isinstance(module, ParametrizedModule) and module.should_invoke_fixed_module() and not module.simplify()
    if not fixed:
        return None
    with torch.random.fork_rng(devices=[]):  # the weights that it starts with are not kept, so they cost no draws
        return torch_layer(module, {})


def torch_layer(module: ParametrizedModule, sample: Mapping) -> nn.Module:
    """The torch layer of ``sample``'s sizes, with the weights where those are fixed.

    NNI makes it anew, and so loses them and what the space set after construction.
    """
    layer = module.freeze(dict(sample))
    if isinstance(layer, _BatchNorm):
        layer.eps, layer.momentum = module.eps, module.momentum
        if not module.affine:
            drop_scales(layer)
    if not module.simplify():
        layer.to(next(iter(module.state_dict().values()), torch.empty(0)))
        layer.load_state_dict(module.state_dict())
        layer.train(module.training)
        for parameter, own in zip(layer.parameters(), module.parameters(), strict=True):
            parameter.requires_grad_(own.requires_grad)
    return layer
