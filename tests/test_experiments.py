"""What the tests share with those of other processes: two workers, and whoever else tests on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
from experiments import free_port, one_tensorboard_starts

TAKE = "from experiments import *; print(*(free_port() for _ in range(20)), flush=True); input()"
START = "from experiments import *; print('asks', flush=True)\nwith one_tensorboard_starts(): print('may')"


def started(script: str) -> subprocess.Popen:
    command = [sys.executable, "-c", script]
    return subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_no_port_is_given_out_twice_while_its_process_lives():
    others = [started(TAKE) for _ in range(2)]
    try:
        own = [free_port() for _ in range(20)]
        taken = [[int(port) for port in other.stdout.readline().split()] for other in others]
    finally:
        for other in others:
            other.communicate("\n", timeout=60)
    pairs = [{port, port + 1} for ports in (own, *taken) for port in ports]
    assert len(pairs) == 60
    assert len(set().union(*pairs)) == 120


def test_one_tensorboard_starts_at_a_time():
    with one_tensorboard_starts():
        other = started(START)
        assert other.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.communicate(timeout=1)
    assert other.communicate(timeout=60)[0] == "may\n"
