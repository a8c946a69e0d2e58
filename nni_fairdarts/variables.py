"""Environment variables that torch, or NNI, would pass over or stumble on without a word that helps."""

import os
import re
import sys
import tempfile

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DEVICE = r"(\d+|GPU-[\w-]+|MIG-[\w/-]+)"
SOCKET = "/pymp-01234567/listener-01234567"  # what Python's multiprocessing adds to the folder for temporary files
LONGEST = 107  # bytes of a socket's path, on Linux
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


def workers_hang() -> str | None:
    """Why processes that load data would wait for ever here, and what to do; None where they would not.

    They hand their batches on through sockets in the folder for temporary files. Where a socket's path is too long,
    Python says so in a thread of the worker's, and nobody tells the process that waits for the batch.
    """
    folder = tempfile.gettempdir()
    longest = LONGEST - len(SOCKET)
    if not sys.platform.startswith("linux") or len(os.fsencode(folder)) <= longest:
        return None
    return (
        f"processes that load data need a folder for temporary files whose path has at most {longest} bytes, got "
        f"{folder} ({len(os.fsencode(folder))}); set TMPDIR to a shorter one, or load without them"
    )
