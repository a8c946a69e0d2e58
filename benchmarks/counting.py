"""What a step runs: operators and kernels (torch.profiler), bytes and operations (every aten call), and rates."""

import math
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from loops import synchronize
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = (
    ("convolution backward", ("convolution_backward",)),
    ("convolution forward", ("conv",)),
    ("batch norm", ("batch_norm",)),
    ("pooling", ("pool",)),
    ("matrix products", ("mm", "linear", "matmul", "einsum")),
    ("copies and sums", ("copy", "cat", "add", "sum", "stack", "clone", "contiguous")),
    ("ReLU", ("relu", "threshold", "clamp_min")),
)
"""Kinds of work by a part of the operator's name, the first that fits."""

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
ALLOCATIONS = ("empty", "new_empty", "resize_", "set_", "_nnpack_available")


# -- torch.profiler ----------------------------------------------------------------------------------------------------


def profiled(step: Callable[[], None], device: str) -> dict:
    """Of one step: operators that do work, kernels run and launched (CUDA), and the share of time of each kind.

    An operator does work if it neither only allocates nor only returns a view, and calls no operator that does work.
    Shares are of the kernels' time on CUDA, and of the time in operators and in autograd's own code on a CPU.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        step()
        synchronize(device)
    events = profiler.events()
    spent: dict[str, float] = defaultdict(float)
    operators = 0
    for event in events:
        if event.cpu_parent is None and event.device_type == DeviceType.CPU:
            operators += _walk(event, None, spent, device)
    total = sum(spent.values())
    found = {"operators": operators, "kinds": {kind: time / total for kind, time in spent.items()} if total else {}}
    if device == "cuda":
        own = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        found["kernels"] = sum(not event.name.startswith(("Memcpy", "Memset")) for event in own)
        found["launches"] = sum(event.name.startswith(LAUNCHES) for event in events)
        found["device_seconds"] = sum(event.device_time_total for event in own) / 1e6
    return found


def _walk(event, kind: str | None, spent: dict[str, float], device: str) -> int:
    """Operators at and under ``event`` that do work; adds the time of each event itself to that of its kind."""
    kind = kind or _kind(event.name)
    spent[kind or "everything else"] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    below = sum(_walk(child, kind, spent, device) for child in event.cpu_children)
    return below or int(event.name.startswith("aten::") and _works(event.name))


def _kind(name: str) -> str | None:
    if not name.startswith("aten::"):
        return None
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), None)


def _works(name: str) -> bool:
    """Whether the operator ``aten::...`` computes something."""
    name = name.removeprefix("aten::")
    if name.startswith(ALLOCATIONS):
        return False
    packet = getattr(torch.ops.aten, name, None)
    return packet is None or not is_view(getattr(packet, packet.overloads()[0]))


def is_view(operator) -> bool:
    """Whether an operator's result is its argument, seen otherwise."""
    returns = operator._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


# -- bytes and operations ----------------------------------------------------------------------------------------------


class Work(TorchDispatchMode):
    """Inside, every aten operator's bytes (what it must read and write at least once) and floating-point operations.

    Bytes are those of the distinct elements of its tensor arguments and results. Operations are twice the
    multiply-adds of convolutions and matrix products, backward passes included; the arithmetic of batch norms, pooling
    and sums is not counted: bytes bound it. What a compiled region or a CUDA graph does inside is not seen.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, int, int]] = []  # (operator, bytes, operations)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        name = operator._schema.name.removeprefix("aten::")
        if not is_view(operator) and not name.startswith(ALLOCATIONS):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.calls.append((name, sum(map(extent, tensors)), operations(operator, args, kwargs, result)))
        return result

    @property
    def bytes(self) -> int:
        return sum(moved for _, moved, _ in self.calls)

    @property
    def flops(self) -> int:
        return sum(done for _, _, done in self.calls)

    def seconds(self, bandwidth: float, rate: float) -> float:
        """The floor: the sum over operators of what takes longer, moving its bytes or doing its operations."""
        return sum(max(moved / bandwidth, done / rate) for _, moved, done in self.calls)


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements: dimensions that are only expanded count once."""
    sides = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0)
    return math.prod(sides) * tensor.element_size()


def operations(operator, args, kwargs, result) -> int:
    """Floating-point operations of one call, two for a multiply-add; 0 for what torch has no formula for.

    Convolutions have a formula of their own here: torch's counts the weights' gradient of a grouped one as if it were
    not grouped.
    """
    packet = operator._overloadpacket
    aten = torch.ops.aten
    if packet is aten.convolution:
        return 2 * result.numel() * args[1][0].numel()
    if packet is aten.convolution_backward:
        gradient, _, weight = args[:3]
        return 2 * gradient.numel() * weight[0].numel() * sum(args[10][:2])  # of the input, of the weight
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=result)
    return 0


# -- what the device can do --------------------------------------------------------------------------------------------


def rates(device: str) -> dict[str, float]:
    """Bytes per second of a copy (read and written) and floating-point operations per second of a matrix product."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # the step's work is convolutions
    large, side = (2**30, 8192) if device == "cuda" else (2**28, 2048)
    source = torch.ones(large, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"bandwidth": 2 * large / _best(lambda: target.copy_(source), device)}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _best(lambda left=left, right=right: left @ right, device)
        found[str(dtype).removeprefix("torch.")] = 2 * side**3 / seconds
    return found


def _best(call: Callable, device: str, times: int = 5) -> float:
    """Seconds of the fastest of a few calls, behind one that is not timed."""
    seconds = []
    for _ in range(times + 1):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
