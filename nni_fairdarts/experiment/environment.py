"""What a run was started with and on: ``environment.json`` in its folder."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import device_of, versions
from nni_fairdarts.folder import read_json, write_json

FILE = "environment.json"


def record_environment(folder: Path, config: RunConfig) -> None:
    """Add an entry to ``environment.json`` in ``folder``: of the beginning, and of each time that it is gone on with.

    Raises OSError where it cannot be written, InputError where an earlier one is damaged.
    """
    path = folder / FILE
    starts = _starts(read_json(path), path) if path.exists() else []
    write_json(path, {"starts": [*starts, environment(config)]})


def _starts(content, path: Path) -> list:
    starts = content.get("starts") if isinstance(content, dict) else None
    if not isinstance(starts, list):
        raise InputError(f"{path} does not list a run's starts: it is damaged; move it away to go on with the run")
    return starts


def environment(config: RunConfig) -> dict:
    """Versions, machine, device, seed, git's state of the current folder, and the command line, now."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": os.getcwd(),
        "git": git_state(),
        "seed": config.seed,
        "device": device_of(config),
        "device_name": _device_name(config),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
    }


def git_state() -> dict | None:
    """{"commit", "dirty"} of the current folder's repository; None outside of one, or without git.

    dirty: whether a file that git knows differs from the commit; others, such as a run's, do not count.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _device_name(config: RunConfig) -> str:
    if device_of(config) == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")  # of Linux
    lines = information.read_text(errors="replace").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
