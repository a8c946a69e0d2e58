"""Operation strength against supernets whose gates are set by hand, and α's gradient from values of the loss."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS
from nni_fairdarts.alpha_gradients import ExactSecondOrder, ZerothOrder
from nni_fairdarts.supernet.gated import DECIDED

SOFT = {"relaxation": "softmax", "zero_one_weight": 0, "discretization": "darts"}


@pytest.mark.parametrize("settings", [{"discretization": "darts"}, SOFT])
def test_strength_is_what_the_loss_loses(choices, classification, loader, search, settings):
    """Of sigmoid gates the same as with α so low that the gate is 0; what is kept is the strongest, not the largest."""
    torch.manual_seed(0)
    halves = loader(2, seed=1), loader(2, seed=2)
    strategy = FairDARTS(selection="strength", strength_batches=2, arc_learning_rate=0.3, **settings)
    search(choices(), classification(*halves, max_epochs=1), strategy)
    module, supernet = strategy.oneshot_module, strategy.supernet.eval()
    found = module.moving.ranked
    if settings is not SOFT:
        for label, choice in module.choices().items():
            losses = []
            with torch.no_grad():
                for place in [None, *range(len(choice.operations))]:
                    kept = choice.alpha.clone()
                    if place is not None:
                        choice.alpha[place] = -DECIDED
                    losses.append(sum(cross_entropy(supernet(x), y) for x, y in halves[1]) / 2)
                    choice.alpha.copy_(kept)
            rises = torch.stack(losses[1:]) - losses[0]
            expected = (rises - rises.min()) / (rises.max() - rises.min())
            torch.testing.assert_close(torch.tensor(found[label]), expected.float(), rtol=1e-3, atol=1e-4)
    for label, choice in module.choices().items():
        assert max(found[label]) == 1
        assert min(found[label]) == 0
        assert str(module.export()[label]) == choice.operations[found[label].index(1.0)]


def test_strength_leaves_the_supernet_as_it_was(choices, classification, search):
    states = []
    for selection in ("gates", "strength"):
        torch.manual_seed(0)
        strategy = FairDARTS(selection=selection, discretization="darts")
        search(choices(), classification(max_epochs=1), strategy)
        states.append({name: tensor.clone() for name, tensor in strategy.supernet.state_dict().items()})
        assert strategy.oneshot_module.moving.masks == {}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_estimate_from_values_is_right_in_the_mean():
    """Many directions on a smooth network: within four standard errors of the exact gradient through the step."""
    torch.manual_seed(0)
    alpha, weights = nn.Parameter(torch.randn(3).double()), [nn.Parameter(torch.randn(3, 3).double())]
    train, val = torch.randn(5, 3).double(), torch.randn(5, 3).double()

    def loss(x):
        return ((x @ weights[0]).tanh() * alpha.sigmoid()).square().mean()

    def gradient(kind):
        alpha.grad = None
        kind([alpha], weights, [], torch.optim.SGD(weights, 1.0), torch.Tensor.backward)(
            lambda: loss(val), lambda: loss(train)
        )
        return alpha.grad

    before = copy.deepcopy((alpha, weights))
    exact = gradient(ExactSecondOrder)
    many = type("Many", (ZerothOrder,), {"length": 1e-4, "directions": 4000})
    found = gradient(many)
    # Of one direction the spread of (g · u) u is at most sqrt(3) |g| in each place.
    assert ((found - exact).abs() < 4 * 3**0.5 * exact.norm() / 4000**0.5).all()
    assert exact.norm() > 10 * 3**0.5 * exact.norm() / 4000**0.5
    assert torch.equal(alpha, before[0])
    assert torch.equal(weights[0], before[1][0])


def test_directions_are_drawn_anew_in_each_step():
    torch.manual_seed(0)
    alpha, weights = nn.Parameter(torch.randn(3)), [nn.Parameter(torch.randn(3))]
    gradient = ZerothOrder([alpha], weights, [], torch.optim.SGD(weights, 1.0), torch.Tensor.backward)
    seen = []
    for gradient.step in range(2):
        gradient(lambda: (alpha * weights[0]).sum(), lambda: weights[0].square().sum())
        seen.append(alpha.grad.clone())
    assert not torch.equal(*seen)


@pytest.mark.parametrize("order", ["second", "exact", "zeroth"])
def test_a_search_by_other_gradients(choices, classification, search, order):
    """The weights go another way than by the first order, for α does; both learn."""
    strategies = []
    for gradient in ("first", order):
        torch.manual_seed(0)
        fused = {"fused": False} if order == "exact" else {}
        strategies.append(FairDARTS(alpha_gradient=gradient, arc_learning_rate=0.1, **fused))
        module = classification(max_epochs=2)
        module.module.configure_optimizers = lambda m=module.module: torch.optim.SGD(m.parameters(), 0.1)
        search(choices(), module, strategies[-1])
    first, other = (s.oneshot_module.choices() for s in strategies)
    for label, choice in first.items():
        assert not torch.equal(choice.alpha, other[label].alpha)
        assert other[label].alpha.abs().sum() > 0
