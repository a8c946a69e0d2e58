"""Real experiments in NNI's manager, of trials that take seconds; started, waited for and ended without remains."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

IMAGES = '''
"""Few of scikit-learn's digits: 160 to train, 100 to test."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset


def digits(root):
    images, classes = load_digits(return_X_y=True)
    images = torch.tensor(images * 15.9, dtype=torch.uint8).reshape(-1, 1, 8, 8)
    classes = torch.tensor(classes)
    return TensorDataset(images[:160], classes[:160]), TensorDataset(images[160:260], classes[160:260]), 10
'''
RUN = {
    "device": "cpu",
    "threads": 1,
    "figure_epochs": 0,
    "data": {"name": "images:digits", "crop_padding": 0, "flip": False},
    "space": {"width": 2, "num_cells": 3},
    "search": {
        "epochs": 3, "batch_size": 40, "learning_rate": 0.05, "arc_learning_rate": 0.3, "threshold": 0.6,
        "gap_batches": 2,
    },
    "retrain": {
        "width": 2, "num_cells": 3, "epochs": 1, "batch_size": 80, "cutout": 0, "auxiliary_weight": 0,
        "drop_path_prob": 0,
    },
}  # fmt: skip
OVER = ("SUCCEEDED", "FAILED", "USER_CANCELED", "EARLY_STOPPED", "SYS_CANCELED")
PORTS = 18000, 20000  # below those that Linux gives to outgoing connections
CLAIMS = []  # of the ports that were given out: sockets, open while this process lives
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def choice(*values) -> dict:
    return {"_type": "choice", "_value": list(values)}


def write(folder: Path, space: dict, run: dict | None = None, **experiment) -> Path:
    """Write an experiment over ``space`` with its run configuration and images; returns its file."""
    (folder / "images.py").write_text(IMAGES)
    (folder / "run.yaml").write_text(yaml.safe_dump({**RUN, **(run or {})}))
    content = {
        "experimentWorkingDirectory": str(folder / "nni"),
        "trialCommand": "nni-fairdarts trial --config run.yaml",
        "trialCodeDirectory": ".",
        "trialConcurrency": 2,
        "searchSpace": space,
        "tuner": {"name": "GridSearch"},
        "trainingService": {"platform": "local"},
        **experiment,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
    return folder / "experiment.yaml"


def free_port() -> int:
    """A port that is free, as is the next one, which NNI's remote service wants as well.

    No other test gets them, not in another process either: what listens there may need seconds to start.
    """
    for port in range(*PORTS, 2):
        if claim := _claim(f"port {port}"):
            with socket.socket() as one, socket.socket() as next_one:
                try:
                    one.bind(("0.0.0.0", port))
                    next_one.bind(("0.0.0.0", port + 1))
                except OSError:  # of something that is no test's
                    claim.close()
                    continue
            CLAIMS.append(claim)
            return port
    raise AssertionError(f"no free port in {PORTS}")


@contextmanager
def one_tensorboard_starts():
    """NNI takes the first port from 6006 where nothing answers yet: of two that start at a time one would fail."""
    while not (claim := _claim("TensorBoard")):
        time.sleep(0.2)
    with claim:
        yield


def _claim(name: str) -> socket.socket | None:
    """What no other process of tests on this machine can have until it is closed, or this process ends."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0nni-fairdarts tests: {name}")  # in Linux' abstract namespace, which leaves no file behind
    except OSError:
        claim.close()
        return None
    return claim


def command(*words, environment: dict | None = None, **kwargs) -> subprocess.CompletedProcess:
    """What a command of this environment, and of what is given of ``environment``, prints and returns."""
    environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment, timeout=300, **kwargs
    )


class Running:
    """An experiment whose manager runs, asked through its REST interface."""

    def __init__(self, id: str, port: int, folder: Path):
        self.id, self.port, self.folder = id, port, folder
        self.url = f"http://127.0.0.1:{port}"

    def rest(self, path: str, method: str = "GET", content=None):
        import requests

        answer = requests.request(method, f"{self.url}/api/v1/nni/{path}", json=content, timeout=20)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trials(self) -> dict[str, dict]:
        """{trial's id: what NNI knows of it}, in the order of their numbers."""
        jobs = sorted(self.rest("trial-jobs"), key=lambda job: job["sequenceId"])
        return {job["trialJobId"]: job for job in jobs if "trialJobId" in job}

    def metrics(self, kind: str) -> dict[str, list]:
        """{trial's id: values of its reports of a kind, in their order}."""
        found = {}
        for metric in sorted(self.rest("metric-data"), key=lambda metric: metric["sequence"]):
            if metric["type"] == kind:
                found.setdefault(metric["trialJobId"], []).append(json.loads(json.loads(metric["data"])))
        return found

    def output(self, trial: str) -> Path:
        """The trial's NNI_OUTPUT_DIR."""
        return self.folder / self.id / "environments" / "local-env" / "trials" / trial

    def wait(self, condition, what: str, seconds: float = 600):
        """What ``condition`` returns, once that is true; it is asked twice a second."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{what}: not after {seconds} s; {self._statuses()}"
            time.sleep(0.5)
        return found

    def wait_for_end(self, trials: int) -> dict[str, dict]:
        """Wait until ``trials`` of them are at an end, however; returns them all."""

        def ended():
            jobs = self.trials()
            over = [job for job in jobs.values() if job["status"] in OVER]
            return jobs if len(over) >= trials else None

        return self.wait(ended, f"{trials} trials at an end")

    def _statuses(self):
        errors = {}
        for trial in self.trials():
            path = self.output(trial) / "trial.stderr"
            errors[trial] = path.read_text()[-500:] if path.is_file() else ""
        return {trial: (job["status"], errors[trial]) for trial, job in self.trials().items()}

    def processes(self) -> list[psutil.Process]:
        """The manager, its tuner, its trials and TensorBoards."""
        return processes(self.id)


def processes(experiment: str) -> list[psutil.Process]:
    """Every process that an experiment has started, whoever its parent is now."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if (
            experiment in words
            or environment.get("NNI_EXP_ID") == experiment
            or any(f"/{experiment}/" in word for word in words)
        ):
            found.append(process)
    return found


@contextmanager
def started(words: list, port: int, folder: Path):
    """An experiment that a command has started, ``Running``; all of its processes are gone afterwards."""
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    id = _id_at(port)
    try:
        yield Running(id, port, folder)
    finally:
        try:
            command("nnictl", "stop", id)
        finally:
            _, left = psutil.wait_procs(processes(id), timeout=10)
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=10)


def _id_at(port: int) -> str:
    return Running("", port, Path()).rest("experiment")["id"]
