"""Numbers as a page shows them, each with its whole value beside it."""

from dataclasses import dataclass

from nni_fairdarts.manager.spread import SCORE, Spread
from nni_fairdarts.manager.table import clock, formatted
from nni_fairdarts.metrics import is_share

HEADINGS = {
    "test_accuracy": "accuracy, retrained",
    "supernet_accuracy": "accuracy, supernet",
    "discretization_gap": "discretisation gap",
    "decided_gates": "decided gates",
    "skip_connections": "skip connections",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "seconds": "time",
}
"""Of columns and tiles, in their order."""

SCORES = ("test_accuracy", "supernet_accuracy", "discretization_gap")


@dataclass(frozen=True)
class Number:
    """A number, or a mean, as text, with its whole value and, of a mean, that of the standard deviation."""

    text: str
    value: float
    deviation: float | None = None


def heading(key: str, metric: str) -> str:
    """What a number is called where runs are judged by ``metric``."""
    return HEADINGS[key] if metric == "val_acc" else HEADINGS[key].replace("accuracy", metric)


def shown(key: str, value: float, metric: str, whole: bool = False) -> Number:
    """A measured number; counts are not rounded where it is to be ``whole``."""
    return Number(f"{value:,}" if whole and isinstance(value, int) else _text(key, metric, value), value)


def mean(key: str, found: Spread, metric: str) -> Number:
    """A mean ± sample standard deviation, without the latter where it is of one number."""
    return Number(_text(key, metric, found.mean, found.standard_deviation), found.mean, found.standard_deviation)


def _text(key: str, metric: str, value: float, deviation: float | None = None) -> str:
    if key == "seconds":
        return clock(value) if deviation is None else f"{clock(value)} ± {clock(deviation)}"
    if key in SCORES:
        return formatted(SCORE, "accuracy" if is_share(metric) else "default", value, deviation)
    if key == "decided_gates":
        return f"{value:.1%}" if deviation is None else f"{value * 100:.1f} ± {deviation * 100:.1f}%"
    if key == "skip_connections" and deviation is None and not float(value).is_integer():
        return f"{value:.1f}"
    return formatted(key, "default", value, deviation)
