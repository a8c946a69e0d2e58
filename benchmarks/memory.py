"""Peak memory of this process, and a bound on it that makes an allocation fail where the machine would run out."""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch
from machine import RESERVE, free_memory

PROC = Path("/proc/self")


def resting(device: str) -> int:
    """Bytes in use now, by Python objects that are needed; what importing costs, when called behind the imports.

    On CUDA 0: only tensors count there. On a CPU what glibc holds free is given back first, or a step could use that
    memory without being charged for it.
    """
    if device == "cuda":
        return 0
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") or _most_ever()


def forget_peak(device: str) -> None:
    """Begin a new peak where the system can; on CUDA, where a graph's memory was taken at its recording, it stays."""
    if device != "cuda" and (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")


def peak(device: str) -> int:
    """Most bytes allocated (CUDA) or resident (CPU) since ``forget_peak``."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _most_ever()


def bound(device: str, limit: int | None) -> int:
    """Make allocations fail, and this process the first to be killed, behind ``limit`` more bytes; returns them.

    Without a limit it is what the machine has free, less a reserve; on CUDA, what the device has free.
    """
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        return free if limit is None else min(free, limit)
    free = free_memory() - RESERVE if limit is None else limit
    if PROC.exists():
        (PROC / "oom_score_adj").write_text("1000")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + free, hard))
    return free


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    signs = (
        "out of memory",
        "can't allocate memory",
        "bad_alloc",
        "could not create a memory",
        "Cannot allocate memory",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    if not (PROC / "status").exists():
        return 0
    return int((PROC / "status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def _most_ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
