"""The bilevel step without Lightning: what a search of NNI's DARTS, and of FairDARTS, computes for two batches."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import nni.nas.strategy
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from variants import Size, Variant

from nni_fairdarts import FairDARTS
from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.gates import LOSSES, flat
from nni_fairdarts.search import frozen
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.supernet import choices_of

IMAGE = (3, 32, 32)
CLASSES = 10
CLIP = 5.0
SGD = {"lr": 0.005, "momentum": 0.9, "weight_decay": 3e-4}


class NotAvailable(Exception):
    """The installed package, or the device, lacks what a variant asks for."""


def space_of(size: Size) -> DARTS:
    """NNI's DARTS space of the size (``nni_fairdarts.spaces`` adds a choice of candidates, and changes nothing)."""
    return DARTS(size.channels, size.cells, "cifar", operations=size.operations)


def strategy_of(variant: Variant):
    """The variant's strategy. Raises NotAvailable for arguments that the installed FairDARTS does not have."""
    if variant.arguments is None:
        return nni.nas.strategy.DARTS(gradient_clip_val=CLIP)
    lacking = variant.arguments.keys() - inspect.signature(FairDARTS).parameters.keys()
    # A FairDARTS that cannot fuse is the plain one.
    lacking -= {name for name in lacking if variant.arguments[name] is False}
    if lacking:
        raise NotAvailable(f"this FairDARTS has no argument {', '.join(sorted(lacking))}")
    known = inspect.signature(FairDARTS).parameters
    return FairDARTS(**{name: value for name, value in variant.arguments.items() if name in known})


def prepare(supernet: nn.Module, variant: Variant) -> None:
    """Do to the supernet, in place, what the variant says."""
    if variant.channels_last:
        supernet.to(memory_format=torch.channels_last)
        supernet.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous(memory_format=torch.channels_last))


class BareLoop:
    """Both steps of a variant at a size, on two batches of random images that stay where they are."""

    def __init__(self, variant: Variant, size: Size, device: str, seed: int = 0):
        if variant.graph and device != "cuda":
            raise NotAvailable("CUDA graphs need a CUDA device")
        torch.manual_seed(seed)
        self.variant, self.device = variant, device
        self.strategy = strategy_of(variant)
        self.supernet = self.strategy.mutate_model(space_of(size).to(device)).to(device).train()
        prepare(self.supernet, variant)
        self.alphas = alphas_of(self.supernet)
        self.choices = {c.label: c for module in self.supernet.modules() for c in choices_of(module)}
        known = {id(alpha) for alpha in self.alphas}
        self.weights = [p for p in self.supernet.parameters() if id(p) not in known]
        self.batches = [
            (torch.randn(size.batch, *IMAGE, device=device), torch.randint(CLASSES, (size.batch,), device=device))
            for _ in range(2)
        ]
        self.sgd = torch.optim.SGD(self.weights, **SGD)
        self.adam = torch.optim.Adam(self.alphas, **self._adam_settings(), capturable=variant.graph)
        self._both = self._nni_steps if variant.arguments is None else self._fair_steps
        self.step: Callable[[], None] = self._captured() if variant.graph else self._both
        if variant.deterministic:
            self.step = deterministic()(self.step)

    def _adam_settings(self) -> dict:
        if self.variant.arguments is None:  # written into NNI's DartsLightningModule
            return {"lr": 3e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3}
        fair = self.strategy
        return {"lr": fair.arc_learning_rate, "betas": fair.arc_betas, "weight_decay": fair.arc_weight_decay}

    def loss(self, half: int) -> Tensor:
        """Cross entropy on one of the batches."""
        images, labels = self.batches[half]
        cast = nullcontext()
        if self.variant.bf16:  # a graph must not find weights in the cache that another replay cast
            cast = torch.autocast(self.device, torch.bfloat16, cache_enabled=not self.variant.graph)
        with cast:
            return cross_entropy(self.supernet(images), labels)

    def zero_one(self) -> Tensor:
        """The zero-one loss over the gates of all labels together, as ``FairDartsModule`` has it."""
        return LOSSES[self.strategy.zero_one_loss](flat(choice.gates() for choice in self.choices.values()))

    def _fair_steps(self) -> None:
        """As ``nni_fairdarts.search`` takes them: in each step only the gradients of what it updates."""
        with frozen(self.weights):
            self.adam.zero_grad()
            (self.loss(0) + self.strategy.zero_one_weight * self.zero_one()).backward()
            self.adam.step()
        with frozen(self.alphas):
            self._weight_step()

    def _nni_steps(self) -> None:
        """As NNI's ``DartsLightningModule`` takes them: all gradients in both."""
        self.adam.zero_grad()
        self.loss(0).backward()
        self.adam.step()
        self._weight_step()

    def _weight_step(self) -> None:
        loss = self.loss(1)
        self.sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.sgd.step()

    def _captured(self) -> Callable[[], None]:
        """Both steps as one CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._both()
        torch.cuda.current_stream().wait_stream(side)
        for parameter in (*self.weights, *self.alphas):
            parameter.grad = None  # so that the graph's own memory holds them
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._both()
        return graph.replay


def alphas_of(supernet: nn.Module) -> list[nn.Parameter]:
    """α of a supernet, NNI's or ours, each once, in the order of its modules."""
    found: dict[nn.Parameter, None] = {}
    for module in supernet.modules():
        if isinstance(module, BaseSuperNetModule) and hasattr(module, "arch_parameters"):
            found.update(dict.fromkeys(module.arch_parameters()))
    return list(found)


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, torch takes only operations that give the same bits in every run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def synchronize(device: str) -> None:
    """Wait for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()
