"""A small search of digits through the real command line, lives of it that end early, and whether it ends the same.

For ``faults.py``, ``load.py`` and the tests beside them. Nothing here knows how the package goes on with a search: it
calls the command, sends signals, reads the files that the README names, and looks for what a user would see.
"""

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import yaml
from experiments import ENVIRONMENT, IMAGES, RUN

SEARCH = {
    **RUN,
    "name": "run",
    "seed": 2,
    "data": {"name": "images:digits", "crop_padding": 1, "flip": True, "workers": 2},
    "space": {**RUN["space"], "operations": ["max_pool_3x3", "skip_connect", "sep_conv_3x3"]},
    "search": {**RUN["search"], "epochs": 4, "batch_size": 16, "gap_batches": 1, "cutout": 2},
    "retrain": {**RUN["retrain"], "epochs": 4, "batch_size": 32, "cutout": 2, "drop_path_prob": 0.2},
}
"""Two worker processes; every epoch 5 steps over shuffled and augmented images, in the search and the retraining."""
PATIENCE = 240  # seconds that a life may take, on a busy machine, before it counts as hung
TIMES = ("seconds", "folder")  # what may differ between two results


class Lost(AssertionError):
    """A fault after which the search did not go on, or not as if nothing had happened."""


def _hears_ctrl_c() -> None:
    """Where this is a job in the background, shells have its processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Life:
    """One process of the command line, the leader of a process group of its own; it ends with this process."""

    def __init__(self, words: list[str], place: Path, **options):
        number = len(list(place.glob("life*.out")))
        self.files = [place / f"life{number}.{kind}" for kind in ("out", "err")]
        self.temporary = tempfile.TemporaryDirectory(prefix="life-")  # workers' sockets need a short path
        environment = {**os.environ, **ENVIRONMENT, "HOME": str(place), "TMPDIR": self.temporary.name}
        options.setdefault("preexec_fn", _hears_ctrl_c)
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                words, cwd=place, stdout=out, stderr=err, env=environment, start_new_session=True, **options
            )
        self.began = time.monotonic()
        atexit.register(lambda: self.runs() and self.kill())

    def runs(self) -> bool:
        return self.process.poll() is None

    def age(self) -> float:
        return time.monotonic() - self.began

    def said(self) -> str:
        """What it has printed to both streams, progress bars cut into lines."""
        return "".join(path.read_text(errors="replace") for path in self.files).replace("\r", "\n")

    def last_words(self) -> str:
        lines = self.files[1].read_text(errors="replace").replace("\r", "\n").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def until(self, condition: Callable[[], object], pause: float = 0.01) -> bool:
        """Wait until ``condition`` holds or the process has ended; whether it runs still."""
        while self.runs() and not condition():
            if self.age() > PATIENCE:
                self.kill()
                raise Lost(f"hung: nothing came of it in {PATIENCE} s")
            time.sleep(pause)
        return self.runs()

    def signal(self, number: int, group: bool = True) -> None:
        """Send a signal to the group, as a terminal does, or to the main process alone."""
        with suppress(ProcessLookupError):  # it has just ended
            (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL for the process and its workers."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for the end and return the exit code. Raises Lost where it hangs or leaves processes behind."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Lost(f"hung: it should have ended within {seconds:.0f} s") from None
        for _ in range(100):  # workers need a moment
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return code
            time.sleep(0.1)
        self.kill()
        raise Lost("its workers were there 10 s after it had ended")


class Search:
    """A search in a folder of its own, begun and gone on with by the command line."""

    name = "search"

    def __init__(self, place: Path, checkpoint_steps: int = 0, **search):
        self.place = place
        self.run = place / "runs" / "run"
        place.mkdir(parents=True)
        (place / "images.py").write_text(IMAGES)
        settings = {**SEARCH, "checkpoint_steps": checkpoint_steps, "search": {**SEARCH["search"], **search}}
        (place / "small.yaml").write_text(yaml.safe_dump(settings))

    def words(self) -> list[str]:
        """What a user types now: to begin, or to go on where there is something to go on with."""
        if (self.run / "config.yaml").is_file():
            return ["search", "--resume", "runs/run"]
        return ["search", "--config", "small.yaml"]

    def start(self, *flags: str, trip: tuple | None = None, **options) -> Life:
        """Begin or go on; ``trip``: (pattern, count, delay) of ``tripwire.py``."""
        module = ["-m", "nni_fairdarts"]
        if trip is not None:
            module = [str(Path(__file__).with_name("tripwire.py")), *map(str, trip)]
        return Life([sys.executable, *module, *self.words(), *flags], self.place, **options)

    def finished(self) -> bool:
        return (self.run / "result.json").is_file()

    def epochs(self) -> int:
        """How many epochs its history has."""
        path = self.run / "history.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        found = (self.run / "checkpoints").glob("*.ckpt")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def go_on(self, again: int = 1) -> Life:
        """Go on to the end. Raises Lost where it fails, or begins further back than ``again`` recorded epochs."""
        known = self.epochs()
        life = self.start()
        if code := life.end():
            raise Lost(f"{' '.join(self.words())} ended with {code}: {life.last_words()}")
        first = re.search(r"^epoch (\d+)/", life.said(), re.MULTILINE)
        if first and int(first[1]) <= known - again:
            raise Lost(f"it began again at epoch {first[1]}, but epoch {known} was in the history")
        return life

    def facts(self) -> dict:
        """{name: what must not depend on interruptions}."""
        run = self.run
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        return {
            "history": [_untimed(record) for record in history],
            **{name: np.load(run / name).tobytes() for name in ("normal_weight.npy", "reduce_weight.npy")},
            **{name: (run / name).read_bytes() for name in ("genotype.json", "sample.json")},
            "result.json": _untimed(json.loads((run / "result.json").read_text())),
            **_checkpoint(self.checkpoints()[-1]),
        }


class Retraining(Search):
    """The retraining of a search that is finished, in its folder, gone on with as a whole run."""

    name = "retraining"

    def __init__(self, place: Path, searched: Search):
        super().__init__(place)
        shutil.copytree(searched.run, self.run)
        self.run = self.run / "retrain"

    def words(self) -> list[str]:
        return ["run", "--resume", "runs/run"]

    def facts(self) -> dict:
        return {
            "network.pt": torch.load(self.run / "network.pt", weights_only=True),
            "genotype.json": (self.run / "genotype.json").read_bytes(),
            "result.json": _untimed(json.loads((self.run / "result.json").read_text())),
            **_checkpoint(self.checkpoints()[-1]),
        }


def _untimed(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in TIMES}


def _checkpoint(path: Path) -> dict:
    """What must be the same in a last checkpoint: α, weights, batch norms; optimizers, schedules, where it is."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    return {f"checkpoint's {name}": content[name] for name in names}


def differences(one, other, name: str = "") -> list[str]:
    """The names of what is not the same in both, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{name}/{key}" for key in one.keys() ^ other.keys()]
        both = (differences(one[key], other[key], f"{name}/{key}") for key in one if key in other)
        return missing + [found for each in both for found in each]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{name} ({len(one)} and {len(other)} long)"]
        both = (differences(*pair, f"{name}/{index}") for index, pair in enumerate(zip(one, other, strict=True)))
        return [found for each in both for found in each]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [name]
    return [] if repr(one) == repr(other) else [name]


def compare(search: Search, reference: dict) -> None:
    """Raise Lost, naming what differs, where a finished search is not bit for bit the reference."""
    if found := differences(reference, search.facts()):
        parts = sorted({"/".join(name.split("/")[1:4]) for name in found})
        raise Lost(f"differs in {len(found)} places: {', '.join(parts[:4])}" + (" …" if len(parts) > 4 else ""))
