"""Figures apart from pyplot, in one style, and places on them in inches."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nni_fairdarts.plots.colors import DROPPED
from nni_fairdarts.recorded import Recorded

WIDE, NARROW = 8.4, 5.6  # inches: of sheets of many parts, and of a single diagram
SMALL = 8  # points
TITLE = 0.36  # inches that a sheet's title takes
LETTER = 0.066  # inches of a letter of ``SMALL``
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.fonttype": "path",  # for a reader who lacks the font
    "svg.hashsalt": "nni-fairdarts",
}


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures get this package's style, whatever the user's; also a decorator."""
    with style.context(["default", STYLE]):
        yield


def blank(width: float, height: float, figure: Figure | None = None) -> Figure:
    """``figure``, emptied, or a new one, of a size in inches."""
    if figure is None:
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
    else:
        figure.clear()
        figure.set_size_inches(width, height)
    return figure


def diagram(ax: Axes | None, width: float = NARROW, height: float = 3.2) -> Axes:
    """``ax``, or one on a new figure."""
    if ax is not None:
        return ax
    figure = blank(width, height)
    figure.set_layout_engine("constrained")
    return figure.add_subplot()


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in ``figure``, in inches from its upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    bounds = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    return figure.add_axes(bounds)


def write(figure: Figure, left: float, top: float, text: str, **settings):
    """Text in ``figure``, in inches from its upper left corner to its own."""
    width, height = figure.get_size_inches()
    settings = {"va": "top", **settings}
    return figure.text(left / width, 1 - top / height, text, **settings)


def over_epochs(ax: Axes, recorded: Recorded, label: bool = True, most: int = 8) -> None:
    """Give ``ax`` the recorded epochs as its abscissa, in at most ``most`` steps; a single one stands in the middle.

    Of a search in stages a dotted line stands where each one after the first begins.
    """
    first, last = recorded.epochs[0], recorded.epochs[-1]
    margin = 0.03 * (last - first) or 0.5
    ax.set_xlim(first - margin, last + margin)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    for begin in recorded.stage_begins:
        ax.axvline(begin - 0.5, color=DROPPED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if label:
        ax.set_xlabel("epoch, stages between dotted lines" if recorded.stage_begins and most > 4 else "epoch")


def gate_axis(ax: Axes, recorded: Recorded) -> None:
    """Give ``ax`` the gates' range as its ordinate, with the threshold where there is one."""
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([0, 0.5, 1])
    if not recorded.softmax:
        ax.axhline(recorded.threshold, color=DROPPED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)


def gate_word(recorded: Recorded) -> str:
    """What a number of a record's gates is."""
    return "softmax weight" if recorded.softmax else "gate"


def shortened(text: str, length: int) -> str:
    """``text`` with its middle left out where it is longer than ``length``; no $ begins mathematics."""
    if len(text) > length:
        head = (length - 1) // 2
        text = f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
    return text.replace("$", r"\$")


def stem(name: str) -> str:
    """``name`` as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)
