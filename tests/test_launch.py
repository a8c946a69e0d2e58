"""The launcher with NNI's real manager: where it listens, what it repairs, what it refuses, and that all of it ends."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from experiments import free_port, one_tensorboard_starts
from remote_host import SSHD, remote_host

from nni_fairdarts.errors import InputError, ManagerError
from nni_fairdarts.manager import checks, environment, launching

TRIAL = """
import json, os, time
from pathlib import Path

folder = Path(os.environ["NNI_OUTPUT_DIR"])
start = time.time()

def wait_until(true):
    while not true():
        time.sleep(0.05)

import nni
if os.environ["NNI_TRIAL_SEQ_ID"] == os.environ.get("LATE"):  # asks for its parameters after another one did
    wait_until(lambda: list(folder.parent.glob("*/seen.json")))
parameters = nni.get_next_parameter()
seen = {"parameters": parameters, "start": start, "environment": dict(os.environ)}
(folder / "seen.json").write_text(json.dumps(seen))
if os.environ["NNI_TRIAL_SEQ_ID"] in os.environ.get("HELD", "").split(","):
    wait_until(Path(os.environ["GO"], os.environ["NNI_TRIAL_SEQ_ID"]).exists)
(folder / "seen.json").write_text(json.dumps(seen | {"end": time.time()}))
nni.report_final_result({"default": parameters["seed"], "environment": "long"})
"""

# Stands in for NVIDIA's library (pynvml), through which NNI counts devices and sees who uses them: the machines that
# run these tests have no CUDA device, or few. What the manager does with the counts is real: which trial gets which
# CUDA_VISIBLE_DEVICES, and when it starts.
PYNVML = """
import os
from types import SimpleNamespace as Record

def nvmlInit():
    if "DEVICES" not in os.environ:
        raise OSError("NVML Shared Library Not Found")
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return int(os.environ["DEVICES"])
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(device): return Record(gpu=0, memory=0)
def nvmlDeviceGetComputeRunningProcesses_v3(device):
    return [Record(pid=1, usedGpuMemory=0)] if str(device) in os.environ.get("BUSY", "").split(",") else []
def nvmlDeviceGetGraphicsRunningProcesses_v3(device): return []
def nvmlSystemGetProcessName(pid): raise OSError("Not Found")  # as in a container
"""


class Launcher:
    """Launches experiments in a folder, and ends at its end whatever of them still runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.experiments = folder / "experiments"
        (folder / "trial.py").write_text(TRIAL)
        (folder / "pynvml.py").write_text(PYNVML)

    def config(self, name: str = "config", service: dict | None = None, **changes) -> Path:
        content = {
            "searchSpace": {"seed": {"_type": "choice", "_value": [1, 2]}},
            "trialCommand": "python trial.py",
            "trialConcurrency": 2,
            "experimentWorkingDirectory": "experiments",
            "tuner": {"name": "GridSearch"},
            "trainingService": {"platform": "local", **(service or {})},
            **changes,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    def launch(self, config: Path, **options) -> "Experiment":
        port = free_port()
        return Experiment(launching.launch(config, port, **options), port, self.experiments)

    def close(self) -> None:
        """Known are managers by their command, trials by their environment."""
        for process in psutil.process_iter(["cmdline", "environ"]):
            output = (process.info["environ"] or {}).get("NNI_OUTPUT_DIR", "")
            if str(self.experiments) in (process.info["cmdline"] or []) or output.startswith(str(self.experiments)):
                launching._kill([process, *process.children(recursive=True)])


class Experiment:
    """A launched experiment, as its REST interface, its processes and its trials' files show it."""

    def __init__(self, id: str, port: int, experiments: Path):
        self.id, self.port, self.folder = id, port, experiments / id

    def call(self, method: str, path: str, **options):
        answer = requests.request(method, f"http://127.0.0.1:{self.port}/api/v1/nni{path}", timeout=10, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trials(self) -> list[dict]:
        return self.call("GET", "/trial-jobs")

    def wait_for(self, *statuses: str, seconds: float = 300) -> list[dict]:
        """Until the trials' statuses, sorted, are these."""
        deadline = time.monotonic() + seconds
        while (found := sorted(trial["status"] for trial in self.trials())) != sorted(statuses):
            assert time.monotonic() < deadline, f"{found} instead of {statuses}: {self.log()}"
            time.sleep(0.2)
        return self.trials()

    def seen(self) -> dict[str, dict]:
        """By trial's id, what each saw."""
        found = self.folder.glob("environments/local-env/trials/*/seen.json")
        return {path.parent.name: json.loads(path.read_text()) for path in found}

    def processes(self) -> list[psutil.Process]:
        return [one for one in launching._processes(self.id) if one.status() != psutil.STATUS_ZOMBIE]

    def listening(self) -> set[tuple[str, int]]:
        pids = {process.pid for process in self.processes()}
        found = [one for one in psutil.net_connections("inet") if one.pid in pids]
        return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}

    def stop(self) -> None:
        """As a user does; nothing may be left, not even of a trial with a shell of its own."""
        running = self.processes()
        nnictl = Path(sys.executable).with_name("nnictl")
        subprocess.run([nnictl, "stop", self.id], check=True, capture_output=True, timeout=120)
        psutil.wait_procs(running, timeout=10)
        assert [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        assert self.processes() == []

    def log(self) -> str:
        return (self.folder / "log" / "nnimanager.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    before = dict(os.environ)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    launcher = Launcher(tmp_path_factory.mktemp("launch"))
    try:
        yield launcher
    finally:
        launcher.close()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def experiment(launcher):
    """Four trials, two at a time, the first of which asks for its parameters last; the manager goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODE_OPTIONS", "--stack-trace-limit=20")
        patch.setenv("LATE", "0")
        space = {"seed": {"_type": "choice", "_value": [1, 2, 3, 4]}}
        experiment = launcher.launch(launcher.config(searchSpace=space))
        patch.undo()
        experiment.wait_for(*["SUCCEEDED"] * 4)
        return experiment


def answers(host: str, port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(5)
        return one.connect_ex((host, port)) == 0


# -- where the manager listens ---------------------------------------------------------------------------------------


def test_only_this_machine_reaches_the_manager(experiment):
    assert answers("127.0.0.1", experiment.port)
    assert not answers("127.0.0.2", experiment.port)
    assert experiment.listening() == {("127.0.0.1", experiment.port)}


def test_the_machines_own_address_refuses(experiment):
    found = [one.address for every in psutil.net_if_addrs().values() for one in every if one.family == socket.AF_INET]
    outside = [address for address in found if not address.startswith("127.")]
    if not outside:
        pytest.skip("this machine has no other address")
    assert not answers(outside[0], experiment.port)


def test_tensorboard_listens_there_too_and_finds_what_trials_write(experiment):
    trial = experiment.trials()[0]
    try:
        with one_tensorboard_starts():
            started = experiment.call("POST", "/tensorboard", json={"trials": trial["trialJobId"]})
            deadline = time.monotonic() + 60
            while len(experiment.listening()) < 2:
                assert time.monotonic() < deadline, experiment.log()
                time.sleep(0.2)
        assert experiment.listening() == {("127.0.0.1", experiment.port), ("127.0.0.1", int(started["port"]))}
        assert started["trialLogDirectoryList"] == [f"{trial['logPath']}/tensorboard"]
        commands = [one.cmdline() for one in experiment.processes() if one.name() == "tensorboard"]
        assert [command[1] for command in commands] == [str(Path(sys.executable).with_name("tensorboard"))]
    finally:
        experiment.call("DELETE", "/tensorboard-tasks")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, True),
        ({"Host": "localhost:9999"}, True),  # through a tunnel
        ({"Origin": "https://example.org"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Origin": "null"}, False),
        ({"Origin": "http://example.org:{port}", "Host": "example.org:{port}"}, False),
    ],
)
def test_pages_of_other_sites_are_refused(experiment, headers, allowed):
    headers = {name: value.format(port=experiment.port) for name, value in headers.items()}
    url = f"http://127.0.0.1:{experiment.port}/api/v1/nni/check-status"
    assert requests.get(url, headers=headers, timeout=10).status_code == (200 if allowed else 403)


def test_the_tuners_channel_is_closed_to_pages_of_other_sites(experiment):
    lines = ["GET /tuner HTTP/1.1", f"Host: 127.0.0.1:{experiment.port}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==", "Origin: https://example.org"]
    with socket.create_connection(("127.0.0.1", experiment.port), timeout=10) as page:
        page.sendall("\r\n".join([*lines, "", ""]).encode())
        assert page.recv(100) == b""


# -- what it repairs and keeps ---------------------------------------------------------------------------------------


def test_records_show_the_parameters_that_each_trial_received(experiment):
    noted = {
        trial["trialJobId"]: json.loads(trial["hyperParameters"][0])["parameters"] for trial in experiment.trials()
    }
    assert noted == {trial: seen["parameters"] for trial, seen in experiment.seen().items()}
    exported = experiment.call("GET", "/export-data")
    assert {trial["trialJobId"]: trial["parameter"] for trial in exported} == noted
    assert sorted(parameters["seed"] for parameters in noted.values()) == [1, 2, 3, 4]


def test_trials_run_in_this_environment_and_keep_the_users_options(experiment):
    for seen in experiment.seen().values():
        assert seen["environment"]["NODE_OPTIONS"].startswith("--stack-trace-limit=20 --require ")
        assert seen["environment"]["PATH"].startswith(f"{Path(sys.executable).parent}:")


def test_guarding_twice_is_guarding_once(monkeypatch):
    for name in ("NODE_OPTIONS", "PATH", "NNI_FAIRDARTS_HOST", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("NODE_OPTIONS", "--trace-warnings")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    environment.guard()
    once = dict(os.environ)
    environment.guard()
    assert dict(os.environ) == once
    assert once["NODE_OPTIONS"] == f'--trace-warnings --require "{environment.PRELOAD}"'
    assert once["no_proxy"] == "example.org,localhost,127.0.0.1"


def node(script: str, **variables: str) -> str:
    """What NNI's Node prints for ``script``."""
    import nni_node

    command = [Path(nni_node.__path__[0], "node"), "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_other_node_processes_are_left_alone(monkeypatch, tmp_path):
    preload = tmp_path / 'with a " and \\ in it' / "preload.js"
    preload.parent.mkdir()
    preload.write_text(environment.PRELOAD.read_text() + "\nconsole.log('loaded');\n")
    monkeypatch.setattr(environment, "PRELOAD", preload)
    options = environment._with_preload("")
    listen = "const s = require('net').createServer().listen(0, () => { console.log(s.address().address); s.close(); })"
    loaded, host = node(listen, NODE_OPTIONS=options, NNI_FAIRDARTS_HOST="127.0.0.1").splitlines()
    assert loaded == "loaded"
    assert host in ("::", "0.0.0.0")


SCHEDULER = """
const folder = %s;
process.argv[1] = folder + '/main.js';
require(%s);
require('module').globalPaths.push(folder);
require(folder + '/node_modules/app-module-path').addPath(folder);
const { resetGlobals } = require(folder + '/common/globals/unittest');
resetGlobals();
const { TaskScheduler, UnitTestHelpers } = require(folder + '/common/trial_keeper/task_scheduler/scheduler');
const gpus = count => Array.from({ length: count }, (_, index) => ({ index }));
const info = (count, ...active) =>
    ({ gpuNumber: count, gpus: gpus(count), processes: active.map(gpuIndex => ({ gpuIndex, type: 'compute' })) });
async function run(cases) {
    for (const [before, after, share, restrictions, trials] of cases) {
        UnitTestHelpers.mockGpuInfo(before);
        const scheduler = new TaskScheduler();
        await scheduler.init();
        const got = [];
        for (let i = 0; i < trials; i++) {
            const environment = await scheduler.schedule('experiment', `trial${i}`, share, restrictions);
            got.push(environment && environment.CUDA_VISIBLE_DEVICES);
            UnitTestHelpers.mockGpuInfo(after);
        }
        console.log(JSON.stringify(got));
    }
    process.exit(0);
}
"""


def test_devices_are_handed_out_one_to_a_trial_or_shared():
    """NNI's scheduler by itself, with NNI's own stand-in for what its collector says: the rules one by one."""
    import nni_node

    setup = SCHEDULER % (json.dumps(nni_node.__path__[0]), json.dumps(str(environment.PRELOAD)))
    others = "{ rejectActive: true }"
    cases = [
        (f"[info(1), info(1, 0), 1, {others}, 2]", ["0", None]),  # one of one
        (f"[info(2), info(2, 0), 1, {others}, 3]", ["0", "1", None]),
        (f"[info(2), info(2), 2, {others}, 2]", ["0,1", None]),  # two of two
        (f"[info(1), info(1, 0), 0.5, {others}, 3]", ["0", "0", None]),  # the activity is our own trial's
        (f"[info(2), info(2, 0, 1), 1, {others}, 2]", ["0", None]),  # somebody else came
        (f"[info(2, 0), info(2, 0), 1, {others}, 2]", ["1", None]),
        ("[info(2, 0), info(2, 0), 1, { rejectActive: false }, 2]", ["1", "0"]),
        ("[info(3), info(3), 1, { onlyUseIndices: [2] }, 2]", ["2", None]),
        ("[info(1, 0), info(1, 0), 0.5, { rejectActive: true }, 1]", [None]),  # none left: NNI reads gpus[0].util
    ]
    script = f"{setup} run([{', '.join(case for case, _ in cases)}]);"
    assert [json.loads(line) for line in node(script).splitlines()] == [expected for _, expected in cases]


# -- CUDA devices ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(launcher, monkeypatch):
    """cuda(count, busy="1"): a machine with so many CUDA devices, as far as NNI can see; see PYNVML."""
    monkeypatch.setenv("PYTHONPATH", str(launcher.folder))
    monkeypatch.delenv("DEVICES", raising=False)

    def devices(count: int, busy: str = "") -> None:
        monkeypatch.setenv("DEVICES", str(count))
        monkeypatch.setenv("BUSY", busy)

    return devices


def test_one_trial_at_a_time_on_each_device_while_the_others_wait(launcher, cuda, monkeypatch, tmp_path):
    cuda(3, busy="1")
    monkeypatch.setenv("HELD", "0,1,4")
    monkeypatch.setenv("GO", str(tmp_path))
    space = {"seed": {"_type": "choice", "_value": [1, 2, 3, 4, 5]}}
    service = {"trialGpuNumber": 1, "useActiveGpu": False}
    command = "python trial.py | cat"  # a shell stays between the manager and the trial
    experiment = launcher.launch(
        launcher.config("three", service, trialConcurrency=5, searchSpace=space, trialCommand=command)
    )
    # The manager shows who waits, and goes on meanwhile.
    trials = experiment.wait_for("RUNNING", "RUNNING", "WAITING", "WAITING", "WAITING")
    [canceled] = [trial["trialJobId"] for trial in trials if trial["sequenceId"] == 2]
    experiment.call("DELETE", f"/trial-jobs/{canceled}")
    experiment.wait_for("RUNNING", "RUNNING", "USER_CANCELED", "WAITING", "WAITING")
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    experiment.wait_for("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "USER_CANCELED", "RUNNING")
    seen = experiment.seen()
    assert canceled not in seen
    spans = {}
    for one in seen.values():
        spans.setdefault(one["environment"]["CUDA_VISIBLE_DEVICES"], []).append((one["start"], one.get("end")))
    assert spans.keys() == {"0", "2"}
    for spans_of_device in map(sorted, spans.values()):
        for (_, end), (start, _) in itertools.pairwise(spans_of_device):
            assert end < start
    experiment.stop()


@pytest.mark.skipif(SSHD is None, reason="sshd is needed; on Debian run: apt-get install openssh-server")
def test_the_trial_keeper_on_another_machine_is_repaired_too(launcher):
    (launcher.folder / "code").mkdir()
    (launcher.folder / "code" / "trial.py").write_text(TRIAL)
    with remote_host(free_port()) as machine:
        (machine.home / "pynvml.py").write_text(PYNVML)
        # which the shell of an ssh session reads
        (machine.home / ".bashrc").write_text(f"export PYTHONPATH={machine.home} DEVICES=1 HELD=0 GO={machine.home}")
        service = {"platform": "remote", "machineList": [machine.machine()], "trialGpuNumber": 1}
        settings = {"trialCodeDirectory": "code", "nniManagerIp": "127.0.0.1", "maxTrialNumber": 1}
        experiment = launcher.launch(launcher.config("far", service, **settings))
        experiment.wait_for("RUNNING")  # on one device of one
        pids = {process.pid for process in machine.processes()}
        found = [one for one in psutil.net_connections("inet") if one.pid in pids and one.status == psutil.CONN_LISTEN]
        assert {one.laddr.ip for one in found} == {"127.0.0.1"}
        (machine.home / "0").touch()
        experiment.wait_for("SUCCEEDED")
        [seen] = machine.home.glob("nni-experiments/*/environments/*/trials/*/seen.json")
        assert json.loads(seen.read_text())["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
        experiment.stop()


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (None, {}, "trialGpuNumber is 1, but there is no CUDA device here .*NVML Shared Library Not Found"),
        (0, {}, "trialGpuNumber is 1, but there is no CUDA device here .*leave it out, or set it to 0"),
        (2, {"gpuIndices": "1,2"}, r"gpuIndices must name some .* here, \[0, 1\], got \[1, 2\]"),
        (2, {"gpuIndices": []}, r"gpuIndices must name some .* here, \[0, 1\], got \[\]"),
        (2, {"trialGpuNumber": 3}, r"trialGpuNumber is 3, but a trial can get 2 CUDA device\(s\) at most: \[0, 1\]"),
        (3, {"trialGpuNumber": 2, "gpuIndices": 2}, r"a trial can get 1 CUDA device\(s\) at most: \[2\]"),
        (2, {"trialGpuNumber": 2, "maxTrialNumberPerGpu": 2}, "the quotient of the two; set one of them to 1"),
        (1, {"useActiveGpu": None}, "trialGpuNumber needs trainingService.useActiveGpu: false gives trials only"),
    ],
)
def test_devices_that_trials_would_wait_for_in_vain(launcher, cuda, count, settings, message):
    if count is not None:
        cuda(count)
    with pytest.raises(InputError, match=message):
        launcher.launch(launcher.config(service={"trialGpuNumber": 1, "useActiveGpu": False, **settings}))


def test_warnings_about_devices(launcher, cuda, monkeypatch):
    cuda(2, busy="0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    config = checks.configuration(launcher.config(service={"trialGpuNumber": 1, "useActiveGpu": False}))
    with (
        pytest.warns(UserWarning, match="not only CUDA_VISIBLE_DEVICES=1; set trainingService.gpuIndices"),
        pytest.warns(UserWarning, match=r"every CUDA device for trials, \[0, 1\], is in use"),
    ):
        checks.devices(config)


# -- stopping, resuming, viewing -------------------------------------------------------------------------------------


def test_ctrl_c_ends_everything_and_the_experiment_can_be_resumed(launcher, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("HELD", "0,1")
    monkeypatch.setenv("GO", str(tmp_path))
    config = launcher.config("held", trialCommand="python trial.py | cat", maxTrialNumber=2)
    port = free_port()
    script = f"from nni_fairdarts.manager.launching import launch; launch({str(config)!r}, {port}, wait=True)"
    waiting = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background has none
    )
    try:
        id = waiting.stdout.readline().split()[1]
        experiment = Experiment(id, port, launcher.experiments)
        assert waiting.stdout.readline() == f"web UI      http://127.0.0.1:{port}\n"
        experiment.wait_for("RUNNING", "RUNNING")
        running = experiment.processes()
        deadline = time.monotonic() + 60
        while len(experiment.seen()) < 2:
            assert time.monotonic() < deadline, experiment.log()
            time.sleep(0.1)
        waiting.send_signal(signal.SIGINT)
        said = waiting.communicate(timeout=60)[0]
    finally:
        waiting.kill()
        waiting.wait()
    assert f"stopped; go on with: nni-fairdarts launch --resume {id}" in said
    assert waiting.returncode == -signal.SIGINT
    assert len(running) >= 7  # the manager, the tuner and its shell, two trials with their shells
    assert [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []

    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    capfd.readouterr()
    assert launching.resume(id, port, wait=True) == id
    said = capfd.readouterr()
    assert "done: 2 succeeded" in said.out
    assert "trials: " in said.err
    assert "Web portal" not in said.out
    assert experiment.processes() == []
    assert {trial["parameters"]["seed"] for trial in experiment.seen().values()} == {1, 2}


def test_stop_then_view_on_every_address(experiment, launcher, capsys):
    with pytest.raises(InputError, match=rf"experiment {experiment.id} still runs \(process \d+\); nnictl stop"):
        launching.resume(experiment.id)
    experiment.stop()
    with pytest.warns(UserWarning, match="will listen on 0.0.0.0 without a password: whoever reaches it can run code"):
        assert launching.view(experiment.id, experiment.port, host="0.0.0.0") == experiment.id
    assert f"http://127.0.0.1:{experiment.port}\n" in capsys.readouterr().out
    assert answers("127.0.0.2", experiment.port)
    assert experiment.listening() == {("0.0.0.0", experiment.port)}
    assert experiment.call("GET", "/check-status")["status"] == "VIEWED"
    assert len(experiment.trials()) == 4
    experiment.stop()


def test_an_address_that_is_not_the_loopback_still_serves_nnis_own_parts(experiment):
    """127.0.0.3 stands for the machine's address in a network: another one than the one that NNI's parts call."""
    launching.view(experiment.id, experiment.port, host="127.0.0.3")
    assert experiment.listening() == {("127.0.0.3", experiment.port), ("127.0.0.1", experiment.port)}
    assert answers("127.0.0.3", experiment.port)
    assert experiment.call("GET", "/check-status")["status"] == "VIEWED"
    experiment.stop()


@pytest.mark.parametrize("action", [launching.resume, launching.view])
def test_unknown_experiments(action):
    with pytest.raises(InputError, match="there is no experiment 'nosuch'"):
        action("nosuch")


# -- refused before anything starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "https://example.org/a",
            r"searchSpace.data._value\[1\] is 'https://example.org/a', but NNI 3.0 hangs .* with //",
        ),
        ("run#3", r"searchSpace.data._value\[1\] is 'run#3', but NNI 3.0 hangs on parameters with #"),
        ({"_name": "a//b"}, r"searchSpace.data._value\[1\]._name is 'a//b'"),
        ({"#b": 1}, r"a name in searchSpace.data._value\[1\] is '#b'"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_nni_takes_for_a_comment(launcher, value, message, as_file):
    space = {"data": {"_type": "choice", "_value": ["plain", value]}}
    (launcher.folder / "space.json").write_text(json.dumps(space))
    given = {"searchSpace": None, "searchSpaceFile": "space.json"} if as_file else {"searchSpace": space}
    with pytest.raises(InputError, match=message + ".*configuration file of the trials"):
        launcher.launch(launcher.config(**given))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*config.yaml: No such file"),
        ("a: [1", r"config.yaml is not YAML: .*line 1"),
        ("- 1", "must hold names and values .*, got list"),
        ("", "must hold names and values .*, got nothing"),
        ("trialConcurency: 2", "unknown name trialConcurency; did you mean trialConcurrency?"),
        ("xyz: 2", "unknown name xyz; known: experimentName, experimentType"),
        ("tuner: {name: TPE, args: {}}", "unknown name tuner.args; .*classArgs"),
        (
            "trainingService: {platform: local, useActiveGPUs: no}",
            "unknown name trainingService.useActiveGPUs; did you",
        ),
        ("trainingService: {platform: loacl}", "platform must be a training service of NNI, .*, got 'loacl'"),
        ("trainingService: {useActiveGpu: no}", "platform must be a training service of NNI, .*, got None"),
        (
            "trainingService: {platform: remote, machineList: [{host: a, usr: b}]}",
            "unknown name trainingService.machineList: usr; did you mean user?",
        ),
        ("trainingServicePlatform: local", "has the format of NNI 1"),
        ("useAnnotation: true", "useAnnotation is not supported since NNI 3.0; write a searchSpace"),
        ("experimentType: nas", "experimentType must be hpo .*, got 'nas'"),
        ("experimentName: a", r"trainingService must hold names and values \(platform: local\), got None"),
        (
            "trainingService: {platform: local}",
            "not a configuration of an NNI experiment: ExperimentConfig: .* not set",
        ),
    ],
)
def test_configuration_files(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        launching.launch(path)


def test_commands_that_trials_could_not_run(launcher):
    with pytest.raises(InputError, match="trialCommand 'nni-fairdarts trial --config nosuch.yaml', run in /.*nosuch"):
        launcher.launch(launcher.config(trialCommand="nni-fairdarts trial --config nosuch.yaml"))


def test_values_that_nni_refuses_without_a_word(launcher):
    with pytest.raises(InputError, match="assert self.trial_concurrency > 0"):
        launcher.launch(launcher.config(trialConcurrency=0))


def test_ports(launcher):
    number = free_port() + 1
    with socket.create_server(("127.0.0.1", number)):
        with pytest.raises(InputError, match=f"port {number} of 127.0.0.1 cannot be used: Address already in use"):
            launching.launch(launcher.config(), number)
        with pytest.raises(InputError, match=rf"port {number} .*\(NNI's remote service needs two ports\)"):
            checks.port(number - 1, "127.0.0.1", checks.configuration(remote(launcher)))
    with pytest.raises(InputError, match="port must be in 1 to 65535, got 65536"):
        launching.launch(launcher.config(), 65536)


@pytest.mark.parametrize("host", ["203.0.113.7", "example", ""])
def test_hosts(launcher, host):
    with pytest.raises(InputError, match=f"host must be an address of this machine, got '{host}'"):
        launching.launch(launcher.config(), free_port(), host=host)


def remote(launcher, *hosts: str, ip: str | None = None) -> Path:
    machines = [{"host": host, "user": "me", "sshKeyFile": __file__} for host in hosts or ["127.0.0.1"]]
    service = {"platform": "remote", "machineList": machines}
    return launcher.config(service=service, nniManagerIp=ip)


@pytest.mark.parametrize(
    ("hosts", "ip", "host", "message"),
    [
        (["gpu1"], "127.0.0.1", "127.0.0.1", None),  # through tunnels
        (["gpu1"], "192.0.2.1", "0.0.0.0", None),
        (["gpu1"], None, "0.0.0.0", "nniManagerIp is not set: the machines would look for the manager on themselves"),
        (
            ["gpu1"],
            "localhost",
            "127.0.0.1",
            "nniManagerIp is localhost: .* or write nniManagerIp: 127.0.0.1 and a tunnel",
        ),
        (
            ["gpu1"],
            "192.0.2.1",
            "127.0.0.1",
            "nniManagerIp tells the machines to call 192.0.2.1. Give --host 192.0.2.1",
        ),
    ],
)
def test_remote_machines_can_reach_the_manager(launcher, hosts, ip, host, message):
    config = checks.configuration(remote(launcher, *hosts, ip=ip))
    if message is None:
        checks.reachable(config, host)
    else:
        with pytest.raises(InputError, match=message):
            checks.reachable(config, host)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("nni_node", "NNI's manager .* is not installed: .*pip install"),
        ("pkg_resources", "nnictl does not start without pkg_resources.*pip install 'setuptools<81'"),
    ],
)
def test_incomplete_installations(monkeypatch, launcher, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(InputError, match=message):
        launching.launch(launcher.config())


def test_a_manager_that_does_not_start_says_why(launcher, monkeypatch):
    monkeypatch.setenv("NODE_OPTIONS", "--no-such-option")
    with pytest.raises(ManagerError, match="did not start: .*it said: .*--no-such-option is not allowed"):
        launcher.launch(launcher.config())


def test_a_manager_that_fails_says_so_and_ends(launcher):
    tuner = {"className": "nosuch.Tuner", "codeDirectory": "."}
    port = free_port()
    with pytest.raises(ManagerError, match="the experiment failed: .*its logs are in .*log$"):
        launching.launch(launcher.config(tuner=tuner), port, wait=True)
    id = (launcher.experiments / "_latest").readlink().name
    assert Experiment(id, port, launcher.experiments).processes() == []
    assert not answers("127.0.0.1", port)
