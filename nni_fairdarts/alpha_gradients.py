"""The gradient of α's loss, of first and of second order: DARTS, arXiv 1806.09055, section 2.3.

Of second order α is asked what the loss in validation would be behind the next step of the weights:

    ∇α L_val(w', α) − ξ ∇²_{α,w} L_train(w, α) · v,   w' = w − ξ (momentum · buffer + ∇w L_train(w, α) + decay · w),

with v = ∇w' L_val(w', α). The product is a finite difference as published, or exact by going backwards twice.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from nni_fairdarts.distributed import average_gradients, mean
from nni_fairdarts.errors import InputError


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient is computed for ``parameters`` inside; those that needed one need it again afterwards.

    Autograd then neither computes their gradients nor keeps the activations that only those would have needed.
    """
    stopped = [p for p in parameters if p.requires_grad]
    for parameter in stopped:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)


class Gradient:
    """Puts the gradient of α's loss into α, whose gradients are None or 0 before.

    ``arch_loss`` and ``train_loss``: the losses of a batch with the present parameters; ``backward``: goes backwards
    from one. ``optimizer``: the weights' own, whose parameters are ``weights``; ``norms``: batch norms with statistics.
    ``step``: the number of the step. The weights and their optimizer are left as they are.
    """

    step = 0

    def __init__(self, alphas: list, weights: list, norms: list, optimizer: Optimizer, backward: Callable):
        self.alphas = alphas
        self.weights = weights
        self.norms = norms
        self.optimizer = optimizer
        self.backward = backward

    def __call__(self, arch_loss: Callable[[], Tensor], train_loss: Callable[[], Tensor]) -> None:
        """∇α L_val(w, α): of first order."""
        with frozen(self.weights):
            self.backward(arch_loss())


class SecondOrder(Gradient):
    """Of second order, the product with the matrix of second derivatives by a finite difference, as published.

    [∇α L_train(w + εv, α) − ∇α L_train(w − εv, α)] / 2ε with ε = 0.01 / ‖v‖. The network sees the training batch three
    times; what it sees at w' leaves its batch norms' statistics alone.
    """

    length = 0.01  # of εv

    def __call__(self, arch_loss: Callable[[], Tensor], train_loss: Callable[[], Tensor]) -> None:
        at_w = [weight.detach().clone() for weight in self.weights]
        with frozen(self.alphas):
            self._fresh(self.weights)
            self.backward(train_loss())
        self._move(at_w, virtual_step(self.optimizer, self.weights))
        with statistics_kept(self.norms):
            self._fresh(self.weights)
            self.backward(arch_loss())
        direct = [_gradient(alpha) for alpha in self.alphas]
        along, rate = self._direction()
        self._move(at_w)
        self._fresh(self.weights)
        product = self._product(at_w, along, train_loss)
        for alpha, first, second in zip(self.alphas, direct, product, strict=True):
            alpha.grad = first - rate * second

    def _direction(self) -> tuple[list[Tensor], float]:
        """v, and the learning rate ξ; of groups with rates of their own the largest, and their v made as much less."""
        rates = {p: group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        largest = max(rates.values())
        return [_gradient(weight) * (rates[weight] / largest if largest else 1.0) for weight in self.weights], largest

    def _product(self, at_w: list[Tensor], along: list[Tensor], train_loss: Callable[[], Tensor]) -> list[Tensor]:
        norm = torch.stack([direction.norm() for direction in along]).norm()
        if not norm > 0:
            return [torch.zeros_like(alpha) for alpha in self.alphas]
        epsilon = self.length / norm
        sides = []
        for step in (epsilon, -epsilon):
            self._move(at_w, [step * direction for direction in along])
            self._fresh(self.alphas)
            with frozen(self.weights):
                self.backward(train_loss())
            sides.append([_gradient(alpha) for alpha in self.alphas])
        self._move(at_w)
        return [(plus - minus) / (2 * epsilon) for plus, minus in zip(*sides, strict=True)]

    def _move(self, start: list[Tensor], by: list[Tensor] | None = None) -> None:
        """Put the weights at ``start``, or as far ``by`` from there."""
        self._put(self.weights, start, by)

    @staticmethod
    @torch.no_grad()
    def _put(parameters: list[nn.Parameter], start: list[Tensor], by: list[Tensor] | None = None) -> None:
        for parameter, value, step in zip(parameters, start, by or [None] * len(start), strict=True):
            parameter.copy_(value if step is None else value + step)

    @staticmethod
    def _fresh(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = None


class ExactSecondOrder(SecondOrder):
    """Of second order, the product exact: ∇α ⟨∇w L_train(w, α), v⟩. The network sees the training batch twice."""

    def _product(self, at_w: list[Tensor], along: list[Tensor], train_loss: Callable[[], Tensor]) -> list[Tensor]:
        gradients = torch.autograd.grad(train_loss(), self.weights, create_graph=True, allow_unused=True)
        dots = [(g * v).sum() for g, v in zip(gradients, along, strict=True) if g is not None]
        products = torch.autograd.grad(sum(dots), self.alphas, allow_unused=True)
        for alpha, product in zip(self.alphas, products, strict=True):
            alpha.grad = product
        average_gradients(self.alphas)
        return [_gradient(alpha) for alpha in self.alphas]


class ZerothOrder(SecondOrder):
    """An estimate from values of φ(α) = L_val(w'(α), α) alone, w' the weights behind their next step.

    Mean over random directions u ~ N(0, 1) of [φ(α + μu) − φ(α)] / μ · u. ZO-DARTS++, arXiv 2503.06092, after ZO-DARTS;
    μ and the number of directions are ours. The network sees the training batch once; what it sees at other weights
    or another α leaves its batch norms' statistics alone.
    """

    length = 0.01  # μ
    directions = 2

    def __call__(self, arch_loss: Callable[[], Tensor], train_loss: Callable[[], Tensor]) -> None:
        at_w = [weight.detach().clone() for weight in self.weights]
        at_alpha = [alpha.detach().clone() for alpha in self.alphas]
        middle = self._behind_a_step(at_w, arch_loss, train_loss)
        found = [torch.zeros_like(alpha) for alpha in at_alpha]
        with statistics_kept(self.norms):
            for number in range(self.directions):
                # From a seed of its own: the same in every process, whatever these have drawn.
                generator = torch.Generator().manual_seed(self.step * self.directions + number)
                along = [torch.randn(a.shape, generator=generator, dtype=a.dtype).to(a.device) for a in at_alpha]
                self._put(self.alphas, at_alpha, [self.length * u for u in along])
                rise = (self._behind_a_step(at_w, arch_loss, train_loss) - middle) / self.length
                found = [sum_ + rise * u / self.directions for sum_, u in zip(found, along, strict=True)]
        self._put(self.alphas, at_alpha)
        for alpha, gradient in zip(self.alphas, found, strict=True):
            alpha.grad = gradient

    def _behind_a_step(self, at_w: list[Tensor], arch_loss: Callable, train_loss: Callable) -> Tensor:
        """φ at the present α; the weights are at ``at_w`` before and afterwards."""
        self._fresh(self.weights)
        with frozen(self.alphas):
            self.backward(train_loss())
        self._move(at_w, virtual_step(self.optimizer, self.weights))
        with torch.no_grad(), statistics_kept(self.norms):
            value = mean(arch_loss().detach())
        self._move(at_w)
        return value


GRADIENTS: dict[str, type[Gradient]] = {
    "first": Gradient,
    "second": SecondOrder,
    "exact": ExactSecondOrder,
    "zeroth": ZerothOrder,
}
"""How α's gradient is computed, by name."""


def check_optimizer(optimizer: Optimizer, weights: list[nn.Parameter], gradient: str) -> None:
    """Raise InputError for an optimizer whose next step a gradient of second order cannot look at."""
    if gradient == "first":
        return
    groups = optimizer.param_groups
    plain = type(optimizer) is SGD and not any(g["nesterov"] or g["dampening"] or g["maximize"] for g in groups)
    if not plain:
        raise InputError(
            f"alpha_gradient={gradient!r} looks at the weights' next step, and knows that of SGD without nesterov and "
            f"dampening, but the evaluator's optimizer is {type(optimizer).__name__}; use such an SGD, or 'first'"
        )
    if missing := {id(w) for w in weights} - {id(p) for group in groups for p in group["params"]}:
        raise InputError(
            f"alpha_gradient={gradient!r} looks at the weights' next step, but {len(missing)} of them are not in the "
            "evaluator's optimizer; give it all of the module's parameters"
        )


def virtual_step(optimizer: SGD, weights: list[nn.Parameter]) -> list[Tensor]:
    """What SGD's next step would add to the weights: −ξ (momentum · buffer + gradient + decay · w); no buffer is 0."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    steps = []
    for weight in weights:
        group, buffer = groups[weight], optimizer.state.get(weight, {}).get("momentum_buffer")
        direction = _gradient(weight) + group["weight_decay"] * weight.detach()
        if buffer is not None:
            direction = group["momentum"] * buffer + direction
        steps.append(-group["lr"] * direction)
    return steps


@contextmanager
def statistics_kept(norms: Iterable[nn.Module]) -> Iterator[None]:
    """What batch norms see inside leaves their statistics as they were."""
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
