"""How sharp the validation loss is in α: the largest eigenvalue of its Hessian, without the Hessian."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm

from nni_fairdarts.alpha_gradients import frozen
from nni_fairdarts.errors import InputError
from nni_fairdarts.gap import as_before, same_random_numbers
from nni_fairdarts.guests import size_of
from nni_fairdarts.supernet import alphas_of
from nni_fairdarts.supernet.fused import twice_differentiable


@dataclass(frozen=True)
class Curvature:
    """The largest eigenvalue λ of a symmetric matrix H, and how it was found.

    ``residual``: ‖H v - λ v‖ for the vector v of length 1 that it belongs to; H has an eigenvalue that near. ``scale``:
    the largest absolute value of an eigenvalue, as far as it was found. ``products``: how many H v were computed.
    ``converged``: whether the residual is within the tolerance's part of ``scale``.
    """

    largest: float
    residual: float
    scale: float
    products: int
    converged: bool

    def to_json(self) -> dict:
        """The result as JSON values."""
        return asdict(self)


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-3, most: int = 300
) -> Curvature:
    """The largest eigenvalue of the symmetric H of which ``product(v)`` is H v, by Lanczos' iteration.

    The largest, not the one of the largest absolute value. H, seen from the space that start, H start, H² start, …
    span, is a tridiagonal matrix T, whose eigenvalues at both ends soon are H's; its basis is made orthogonal anew with
    every vector. ``start``: a vector (n,), a random one: what it has nothing of is not found. It ends where
    ‖H v - λ v‖ is at most ``tolerance`` times the largest absolute eigenvalue of T, after ``LEAST`` products, or where
    the space holds all that H makes of start.
    """
    basis = [start.double() / start.double().norm()]
    diagonal, beside = [], []
    for count in range(1, most + 1):
        w = product(basis[-1].to(start.dtype)).double()
        if not math.isfinite(float(w.norm())):
            raise InputError("the loss has no finite second derivatives in α: look for NaN in weights and images")
        diagonal.append(float(w @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):  # once leaves what rounding has
            w = w - known.T @ (known @ w)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        length, scale = float(w.norm()), float(values.abs().max())
        whole = count == len(start) or length <= torch.finfo(start.dtype).eps * scale
        residual = 0.0 if whole else length * abs(float(vectors[-1, -1]))
        settled = whole or (residual <= tolerance * scale and count >= LEAST)
        if settled:
            break
        beside.append(length)
        basis.append(w / length)
    return Curvature(float(values[-1]), residual, scale, count, settled)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    """The symmetric matrix of these, on the CPU."""
    both = torch.tensor(beside, dtype=torch.float64)
    return torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(both, 1) + torch.diag(both, -1)


LEAST = 10
"""Products before a value counts as settled: where start has next to nothing of it, another one seems the largest."""


def cross_entropy(network: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """The mean cross entropy of a batch of images and classes."""
    images, classes = batch
    return F.cross_entropy(network(images), classes)


def loss_curvature(
    supernet: nn.Module,
    batches: Iterable,
    loss: Callable[[nn.Module, Sequence], Tensor] = cross_entropy,
    *,
    count: int = 1,
    tolerance: float = 1e-3,
    most: int = 300,
    progress: bool = True,
) -> Curvature:
    """The largest eigenvalue of the Hessian in α of a supernet's mean loss over the first ``count`` of ``batches``.

    H = ∂²L/∂α∂α over all α together, weights fixed, batch norms in training as α's steps have them; it grows where the
    architecture sits in a sharp minimum and loses much when it is rounded. Zela et al., arXiv 1909.09656.

    ``supernet``: of this package or of NNI's built-in DARTS and its kin, mutated; fused or not (a fused one computes
    plainly meanwhile). ``loss(supernet, batch)``: the mean over a batch's examples; batches are weighted by their
    number. Each product takes, of every batch, a forward pass, a backward pass and one through both. What is
    random in the network is drawn anew from one seed in every pass. Weights, statistics of batch norms, random
    states and modes are afterwards as they were, and no gradient is left. Two calls return the same bits on a CPU.
    Raises InputError where there is no α that the loss depends on, or no batch, and for a ``count`` below 1.
    """
    if count < 1:
        raise InputError(f"count must be at least 1 batch, got {count}")
    alphas = alphas_of(supernet)
    if not alphas:
        raise InputError("there is no α to differentiate in: give a supernet (FairDARTS' or NNI's DARTS' mutate_model)")
    device = alphas[0].device
    known = set(alphas)
    weights = [p for p in supernet.parameters() if p not in known]
    with same_random_numbers(device, batches), as_before(supernet), frozen(weights), twice_differentiable():
        chosen = [move_data_to_device(batch, device) for batch in itertools.islice(batches, count)]
        if not chosen:
            raise InputError("no batch to compute the loss of; give a loader that yields at least one")
        supernet.train()
        start = torch.randn(sum(p.numel() for p in alphas), generator=torch.Generator().manual_seed(0)).to(alphas[0])
        with tqdm(desc="Hessian in α", unit=" products", disable=not progress, leave=False) as bar:

            def product(v: Tensor) -> Tensor:
                bar.update()
                return hessian_product(lambda batch: loss(supernet, batch), chosen, alphas, v)

            return largest_eigenvalue(product, start, tolerance, most)


def hessian_product(loss: Callable, batches: Sequence, parameters: Sequence[nn.Parameter], v: Tensor) -> Tensor:
    """H v, exactly, of the mean of ``loss(batch)`` over the examples of all batches, in ``parameters``: (n,).

    H v = ∂(g · v)/∂θ with g = ∂L/∂θ, by two backward passes. Raises InputError where no parameter has a gradient.
    """
    total, result = sum(map(size_of, batches)), torch.zeros_like(v)
    for batch in batches:
        torch.manual_seed(0)  # the same function in every pass
        value = loss(batch)
        if not value.requires_grad:  # nothing else does
            raise InputError("the loss does not depend on any α; give the supernet that α is of")
        slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        slope = _flat(slopes, parameters)
        if slope.requires_grad:  # else the loss is linear in α
            product = _flat(torch.autograd.grad(slope, parameters, v, allow_unused=True), parameters)
            result += product.detach() * (size_of(batch) / total)
    return result


def _flat(gradients: Iterable[Tensor | None], parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradients of all parameters in one vector; None stands for 0."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if gradient is None else gradient).flatten() for gradient, p in pairs])
