"""Hand-written spaces for the tests of primitives, and what they ask of a supernet."""

import math

import nni
import torch
from nni.nas.nn.pytorch import InputChoice, ModelSpace
from reference import sigmoid
from torch import nn

from nni_fairdarts import FairDARTS
from nni_fairdarts.supernet import choices_of

CLOSE = {"rtol": 0, "atol": 1e-10}


class Space(ModelSpace):
    """What the functions given make, one after the other (NNI wants choices made in here)."""

    def __init__(self, *parts):
        super().__init__()
        self.body = nn.ModuleList(part() for part in parts)

    def forward(self, x):
        for module in self.body:
            x = module(x)
        return x


class Inputs(nn.Module):
    """Two convolutions of x, and x, to choose from."""

    def __init__(self, n_chosen, reduction="sum", label="in.put"):
        super().__init__()
        self.one, self.other = conv(), conv(5)
        self.choose = InputChoice(3, n_chosen, reduction, label=label)

    def forward(self, x):
        return self.choose([self.one(x), self.other(x), x])


def conv(kernel=3):
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


def supernet(*parts, **strategy):
    """A supernet of the parts in float64 with random α, and its body."""
    torch.manual_seed(0)
    model = FairDARTS(**strategy).mutate_model(Space(*parts)).double()
    for choice in found(model).values():
        nn.init.normal_(choice.alpha)
    return model, model.body


def found(model):
    """{label: choice}, each label once, in the order of the space."""
    choices = {}
    for module in model.modules():
        for choice in choices_of(module):
            choices.setdefault(choice.label, choice)
    return choices


def weights(model, label):
    """Softmax of a label's α, {value: weight}."""
    choice = found(model)[label]
    powers = [math.exp(a) for a in choice.alpha.tolist()]
    return {value: power / sum(powers) for value, power in zip(choice.operations, powers, strict=True)}


def gates(model, label):
    return [sigmoid(a) for a in found(model)[label].alpha.tolist()]


def open_only(model, **places):
    """Gates and weights of 0 and 1: those at the places given, of labels with ``_`` for ``.``, are 1."""
    for label, choice in found(model).items():
        choice.alpha.data.fill_(-1e4)
        choice.alpha.data[places[label.replace(".", "_")]] = 1e4


def export(model):
    memo = {}
    for module in model.modules():
        if hasattr(module, "export"):
            memo |= module.export(memo)
    return memo


def images(channels=4):
    return torch.randn(2, channels, 7, 7, dtype=torch.float64)


def check_gradients(model, x):
    model(x).square().sum().backward()
    for label, choice in found(model).items():
        assert (choice.alpha.grad != 0).all(), label


def padded(x, dim, width):
    """x with zeros behind, of ``width`` along ``dim``."""
    zeros = torch.zeros(*(width - n if i == dim % x.ndim else n for i, n in enumerate(x.shape)), dtype=x.dtype)
    return torch.cat([x, zeros], dim)


def kernel(label="k"):
    return nni.choice(label, [1, 3, 5])
