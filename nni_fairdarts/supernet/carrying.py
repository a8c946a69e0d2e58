"""A supernet's weights, and what optimizers keep of them, in another supernet of the same space."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def widened(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """``tensor`` with its entries repeated from the first one, dimension by dimension, up to ``shape``.

    DrNAS, arXiv 2006.10355, repeats channels too, drawn at random. None where a dimension would be smaller.
    """
    if tensor.dim() != len(shape) or any(now < was for was, now in zip(tensor.shape, shape, strict=True)):
        return None
    for dim, size in enumerate(shape):
        tensor = tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])
    return tensor


def carry(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the weights, α and statistics that ``old`` has by the same names, where they are not narrower."""
    source, taken = old.state_dict(), {}
    for name, tensor in new.state_dict().items():
        if name in source and (wide := widened(source[name], tensor.shape)) is not None:
            taken[name] = wide
    new.load_state_dict(taken, strict=False)


def carry_optimizer(old: nn.Module, before: Optimizer, new: nn.Module, optimizer: Optimizer) -> None:
    """Give ``optimizer``, of the parameters of ``new``, what ``before`` keeps of those of ``old``: as ``carry`` does.

    Parameters that ``old`` has nothing of begin without. Settings of its groups, such as learning rates, become those
    of ``before``.
    """
    for group, earlier in zip(optimizer.param_groups, before.param_groups, strict=True):
        group.update({name: value for name, value in earlier.items() if name != "params"})
    kept = {p: state for p, state in before.state.items() if state}
    names = {name for state in kept.values() for name in state}
    known = {p for group in optimizer.param_groups for p in group["params"]} & set(new.parameters())
    with _holding(old, {p: torch.ones_like(p) for p in old.parameters()}), _holding(new, {}):
        carry(old, new)
        known = {p for p in known if p.any()}
    for name in sorted(names):
        like = {p: state[name] for p, state in kept.items() if _is_of(p, state.get(name))}
        if like:  # one entry for each of the parameter's
            with _holding(old, like), _holding(new, {}):
                carry(old, new)
                found = {p: p.detach().clone() for p in known}
        else:  # such as the count of steps: one and the same for all
            value = next(state[name] for state in kept.values() if name in state)
            found = {p: value.clone() if isinstance(value, Tensor) else value for p in known}
        for p in known:
            optimizer.state[p][name] = found[p]
    outside = {p for group in optimizer.param_groups for p in group["params"]} & kept.keys()
    for p in outside:  # of the evaluator's module
        optimizer.state[p] = kept[p]


def _is_of(parameter: nn.Parameter, value) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


@contextmanager
def _holding(supernet: nn.Module, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, the parameters of a supernet hold these values, the others 0; afterwards all is as before."""
    tensors = [*values, *supernet.buffers(), *supernet.parameters()]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.zero_()
            for parameter, value in values.items():
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
