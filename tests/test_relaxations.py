"""Other relaxations than the sigmoid, and what disturbs a supernet in training."""

import itertools
import math

import pytest
import torch
from nni.nas.hub.pytorch.nasnet import NDS
from torch import nn

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.gates import (
    RELAXATIONS,
    concentration,
    dirichlet_divergence,
    dirichlet_draw,
    dirichlet_mean,
    edge_shares,
    sparsemax,
)
from nni_fairdarts.supernet.moving import Disturbance, DisturbedSkip, Moving

OPERATIONS = ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]
SHARED = {"zero_one_weight": 0, "discretization": "darts"}


def supernet(operations=OPERATIONS, cells=3, **strategy):
    torch.manual_seed(0)
    return FairDARTS(**strategy).mutate_model(NDS(operations, "all", 2, width=2, num_cells=cells, dataset="cifar"))


def nearest(alpha):
    """The nearest point of the simplex: the best of those that are nearest within each of its faces."""
    best = None
    for size in range(1, len(alpha) + 1):
        for face in itertools.combinations(range(len(alpha)), size):
            point = torch.zeros_like(alpha)
            point[list(face)] = alpha[list(face)] + (1 - alpha[list(face)].sum()) / size
            if (point >= 0).all() and (best is None or (point - alpha).norm() < (best - alpha).norm()):
                best = point
    return best


@pytest.mark.parametrize("scale", [0.1, 1, 5])
def test_sparsemax_is_the_nearest_point_of_the_simplex(scale):
    torch.manual_seed(0)
    alpha = (scale * torch.randn(6, 5)).double().requires_grad_()
    found = sparsemax(alpha)
    torch.testing.assert_close(found, torch.stack([nearest(row.detach()) for row in alpha]), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(sparsemax, alpha)
    assert torch.equal(sparsemax(torch.tensor([1e4, -1e4, -1e4])), torch.tensor([1.0, 0, 0]))


def test_the_gradient_of_a_draw_is_that_of_the_expectation():
    """Of E[Σ c_o g_o²], known in closed form; forty thousand draws come as close as their spread says."""
    torch.manual_seed(0)
    alpha, c = torch.tensor([0.3, -0.7, 1.2]).double().requires_grad_(), torch.tensor([1.0, -2.0, 0.5]).double()
    beta = concentration(alpha)
    total = beta.sum()
    (expected,) = torch.autograd.grad((c * beta * (beta + 1) / (total * (total + 1))).sum(), alpha)
    many = alpha.detach().expand(40_000, 3).clone().requires_grad_()
    (c * dirichlet_draw(many).square()).sum().backward()
    error = many.grad.mean(0) - expected
    assert (error.abs() < 4 * many.grad.std(0) / math.sqrt(40_000)).all()
    assert (many.grad.std(0) / math.sqrt(40_000) < 0.1 * expected.abs().max()).all()
    torch.testing.assert_close(dirichlet_draw(many.detach()).mean(0), dirichlet_mean(alpha).detach(), rtol=0, atol=0.01)


def test_the_divergence_of_dirichlet_distributions():
    """KL(Dirichlet(β) || Dirichlet(1)) = ln Γ(Σβ) - Σ ln Γ(β) - ln Γ(n) + Σ (β - 1)(ψ(β) - ψ(Σβ)), summed over rows."""
    torch.manual_seed(0)
    alpha = torch.randn(4, 5).double()
    beta = torch.where(alpha > 0, alpha + 1, alpha.exp())
    total = beta.sum(-1, keepdim=True)
    inside = (beta - 1) * (beta.digamma() - total.digamma())
    expected = total.lgamma().sum() - beta.lgamma().sum() - 4 * math.lgamma(5) + inside.sum()
    torch.testing.assert_close(dirichlet_divergence(alpha), expected, rtol=1e-12, atol=1e-12)
    assert abs(float(dirichlet_divergence(torch.zeros(4, 5)))) < 1e-6


def test_edges_share_among_those_into_a_node():
    beta = torch.randn(5).double()
    expected = torch.cat([beta[:2].exp() / beta[:2].exp().sum(), beta[2:].exp() / beta[2:].exp().sum()])
    torch.testing.assert_close(edge_shares(beta, [2, 3]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_gates_of_a_supernet(name):
    """Shares of 1 where they are shared, with one for none where it has one; rounded exactly to 0 and 1."""
    relaxation = RELAXATIONS[name]
    model = supernet(relaxation=name, alpha_spread=1.0, **(SHARED if relaxation.shared else {})).double().eval()
    cell = model.stages[0].blocks[0]
    assert cell.alpha.shape == (5, 3 + relaxation.none)
    gates = cell.gates()
    assert gates.shape == (5, 3)
    full = relaxation.gates(cell.alpha)
    assert torch.equal(gates, full[:, 1:] if relaxation.none else full)
    if relaxation.shared:
        torch.testing.assert_close(full.sum(1), torch.ones(5).double())
    (choice,) = cell.choices()
    with torch.no_grad():
        cell.alpha.copy_(choice.rounded())
    assert set(cell.gates().flatten().tolist()) == {0.0, 1.0}
    if relaxation.shared:
        assert torch.equal(cell.gates().argmax(1), gates.argmax(1))


@pytest.mark.parametrize("fused", [False, True])
def test_all_cells_of_a_kind_see_one_draw(fused):
    """Of each forward pass in training; in evaluation they see the means."""
    model = supernet(relaxation="dirichlet", fused=fused, cells=6, **SHARED).train()
    cells = [block for stage in model.stages for block in stage.blocks if block.label == "normal"]
    seen = []
    for cell in cells:
        cell.edges.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        model(images)
    count = len(cells)
    assert count > 1
    assert all(torch.equal(gates, seen[0]) for gates in seen[:count])
    assert all(torch.equal(gates, seen[count]) for gates in seen[count:])
    assert not torch.equal(seen[0], seen[count])
    model(images).sum().backward()
    assert cells[0].alpha.grad.abs().sum() > 0
    seen.clear()
    model.eval()(images)
    assert all(torch.equal(gates, dirichlet_mean(cells[0].alpha)) for gates in seen)


def test_temperature_falls_by_the_same_factor():
    moving = Moving(temperature=(8.0, 1.0))
    found = []
    for epoch in range(4):
        moving.begin_epoch(epoch, 4)
        found.append(moving.warmth)
    assert found == pytest.approx([8, 4, 2, 1])
    model = supernet(relaxation="sparsemax", temperature=(8.0, 1.0), alpha_spread=1.0, **SHARED)
    cell = model.stages[0].blocks[0]
    assert torch.equal(cell.gates(), sparsemax(cell.alpha / 8)[:, 1:])


# -- disturbances -----------------------------------------------------------------------------------------------------


def test_noise_on_skip_connections():
    torch.manual_seed(0)
    x = 3 * torch.randn(8, 4, 50, 50)
    for what, deviation in (
        (Disturbance(skip_noise=0.2), 0.6),
        (Disturbance(skip_noise=0.2, noise_relative=False), 0.2),
    ):
        skip = DisturbedSkip(Moving(what)).train()
        noise = skip(x) - x
        assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
        assert abs(float(noise.mean())) < 0.01
        assert torch.equal(skip.eval()(x), x)


def test_dropout_of_skip_connections():
    torch.manual_seed(0)
    x = torch.ones(8, 4, 50, 50)
    dropped = DisturbedSkip(Moving(Disturbance(skip_dropout=0.4))).train()(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.4, abs=0.01)
    assert dropped[dropped != 0].unique() == pytest.approx([1 / 0.6])


def test_only_skip_connections_of_stride_1_are_disturbed():
    model = supernet(disturbance=Disturbance(skip_noise=0.2), fused=False)
    found = [name for name, module in model.named_modules() if isinstance(module, DisturbedSkip)]
    assert len(found) == 5 + 2  # all edges of the normal cell, and in each reduction cell that between its nodes
    assert all(name.endswith("skip_connect") for name in found)


def test_operations_and_edges_are_left_out():
    torch.manual_seed(0)
    gates = torch.rand(200, 50) + 0.5
    left = Moving(Disturbance(operation_dropout=0.3)).left(gates)
    kept = left != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(left[kept], gates[kept] / 0.7)
    left = Moving(Disturbance(edge_dropout=0.3)).left(gates)
    edges = (left != 0).float()
    assert set(edges.mean(1).tolist()) == {0.0, 1.0}
    assert float(edges.mean()) == pytest.approx(0.7, abs=0.1)
    assert torch.equal(Moving().left(gates), gates)


@pytest.mark.parametrize(
    ("decay", "epochs", "expected"),
    [
        ("constant", None, [1, 1, 1, 1]),
        ("linear", None, [1, 0.75, 0.5, 0.25]),
        ("cosine", 2, [1, 0.5, 0, 0]),
    ],
)
def test_disturbances_fall(decay, epochs, expected):
    moving, found = Moving(Disturbance(skip_noise=1.0, decay=decay, decay_epochs=epochs)), []
    for epoch in range(4):
        moving.begin_epoch(epoch, 4)
        found.append(moving.strength)
    assert found == pytest.approx(expected)


def test_fused_and_plain_are_disturbed_alike():
    """Where nothing is drawn for each edge by itself the numbers are the same; in evaluation always."""
    images = torch.randn(2, 3, 8, 8).double()
    for disturbance in (Disturbance(operation_dropout=0.3, edge_dropout=0.2), Disturbance(skip_noise=0.2)):
        outputs = []
        for fused in (False, True):
            model = supernet(disturbance=disturbance, fused=fused).double()
            torch.manual_seed(1)
            training = model.train()(images)
            outputs.append((training, model.eval()(images)))
        (plain, plain_eval), (fused, fused_eval) = outputs
        if disturbance.operation_dropout:
            torch.testing.assert_close(plain_eval, fused_eval, rtol=1e-10, atol=1e-10)
        if disturbance.operation_dropout:
            torch.testing.assert_close(plain, fused, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Disturbance(skip_noise=-1), "skip_noise must be 0 (none) or more, got -1; NoisyDARTS uses 0.2"),
        (lambda: Disturbance(edge_dropout=1.0), "edge_dropout must be in [0, 1), got 1.0"),
        (lambda: Disturbance(decay="square"), "unknown decay 'square'; known: constant, linear, cosine"),
        (lambda: Disturbance(decay_epochs=0), "decay_epochs must be at least 1"),
        (lambda: FairDARTS(temperature=1.0), "temperature must be two numbers"),
        (lambda: FairDARTS(temperature=(1.0, 0.0)), "temperature must be more than 0, got 0.0"),
        (lambda: FairDARTS(divergence_weight=1e-3), "the divergence is of Dirichlet distributions"),
        (lambda: FairDARTS(relaxation="dirichlet", cuda_graphs=True, **SHARED), "a draw is not part of a graph"),
        (lambda: FairDARTS(disturbance=Disturbance(skip_noise=0.2), cuda_graphs=True), "a graph keeps what it was"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert text in str(error.value)


def test_identities_of_the_users_are_disturbed_too():
    from handwritten import Space
    from nni.nas.nn.pytorch import LayerChoice

    space = Space(lambda: LayerChoice([nn.Identity(), nn.Conv2d(3, 3, 1)], label="c"))
    model = FairDARTS(disturbance=Disturbance(skip_dropout=0.5)).mutate_model(space)
    assert isinstance(model.body[0][0], DisturbedSkip)
    assert model.body[0].skip_connections() == 1  # the first of equals
