"""The machine that a result is from, and what memory it has left. Imports nothing heavy."""

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("nni-fairdarts", "nni", "torch", "torchvision", "pytorch-lightning", "numpy")
RESERVE = 2**30
"""Bytes that a measurement leaves to the rest of the machine."""


def describe(device: str, threads: int) -> dict:
    """CPU, cores, memory, GPU, versions, commit, date: what a figure means nothing without."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu() if device == "cuda" else None,
        "device": device,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "date": now(),
    }


def now() -> str:
    """The time, UTC, to the minute."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def load() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def free_memory() -> int:
    """Bytes that this process could still get without swapping: the system's and, in a container, its group's."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes",) * 2):
        if (group / limit).exists() and (bound := (group / limit).read_text().strip()) != "max":
            used = used.replace("limit", "usage")
            free = min(free, int(bound) - int((group / used).read_text()))
    return free


def _cpu() -> str:
    """The processor's name, with family and model where the name alone says little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name", platform.processor() or "unknown")
    return f"{name} (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else name


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None
