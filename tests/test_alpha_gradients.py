"""α's gradient of second order against one that goes backwards through the whole step of the weights."""

import copy

import pytest
import torch
from nni.nas.hub.pytorch.nasnet import NDS
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.alpha_gradients import GRADIENTS, ExactSecondOrder, SecondOrder, check_optimizer
from nni_fairdarts.distributed import batch_norms

RATE, MOMENTUM, DECAY = 0.1, 0.9, 3e-4
OPERATIONS = ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]


class Case:
    """A small supernet in float64, its batches, and SGD with a buffer of a step before."""

    def __init__(self, momentum=MOMENTUM, **strategy):
        torch.manual_seed(0)
        space = NDS(OPERATIONS, "all", 2, width=2, num_cells=3, dataset="cifar")
        self.supernet = FairDARTS(**strategy).mutate_model(space).double().train()
        named = dict(self.supernet.named_parameters())
        self.alphas = {}
        with torch.no_grad():
            for name, parameter in named.items():
                if name.endswith("alpha"):
                    self.alphas[name] = parameter.normal_(0, 0.3)
        self.weights = {name: p for name, p in named.items() if name not in self.alphas}
        self.batches = [(torch.randn(4, 3, 8, 8).double(), torch.randint(10, (4,))) for _ in range(2)]
        self.optimizer = torch.optim.SGD(list(self.weights.values()), RATE, momentum, weight_decay=DECAY)
        self.loss(0).backward()
        self.optimizer.step()
        self.supernet.zero_grad()

    def loss(self, batch, parameters=None):
        images, labels = self.batches[batch]
        network = copy.deepcopy(self.supernet) if parameters is not None else self.supernet  # statistics stay
        logits = network(images) if parameters is None else functional_call(network, parameters, (images,))
        return cross_entropy(logits, labels)

    def reference(self):
        """dL_val(w'(α), α)/dα, backwards through w' = w - ξ (momentum · buffer + ∇w L_train + decay · w)."""
        alphas = {name: p.detach().clone().requires_grad_() for name, p in self.alphas.items()}
        weights = {name: p.detach().clone().requires_grad_() for name, p in self.weights.items()}
        loss = self.loss(0, {**weights, **alphas})
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        moved = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            buffer = self.optimizer.state[self.weights[name]].get("momentum_buffer")
            momentum = 0 if buffer is None else MOMENTUM * buffer
            moved[name] = weight - RATE * (momentum + gradient + DECAY * weight)
        return torch.autograd.grad(self.loss(1, {**moved, **alphas}), list(alphas.values()))

    def found(self, name):
        gradient = GRADIENTS[name](
            list(self.alphas.values()),
            list(self.weights.values()),
            batch_norms(self.supernet),
            self.optimizer,
            torch.Tensor.backward,
        )
        gradient(lambda: self.loss(1), lambda: self.loss(0))
        return [alpha.grad for alpha in self.alphas.values()]


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("momentum", [MOMENTUM, 0])
def test_exact_is_the_gradient_through_the_step(momentum):
    case = Case(momentum, fused=False)
    expected = case.reference()
    for found, wanted in zip(case.found("exact"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


SOFTMAX = {"relaxation": "softmax", "zero_one_weight": 0, "discretization": "darts"}


@pytest.mark.parametrize("settings", [{"fused": False}, {"fused": True}, {"fused": True, **SOFTMAX}])
def test_the_finite_difference_comes_close(settings, monkeypatch):
    """In a network of ReLUs and maxima where the weights hardly move, so that none of them turns over."""
    monkeypatch.setattr(SecondOrder, "length", 1e-7)
    expected, found = Case(**{**settings, "fused": False}).found("exact"), Case(**settings).found("second")
    direct = Case(**settings).found("first")
    for one, other, without in zip(expected, found, direct, strict=True):
        assert (one - other).norm() < 1e-4 * one.norm()
        assert (one - without).norm() > 1e-2 * one.norm()


def test_the_published_length_is_right_to_its_second_order():
    """Of a smooth network the error is that of a central difference: four times as small at half the length."""
    torch.manual_seed(0)
    alpha, weights = nn.Parameter(torch.randn(3).double()), [nn.Parameter(torch.randn(3, 3).double()) for _ in range(2)]
    train, val = torch.randn(5, 3).double(), torch.randn(5, 3).double()

    def loss(x):
        return ((x @ weights[0]).tanh() * alpha.sigmoid() @ weights[1]).tanh().square().mean()

    found = {}
    for length in (None, 0.01, 0.005):
        alpha.grad = None
        kind = ExactSecondOrder if length is None else type("Length", (SecondOrder,), {"length": length})
        gradient = kind([alpha], weights, [], torch.optim.SGD(weights, 1.0), torch.Tensor.backward)
        gradient(lambda: loss(val), lambda: loss(train))
        found[length] = alpha.grad
    assert SecondOrder.length == 0.01
    errors = [(found[length] - found[None]).norm() for length in (0.01, 0.005)]
    assert errors[0] < 1e-4 * found[None].norm()
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("name", ["first", "second", "exact"])
def test_weights_and_optimizer_are_left_as_they_were(name):
    case = Case(fused=False)
    before, kept = state(case.supernet), copy.deepcopy(case.optimizer.state_dict())
    case.found(name)
    after = state(case.supernet)
    counted = {"first": 1, "second": 3, "exact": 2}[name]  # times that the network sees a batch, but at w'
    for key, tensor in before.items():
        if key.endswith("num_batches_tracked"):
            assert after[key] == tensor + counted
        elif "running" not in key:
            assert torch.equal(after[key], tensor)
    for key, values in kept["state"].items():
        assert torch.equal(values["momentum_buffer"], case.optimizer.state_dict()["state"][key]["momentum_buffer"])
    assert all(p.requires_grad for p in case.supernet.parameters())


def test_rates_of_their_own():
    """Two groups of weights with learning rates of their own: the exact gradient knows both."""
    case = Case(fused=False)
    names = list(case.weights)
    slow, fast = ([case.weights[name] for name in names[start::2]] for start in (0, 1))
    case.optimizer = torch.optim.SGD([{"params": slow, "lr": 0.05}, {"params": fast}], RATE, weight_decay=DECAY)
    rates = dict.fromkeys(names[::2], 0.05) | dict.fromkeys(names[1::2], RATE)
    alphas = {name: p.detach().clone().requires_grad_() for name, p in case.alphas.items()}
    weights = {name: p.detach().clone().requires_grad_() for name, p in case.weights.items()}
    gradients = torch.autograd.grad(case.loss(0, {**weights, **alphas}), list(weights.values()), create_graph=True)
    moved = {n: w - rates[n] * (g + DECAY * w) for (n, w), g in zip(weights.items(), gradients, strict=True)}
    expected = torch.autograd.grad(case.loss(1, {**moved, **alphas}), list(alphas.values()))
    for found, wanted in zip(case.found("exact"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("optimizer", "texts"),
    [
        (lambda p: torch.optim.Adam(p), ["'second' looks at the weights' next step", "is Adam; use such an SGD"]),
        (lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True), ["SGD without nesterov"]),
        (lambda p: torch.optim.SGD(p[1:], 0.1), ["1 of them are not in the evaluator's optimizer"]),
    ],
)
def test_other_optimizers_are_refused(optimizer, texts):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    check_optimizer(optimizer(weights), weights, "first")
    with pytest.raises(InputError) as error:
        check_optimizer(optimizer(weights), weights, "second")
    assert all(text in str(error.value) for text in texts)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"relaxation": "softmax"}, "the zero-one loss pushes each gate"),
        ({"relaxation": "softmax", "zero_one_weight": 0}, "use the rule 'darts'"),
        ({**SOFTMAX, "export": "multi"}, "of gates that share 1 one is kept"),
        ({"edge_normalization": True}, "few reach a threshold"),
        ({"partial_channels": 4, "inherit_weights": True}, "give it fresh weights"),
        ({"alpha_gradient": "second", "single_level": True}, "which single_level leaves out"),
        ({"alpha_gradient": "second", "cuda_graphs": True}, "the weights move within a step"),
        ({"alpha_gradient": "exact", "compile": True}, "use 'second'"),
        ({"alpha_gradient": "third"}, "unknown alpha_gradient 'third'; known: first, second, exact"),
        ({"relaxation": "tanh"}, "unknown relaxation 'tanh'; known: sigmoid, softmax"),
        ({"partial_channels": 0}, "partial_channels must be a whole number, at least 1, got 0"),
        ({"alpha_spread": -1}, "alpha_spread must be 0 or more, got -1"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, text):
    with pytest.raises(InputError) as error:
        FairDARTS(**settings)
    assert text in str(error.value)
