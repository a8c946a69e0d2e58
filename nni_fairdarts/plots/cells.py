"""A derived cell as a graph: inputs on the left, the output on the right, an arrow for every operation that is kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nni_fairdarts.edges import Edge, prune
from nni_fairdarts.errors import InputError
from nni_fairdarts.plots.canvas import LETTER, SMALL, TITLE, WIDE, blank, place, styled, write
from nni_fairdarts.plots.colors import DROPPED, Look, looks
from nni_fairdarts.plots.lanes import OUTPUT, Link, bars, laid, passing

LANE, BAR, MARGIN, ENDS = 0.27, 0.28, 0.15, 0.17  # inches; ENDS: above the first and below the last lane
INPUTS = 0.85  # inches for the inputs' names
NAMES = {0: "cell k−2", 1: "cell k−1"}
LARGEST = 200  # operations of a cell that can be drawn


@styled()
def cell(
    edges: Iterable[Edge],
    concat: Sequence[int] | None = None,
    ax: Axes | None = None,
    title: str = "",
    palette: dict[str, Look] | None = None,
) -> Figure:
    """A cell of ``edges``, (operation, node, source), whose output concatenates the nodes ``concat``, or all of them.

    Every operation is an arrow in its color from its source to its node; what only passes a node shows faintly through
    its bar. Nodes that are not built, for no way leads to them from the cell's inputs, are grey, as are the edges that
    leave them. A figure of its own grows with the cell; an ``ax`` should have 8 inches, and 0.3 for every lane.
    ``palette``: looks of operations that this package does not know.

    Raises InputError for more than 200 operations or nodes.
    """
    edges = tuple(edge if isinstance(edge, Edge) else Edge(*edge) for edge in edges)
    palette = palette or looks(edge.operation for edge in edges)
    graph = _graph(edges, concat)
    if ax is None:
        figure = blank(graph.width, TITLE + graph.height)
        write(figure, 0.1, 0.1, title, fontsize=10)
        ax = place(figure, 0, TITLE, graph.width, graph.height)
    else:
        ax.set_title(title)
    for link, lane in zip(graph.links, graph.lanes, strict=True):
        _arrow(ax, graph, link, lane, palette)
    for state, (low, high) in graph.reached.items():
        _bar(ax, graph, state, low, high)
    ax.set_xlim(0, graph.width)
    ax.set_ylim(graph.height, 0)
    ax.set_axis_off()
    return ax.figure


@dataclass(frozen=True)
class _Graph:
    """Where everything stands, in inches from the upper left corner. ``reached``: {state: its bar's lanes}."""

    links: list[Link]
    lanes: list[int]
    columns: dict[int, int]
    reached: dict[int, tuple[int, int]]
    missing: set[int]
    step: float

    @property
    def width(self) -> float:
        return self.x(OUTPUT) + BAR / 2 + MARGIN

    @property
    def height(self) -> float:
        return self.y(max(high for _, high in self.reached.values())) + ENDS

    def x(self, state: int) -> float:
        return MARGIN + INPUTS + BAR / 2 + self.step * self.columns[state]

    def y(self, lane: float) -> float:
        return ENDS + LANE * lane


def _graph(edges: tuple[Edge, ...], concat: Sequence[int] | None) -> _Graph:
    nodes = {edge.node for edge in edges} | {edge.source for edge in edges} | set(concat or ())
    nodes = sorted(nodes - {0, 1})
    if max(len(edges), len(nodes)) > LARGEST:
        raise InputError(f"a cell of {len(edges)} operations and {len(nodes)} nodes is too large to be drawn")
    left = prune(edges)
    built = {0, 1, *(edge.node for edge in left)}
    links = [Link(e.source, e.node, e.operation, e not in left) for e in edges]
    links += [Link(node, OUTPUT) for node in (nodes if concat is None else concat) if node in built]
    columns = {0: 0, 1: 0, **{node: number for number, node in enumerate(nodes, 1)}, OUTPUT: len(nodes) + 1}
    lanes = laid(links, columns)
    if not any(link.source == 0 for link in links):  # its bar stands above all lanes
        lanes = [lane + 1 for lane in lanes]
    reached = bars(links, lanes)
    below = 1 + max(lanes, default=0)
    for state in columns:
        reached.setdefault(state, (0, 0) if state == 0 else (below, below))
    low, high = reached[OUTPUT] if any(link.node == OUTPUT for link in links) else (0, below)
    reached[OUTPUT] = (max(0, low - 1), high + 1) if high - low < 2 else (low, high)  # its name is long
    longest = max((len(edge.operation) for edge in edges), default=0)
    step = max((WIDE - INPUTS - 2 * MARGIN - BAR) / columns[OUTPUT], LETTER * longest + BAR + 0.35)
    return _Graph(links, lanes, columns, reached, set(nodes) - built, step)


def _arrow(ax: Axes, graph: _Graph, link: Link, lane: int, palette: dict[str, Look]) -> None:
    look = None if link.operation is None else palette[link.operation]
    grey = link.dropped or look is None
    start, end, y = graph.x(link.source) + BAR / 2, graph.x(link.node) - BAR / 2, graph.y(lane)
    arrow = {
        "arrowstyle": "-|>,head_length=0.35,head_width=0.16",
        "color": DROPPED if grey else look.color,
        "linewidth": 1 if look is None else 1.8,
        "linestyle": (0, (1, 1.2)) if link.dropped else "solid" if look is None else look.dashes,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", (end, y), (start, y), arrowprops=arrow, zorder=1)
    if look is not None:
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        color = DROPPED if link.dropped else "black"
        middle = start + (graph.step - BAR) / 2  # before the next column, where nothing else is in this lane
        ax.text(middle, y, link.operation, ha="center", va="center", fontsize=SMALL, color=color, bbox=behind, zorder=3)


def _bar(ax: Axes, graph: _Graph, state: int, low: int, high: int) -> None:
    grey, node = state in graph.missing, state > 1
    x, top, bottom = graph.x(state), graph.y(low), graph.y(high)
    box = {
        "boxstyle": "round,pad=0.03",
        "facecolor": ("#F2F2F2" if grey else "#DCE3EA" if node else "#C9CED4", 0.8),
        "edgecolor": DROPPED if grey else "#333333",
        "linestyle": "dashed" if grey else "solid",
        "zorder": 2,
    }
    ax.add_patch(FancyBboxPatch((x - BAR / 2 + 0.03, top - 0.075), BAR - 0.06, bottom - top + 0.15, **box))
    color = DROPPED if grey else "black"
    if state == OUTPUT:
        ax.text(x, (top + bottom) / 2, "output", ha="center", va="center", rotation=90, zorder=4)
        return
    y = graph.y(_place_of_name(low, high, passing(state, graph.links, graph.lanes, graph.columns)))
    ax.text(x, y, str(state), ha="center", va="center", color=color, zorder=4)
    if state in NAMES:
        ax.text(x - BAR / 2 - 0.06, y, NAMES[state], ha="right", va="center", fontsize=SMALL)


def _place_of_name(low: int, high: int, behind: list[int]) -> float:
    """The lane, or the place between two, nearest to the middle of a bar, that nothing passes behind."""
    places = sorted(
        (low + half / 2 for half in range(2 * (high - low) + 1)), key=lambda place: abs(low + high - 2 * place)
    )
    return next(place for place in places if all(abs(place - lane) > 0.4 for lane in behind))
