"""What the trials of an NNI experiment really ran and reported: the manager's database and the trials' own files.

NNI's manager hands a parameter set to whichever trial asks first and notes another trial beside it, so the trial that
it notes for a set is never believed here. True are, in this order: the final metric, in which a trial of ours says what
it ran; the files that the trial wrote, ``result.json`` and ``trial.json``; and the id that a trial's metrics carry of
the parameter set which the trial received.
"""

import json
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nni_fairdarts.errors import InputError
from nni_fairdarts.manager.listing import is_managed
from nni_fairdarts.parameters import flat

STATUS = {
    "WAITING": "waiting",
    "ADD_RESUMED": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "EARLY_STOPPED": "early stopped",
    "USER_TO_CANCEL": "canceled",
    "USER_CANCELED": "canceled",
    "SYS_CANCELED": "canceled",
}
_EVENTS = "select trialJobId, timestamp, event, data, sequenceId from TrialJobEvent order by rowid"
# What trials report while they train is long and not needed. The manager gives up where it cannot write for a second,
# so nothing is read that is not needed.
_METRICS = (
    "select trialJobId, timestamp, parameterId, type, case type when 'FINAL' then data end as data "
    "from MetricData order by rowid"
)
_PROFILE = "select id, params from ExperimentProfile order by revision desc limit 1"


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it is known; None for what is not.

    Args:
        number: NNI's sequence number, counted from 0. A resumed experiment may give one twice.
        id: NNI's, unique.
        status: one of STATUS, or stopped: left waiting or running by a manager that is gone.
        strategy: what searched.
        seed: of the run.
        parameter_id: of the parameter set that the trial received.
        hyperparameters: what the search space varied, by name.
        result: the final result; a plain value of a script that is not ours stands under "default", as NNI reads it.
        source: where the result is from, "metric" or "file".
        remarks: what a reader should know besides.
    """

    number: int | None
    id: str
    status: str
    strategy: str | None = None
    seed: int | None = None
    parameter_id: int | None = None
    hyperparameters: dict | None = None
    result: dict | None = None
    source: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment's id, its name (may be empty), its folder, and its trials by number."""

    id: str
    name: str
    folder: Path
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class _ParameterSet:
    """A parameter set as the tuner made it, with the time in ms at which the manager noted it."""

    id: int | None
    time: int
    parameters: object


def read(folder: Path) -> Experiment:
    """The experiment in ``folder``, whether its manager runs or not; nothing is written there. Raises InputError."""
    profile, events, metrics = _database(folder / "db" / "nni.sqlite")
    id = profile["id"] if profile else folder.resolve().name
    params = _json(profile["params"]) if profile else None
    name = params.get("experimentName") if isinstance(params, dict) else None
    sets = [_parameter_set(event) for event in events if event["data"] and event["trialJobId"]]
    by_trial, reported = defaultdict(list), defaultdict(list)
    for event in events:
        if event["trialJobId"]:  # others are about the experiment: data was imported, a trial asked for by hand
            by_trial[event["trialJobId"]].append(event)
    for metric in metrics:
        reported[metric["trialJobId"]].append(metric)
    managed = is_managed(id)
    trials = [_trial(t, folder, by_trial[t], reported[t], sets, managed) for t in by_trial]
    trials.sort(key=lambda trial: float("inf") if trial.number is None else trial.number)  # stable: then by first event
    return Experiment(id, name or "", folder, tuple(trials))


# -- one trial -------------------------------------------------------------------------------------------------------


def _trial(id: str, folder: Path, events: list, metrics: list, sets: list[_ParameterSet], managed: bool) -> Trial:
    own, remarks = _own_files(folder, id)
    status = _status(events, managed, remarks)
    result, source = _result(metrics, own.get("result.json"), remarks)
    ours = result is not None and "strategy" in result
    if result is None and status == "succeeded":
        remarks.append("ended without an error, but reported no result")
    if result is None and status == "failed" and not remarks:
        remarks.extend(_last_words(folder, id))
    if result is not None and status not in ("succeeded", "running"):
        remarks.append(f"{status} after its result was complete; the result counts")

    said = result if ours else own.get("trial.json", {})
    parameter_id = _number(said["parameter_id"]) if "parameter_id" in said else _last_parameter_id(metrics)
    received = _received(parameter_id, metrics, sets)
    hyperparameters = _json(said.get("hyperparameters")) if ours else said.get("hyperparameters")
    if not isinstance(hyperparameters, dict):
        hyperparameters = flat(received) if isinstance(received, dict) else None
    noted = next((_parameter_set(event) for event in events if event["data"]), None)
    if noted and received is not None and noted.parameters != received:
        remarks.append("NNI's web UI and export show hyper-parameters of another trial here")
    known = hyperparameters or {}
    return Trial(
        number=next((event["sequenceId"] for event in events if event["sequenceId"] is not None), None),
        id=id,
        status=status,
        strategy=said.get("strategy", known.get("strategy")),
        seed=said.get("seed", known.get("seed")),
        parameter_id=parameter_id,
        hyperparameters=hyperparameters,
        result=result,
        source=source,
        remarks=tuple(remarks),
    )


def _status(events: list, managed: bool, remarks: list[str]) -> str:
    """Where a trial stands after its ``events``; ``managed`` says whether a manager still looks after it."""
    names = [event["event"] for event in events if event["event"] in STATUS]
    if not names:
        return "unknown"
    started = max((k for k, name in enumerate(names) if STATUS[name] in ("waiting", "running")), default=0)
    # NNI notes a process that a signal ended as canceled; where somebody canceled it, the wish is noted too.
    if names[-1] == "USER_CANCELED" and "USER_TO_CANCEL" not in names[started:]:
        remarks.append("killed by a signal, not by NNI, whose web UI says canceled")
        return "failed"
    status = STATUS[names[-1]]
    return "stopped" if status in ("waiting", "running") and not managed else status


def _result(metrics: list, file: dict | None, remarks: list[str]) -> tuple[dict | None, str | None]:
    """The final result and its source.

    The metric goes before the file: both hold one dict, written at once, so they differ where somebody edited the file
    (it is easier to edit than the database), or where the trial was resumed and died between its second file and its
    second report. The metric was measured in both cases, and it is what NNI's UI shows.
    """
    finals = [metric["data"] for metric in metrics if metric["type"] == "FINAL"]
    if not finals:
        if file is None:
            return None, None
        remarks.append("its final metric is not in NNI's database; the result is from its result.json")
        return file, "file"
    final = _json(_json(finals[-1]))  # the last: a resumed trial runs, writes and reports anew
    if not isinstance(final, dict):
        return {"default": final}, "metric"
    if file is not None and "strategy" in final:
        keys = dict.fromkeys([*final, *file])
        different = [key for key in keys if json.dumps(final.get(key)) != json.dumps(file.get(key))]
        if different:
            remarks.append(
                f"its result.json differs from what it reported in {', '.join(different)}; what it reported is shown"
            )
    return final, "metric"


def _last_parameter_id(metrics: list) -> int | None:
    """The id of the parameter set that a trial had when it reported last."""
    return _number(metrics[-1]["parameterId"]) if metrics else None


def _received(parameter_id: int | None, metrics: list, sets: list[_ParameterSet]) -> object:
    """The parameters of that id; None where none are known.

    A resumed experiment gives ids a second time: among sets of one id it is the last that was noted before the trial
    first reported it. The manager may also note a set just after a trial that was quick reported it: then the first.
    """
    same = [s for s in sets if s.id == parameter_id and parameter_id is not None]
    times = (metric["timestamp"] for metric in metrics if _number(metric["parameterId"]) == parameter_id)
    reported = min(times, default=float("inf"))
    before = [s for s in same if s.time <= reported]
    chosen = before[-1:] or same[:1]
    return chosen[0].parameters if chosen else None


def _last_words(folder: Path, id: str) -> list[str]:
    """The last line that a trial has written of what went wrong, and where; nothing of a trial on another machine."""
    for path in folder.glob(f"environments/*/trials/{id}"):
        for name in ("trial.stderr", "trial.log"):
            try:
                text = (path / name).read_bytes()[-4096:].decode("utf-8", "replace")
            except OSError:
                continue
            if lines := [line.strip() for line in text.splitlines() if line.strip()]:
                return [f"{lines[-1][:300]} ({path / name})"]
        return [f"it has said nothing; its folder is {path}"]
    return []


def _own_files(folder: Path, id: str) -> tuple[dict[str, dict], list[str]]:
    """A trial's ``result.json`` and ``trial.json``, as far as they are there and ours, and what is wrong with them."""
    found, remarks = {}, []
    for path in folder.glob("environments/*/trials"):
        for name, key in (("result.json", "strategy"), ("trial.json", "hyperparameters")):
            try:
                content = json.loads((path / id / name).read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                remarks.append(f"its {name} cannot be read ({error})")
                continue
            if isinstance(content, dict) and key in content:
                found[name] = content
    return found, remarks


def _parameter_set(event) -> _ParameterSet:
    content = _json(event["data"])
    content = content if isinstance(content, dict) else {}
    return _ParameterSet(_number(content.get("parameter_id")), event["timestamp"], content.get("parameters"))


def _number(id) -> int | None:
    return int(id) if str(id).isdecimal() else None


def _json(text):
    """What a JSON text says, or the text itself where it is none. (``nni.load`` could run code and drops ``//``.)"""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text


# -- the experiment --------------------------------------------------------------------------------------------------


def _database(path: Path) -> tuple[sqlite3.Row | None, list, list]:
    """The experiment's last profile, its events and its metrics. Raises InputError."""
    try:
        return _query(path)
    except sqlite3.OperationalError as error:
        journal = path.with_name(f"{path.name}-journal")
        if not journal.exists():
            raise _unreadable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    # A manager was killed while it wrote. SQLite takes the half-written part back, but only where it may write: a copy.
    with tempfile.TemporaryDirectory() as copy:
        try:
            for file in (path, journal):
                shutil.copy(file, copy)
            return _query(Path(copy) / path.name, "rw")
        except (OSError, sqlite3.DatabaseError) as error:
            raise _unreadable(path, error) from error


def _query(path: Path, mode: str = "ro") -> tuple[sqlite3.Row | None, list, list]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        profile = connection.execute(_PROFILE).fetchone()
        # Events before metrics: a trial that ends in between is shown running, not ended without a result.
        return profile, connection.execute(_EVENTS).fetchall(), connection.execute(_METRICS).fetchall()


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as the database of NNI's manager: {error}; has the experiment started?")
