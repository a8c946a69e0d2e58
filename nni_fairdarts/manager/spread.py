"""Means and standard deviations over the trials of an experiment that differ in the seed alone."""

import json
import statistics
import sys
from dataclasses import dataclass

from nni_fairdarts.manager.records import Experiment, Trial

SCORE = "default"  # what NNI calls the number that a trial is judged by
MEASURED = (SCORE, "parameters", "multiply_adds", "skip_connections", "discretization_gap")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1; None where n is 1) of ``n`` numbers."""

    n: int
    mean: float
    standard_deviation: float | None


@dataclass(frozen=True)
class Group:
    """Trials that share a strategy and these hyper-parameters, and by name the spread of what was measured."""

    strategy: str | None
    hyperparameters: dict
    measured: dict[str, Spread]


def spread(numbers: list[int | float]) -> Spread:
    """Mean and sample standard deviation of one number or more."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(len(numbers), statistics.mean(numbers), deviation)


def groups(experiment: Experiment) -> list[Group]:
    """The trials with a score by strategy and whatever else varied but the seed, in order of first appearance."""
    varying = varying_names(experiment)
    members: dict[str, list[Trial]] = {}
    for trial in experiment.trials:
        if number(trial, SCORE) is not None:
            alike = json.dumps([trial.strategy, [hyperparameter(trial, name) for name in varying]])
            members.setdefault(alike, []).append(trial)
    made = []
    for trials in members.values():
        numbers = {key: [n for trial in trials if (n := number(trial, key)) is not None] for key in MEASURED}
        shared = {name: hyperparameter(trials[0], name) for name in varying}
        made.append(Group(trials[0].strategy, shared, {key: spread(n) for key, n in numbers.items() if n}))
    return made


def number(trial: Trial, key: str) -> int | float | None:
    """The finite number under ``key`` in a trial's result; None where there is none."""
    value = (trial.result or {}).get(key)
    return value if is_number(value) else None


def is_number(value) -> bool:
    """Whether it is a number, finite as a float."""
    # A comparison with NaN is false, and one with a whole number too long for a float does not raise.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def score_name(experiment: Experiment) -> str:
    """accuracy; default where a trial's score cannot be one, is another metric, or comes from another's script."""
    found = [trial.result for trial in experiment.trials if trial.result is not None]
    scores = [result.get(SCORE) for result in found]
    in_unit = all(0 <= score <= 1 for score in scores if is_number(score))
    ours = all("strategy" in result and "metric" not in result for result in found)
    return "accuracy" if in_unit and ours else SCORE


def hyperparameter(trial: Trial, name: str):
    """Its value in a trial; None where it is not known."""
    return (trial.hyperparameters or {}).get(name)


def other_names(experiment: Experiment) -> list[str]:
    """The hyper-parameters but strategy and seed, in order of first appearance."""
    names = dict.fromkeys(name for trial in experiment.trials for name in trial.hyperparameters or {})
    return [name for name in names if name not in ("strategy", "seed")]


def varying_names(experiment: Experiment) -> list[str]:
    """Those of them with more than one value among the trials whose hyper-parameters are known."""
    known = [trial for trial in experiment.trials if trial.hyperparameters is not None]
    return [name for name in other_names(experiment) if len({json.dumps(hyperparameter(t, name)) for t in known}) > 1]
