"""A derived cell as a graph: inputs on the left, the output on the right, an arrow for every operation that is kept."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nni_fairdarts.edges import Edge, prune
from nni_fairdarts.plots.canvas import WIDE, blank, place, styled, write
from nni_fairdarts.plots.colors import DROPPED, looks
from nni_fairdarts.plots.lanes import OUTPUT, Link, bars, column, laid

LANE, BAR, TITLE, LETTER, MARGIN = 0.27, 0.28, 0.45, 0.066, 0.15  # inches
INPUTS = 0.85  # inches for the inputs' names
NAMES = {0: "cell k−2", 1: "cell k−1"}


@styled()
def cell(edges: Iterable[Edge], concat: Sequence[int] | None = None, ax: Axes | None = None, title="") -> Figure:
    """A cell of ``edges``, the nodes of ``concat`` (all nodes, where it is None) concatenated to its output.

    Nodes that are not built, for they have no input that leads back to the cell's, are grey, as are the edges that
    leave them. The figure grows with the cell; an ``ax`` of yours should have 8 inches, and 0.3 for every lane.
    """
    edges = tuple(edges)
    nodes = {edge.node for edge in edges} | set(concat or ())
    last = max(nodes, default=2)
    concat = tuple(range(2, last + 1)) if concat is None else tuple(concat)
    left = prune(edges)
    built = {0, 1, *(edge.node for edge in left)}
    links = [Link(e.source, e.node, e.operation, e not in left) for e in edges]
    links += [Link(node, OUTPUT) for node in concat if node in built]
    lanes = laid(links, last)
    missing = [node for node in range(2, last + 1) if node not in built]
    height = 1 + max(lanes, default=0)
    longest = max((len(edge.operation) for edge in edges), default=0)
    step = max((WIDE - INPUTS - 2 * MARGIN - BAR) / last, LETTER * longest + BAR + 0.35)
    if ax is None:
        width = INPUTS + step * last + BAR + 2 * MARGIN
        figure = blank(width, TITLE + LANE * max(height, 3) + 0.35)
        write(figure, 0.1, 0.1, title, fontsize=10)
        ax = place(figure, 0, TITLE, width, LANE * max(height, 3) + 0.2)
    _draw(ax, links, lanes, last, step, missing)
    return ax.figure


def _draw(ax: Axes, links, lanes, last, step, missing) -> None:
    """Draw in inches: x from the left, lanes downwards."""
    reached = bars(links, lanes)
    height = max(max(lanes, default=0), 2)
    for state in {0, 1} - reached.keys():  # an input that nothing uses
        reached[state] = (0, 0) if state == 0 else (height, height)
    for state in missing:
        reached.setdefault(state, (height, height))
    reached.setdefault(OUTPUT, (0, height))
    known = looks(link.operation for link in links if link.operation)

    def x(state):
        return MARGIN + INPUTS + BAR / 2 + step * column(state, last)

    for link, lane in zip(links, lanes, strict=True):
        look = known.get(link.operation)
        grey = link.dropped or look is None
        color = DROPPED if grey else look.color
        y = -lane * LANE
        start, end = x(link.source) + BAR / 2, x(link.node) - BAR / 2
        ax.annotate(
            "",
            (end, y),
            (start, y),
            arrowprops={
                "arrowstyle": "-|>,head_length=0.35,head_width=0.16",
                "color": color,
                "linewidth": 1.0 if look is None else 1.8,
                "linestyle": "dotted" if link.dropped else "solid" if look is None else look.dashes,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=1,
        )
        if look is not None:
            ax.text(
                start + (step - BAR) / 2,
                y,
                link.operation,
                ha="center",
                va="center",
                fontsize=8,
                color=DROPPED if grey else color,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                zorder=3,
            )
    for state, (low, high) in sorted(reached.items()):
        grey = state in missing
        box = FancyBboxPatch(
            (x(state) - BAR / 2 + 0.03, -high * LANE - 0.075),
            BAR - 0.06,
            (high - low) * LANE + 0.15,
            boxstyle="round,pad=0.03",
            facecolor="#F2F2F2" if grey else "#DCE3EA" if state not in (0, 1, OUTPUT) else "#C9CED4",
            edgecolor=DROPPED if grey else "#333333",
            linestyle="dashed" if grey else "solid",
            linewidth=1,
            zorder=2,
        )
        ax.add_patch(box)
        y = -(low + high) / 2 * LANE
        text = "output" if state == OUTPUT else str(state)
        rotation = 90 if state == OUTPUT else 0
        ax.text(x(state), y, text, ha="center", va="center", fontsize=9, color=DROPPED if grey else "black",
                rotation=rotation, zorder=4)  # fmt: skip
        if state in NAMES:
            ax.text(x(state) - BAR / 2 - 0.06, y, NAMES[state], ha="right", va="center", fontsize=8)
    ax.set_xlim(0, 2 * MARGIN + INPUTS + BAR + step * last)
    ax.set_ylim(-height * LANE - 0.18, 0.18)
    ax.set_axis_off()
