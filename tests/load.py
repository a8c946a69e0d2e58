"""Searches of digits under load: many at once, many epochs in one process, and what they leave behind.

    python tests/load.py                              # 8 searches at once; 200 epochs; what is left open
    python tests/load.py --searches 0 --epochs 200    # only the growth of memory, and what is left open

Searches at once, one thread each, must give what one alone does, bit for bit. Over epochs neither memory nor Python's
objects may grow: a line is fitted behind a warm-up of 20 epochs. File handles, threads and processes are afterwards
those from before: after the end, an exception, Ctrl-C, with workers, after a retraining. The exit code is 1 otherwise.
"""

import argparse
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from searches import Lost, Search, compare

from nni_fairdarts import experiment
from nni_fairdarts.arguments import read_config
from nni_fairdarts.stopping import Stopped

WARM_UP = 20  # epochs
TINY = {"batch_size": 80, "gap_batches": 1}
"""One step per epoch."""


# -- at once ----------------------------------------------------------------------------------------------------------


def at_once(folder: Path, count: int, reference: dict, **settings) -> float:
    """The seconds of ``count`` searches at once. Raises Lost where one does not give the reference."""
    searches = [Search(folder / f"{index}", **settings) for index in range(count)]
    lives = [search.start() for search in searches]
    for index, (search, life) in enumerate(zip(searches, lives, strict=True)):
        _ended(life, f"search {index}")
        compare(search, reference)
    return max(life.age() for life in lives)


def _ended(life, name: str) -> None:
    if code := life.end(1200):
        raise Lost(f"{name} ended with {code}: {life.last_words()}")


# -- many epochs ------------------------------------------------------------------------------------------------------


class Gauge:
    """A search's listener that notes, at every epoch's end, the process's memory and what else may grow."""

    names = ("memory (kB)", "Python objects", "file handles", "threads", "CPU seconds")

    def __init__(self, epochs: int):
        self.values = np.zeros((epochs, len(self.names)))  # made now, so that it does not grow itself
        self._process = psutil.Process()
        self._began = time.process_time()

    def __call__(self, record: dict) -> None:
        gc.collect()
        self.values[record["epoch"]] = (
            self._process.memory_info().rss / 1024,
            len(gc.get_objects()),
            self._process.num_fds(),
            self._process.num_threads(),
            time.process_time() - self._began,
        )
        self._began = time.process_time()

    def slopes(self, warm_up: int = WARM_UP) -> dict[str, tuple[float, float, float, float]]:
        """{name: (at the end of the warm-up, growth per epoch, its standard error, spread about the line)}."""
        return {name: _line(column[warm_up:]) for name, column in zip(self.names, self.values.T, strict=True)}


def _line(values: np.ndarray) -> tuple[float, float, float, float]:
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = x @ values / (x @ x)
    spread = np.sqrt(np.sum((values - values.mean() - slope * x) ** 2) / (len(values) - 2))
    return values[0], slope, spread / np.sqrt(x @ x), spread


# -- what is left -----------------------------------------------------------------------------------------------------


def state() -> dict[str, Counter]:
    """What this process has open: files, threads, processes; how many of each name."""
    gc.collect()
    handles = []
    for handle in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            handles.append(os.readlink(f"/proc/self/fd/{handle}"))
    children = psutil.Process().children(recursive=True)
    return {
        "file handles": Counter(name.split(":[")[0] for name in handles),
        "threads": Counter(thread.name.split("-")[0] for thread in threading.enumerate()),
        "processes": Counter(child.name() for child in children),
    }


def left(before: dict[str, Counter], after: dict[str, Counter]) -> list[str]:
    """What is open now and was not before, and the other way round."""
    found = [f"{count} {kind}: {name}" for kind in after for name, count in (after[kind] - before[kind]).items()]
    return found + [f"closed {kind}: {name}" for kind in after for name in before[kind] - after[kind]]


def search_here(folder: Path, listener: Callable | None = None, workers: int = 0, **settings) -> Search:
    """A search in this process."""
    search = Search(folder, **settings)
    with _inside(folder):
        experiment.search(_config(folder, workers), listener)
    return search


def _config(folder: Path, workers: int):
    config = read_config(folder / "small.yaml")
    return replace(config, data=replace(config.data, workers=workers))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In a folder, where modules are found too, and without a word."""
    place = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with open(os.devnull, "w") as silence, redirect_stdout(silence):
            yield
    finally:
        sys.path.remove(str(folder))
        os.chdir(place)


def stop_by(error: BaseException | int) -> Callable[[dict], None]:
    """A listener that raises an exception, or sends this process a signal, in the second epoch."""

    def listener(record: dict) -> None:
        if record["epoch"] != 1:
            return
        if isinstance(error, int):
            os.kill(os.getpid(), error)
        else:
            raise error

    return listener


def _ends(folder: Path) -> None:
    search_here(folder, epochs=2, **TINY)


def _ends_with_workers(folder: Path) -> None:
    search_here(folder, workers=3, epochs=2, **TINY)


def _retrained(folder: Path) -> None:
    search = search_here(folder, epochs=1, **TINY)
    with _inside(folder):
        experiment.retrain(_config(folder, 2), experiment.architecture_of(search.run), search.run / "retrain")


def _raises(folder: Path) -> None:
    with suppress(ZeroDivisionError):
        search_here(folder, stop_by(ZeroDivisionError()), workers=2, epochs=4, **TINY)


def _interrupted(folder: Path) -> None:
    with suppress(Stopped):
        search_here(folder, stop_by(signal.SIGINT), workers=2, epochs=4, **TINY)


ENDS = {
    "its end": _ends,
    "its end, with 3 workers": _ends_with_workers,
    "a retraining with workers": _retrained,
    "an exception in an epoch": _raises,
    "Ctrl-C": _interrupted,
}


# -- the report -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--searches", type=int, default=8, help="at once; 0 for none")
    parser.add_argument("--epochs", type=int, default=200, help="of one search, more than 30; 0 for none")
    given = parser.parse_args()
    folder, failed = Path(tempfile.mkdtemp(prefix="load-")), 0
    for name in ("nni", "pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(f"{psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}")
    search_here(folder / "warm", epochs=1, **TINY)  # what is made once in a process is there
    before = state()
    for number, (name, end) in enumerate(ENDS.items()):
        end(folder / f"end{number}")
        found = left(before, state())
        failed += bool(found)
        print(f"{'LEFT' if found else 'ok':<5} open after {name}: {', '.join(found) or 'what was before'}", flush=True)
    if given.epochs:
        gauge = Gauge(given.epochs)
        search_here(folder / "long", gauge, workers=1, epochs=given.epochs, **TINY)
        for name, (start, slope, error, spread) in gauge.slopes().items():
            grows = bool(slope > max(3 * error, LIMITS[name]))
            failed += grows
            line = f"{start:,.2f} after {WARM_UP} epochs, {slope:+.3f} ± {error:.3f} per epoch, spread {spread:,.2f}"
            print(f"{'GROWS' if grows else 'ok':<5} {name}: {line}", flush=True)
    if given.searches:
        try:
            alone = Search(folder / "alone")
            life = alone.start()
            _ended(life, "the search alone")
            took = at_once(folder, given.searches, alone.facts())
            print(f"ok    {given.searches} at once: as one alone, bit for bit; {life.age():.0f} s alone, {took:.0f} s")
        except Lost as lost:
            failed += 1
            print(f"LOST  {given.searches} at once: {lost}")
    if not failed:
        shutil.rmtree(folder)
    print(f"failed {failed}")
    return failed > 0


LIMITS = {"memory (kB)": 20, "Python objects": 1, "file handles": 0.01, "threads": 0.01, "CPU seconds": 1e-3}
"""Growth per epoch that is none: 20 kB are 12 MB over 600 epochs, a millisecond makes the 600th 0.6 s longer."""


if __name__ == "__main__":
    sys.exit(main())
