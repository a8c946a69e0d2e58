"""Environment variables that torch, or NNI, would pass over or stumble on without a word that helps."""

import os
import re

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DEVICE = r"(\d+|GPU-[\w-]+|MIG-[\w/-]+)"
HIDDEN = ("", "-1", "none", "NoDevFiles")  # by which devices are hidden, the last one by Slurm


def nonsense() -> str | None:
    """What is wrong with the environment: the variable, its value, and what to do; None where nothing is."""
    for name in THREADS:
        value = os.environ.get(name, "")
        if value and not re.fullmatch(r" *0*[1-9]\d{0,4}( *, *[1-9]\d*)* *", value):
            return f"{name} must be a number of threads, at least 1, got {value!r}; set it, or unset it"
    rank = os.environ.get("LOCAL_RANK", "0")
    if not rank.isdecimal():
        return f"LOCAL_RANK must be the number of a process among several, got {rank!r}; unset it"
    value = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if value not in HIDDEN and not re.fullmatch(f"{DEVICE}( *, *{DEVICE})*", value):
        return (
            "CUDA_VISIBLE_DEVICES must be numbers of devices (0,1), ids that begin with GPU- or MIG-, or empty for "
            f"none, got {value!r}; set it, or unset it"
        )
    return None
