"""Numbers of a search over its epochs: skip connections, decided gates, accuracy, losses, discretisation gap."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nni_fairdarts.errors import InputError
from nni_fairdarts.metrics import is_share
from nni_fairdarts.plots.canvas import NARROW, blank, diagram, gate_word, over_epochs, styled
from nni_fairdarts.plots.colors import DROPPED
from nni_fairdarts.plots.derived import dominant_skips
from nni_fairdarts.recorded import Recorded

# Of lines that belong to no operation: colors of Okabe and Ito, markers, and dashes, for two may lie on each other.
_LINES = (
    ("#0072B2", "o", "solid"),
    ("#D55E00", "s", (0, (4, 2))),
    ("#009E73", "^", (0, (1, 1))),
    ("#CC79A7", "D", "solid"),
    ("#E69F00", "v", (0, (4, 2))),
    ("#000000", "P", (0, (1, 1))),
)


def _line(ax: Axes, recorded: Recorded, values: np.ndarray, number: int, label: str | None = None) -> None:
    """A line through the epochs that have a number; where two are equal, the later line's markers are the smaller."""
    color, marker, dashes = _LINES[number % len(_LINES)]
    size = 5 - 0.5 * (number % len(_LINES)) if len(values) <= 60 else 0
    there = ~np.isnan(values)
    settings = {"color": color, "marker": marker, "markersize": size, "linestyle": dashes, "linewidth": 1.4}
    ax.plot(recorded.epochs[there], values[there], label=label, **settings)


def _beside(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


@styled()
def skips(recorded: Recorded, ax: Axes | None = None) -> Figure:
    """Dominant skip connections after every epoch: a line for each kind of cell, one for all choices together."""
    counts = skip_counts(recorded)
    if not counts:
        raise InputError(f"no gate of {recorded.name} stands for skip_connect, so there are none to count")
    ax = diagram(ax)
    for number, (label, (values, places)) in enumerate(counts.items()):
        _line(ax, recorded, values, number, f"{label} (of {places})")
    over_epochs(ax, recorded)
    most = max(places for _, places in counts.values())
    ax.set_ylim(-0.03 * most, 1.03 * most)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_ylabel("count")
    ax.set_title(_skip_title(recorded))
    _beside(ax)
    return ax.figure


def _skip_title(recorded: Recorded) -> str:
    title = "Dominant skip connections"
    if any(recorded.is_cell(label) for label in recorded.labels):
        title += ": on each node's two strongest edges"
    return title


def skip_counts(recorded: Recorded) -> dict[str, tuple[np.ndarray, int]]:
    """{kind of cell, or "choices" for all: (dominant skip connections of every epoch, how many there could be)}."""
    found: dict[str, tuple[np.ndarray, int]] = {}
    for label in recorded.labels:
        if (values := dominant_skips(recorded, label)) is not None:
            name = label if recorded.is_cell(label) else "choices"
            before, places = found.get(name, (0, 0))
            nodes = len({node for node, _ in recorded.edges(label)})
            found[name] = before + values, places + (2 * nodes or 1)
    return found


@styled()
def decided(recorded: Recorded, figure: Figure | None = None) -> Figure:
    """Two diagrams: the share of gates under 0.1 or over 0.9, and how many reach the threshold, after every epoch."""
    figure = blank(NARROW, 4.2, figure)
    figure.set_layout_engine("constrained")
    upper, lower = figure.subplots(2, sharex=True)
    word = f"{gate_word(recorded)}s"
    totals = dict.fromkeys(int(total) for total in recorded.series("gates_total") if not np.isnan(total))
    total = " to ".join(str(number) for number in (*totals,)[:: max(1, len(totals) - 1)])  # of the first and last stage
    _line(upper, recorded, 100 * recorded.series("decided_gates"), 0)
    upper.set_ylim(-3, 103)
    upper.set_ylabel("%")
    upper.set_title(f"Decided: share of the {total} {word} under 0.1 or over 0.9")
    _line(lower, recorded, recorded.series("open_gates"), 0)
    lower.set_ylim(bottom=-0.03 * max(1, np.nanmax(recorded.series("open_gates"))))
    lower.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    lower.set_ylabel("count")
    lower.set_title(f"Open: {word} of at least {recorded.threshold:g}")
    over_epochs(upper, recorded, label=False)
    over_epochs(lower, recorded)
    return figure


@styled()
def accuracy(recorded: Recorded, ax: Axes | None = None) -> Figure:
    """What the supernet was worth on the validation's data after every epoch: accuracy in %, or another metric."""
    name = metric(recorded)
    if name is None:
        raise InputError(f"the search {recorded.name} was never validated, so there is no accuracy to show")
    ax = diagram(ax)
    share = is_share(name)
    _line(ax, recorded, recorded.series(name) * (100 if share else 1), 0)
    over_epochs(ax, recorded)
    ax.set_ylabel("%" if share else name)
    ax.set_title("Supernet's accuracy on validation data" if share else f"Supernet's {name}")
    return ax.figure


def metric(recorded: Recorded) -> str | None:
    """The validation's metric that a record has: the configuration's, or the first that is no loss, or that."""
    first = "val_acc" if recorded.config is None else recorded.config.metric
    known = {key for record in recorded.history for key, value in record.items() if value is not None}
    found = sorted((key for key in known if key.startswith("val_")), key=lambda key: (key.endswith("loss"), key))
    return first if first in known else next(iter(found), None)


@styled()
def losses(recorded: Recorded, figure: Figure | None = None) -> Figure:
    """The epochs' mean losses; the zero-one loss, which is far smaller, in a diagram of its own."""
    found = loss_names(recorded)
    if not found:
        raise InputError(f"the history of {recorded.name} has no losses to show")
    own = [name for name in found if name == "zero_one_loss"]
    figure = blank(NARROW, 4.6 if own else 3.2, figure)
    figure.set_layout_engine("constrained")
    parts = figure.subplots(1 + len(own), sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + len(own)])[:, 0]
    for number, name in enumerate(name for name in found if name not in own):
        label = WORDS.get(name, name)
        if own and name == "arch_loss":
            label += "\nwith the weighted\nzero-one loss"
        _line(parts[0], recorded, recorded.series(name), number, label)
    parts[0].set_title("Losses, means over each epoch")
    parts[0].set_ylabel("loss")
    _beside(parts[0])
    if own:
        _line(parts[1], recorded, recorded.series(own[0]), 0)
        parts[1].set_title("Zero-one loss, before its weight")
        parts[1].set_ylabel("loss")
    for part in parts:
        over_epochs(part, recorded, label=part is parts[-1])
    return figure


WORDS = {"train_loss": "training (weights)", "arch_loss": "architecture (α)", "val_loss": "validation"}


def loss_names(recorded: Recorded) -> list[str]:
    """The losses that a record has numbers of, in its order."""
    found = [
        key
        for record in recorded.history
        for key, value in record.items()
        if key.endswith("_loss") and value is not None
    ]
    return list(dict.fromkeys(found))


@styled()
def gap(recorded: Recorded, ax: Axes | None = None) -> Figure:
    """The discretisation gap after every epoch at which it was measured: accuracy lost when gates are rounded."""
    values = recorded.series("discretization_gap")
    if np.isnan(values).all():
        raise InputError(f"no discretisation gap was measured in {recorded.name}; search with gap_batches above 0")
    ax = diagram(ax)
    ax.axhline(0, color=DROPPED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    share = is_share(metric(recorded))
    _line(ax, recorded, values * (100 if share else 1), 0)
    over_epochs(ax, recorded)
    ax.set_ylabel("percentage points" if share else metric(recorded))
    ax.set_title(f"Discretisation gap: {'accuracy' if share else 'what is'} lost when gates are rounded")
    return ax.figure
