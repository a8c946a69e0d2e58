"""The zero-one losses against their closed forms."""

import math

import pytest
import torch

from nni_fairdarts.gates import LOSSES, RELAXATIONS, flat

CLOSED = {
    "l2": lambda gates: -sum((g - 0.5) ** 2 for g in gates) / len(gates),
    "l1": lambda gates: -sum(abs(g - 0.5) for g in gates) / len(gates),
    "none": lambda gates: 0.0,
}
SLOPES = {  # of the loss of N gates with respect to one α, from its gate
    "l2": lambda g, n: -2 / n * (g - 0.5) * g * (1 - g),
    "l1": lambda g, n: -1 / n * math.copysign(1, g - 0.5) * g * (1 - g),
    "none": lambda g, n: 0.0,
}
ALPHA = torch.linspace(-4, 4.3, 98, dtype=torch.float64).reshape(14, 7)


def gate(alpha):
    return 1 / (1 + math.exp(-alpha))


def test_every_loss_is_covered():
    assert set(LOSSES) == set(CLOSED)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_closed_forms(name):
    alpha = ALPHA.clone().requires_grad_()
    loss = LOSSES[name](RELAXATIONS["sigmoid"].gates(alpha))
    gates = [gate(a) for a in ALPHA.flatten().tolist()]
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(CLOSED[name](gates), abs=1e-14)
    (slopes,) = torch.autograd.grad(loss + 0 * alpha.sum(), alpha)
    assert slopes.flatten().tolist() == pytest.approx([SLOPES[name](g, 98) for g in gates], abs=1e-14)


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_gradcheck(name):
    alpha = ALPHA[:3].clone().requires_grad_()  # no gate is 1/2, where l1 has its kink
    assert torch.autograd.gradcheck(lambda a: LOSSES[name](torch.sigmoid(a)), alpha)
    assert torch.autograd.gradcheck(lambda a: LOSSES[name](flat([a[:1].sigmoid(), a[1:].sigmoid()])), alpha)


@pytest.mark.parametrize(
    ("gates", "l2", "l1"),
    [([0.5] * 5, 0, 0), ([0.0, 1.0, 1.0], -0.25, -0.5), ([0.0] * 4, -0.25, -0.5), ([0.75, 0.25], -0.0625, -0.25)],
)
def test_range_ends(gates, l2, l1):
    gates = torch.tensor(gates, dtype=torch.float64)
    assert float(LOSSES["l2"](gates)) == l2
    assert float(LOSSES["l1"](gates)) == l1
    assert float(LOSSES["none"](gates)) == 0


def test_undecided_gates_start_at_rest():
    """At α = 0 neither loss pushes: the first direction comes from the data alone."""
    for name in ("l2", "l1"):
        alpha = torch.zeros(14, 7, requires_grad=True)
        LOSSES[name](alpha.sigmoid()).backward()
        assert not alpha.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_mean_over_all_choices_together(name):
    """Not a mean of means: a choice with more candidates weighs more."""
    parts = [torch.tensor([0.9, 0.2]), torch.full((3, 5), 0.6), torch.tensor([[0.1]])]
    every = flat(p.double() for p in parts)
    assert every.shape == (18,)
    assert float(LOSSES[name](every)) == pytest.approx(CLOSED[name](every.tolist()), abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_that_of_the_gates(dtype):
    assert {LOSSES[name](torch.rand(4, dtype=dtype)).dtype for name in LOSSES} == {dtype}
