"""CUDA graphs: a supernet's forward and backward passes in training, launched whole. Not yet run on a device.

After "Whole-network capture" and ``torch.cuda.make_graphed_callables`` of torch's documentation. Only the supernet is
captured; the evaluator's ``training_step``, losses and optimizers run as they always do.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nni_fairdarts.errors import InputError

HOOKS = ("forward", "forward_pre", "backward", "backward_pre")
"""Kinds of hooks of a module, which run in Python: a replay does not."""

Forward = Callable[..., object]
Signature = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device], ...]
"""Shape, strides, dtype and device of every input: what a graph is bound to."""


class GraphedNetwork:
    """A network whose training passes are captured at their first call and replayed afterwards.

    Which parameters need a gradient makes the graph: with α frozen it is another than with the weights frozen. Each
    has memory of its own for all that a step keeps, and is made for the shapes that come first. Eager are: other
    shapes (a smaller last batch), evaluation, calls without gradients, with keywords or with anything but tensors, and
    every call of one ``step`` but the first, whose activations the next replay would overwrite.
    """

    def __init__(self, network: nn.Module, capture: Callable[[nn.Module, Forward, tuple], Forward] | None = None):
        self._network = network
        self._eager = network.forward
        self._parameters = list(network.parameters())
        self._capture = capture or captured
        self._graphs: dict[tuple[bool, ...], tuple[Signature, Forward]] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, the network's first call may be a replay; its backward pass must be over before the next step."""
        self._replayed = False
        own = vars(self._network).get("forward")  # a compiled one, say
        self._network.forward = self._forward
        try:
            yield
        finally:
            del self._network.forward
            if own is not None:
                self._network.forward = own

    def _forward(self, *args, **kwargs):
        training = self._network.training and torch.is_grad_enabled()
        if self._replayed or kwargs or not training or not all(map(_is_plain, args)):
            return self._eager(*args, **kwargs)
        learns = tuple(parameter.requires_grad for parameter in self._parameters)
        if learns not in self._graphs:
            self._graphs[learns] = signature(args), self._capture(self._network, self._eager, args)
        shapes, replay = self._graphs[learns]
        if shapes != signature(args):
            return self._eager(*args)
        self._replayed = True
        # A copy: the next replay writes into the same memory, and the evaluator may keep what it got.
        return tree_map_only(Tensor, torch.clone, replay(*args))


def check_graphable(training_module: pl.LightningModule, trainer: pl.Trainer, device: torch.device) -> None:
    """Raise InputError where CUDA graphs cannot stand for the steps of this evaluator."""
    if device.type != "cuda":
        raise InputError(
            f"cuda_graphs needs a CUDA device, but the search runs on {device.type}; leave it out, or give the "
            "evaluator's trainer accelerator='gpu'"
        )
    if trainer.world_size > 1:
        raise InputError(
            f"cuda_graphs is for one device, but the trainer has {trainer.world_size}; leave it out, or give devices=1"
        )
    if is_overridden("optimizer_zero_grad", training_module, pl.LightningModule):
        raise InputError(
            "cuda_graphs needs gradients to be None before each backward pass, for a replay writes them where the last "
            "one did; the evaluator's module has an optimizer_zero_grad of its own: remove it, or leave cuda_graphs out"
        )
    for name, module in training_module.model.named_modules():
        if name and any(getattr(module, f"_{kind}_hooks") for kind in HOOKS):
            raise InputError(
                f"the network's module {name!r} has hooks, which a CUDA graph would pass over; remove them, or leave "
                "cuda_graphs out"
            )


def signature(args: tuple[Tensor, ...]) -> Signature:
    """What a graph that was captured with ``args`` is bound to."""
    return tuple((x.shape, x.stride(), x.dtype, x.device) for x in args)


def _is_plain(value) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad


def captured(network: nn.Module, forward: Forward, args: tuple[Tensor, ...]) -> Forward:
    """``forward`` of ``network`` as CUDA graphs for inputs like ``args``; the network stays as it is.

    Autocast is as it is now, without its cache of weights: that belongs to one step, and the graph to all. Errors of
    the capture are this thread's own: loaders may pin memory in another meanwhile (older torch cannot tell them apart).
    """
    samples = tuple(x.detach().clone() for x in args)  # the graphs' own inputs: batches are copied into them
    precision = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False)
    make = torch.cuda.make_graphed_callables
    known = "capture_error_mode" in inspect.signature(make).parameters
    options = {"capture_error_mode": "thread_local"} if known else {}
    with unchanged(network), precision:
        return make(_Bare(network, forward), samples, allow_unused_input=True, **options)


class _Bare(nn.Module):
    """A network's parameters and buffers with its forward, without its own hooks: those run around every replay."""

    def __init__(self, network: nn.Module, forward: Forward):
        super().__init__()
        self.network = network
        self._forward = forward

    def forward(self, *args):
        return self._forward(*args)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Passes inside, as those before a capture, leave batch norms' statistics and random numbers as they were.

    Buffers are restored in place: a graph knows them by their address. Gradients are not touched by the warm-up.
    """
    kept = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    devices = {p.device for p in network.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
