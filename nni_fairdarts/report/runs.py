"""What a report is about: runs by their folders, and the trials of NNI's experiments."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nni_fairdarts.arguments import as_fields, known_fields
from nni_fairdarts.errors import InputError
from nni_fairdarts.folder import run_of
from nni_fairdarts.manager import records
from nni_fairdarts.manager.listing import find
from nni_fairdarts.manager.spread import is_number
from nni_fairdarts.recorded import Recorded, read_recorded

SEARCHED = ("supernet_accuracy", "discretization_gap", "decided_gates", "skip_connections")
RETRAINED = ("test_accuracy", "parameters", "multiply_adds")
MEASURED = (RETRAINED[0], *SEARCHED, *RETRAINED[1:], "seconds")
"""What is told of every run, in the order of a table's columns."""


@dataclass(frozen=True)
class Run:
    """A search on the page.

    Args:
        name: on the page, one run's alone.
        state: how far it is, in words.
        recorded: its files; None where nothing of it can be shown, for the reason in ``notes``.
        settings: its configuration by dotted names, as far as it is known; None where nothing is.
        measured: what came out, final numbers only: those of MEASURED that there are.
        latest: those of the others that an unfinished run has by now: its last epoch's, and the search's time.
        metric: what it is judged by, val_acc where it is the accuracy.
        experiment: the id of the NNI experiment that it is a trial of.
        notes: what a reader should know besides.
    """

    name: str
    state: str
    recorded: Recorded | None = None
    settings: dict | None = None
    measured: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    metric: str = "val_acc"
    experiment: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def strategy(self) -> str | None:
        return (self.settings or {}).get("search.strategy") or (self.recorded and self.recorded.strategy)

    @property
    def seed(self) -> int | None:
        return (self.settings or {}).get("seed")


@dataclass(frozen=True)
class Source:
    """What a user named: runs, the folder that they are in, and a title where it was an experiment."""

    runs: tuple[Run, ...]
    folder: Path
    title: str | None = None


def read_sources(named: Sequence[str]) -> list[Source]:
    """The runs of every folder, history file or experiment that a user named, with names of their own.

    Raises InputError where there is none, where a file of a run is damaged, or where the same is named twice.
    """
    sources = [_source(name) for name in named]
    places = [source.folder.resolve() for source in sources]
    if twice := [str(place) for place, count in Counter(places).items() if count > 1]:
        raise InputError(f"{twice[0]} is named twice; name every run once")
    return told_apart(sources)


def _source(name: str) -> Source:
    path = Path(name).expanduser()
    if path.is_file() or any((path / file).is_file() for file in ("history.jsonl", "config.yaml")):
        recorded = read_recorded(path)
        return Source((of_recorded(recorded),), recorded.folder)
    if path.is_dir() and not (path / "db").is_dir():
        raise InputError(
            f"{path} holds neither a search (history.jsonl) nor an experiment of NNI's (db/nni.sqlite); "
            "give runs/NAME, or an experiment's folder or id"
        )
    try:
        experiment = records.read(find(name))
    except InputError as error:
        raise InputError(f"{error}; or give the folder of a search, such as runs/NAME") from error
    if not experiment.trials:
        raise InputError(f"the experiment {experiment.id} has no trial yet; wait for the first one")
    return of_experiment(experiment)


def told_apart(sources: list[Source]) -> list[Source]:
    """The same with names that are there once: what is around a run goes before its name, or a number behind."""
    times, used, made = Counter(run.name for source in sources for run in source.runs), set(), []
    for source in sources:
        runs = []
        for run in source.runs:
            name = plain = f"{_around(run)}{run.name}" if times[run.name] > 1 else run.name
            number = 1
            while name in used:
                number += 1
                name = f"{plain} ({number})"
            used.add(name)
            runs.append(replace(run, name=name))
        made.append(replace(source, runs=tuple(runs)))
    return made


def _around(run: Run) -> str:
    """What a run is in: its experiment, or the folder around its own."""
    if run.experiment is not None:
        return f"{run.experiment} "
    return f"{run.recorded.folder.resolve().parent.name}/"


# -- a run by its folder ---------------------------------------------------------------------------------------------


def of_recorded(recorded: Recorded) -> Run:
    """The run in a folder. Raises InputError where the configuration of its retraining is damaged."""
    return Run(
        name=recorded.name,
        state=_state(recorded),
        recorded=recorded,
        settings=_settings(recorded),
        measured=_final(recorded),
        latest=_by_now(recorded),
        metric="val_acc" if recorded.config is None else recorded.config.metric,
    )


def _state(recorded: Recorded) -> str:
    if recorded.retrained is not None:
        return "finished"
    if recorded.result is not None:
        begun = (recorded.folder / "retrain" / "config.yaml").is_file()
        return "retraining unfinished" if begun else "not retrained"
    if recorded.config is None:
        return f"without a configuration, {len(recorded.history)} epochs"
    return f"search unfinished, epoch {len(recorded.history)} of {recorded.config.search.epochs}"


def _settings(recorded: Recorded) -> dict | None:
    """The configuration by dotted names; the settings of the retraining are those that it had."""
    if recorded.config is None:
        return None
    settings = as_fields(recorded.config)
    retraining = recorded.folder / "retrain"
    if (retraining / "config.yaml").is_file():
        had = as_fields(run_of(retraining))
        settings |= {name: value for name, value in had.items() if name.startswith("retrain.")}
        other = [name for name in had if name.startswith("data.") and had[name] != settings[name]]
        settings |= {name: f"{settings[name]}, retrained: {had[name]}" for name in other}
    return settings


def _final(recorded: Recorded) -> dict[str, float]:
    """The numbers of both results."""
    searched, retrained = recorded.result or {}, recorded.retrained or {}
    found = {key: searched.get(key) for key in SEARCHED} | {key: retrained.get(key) for key in RETRAINED}
    found["skip_connections"] = _total(searched.get("skip_connections"))
    times = [result.get("seconds") for result in (searched, retrained)]
    found["seconds"] = sum(times) if all(map(is_number, times)) else None
    return _numbers(found)


def _by_now(recorded: Recorded) -> dict[str, float]:
    """What the last epoch of an unfinished search says, or how long a search took whose retraining is not finished."""
    if recorded.result:
        return _numbers({"seconds": None if recorded.retrained else recorded.result.get("seconds")})
    metric = "val_acc" if recorded.config is None else recorded.config.metric
    last = recorded.history[-1]
    found = {"supernet_accuracy": last.get(metric), **{key: last.get(key) for key in SEARCHED[1:3]}}
    found["skip_connections"] = _total(last.get("skip_connections"))
    found["seconds"] = sum(n for record in recorded.history if is_number(n := record.get("seconds")))
    return _numbers(found)


def _total(skips) -> int | None:
    """Skip connections of all cells, or of all choices, together."""
    return sum(skips.values()) if isinstance(skips, dict) and skips and all(map(is_number, skips.values())) else None


def _numbers(values: dict) -> dict[str, float]:
    return {key: value for key, value in values.items() if is_number(value) and math.isfinite(value)}


# -- a trial of an experiment ----------------------------------------------------------------------------------------


def of_experiment(experiment: records.Experiment) -> Source:
    """All trials of an experiment, also those that have left nothing behind on this machine."""
    title = f"{experiment.id} ({experiment.name})" if experiment.name else experiment.id
    return Source(tuple(_of_trial(trial, experiment) for trial in experiment.trials), experiment.folder, title)


def _of_trial(trial: records.Trial, experiment: records.Experiment) -> Run:
    """A trial with its own files, where they are on this machine; what it reported goes before what they say."""
    name = f"trial {trial.id if trial.number is None else trial.number}"
    run, notes = _read_trial(trial.id, experiment.folder)
    run = Run(name, "", settings=_told(trial)) if run is None else replace(run, name=name)
    result, measured = trial.result or {}, run.measured
    if result:
        reported = {key: result.get(key) for key in (*SEARCHED, *RETRAINED[1:], "seconds")}
        measured = measured | _numbers({**reported, "test_accuracy": result.get("default")})
    metric = result.get("metric", run.metric)
    return replace(
        run,
        state=trial.status,
        measured=measured,
        metric=metric if isinstance(metric, str) else "default",
        experiment=experiment.id,
        notes=(*trial.remarks, *notes),
    )


def _read_trial(id: str, folder: Path) -> tuple[Run | None, tuple[str, ...]]:
    """The run that a trial has left behind, or why there is nothing to show."""
    try:
        places = [path for path in folder.glob(f"environments/*/trials/{id}/run") if path.is_dir()]
        if not places:
            return None, ("its run folder is not on this machine, or was not made: there are no figures of it",)
        run = of_recorded(read_recorded(places[0]))
        return replace(run, recorded=replace(run.recorded, name=id)), ()
    except InputError as error:
        return None, (f"there are no figures of it: {error}",)


def _told(trial: records.Trial) -> dict | None:
    """The settings of a trial that are known without its files: what the search space varied."""
    if trial.hyperparameters is None:
        return None
    known = known_fields()
    named = {name if name in known else f"search.{name}": value for name, value in trial.hyperparameters.items()}
    return named | {"search.strategy": trial.strategy, "seed": trial.seed}
