"""NNI's remote training service: a real manager, and a real sshd on 127.0.0.1 as the other machine."""

import importlib.metadata
import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from experiments import IMAGES, RUN, free_port
from nni.experiment import Experiment
from remote_host import FAR_END, SSHD, RemoteHost, remote_host, tunnel

from nni_fairdarts.errors import InputError
from nni_fairdarts.manager import checks, launching

EXAMPLE = Path(__file__).parents[1] / "examples" / "nni" / "remote.yaml"
LOGS = {"trial.log": "trial.log", "stdout": "trial.stdout", "stderr": "trial.stderr"}  # names in REST, names of files
SECONDS = 400  # for an experiment; it takes about ten on an idle machine

STRATEGIES = ["fairdarts", "darts"]  # one trial each, in this order

# The trial and the code folder that goes to the other machine with it.
TRIAL = "nni-fairdarts trial --config run.yaml"
CODE = {"images.py": IMAGES, "run.yaml": yaml.safe_dump(RUN)}
PLAIN = """python -c 'import nni; nni.get_next_parameter(); nni.report_final_result({"default": 1.0})'"""
COMMAND = f'echo "home $HOME, code $PWD"; echo "a word on stderr" >&2; {TRIAL}'


@dataclass(frozen=True)
class Outcome:
    """What was seen of an experiment while its manager ran, and just after."""

    id: str
    status: str
    trials: list  # NNI's TrialJob
    metrics: dict[str, list]  # NNI's TrialMetricData of each trial
    logs: dict[tuple[str, str], str]  # by trial and name
    listening: set[str]  # addresses of the manager
    keeper_listening: set[str]  # addresses of the trial keeper, NNI's process on the other machine
    called: str  # where it looks for the manager
    left: list[psutil.Process]  # on the other machine, after the manager was stopped


@pytest.fixture(scope="module")
def machine():
    if SSHD is None:
        reason = "sshd is needed; on Debian run: apt-get install openssh-server"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with remote_host(free_port()) as machine:
        yield machine


@pytest.fixture(scope="module")
def installed():
    return versions()


@pytest.fixture(scope="module")
def outcome(machine, installed, tmp_path_factory):
    """Two trials; the manager listens on 127.0.0.1 alone, and the other machine comes to it through a tunnel."""
    port = free_port()
    with tunnel(machine, port) as address:
        return experiment(machine, tmp_path_factory.mktemp("remote"), port, address, STRATEGIES)


@pytest.fixture(scope="module")
def open_outcome(machine, tmp_path_factory):
    """One trial, a stand-in; the manager listens on every address and is called without a tunnel."""
    folder = tmp_path_factory.mktemp("open")
    with pytest.warns(UserWarning, match="will listen on 0.0.0.0 without a password: whoever reaches it can run code"):
        return experiment(machine, folder, free_port(), machine.host, ["darts"], PLAIN, host="0.0.0.0")


def experiment(machine, folder, port, manager_ip, strategies, trial=COMMAND, **options) -> Outcome:
    """Launch an experiment on ``machine``, wait until it is done, look at it, and stop it."""
    config = configuration(folder, machine, manager_ip, strategies, trial)
    with launched(config, port, **options) as running:
        status = done(running, folder)
        trials = sorted(running.list_trial_jobs(), key=lambda one: one.sequenceId)
        seen = {
            "status": status,
            "trials": trials,
            "metrics": running.get_job_metrics(),
            "logs": {(one.trialJobId, name): log(port, one.trialJobId, name) for one in trials for name in LOGS},
            "listening": listening(running._proc),
            "keeper_listening": keeper_listening(machine, running.id),
            "called": keeper_config(machine, running.id)["managerCommandChannel"],
        }
    return Outcome(id=running.id, left=left(machine), **seen)


def configuration(folder, machine, manager_ip, strategies, trial) -> Path:
    code = folder / "code"
    code.mkdir()
    for name, text in CODE.items():
        (code / name).write_text(text)
    content = {
        "searchSpace": {
            "strategy": {"_type": "choice", "_value": strategies},
            "seed": {"_type": "choice", "_value": [2]},
        },
        "trialCommand": trial,
        "trialCodeDirectory": "code",
        "trialConcurrency": 1,
        "maxTrialNumber": len(strategies),
        "experimentWorkingDirectory": "experiments",
        "tuner": {"name": "GridSearch"},
        "nniManagerIp": manager_ip,
        "trainingService": {"platform": "remote", "machineList": [machine.machine()]},
    }
    (folder / "remote.yaml").write_text(yaml.safe_dump(content))
    return folder / "remote.yaml"


@contextmanager
def launched(config, port, **options):
    """The experiment while its manager runs, in an environment that is put back in the end."""
    environment = dict(os.environ)
    try:
        launching.launch(config, port, **options)
        running = Experiment.connect(port)
        try:
            yield running
        finally:
            running.stop()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def done(running, folder) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and is_alive(running._proc):
        with suppress(requests.RequestException):  # busy, or gone: the process tells
            if (status := running.get_status()) in ("DONE", "ERROR", "STOPPED"):
                return status
        time.sleep(0.2)
    said = (folder / "experiments" / running.id / "log" / "nnimanager.log").read_text()
    pytest.fail(f"the experiment was not done after {SECONDS} seconds, or its manager died: {said[-2000:]}")


def is_alive(process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def log(port, trial, name) -> str:
    return requests.get(f"http://127.0.0.1:{port}/api/v1/nni/trial-file/{trial}/{name}", timeout=30).text


def listening(process) -> set[str]:
    return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}


def environment_folder(machine: RemoteHost, id: str) -> Path:
    return machine.home / "nni-experiments" / id / "environments" / "remote-worker1"


def trial_folder(machine, outcome, trial) -> Path:
    return environment_folder(machine, outcome.id) / "trials" / trial.trialJobId


def keeper_config(machine, id) -> dict:
    return json.loads((environment_folder(machine, id) / "trial_keeper" / "trial_keeper_config.json").read_text())


def keeper_listening(machine, id) -> set[str]:
    pid = int((environment_folder(machine, id) / "trial_keeper" / "trial_keeper.pid").read_text())
    return listening(psutil.Process(pid))


def left(machine, seconds=15) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (processes := machine.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes


def versions() -> dict[str, str]:
    return {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}


# -- an experiment -------------------------------------------------------------------------------------------------


def test_trials_succeed_and_their_results_arrive(machine, outcome):
    assert outcome.status == "DONE"
    assert [trial.status for trial in outcome.trials] == ["SUCCEEDED"] * 2
    for trial, strategy in zip(outcome.trials, STRATEGIES, strict=True):
        records = outcome.metrics[trial.trialJobId]
        [final] = [record for record in records if record.type == "FINAL"]
        assert final.data == json.loads((trial_folder(machine, outcome, trial) / "result.json").read_text())
        assert final.data["strategy"] == strategy
        assert json.loads(final.data["hyperparameters"]) == trial.hyperParameters[0].parameters
        assert final.parameterId == str(trial.hyperParameters[0].parameter_id)
        epochs = [record.data for record in records if record.type == "PERIODICAL"]
        assert len(epochs) > 1
        assert {tuple(epoch) for epoch in epochs} == {tuple(epochs[0])}
        assert next(iter(epochs[0])) == "default"


def test_the_code_is_uploaded_and_runs_on_the_other_machine(machine, outcome):
    code = environment_folder(machine, outcome.id) / "upload" / "trial_code"
    assert {path.name: path.read_text() for path in code.iterdir() if path.is_file()} == CODE
    assert machine.home != Path.home()
    for trial in outcome.trials:
        assert f"home {machine.home}, code {code}" in outcome.logs[trial.trialJobId, "stdout"]


def test_logs_can_be_fetched(machine, outcome):
    for trial in outcome.trials:
        for name, file in LOGS.items():
            fetched = outcome.logs[trial.trialJobId, name]
            text = (trial_folder(machine, outcome, trial) / file).read_text()
            assert fetched == (text or f"{file} is empty.")
        assert "epoch 3/3" in outcome.logs[trial.trialJobId, "trial.log"] + outcome.logs[trial.trialJobId, "stdout"]
        assert "a word on stderr" in outcome.logs[trial.trialJobId, "stderr"]


def test_a_manager_on_loopback_is_reached_through_a_tunnel(outcome):
    assert outcome.listening == {"127.0.0.1"}
    assert outcome.called.startswith(f"ws://{FAR_END}:")


def test_another_address_is_an_explicit_flag(machine, open_outcome):
    assert open_outcome.status == "DONE"
    assert [trial.status for trial in open_outcome.trials] == ["SUCCEEDED"]
    assert open_outcome.listening == {"0.0.0.0"}
    assert open_outcome.called.startswith(f"ws://{machine.host}:")


def test_the_trial_keeper_listens_on_loopback_alone(outcome, open_outcome):
    """What comes in there as a metric is decoded by the tuner, beside the manager, and can run code."""
    assert outcome.keeper_listening == open_outcome.keeper_listening == {"127.0.0.1"}


def test_nothing_is_left_on_the_other_machine(outcome):
    assert outcome.left == []


def test_nothing_is_installed(installed, outcome):
    """NNI runs pip install nni --upgrade on the other machine, which here shares our packages."""
    assert versions() == installed


# -- the other machine itself --------------------------------------------------------------------------------------


def test_everything_ends_with_the_machine_also_when_a_test_fails(machine):
    def fail():
        with remote_host(free_port()) as other:
            daemon = "nohup setsid sleep 1000 > /dev/null 2>&1 &"  # outlives its session, as NNI's trial keeper does
            subprocess.run([*other.ssh(), daemon], check=True, timeout=30)
            seen.extend([other, *other.processes()])
            raise AssertionError("a test failed")

    seen = []
    with pytest.raises(AssertionError, match="a test failed"):
        fail()
    other, process = seen
    assert not process.is_running()
    assert not other.home.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other.host, other.port), timeout=5)


def test_an_sshd_that_does_not_start_says_why(machine):
    with pytest.raises(RuntimeError, match="did not get ready: Bind to port .* failed"), remote_host(machine.port):
        pass


# -- the example ---------------------------------------------------------------------------------------------------


def test_the_example_wants_its_placeholders_filled_in():
    with pytest.raises(InputError, match=r"must either provide password or a valid SSH key file"):
        checks.configuration(EXAMPLE)


def test_the_example_is_complete(machine, tmp_path):
    content = yaml.safe_load(EXAMPLE.read_text())
    assert len(content["trainingService"]["machineList"]) == content["trialConcurrency"] == 2
    content["trainingService"]["machineList"] = [machine.machine()] * 2
    path = tmp_path / "nni" / "remote.yaml"  # the code folder is relative to the file
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    config = checks.configuration(path)
    checks.search_space(config)
    checks.reachable(config, "127.0.0.1")
    [service] = checks.services(config)
    assert service.trial_code_directory == str(tmp_path)
    *command, trial_config = service.trial_command.split()
    assert command == ["nni-fairdarts", "trial", "--config"]
    assert (EXAMPLE.parent / content["trialCodeDirectory"] / trial_config).exists()
