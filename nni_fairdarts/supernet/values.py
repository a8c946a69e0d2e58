"""Choices of one value, of widths, kernels, depths: their weights, and NNI's mixed operations under them.

NNI's mixed operations scale a layer's weights by how likely each part of them is, which the batch norm behind the
layer takes out again. Here a width scales what comes out of a layer, behind its norm (FBNetV2, arXiv 2004.05565), so
that channels past the chosen width are zero for whatever reads them.
"""

from collections.abc import Iterable
from math import prod

import torch
import torch.nn.functional as F
from nni.mutable import Categorical, Mutable
from nni.nas.hub.pytorch.nasnet import NDS, FactorizedReduce
from torch import Tensor, nn

from nni_fairdarts._nni import (
    MixedBatchNorm2d,
    MixedConv2d,
    MixedLayerNorm,
    MixedLinear,
    MixedMultiHeadAttention,
    MixedOperation,
    MixedOperationSamplingPolicy,
)
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import one_of_many
from nni_fairdarts.supernet.gated import OPTIONS_KEY, Choice, SupernetOptions, shared_alpha, strongest
from nni_fairdarts.supernet.norm import drop_scales


class ValueWeights(nn.Module):
    """Weights of the choices that some expressions (a kernel, ``2 * width``) are made of, one of many each.

    α is shared by all who name the same label. Raises InputError where a choice is not of finitely many values.
    """

    def __init__(self, expressions: Iterable, memo: dict, options: SupernetOptions, where: str):
        super().__init__()
        self._values: dict[str, tuple] = {}
        self._ways = []
        for expression in expressions:
            for label, leaf in expression.simplify().items():
                self._values[label] = finite_values(label, leaf, where)
            self._ways.append((expression, self._combinations(expression)))
        # A choice of one value has no α: nothing would depend on it.
        self._open = tuple(label for label, values in self._values.items() if len(values) > 1)
        self.alphas = nn.ParameterList(
            shared_alpha(memo, label, (len(self._values[label]),), options, exclusive=True) for label in self._open
        )

    def choices(self) -> tuple[Choice, ...]:
        return tuple(
            Choice(label, self._values[label], alpha, one_of_many, exclusive=True)
            for label, alpha in zip(self._open, self.alphas, strict=True)
        )

    def of(self, expression) -> dict:
        """{value of ``expression``: its weight}, in ascending order; the weights sum to 1."""
        gates = {choice.label: choice.gates() for choice in self.choices()}
        ways = next(ways for known, ways in self._ways if known is expression)
        return {
            value: sum(
                prod(gates[label][place] for label, place in places if label in gates) for places in combinations
            )
            for value, combinations in ways
        }

    def export(self, memo: dict) -> dict:
        """The value with the largest weight for each label not in ``memo``; the earlier of equals."""
        chosen = {label: values[0] for label, values in self._values.items()}
        chosen |= {c.label: c.operations[strongest(c.values())[0]] for c in self.choices()}
        return {label: value for label, value in chosen.items() if label not in memo}

    def export_probs(self, memo: dict) -> dict:
        """Every value's weight for each label not in ``memo``."""
        return {
            c.label: dict(zip(c.operations, c.values(), strict=True)) for c in self.choices() if c.label not in memo
        }

    def _combinations(self, expression) -> list:
        """[(value, [((label, place), ...), ...])]: which places of which labels make the expression each value."""
        ways, sample = {}, {}
        for value in expression.grid(memo=sample):
            places = tuple((label, self._values[label].index(chosen)) for label, chosen in sample.items())
            ways.setdefault(value, []).append(places)
        return sorted(ways.items())


def finite_values(label: str, leaf, where: str) -> tuple:
    """The values of a choice. Raises InputError where they are not finitely many."""
    if not isinstance(leaf, Categorical):
        raise InputError(
            f"FairDARTS needs choices among finitely many values, but {where} has {label!r}, {leaf!r}; use "
            "nni.choice with a list of values"
        )
    return tuple(leaf.values)


class ValuePolicy(MixedOperationSamplingPolicy):
    """NNI's seam between a mixed operation and a strategy: the weights of the operation's arguments."""

    def __init__(self, operation, memo, mutate_kwargs):
        where = operation.bound_type.__name__
        operation.value_weights = ValueWeights(
            operation.mutable_arguments.values(), memo, mutate_kwargs[OPTIONS_KEY], where
        )

    def resample(self, operation, memo):
        return {}

    def export(self, operation, memo):
        return operation.value_weights.export(memo)

    def export_probs(self, operation, memo):
        return operation.value_weights.export_probs(memo)

    def forward_argument(self, operation, name):
        if name not in operation.mutable_arguments:
            return operation.init_arguments[name]
        if name in getattr(operation, "whole_inputs", ()):
            return getattr(operation, name)
        return operation.value_weights.of(operation.mutable_arguments[name])


class GatedOperation(MixedOperation):
    """NNI's mixed operation, searched where an argument has a choice, frozen with its own weights.

    ``searchable`` lists the arguments that may have one; ``whole_inputs`` those that say how wide the input is, which
    is zero past the chosen width already.
    """

    searchable: tuple[str, ...] = ()
    whole_inputs: tuple[str, ...] = ()

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        if not isinstance(module, cls.bound_type) or not module.mutables:
            return None
        chosen = [key for key, value in module.trace_kwargs.items() if isinstance(value, Mutable)]
        if odd := [key for key in chosen if key not in cls.searchable]:
            raise InputError(
                f"{type(module).__name__} {name!r}: FairDARTS cannot search {', '.join(odd)}, only "
                f"{', '.join(cls.searchable)}; fix it, or put whole layers into a LayerChoice"
            )
        operation = super().mutate(module, name, memo, mutate_kwargs)
        return operation.to(mutate_kwargs[OPTIONS_KEY].like)

    def freeze(self, sample):
        """The layer that ``sample`` chooses, with its part of the weights."""
        arguments = {**self.init_arguments}
        for name, mutable in self.mutable_arguments.items():
            arguments[name] = mutable.freeze(sample)
        # NNI's hands load_state_dict a bias of None where the layer has none.
        weights = {name: tensor for name, tensor in self.freeze_weight(**arguments).items() if tensor is not None}
        layer = self.bound_type(**arguments).to(next(iter(weights.values())))
        layer.load_state_dict(weights)
        return layer


class GatedLinear(GatedOperation, MixedLinear):
    searchable = ("in_features", "out_features")


class GatedConv2d(GatedOperation, MixedConv2d):
    searchable = ("in_channels", "out_channels", "kernel_size", "padding", "groups")
    whole_inputs = ("in_channels",)


class GatedAttention(GatedOperation, MixedMultiHeadAttention):
    searchable = ("embed_dim", "kdim", "vdim")


class GatedBatchNorm2d(GatedOperation, MixedBatchNorm2d):
    """A batch norm whose outputs past each width are scaled by how likely the width reaches them."""

    searchable = ("num_features",)

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        norm = super().mutate(module, name, memo, mutate_kwargs)
        if norm is not None:  # with what was set after its construction
            norm.init_arguments |= {"eps": module.eps, "momentum": module.momentum}
            norm.eps, norm.momentum = module.eps, module.momentum
            if not module.affine:
                drop_scales(norm)
        return norm

    def widths(self) -> dict:
        """{number of channels: its weight}"""
        return self.value_weights.of(self.mutable_arguments["num_features"])

    def forward(self, inputs):
        place = torch.arange(self.num_features, device=inputs.device)
        reached = sum(weight * (place < width) for width, weight in self.widths().items())
        return self.normalize(inputs) * reached.to(inputs.dtype)[:, None, None]

    def normalize(self, inputs: Tensor) -> Tensor:
        """The batch norm alone, over all channels."""
        return super().forward(inputs)

    def freeze_weight(self, num_features, **kwargs):
        width = self.num_features if isinstance(num_features, dict) else num_features
        tensors = {name: getattr(self, name) for name in ("weight", "bias", "running_mean", "running_var")}
        return {name: None if tensor is None else tensor[:width] for name, tensor in tensors.items()}

    def freeze(self, sample):
        if self.weight is None:
            self.init_arguments["affine"] = False
        return super().freeze(sample)


class GatedLayerNorm(GatedOperation, MixedLayerNorm):
    """The sum over the widths of each one's weight times the norm over the first that many features, (..., width)."""

    searchable = ("normalized_shape",)

    def forward(self, inputs):
        widths = self.value_weights.of(self.mutable_arguments["normalized_shape"])
        total = 0
        for width, weight in widths.items():
            scale, shift = (None if p is None else p[:width] for p in (self.weight, self.bias))
            normal = F.layer_norm(inputs[..., :width], (width,), scale, shift, self.eps)
            total = total + weight * F.pad(normal, (0, inputs.shape[-1] - width))
        return total


OPERATIONS = (GatedLinear, GatedConv2d, GatedBatchNorm2d, GatedLayerNorm, GatedAttention)


class GatedReduce(nn.Module):
    """The hub's ``FactorizedReduce`` with a choice of width: Σ_w p_w · [first half of w, second half of w, zeros].

    It concatenates two convolutions; what a width keeps are the first channels of both.
    """

    def __init__(self, reduce: FactorizedReduce):
        super().__init__()
        for name, child in reduce.named_children():
            self.add_module(name, child)

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        chooses = type(module) is FactorizedReduce and module.bn.mutables
        return cls(module) if chooses else None

    def forward(self, x):
        x = self.relu(x)
        both = torch.cat([self.conv_1(x), self.conv_2(self.pad(x)[:, :, 1:, 1:])], 1)
        first, second = self.bn.normalize(both).chunk(2, 1)
        total = 0
        for width, weight in self.bn.widths().items():
            kept = torch.cat([first[:, : width // 2], second[:, : width // 2]], 1)
            total = total + weight.to(x.dtype) * F.pad(kept, (0, 0, 0, 0, 0, both.shape[1] - width))
        return total


def read_whole_cells(space: nn.Module) -> None:
    """Let a hub space's classifier read all of the last cell: every part of that concatenation has its own zeros."""
    if isinstance(space, NDS) and isinstance(space.classifier, GatedLinear):
        space.classifier.whole_inputs = ("in_features",)
