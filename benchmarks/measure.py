"""One measurement in a process of its own: ``step.py`` starts it with a job and reads what it prints.

The job is one argument of JSON: task, size, variants, device, threads, repeats, memory (bytes at most, or null), and
for ``solo`` counts and rates. Every line printed is JSON as well: {"variant": name, ...what was found}, or with
"status" and "why" where nothing could be. A line comes as soon as it is known: what a killed process had found is not
lost.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what others print is no answer

import counting  # noqa: E402
import lightning_loop  # noqa: E402
import memory  # noqa: E402
import torch  # noqa: E402
from loops import BareLoop, NotAvailable, synchronize  # noqa: E402
from variants import VARIANTS, Size  # noqa: E402


def answer(variant: str | None, **found) -> None:
    """Tell the parent what was found."""
    print(json.dumps({"variant": variant, **found}), file=ANSWERS, flush=True)


def solo(job: dict) -> None:
    """One variant alone: peak memory of a step, then operators, kernels, bytes, operations."""
    (name,) = job["variants"]
    variant, device = VARIANTS[name], job["device"]
    before = memory.resting(device)
    free = memory.bound(device, job["memory"])
    answer(name, free_bytes=free)
    loop = BareLoop(variant, Size.parse(job["size"]), device)
    loop.step()  # the optimizers' states begin in it, kernels are loaded, cells compiled
    memory.forget_peak(device)
    for _ in range(2):
        loop.step()
    synchronize(device)
    answer(name, peak_bytes=memory.peak(device) - before, status="measured")
    if job["counts"]:
        with problems_told(name, "counts"):
            answer(name, counts=counting.profiled(loop.step, device))
        if not (variant.compiled or variant.graph):  # what those do inside is not seen
            with problems_told(name, "floor"):
                answer(name, floor=floor(loop, job["rates"]))


def floor(loop: BareLoop, rates: dict) -> dict:
    """Bytes and operations of a step, and the seconds that they take at the device's rates at least."""
    with counting.Work() as work:
        loop.step()
    rate = rates["bfloat16" if loop.variant.bf16 else "float32"]
    return {"bytes": work.bytes, "operations": work.flops, "seconds": work.seconds(rates["bandwidth"], rate)}


def times(job: dict) -> None:
    """Steps of all variants in turn, forwards and backwards through their list, behind a step that is not timed.

    On CUDA a turn begins with a step that is not timed and an empty cache, for what the variant before it left there
    is of other sizes, and lasts five steps, of which the mean counts.
    """
    device = job["device"]
    memory.bound(device, job["memory"])
    loops, seconds = {}, {}
    for name in job["variants"]:
        with problems_told(name, "step"):
            loops[name] = _warm(BareLoop(VARIANTS[name], Size.parse(job["size"]), device))
            seconds[name] = []
    for turn in range(job["repeats"]):
        for name in list(loops)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(_turn(loops[name], device))
            answer(name, step={"times": seconds[name]})


def _warm(loop: BareLoop) -> BareLoop:
    loop.step()
    return loop


def _turn(loop: BareLoop, device: str) -> float:
    """Seconds per step of one turn."""
    steps = 1
    if device == "cuda":
        steps = 5
        torch.cuda.empty_cache()
        loop.step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        loop.step()
    synchronize(device)
    return (time.perf_counter() - began) / steps


def lightning(job: dict) -> None:
    """Each variant through Lightning in turn with the bare loop."""
    memory.bound(job["device"], job["memory"])
    size, device = Size.parse(job["size"]), job["device"]
    for name in job["variants"]:
        with problems_told(name, "lightning"):
            answer(name, lightning=lightning_loop.through_lightning(VARIANTS[name], size, device, job["repeats"]))


def rates(job: dict) -> None:
    """What the device can do."""
    answer(None, rates=counting.rates(job["device"]))


@contextmanager
def problems_told(name: str | None, part: str | None = None) -> Iterator[None]:
    """An answer, about ``part`` of the findings, in the place of what is raised inside."""
    try:
        yield
    except NotAvailable as error:
        problem = {"status": "not available", "why": str(error)}
    except Exception as error:  # of many kinds; the parent tells them on
        status = "does not fit" if memory.is_exhaustion(error) else "failed"
        problem = {"status": status, "why": f"{type(error).__name__}: {error}".splitlines()[0]}
    else:
        return
    answer(name, **({part: problem} if part else problem))


def family(job: dict) -> None:
    """Time and memory of the steps of one search, by epoch, and of what it computes besides."""
    import family_loop

    (name,), device = job["variants"], job["device"]
    before = memory.resting(device)
    memory.bound(device, job["memory"])
    size, whole = Size.parse(job["size"]), job["besides"]
    watch = family_loop.searched(job["parameters"], size, device, job["steps"], before, whole)
    answer(name, epochs=watch.epochs, besides=watch.besides, status="measured")


TASKS = {"solo": solo, "times": times, "lightning": lightning, "rates": rates, "family": family}

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    if any(VARIANTS[name].deterministic for name in job["variants"] if name in VARIANTS):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    for name in ("nni", "pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    only = job["variants"][0] if len(job["variants"]) == 1 else None
    with problems_told(only):
        TASKS[job["task"]](job)
