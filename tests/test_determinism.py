"""One seed governs everything, in every process; what a run was started with and on is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.config import RunConfig
from nni_fairdarts.experiment import common, environment
from nni_fairdarts.spaces import DARTS, S2

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The same searches in two processes that hash otherwise: (digests, folder) of each, the second deterministic."""
    found = []
    for seed, mode in (("1", "any"), ("2", "deterministic")):
        folder = tmp_path_factory.mktemp(mode)
        # Two threads that wait for each other beside other work are to sleep meanwhile.
        variables = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-W", "ignore", HERE / "same_bits.py", folder, mode]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=folder, timeout=500)
        assert done.returncode == 0, done.stderr
        found.append((json.loads(done.stdout.splitlines()[-1]), folder))
    return found


def test_two_processes_agree_bit_for_bit(processes):
    """α, weights, optimizers, history and what is derived; with loading processes and two threads too.

    On a CPU nothing changes where CUDA devices are told to be deterministic.
    """
    (one, _), (other, _) = processes
    assert one.keys() == {"fairdarts", "darts", "gumbel_darts", "proxyless", "random"}
    assert len(set(one.values())) == len(one)
    assert one == other


# -- CUDA devices --------------------------------------------------------------------------------------------------

NOT_DETERMINISTIC = (
    "adaptive_avg_pool", "avg_pool3d_backward", "adaptive_max_pool", "fractional_max_pool", "max_pool3d_with_indices_b",
    "max_unpool", "upsample", "reflection_pad", "replication_pad", "nll_loss2d", "_ctc_loss", "embedding_bag", "put_",
    "histc", "bincount", "kthvalue", "median", "grid_sampler", "scatter", "index_add", "index_put", "index_reduce",
    "cumsum", "resize_", "_scaled_dot_product",
)  # fmt: skip
"""Beginnings of the operations that torch 2.15 names in ``torch.use_deterministic_algorithms``: those that raise on a
CUDA device, and those that are slower there because they would otherwise add up in any order."""


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen.add(operation._schema.name.removeprefix("aten::"))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (lambda: DARTS(2, 3, "cifar", num_classes=10, in_channels=3), 16),
        (lambda: DARTS(2, 3, "imagenet", num_classes=10, in_channels=3), 64),
        (lambda: S2(dataset="cifar", num_classes=10, depth=2, width=0.25), 16),
    ],
    ids=["cells", "imagenet's stem", "layers"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_takes_no_operation_that_could_not_be_repeated(space, size, fused):
    supernet = FairDARTS(fused=fused).mutate_model(space()).train()
    operations = Operations()
    with operations:
        cross_entropy(supernet(torch.randn(2, 3, size, size)), torch.tensor([0, 1])).backward()
    assert "convolution_backward" in operations.seen
    assert {name for name in operations.seen if name.startswith(NOT_DETERMINISTIC)} == set()


def test_deterministic_asks_torch_and_cublas_for_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    threads = torch.get_num_threads()
    try:
        common.prepare(RunConfig())
        assert not torch.are_deterministic_algorithms_enabled()
        common.prepare(RunConfig(deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.set_num_threads(threads)


# -- environment.json ----------------------------------------------------------------------------------------------


def test_a_run_records_what_it_was_started_with(processes):
    for (_, folder), deterministic in zip(processes, (False, True), strict=True):
        (start,) = json.loads((folder / "fairdarts" / "environment.json").read_text())["starts"]
        assert start["command"] == [str(HERE / "same_bits.py"), str(folder), folder.name.rstrip("0")]
        assert (start["seed"], start["threads"], start["deterministic"]) == (2, 2, deterministic)
        assert (start["device"], start["folder"], start["git"]) == ("cpu", str(folder), None)
        assert start["device_name"]
        assert start["versions"] == common.versions()
        assert start["python"] == ".".join(map(str, sys.version_info[:3]))


def test_each_time_that_it_is_gone_on_with_is_one_more(tmp_path):
    for seed in (1, 2):
        environment.record_environment(tmp_path, RunConfig(seed=seed))
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["seed"] for start in starts] == [1, 2]
    (tmp_path / "environment.json").write_text('{"starts": 3}')
    with pytest.raises(InputError, match="environment.json does not list a run's starts: it is damaged; move it away"):
        environment.record_environment(tmp_path, RunConfig())


def test_the_commit_and_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment.git_state() is None

    def git(*words):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert environment.git_state() is None  # without a commit
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-m", "m")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new.txt").write_text("1")
    assert environment.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.txt").write_text("2")
    assert environment.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state() is None  # without git
