"""Start NNI's manager from a configuration: bound to one address, repaired, its inputs checked first."""

import json
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from nni_fairdarts.errors import InputError, ManagerError
from nni_fairdarts.manager import checks, environment
from nni_fairdarts.manager.commands import check_command
from nni_fairdarts.manager.listing import find

FINISHED = ("SUCCEEDED", "FAILED", "USER_CANCELED", "EARLY_STOPPED", "SYS_CANCELED")
POLL = 1.0  # seconds between two looks at an experiment
IDLE = 5  # looks without a trial after which a tuner that has no more trials is believed
STOP = 120  # seconds; NNI gives its own parts 60


def launch(config: Path, port: int = 8080, host: str = environment.LOOPBACK, wait: bool = False) -> str:
    """Start the experiment that ``config`` describes in NNI's own format, and return its id.

    The manager goes on when this process ends; with ``wait`` this returns when the experiment is done, the manager
    stopped. ``host`` is the address to listen on. Raises InputError before anything starts, and ManagerError.
    """
    checks.installation()
    experiment_config = checks.configuration(Path(config))
    checks.search_space(experiment_config)
    space = experiment_config.canonical_copy().search_space
    for service in checks.services(experiment_config):
        check_command(service.trial_command, Path(service.trial_code_directory), space)
    return _start("create", _experiment(experiment_config), port, host, wait)


def resume(experiment: str, port: int = 8080, host: str = environment.LOOPBACK, wait: bool = False) -> str:
    """Go on with a stopped experiment, named by id or folder; as ``launch``."""
    return _start("resume", _stopped(experiment), port, host, wait)


def view(experiment: str, port: int = 8080, host: str = environment.LOOPBACK) -> str:
    """Show a stopped experiment in the web UI, which changes nothing in it; as ``launch``."""
    return _start("view", _stopped(experiment), port, host)


def _start(action: str, experiment, port: int, host: str, wait: bool = False) -> str:
    from nni.experiment import RunMode

    host = environment.address(host)
    checks.home()
    if action != "view":
        checks.reachable(experiment.config, host)
        checks.devices(experiment.config)
    checks.port(port, host, experiment.config)
    environment.guard(host)
    experiment._action = action
    with _quiet(), _killed_on_failure(experiment):
        experiment.start(port, run_mode=RunMode.Detach)
        print(_announcement(experiment, host, action, wait), flush=True)
        if wait:
            _until_done(experiment)
        else:  # else nnictl waits a minute for a manager that this process has not taken leave of
            threading.Thread(target=experiment._proc.wait, daemon=True).start()
    return experiment.id


def _announcement(experiment, host: str, action: str, wait: bool) -> str:
    shown = {"0.0.0.0": environment.LOOPBACK, "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    lines = [
        f"experiment  {experiment.id}",
        f"web UI      http://{shown}:{experiment.port}",
        f"results     nni-fairdarts results {experiment.id}",
        f"stop        {'Ctrl-C' if wait else f'nnictl stop {experiment.id}'}",
    ]
    return "\n".join(lines[:2] + lines[3:] if action == "view" else lines)


# -- waiting ---------------------------------------------------------------------------------------------------------


def _until_done(experiment) -> None:
    """Show the progress until the experiment is done, then stop its manager; Ctrl-C and SIGTERM stop it earlier."""
    try:
        with _interrupted_by_sigterm():
            counts = _watch(experiment)
    except ManagerError:
        _stop(experiment)
        raise
    except KeyboardInterrupt:
        print("stopping the experiment …", flush=True)
        _stop(experiment)
        print(f"stopped; go on with: nni-fairdarts launch --resume {experiment.id}", flush=True)
        raise
    _stop(experiment)
    others = ", ".join(f"{n} {status.lower().replace('_', ' ')}" for status, n in counts.items())
    print(f"done: {others or 'no trials'}", flush=True)
    if not counts.get("SUCCEEDED"):
        raise ManagerError(f"no trial succeeded; nni-fairdarts results {experiment.id} says more")


def _watch(experiment) -> dict[str, int]:
    """Wait until the experiment is done; returns how many trials there are of each status."""
    import requests
    from tqdm import tqdm

    idle = 0
    with tqdm(total=experiment.config.max_trial_number, unit="trial", desc="trials") as bar:
        while True:
            with suppress(requests.RequestException):  # busy, or gone: the process tells
                status = experiment.get_status()
                counts = {one["trialJobStatus"]: one["trialJobNumber"] for one in experiment.get_job_statistics()}
                bar.n = sum(counts.get(status, 0) for status in FINISHED)
                bar.set_postfix(running=counts.get("RUNNING", 0), failed=counts.get("FAILED", 0))
                if status == "ERROR":
                    raise ManagerError(f"the experiment failed: {_errors(experiment)}; {_logs(experiment)}")
                # A tuner that runs out of trials (GridSearch) never leads to DONE below maxTrialNumber.
                busy = status != "TUNER_NO_MORE_TRIAL" or sum(counts.values()) > bar.n
                idle = 0 if busy else idle + 1
                if status == "DONE" or idle == IDLE:
                    return counts
            if experiment._proc.poll() is not None:
                raise ManagerError(
                    f"the manager has ended before the experiment was done; {_logs(experiment)}. If nobody stopped it "
                    f"on purpose, go on with: nni-fairdarts launch --resume {experiment.id}"
                )
            time.sleep(POLL)


def _errors(experiment) -> str:
    from nni.experiment import rest

    return "; ".join(rest.get(experiment.port, "/check-status")["errors"]) or "no reason given"


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, so that nothing stays behind when a batch system ends the job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- stopping --------------------------------------------------------------------------------------------------------


def _stop(experiment) -> None:
    """Stop the manager and its trials: by asking, and what is left then, or at another Ctrl-C, by SIGKILL."""
    import requests
    from nni.experiment import rest

    processes = _processes(experiment.id)
    try:
        with suppress(requests.RequestException):
            rest.delete(experiment.port, "/experiment")
        with suppress(subprocess.TimeoutExpired):
            experiment._proc.wait(STOP)
    finally:
        _kill(processes)


def _kill(processes: list) -> None:
    import psutil

    _, left = psutil.wait_procs(processes, timeout=1)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _processes(id: str) -> list:
    """The processes of an experiment on this machine: its manager, viewers, and all that they started."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if ("--experiment-id", id) in zip(command, command[1:], strict=False):
            with suppress(psutil.NoSuchProcess):
                found += [process, *process.children(recursive=True)]
    return found


@contextmanager
def _killed_on_failure(experiment) -> Iterator[None]:
    """Whatever fails while the manager starts or is waited for, Ctrl-C included, leaves no process behind."""
    try:
        yield
    except BaseException as error:
        _kill(_processes(experiment.id))
        if not isinstance(error, Exception) or isinstance(error, ManagerError):
            raise
        raise ManagerError(f"NNI's manager did not start: {error}; {_logs(experiment)}") from error


# -- experiments -----------------------------------------------------------------------------------------------------


def _experiment(config, id: str | None = None):
    from nni.experiment import Experiment

    return Experiment(config, id)


def _stopped(experiment: str):
    """The stopped experiment of that id or folder, from the configuration that its manager kept."""
    checks.installation()
    from nni.experiment.config import ExperimentConfig

    folder = find(experiment)
    if processes := _processes(folder.name):
        raise InputError(
            f"experiment {folder.name} still runs (process {processes[0].pid}); nnictl stop {folder.name} stops it"
        )
    kept = _kept_configuration(folder / "db" / "nni.sqlite")
    if kept.get("experimentType", "hpo") != "hpo":
        raise InputError(f"experiment {folder.name} is a NAS experiment; resume it with NNI's NasExperiment in Python")
    try:
        config = ExperimentConfig(**kept)
    except Exception as error:  # NNI raises many kinds
        raise InputError(f"NNI does not take the configuration in {folder}: {error}; launch it anew") from error
    config.experiment_working_directory = str(folder.absolute().parent)  # it may have been moved
    checks.validated(config, f"experiment {folder.name}")
    return _experiment(config, folder.name)


def _kept_configuration(database: Path) -> dict:
    """As NNI's own reading, which would drop what follows // or # in it, does not."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            rows = connection.execute("select params from ExperimentProfile order by revision desc limit 1")
            kept = json.loads(rows.fetchone()[0])
        if not isinstance(kept, dict):
            raise TypeError(f"got {type(kept).__name__}")
        return kept
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise InputError(f"{database} holds no configuration of an experiment ({error}); launch it anew") from error


def _logs(experiment) -> str:
    """What the manager said last on its standard error that is about an error, and where its logs are."""
    folder = Path(experiment.config.canonical_copy().experiment_working_directory, experiment.id, "log")
    with suppress(OSError):
        said = (folder / "nnictl_stderr.log").read_text(errors="replace").partition("start: ")[2].splitlines()
        if last := [line for line in said[2:] if line.strip() and not line.startswith(("    at ", "Node.js v"))]:
            return f"it said: {last[-1]}; its logs are in {folder}"
    return f"its logs are in {folder}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNI's log lines off the screen: ours say it shorter."""
    import nni.runtime.log

    nni.silence_stdout()
    try:
        yield
    finally:
        nni.runtime.log.start_stdout_logging()
