"""What the figures of a record show, and whether it can be read."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from records import CHOICES, DARTS, NASNET, recorded

from nni_fairdarts import FairDARTS, plots
from nni_fairdarts.config import PartsConfig, RunConfig, SearchConfig
from nni_fairdarts.discretize import Discretization
from nni_fairdarts.edges import KNOWN_OPERATIONS, OPERATIONS, Edge
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype, published
from nni_fairdarts.plots.colors import looks
from nni_fairdarts.plots.derived import kept
from nni_fairdarts.recorded import read_recorded

PARSE = json.loads((Path(__file__).parent / "golden" / "parse.json").read_text())
PAIRS = [(node, source) for node in range(2, 6) for source in range(node)]
GENOTYPE = published("FairDARTS_a")

# -- colors -----------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, IEEE
# Transactions on Visualization and Computer Graphics 15(6), 2009: linear RGB of severity 1.0.
VISION = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]  # of sRGB, IEC 61966-2-1
WHITE = [0.9505, 1, 1.089]


def lab(color: str, vision: str) -> np.ndarray:
    """A color as CIE L*a*b* of somebody with a kind of color vision."""
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    share = np.array(TO_XYZ) @ seen / WHITE
    x, y, z = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_operations_of_one_line_style_are_told_apart(vision):
    """A distance of 2.3 is just seen; 15 is a clear difference between lines. Against white 30."""
    known = looks(KNOWN_OPERATIONS)
    assert {known[name].dashes for name in OPERATIONS} == {"solid"}
    for one, other in itertools.combinations(KNOWN_OPERATIONS, 2):
        if known[one].dashes == known[other].dashes or vision == "full":
            distance = np.linalg.norm(lab(plots.COLORS[one], vision) - lab(plots.COLORS[other], vision))
            assert distance > 15, (one, other, distance)
    for name in KNOWN_OPERATIONS:
        assert np.linalg.norm(lab(plots.COLORS[name], vision) - lab("#ffffff", vision)) > 30, name


def test_every_operation_has_its_look_everywhere():
    names = ["b", "a", "skip_connect", *(f"x{number}" for number in range(40))]
    found = looks(names)
    assert found["skip_connect"] == looks(OPERATIONS)["skip_connect"]
    assert len(set(found.values())) == len(names), "names that are no known operations have looks of their own"
    assert looks(["b", "a", "skip_connect"]) == {name: found[name] for name in ("b", "a", "skip_connect")}
    assert plots.COLORS.keys() == set(KNOWN_OPERATIONS)
    assert len(looks(map(str, range(100)))) == 100, "there is no end of them"


# -- legibility -------------------------------------------------------------------------------------------------------

CELLS = {
    "of 14 edges": [Edge(OPERATIONS[number % 7], *pair) for number, pair in enumerate(PAIRS)],
    "of 28 operations": [Edge(OPERATIONS[(n * 3 + k) % 7], *pair) for n, pair in enumerate(PAIRS) for k in (0, 2)],
    "of a published architecture": GENOTYPE.normal,
    "with dropped nodes": [("skip_connect", 4, 3), ("sep_conv_3x3", 2, 0), ("dil_conv_5x5", 5, 2)],
    "of one edge": [("dil_sep_conv_3x3", 3, 1)],
    "of nothing": [],
    "of long names": [("conv_7x1_1x7", 6, 0), ("dil_sep_conv_3x3", 6, 1), ("dil_sep_conv_3x3", 7, 6)],
}  # fmt: skip
NORMAL = {"normal": DARTS["normal"]}
SEARCHES = {
    "fairdarts": (recorded(epochs=50), None),
    "gumbel_darts, one epoch": (recorded(NORMAL, epochs=1, strategy="gumbel_darts"), None),
    "built-in darts, 1000 epochs": (recorded(NORMAL, epochs=1000, strategy="darts"), None),
    "thirteen operations": (recorded({"normal": (20, NASNET)}), ("gates", "trajectories", "cell", "skips")),
    "choices": (recorded(CHOICES), None),
    "one small cell": (recorded({"cell/of a user": (2, ("a", "b"))}, epochs=2), None),
}


def written(figure: Figure, monkeypatch) -> list[tuple[str, np.ndarray]]:
    """Every text that is drawn, and its box (left, bottom, right, top) in pixels."""
    drawn = {}
    draw = Text.draw

    def noting(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        return draw(text, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", noting)
    figure.canvas.draw()
    monkeypatch.undo()
    return [(text.get_text(), text.get_window_extent().extents) for text in drawn.values()]


def check_legible(figure: Figure, monkeypatch) -> list[str]:
    """No text of the figure lies on another, or leaves it; returns the texts."""
    texts = written(figure, monkeypatch)
    width, height = figure.bbox.extents[2:]
    for text, (left, bottom, right, top) in texts:
        assert left >= 0, text
        assert bottom >= 0, text
        assert right <= width, text
        assert top <= height, text
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{one!r} and {other!r} overlap"
    return [text for text, _ in texts]


@pytest.mark.parametrize("name", SEARCHES)
def test_no_text_lies_on_another_or_leaves_its_figure(name, monkeypatch):
    record, only = SEARCHES[name]
    found = plots.figures(record, only or ())
    for figure in found.values():
        check_legible(figure, monkeypatch)
    label = record.labels[0]
    edge = record.edges(label)[-1] if record.is_cell(label) else None
    check_legible(plots.trajectory(record, label, edge), monkeypatch)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_can_be_read(name, monkeypatch):
    """Its labels, and that no arrow runs through another's label, or on another arrow."""
    edges = [Edge(*edge) if isinstance(edge, tuple) else edge for edge in CELLS[name]]
    figure = plots.cell(edges, title=f"A cell {name}")
    texts = check_legible(figure, monkeypatch)
    assert sorted(text for text in texts if "_" in text) == sorted(edge.operation for edge in edges)
    assert {"cell k−2", "cell k−1", "0", "1", "output", f"A cell {name}"} <= set(texts)
    spans = [(start, end) for start, end, *_ in arrows(figure)]
    for (one, to), (other, until) in itertools.combinations(spans, 2):
        assert one[1] != other[1] or to[0] <= other[0] or until[0] <= one[0], "two arrows on each other"
    (ax,) = figure.axes
    labels = {text.get_text(): text for text in ax.texts if "_" in text.get_text()}
    for text in labels.values():
        x, y = text.get_position()
        assert sum(abs(start[1] - y) < 0.05 and start[0] < x < end[0] for start, end in spans) == 1


# -- what is drawn: the cells -----------------------------------------------------------------------------------------


def arrows(figure: Figure) -> list[tuple[tuple, tuple, str, str]]:
    """(from, to, color, label) of every arrow, in inches from the upper left corner; no label where it has none."""
    (ax,) = figure.axes
    labels = {text.get_position(): text for text in ax.texts if "_" in text.get_text()}
    found = []
    for note in ax.texts:
        if note.get_text() or not isinstance(getattr(note, "arrow_patch", None), FancyArrowPatch):
            continue
        (left, y), (right, _) = note.xyann, note.xy
        on = [text.get_text() for (x, at), text in labels.items() if abs(at - y) < 1e-9 and left < x < right]
        found.append(((left, y), (right, y), to_hex(note.arrow_patch.get_edgecolor()), *(on or [""])))
    return found


def bars(figure: Figure) -> dict[str, FancyBboxPatch]:
    """{number of a state, or "output": its bar}."""
    (ax,) = figure.axes
    found = {}
    for bar in (patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)):
        box = bar.get_bbox()
        (name,) = {t.get_text() for t in ax.texts if box.x0 < t.get_position()[0] < box.x1 and inside(box, t)}
        found[name] = bar
    return found


def inside(box, text) -> bool:
    return bool(text.get_text()) and box.y0 <= text.get_position()[1] <= box.y1 + 1e-9


def ends(figure: Figure) -> list[tuple[str, str, str]]:
    """(operation, where its arrow ends, where it begins) of every arrow: at which bars."""
    boxes = {name: bar.get_bbox() for name, bar in bars(figure).items()}

    def at(x, y, side):
        near = [name for name, box in boxes.items() if abs(getattr(box, side) - x) < 0.05]
        return next(name for name in near if boxes[name].y0 - 0.05 <= y <= boxes[name].y1 + 0.05)

    return [(label, at(*end, "x0"), at(*start, "x1")) for start, end, _, label in arrows(figure)]


def test_a_cell_is_drawn_from_left_to_right_in_its_operations_colors():
    figure = plots.cell(GENOTYPE.normal, GENOTYPE.normal_concat)
    left = GENOTYPE.pruned()
    expected = [(edge.operation, str(edge.node), str(edge.source)) for edge in left.normal]
    expected += [("", "output", str(node)) for node in left.normal_concat]
    assert sorted(ends(figure)) == sorted(expected)
    for _, _, color, label in arrows(figure):
        assert color == (plots.COLORS[label].lower() if label else "#9a9a9a")
    places = {name: bar.get_bbox().x0 for name, bar in bars(figure).items()}
    assert places["0"] == places["1"] < places["2"] < places["3"] < places["4"] < places["5"] < places["output"]


def test_what_is_not_built_is_grey():
    edges = [("skip_connect", 4, 3), ("sep_conv_3x3", 2, 0), ("dil_conv_5x5", 5, 2)]
    figure = plots.cell(edges, (2, 3, 4, 5))
    assert sorted(ends(figure)) == [
        ("", "output", "2"),
        ("", "output", "5"),
        ("dil_conv_5x5", "5", "2"),
        ("sep_conv_3x3", "2", "0"),
        ("skip_connect", "4", "3"),
    ]
    colors = {label: color for _, _, color, label in arrows(figure)}
    assert colors["skip_connect"] == "#9a9a9a"
    assert colors["sep_conv_3x3"] == plots.COLORS["sep_conv_3x3"].lower()
    grey = {name for name, bar in bars(figure).items() if to_hex(bar.get_edgecolor()) == "#9a9a9a"}
    assert grey == {"3", "4"}


def test_a_cell_on_an_ax_of_the_users():
    figure = Figure(figsize=(9, 4))
    ax = figure.add_subplot()
    assert plots.cell(GENOTYPE.reduce, ax=ax, title="mine") is figure
    assert ax.get_title() == ""
    assert ax.get_title("left") == "mine"


def test_a_cell_too_large_to_be_drawn():
    with pytest.raises(InputError, match="a cell of 2 operations and 999 nodes is too large to be drawn"):
        plots.cell([("skip_connect", 2, 0), ("skip_connect", 3, 0)], range(2, 1001))
    assert plots.cell([("skip_connect", 900, 0)]), "numbers may be large"


# -- what is drawn: gates ---------------------------------------------------------------------------------------------


def test_trajectories_are_the_gates_of_every_edge_over_the_epochs():
    record = recorded()
    figure = plots.trajectories(record, "reduce")
    assert len(figure.axes) == 14
    assert [text.get_text() for text in figure.legends[0].texts] == list(OPERATIONS)
    assert [ax.get_title("left") for ax in figure.axes] == [f"{source} → {node}" for node, source in PAIRS]
    places = [ax.get_position() for ax in figure.axes]
    for (one, a), (other, b) in itertools.combinations(zip(PAIRS, places, strict=True), 2):
        assert (one[0] < other[0]) == (a.y0 > b.y0 + 1e-9), "a node's edges are in a row, the next node's below"
        assert (one[1] == other[1]) == (abs(a.x0 - b.x0) < 1e-9), "a source's are in a column"
    for number, ax in enumerate(figure.axes):
        lines = {line.get_label(): line for line in ax.lines if line.get_label() in OPERATIONS}
        assert list(lines) == list(OPERATIONS)
        for place, name in enumerate(OPERATIONS):
            gates = [epoch["gates"]["reduce"][number][place] for epoch in record.history]
            assert lines[name].get_ydata() == pytest.approx(gates, abs=0)
            assert list(lines[name].get_xdata()) == list(range(1, 11))
            assert lines[name].get_color() == plots.COLORS[name]
        assert ax.get_ylim() == pytest.approx((-0.03, 1.03))


def test_one_edge_or_choice_on_an_ax_of_the_users():
    figure = Figure()
    one, other = figure.subplots(2)
    record = recorded({**DARTS, "depth": (0, (1, 2))}, strategy="darts")
    assert plots.trajectory(record, "normal", (3, 1), one) is figure
    assert plots.trajectory(record, "depth", ax=other) is figure
    assert one.get_title("left") == "normal: 1 → 3"
    assert one.get_ylabel() == "softmax weight"
    shown = [list(line.get_ydata()) for line in one.lines]
    assert shown == [[epoch["gates"]["normal"][3][place] for epoch in record.history] for place in range(7)]
    assert [line.get_label() for line in other.lines] == ["1", "2"]
    with pytest.raises(InputError, match="unknown label 'norm'; known: normal, reduce, depth"):
        plots.trajectory(record, "norm", (2, 0))
    with pytest.raises(InputError, match="the edge of normal must be one of 0 → 2, 1 → 2, 0 → 3, .*; got 3 → 0"):
        plots.trajectory(record, "normal", (0, 3))
    with pytest.raises(InputError, match="depth is a choice and has no edges; leave the edge out"):
        plots.trajectory(record, "depth", (2, 0))


def test_a_threshold_is_shown_where_there_is_one():
    def levels(strategy):
        ax = plots.trajectory(recorded(strategy=strategy), "normal", (2, 0)).axes[0]
        return [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1]

    assert levels("fairdarts") == [0.85]
    assert levels("darts") == []


def test_the_heat_map_has_the_last_gates_their_values_and_what_is_kept():
    record = replace(recorded(), genotype=GENOTYPE)
    figure = plots.gates(record, "normal")
    ax = figure.axes[0]
    values = np.array(record.history[-1]["gates"]["normal"])
    assert np.array_equal(ax.images[0].get_array(), values)
    assert ax.images[0].get_clim() == (0, 1)
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(column, row): f"{values[row, column]:.2f}" for row, column in np.ndindex(14, 7)}
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [f"{source} → {node}" for node, source in PAIRS]
    assert [tick.get_text().replace("\n", "_") for tick in ax.get_xticklabels()] == list(OPERATIONS)
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    framed = {(round(frame.get_y() + 0.42), round(frame.get_x() + 0.46)) for frame in frames}
    assert framed == {(PAIRS.index((e.node, e.source)), OPERATIONS.index(e.operation)) for e in GENOTYPE.normal}


def test_cells_that_were_drawn_without_gates_are_shown():
    """Of a random search, once it is finished."""
    history = tuple({key: r[key] for key in ("epoch", "train_loss", "val_acc")} for r in recorded(epochs=2).history)
    record = replace(recorded(strategy="random_search"), history=history)
    assert list(plots.figures(record)) == ["accuracy", "losses"]
    found = plots.figures(replace(record, genotype=GENOTYPE), only=["cell"])
    assert list(found) == ["cell_normal", "cell_reduce"]
    shown = [text.get_text().replace("\n", " ") for ax in found["cell_normal"].axes for text in ax.texts]
    for operation in {edge.operation for edge in GENOTYPE.normal}:
        assert any(operation in text for text in shown), operation


def test_what_choices_keep_is_framed_once_the_search_is_finished():
    """One of layers and values, several inputs, values that are lists of their own; nothing of what is not said."""
    shapes = {"layer": (0, ("a", "skip_connect")), "size": (0, ([1, 1], [3, 3])), "inputs": (0, (0, 1, 2)),
              "width": (0, (8, 16)), "unsaid": (0, (8, 16))}  # fmt: skip
    sample = {"layer": "skip_connect", "size": [3, 3], "inputs": [0, 2], "width": 8}
    figure = plots.gates(replace(recorded(shapes), result={"nni_sample": sample}), "choices")
    framed = [
        {(round(frame.get_y() + 0.42), round(frame.get_x() + 0.46)) for frame in ax.patches} for ax in figure.axes[:4]
    ]
    assert framed == [{(0, 1)}, {(0, 1)}, {(0, 0), (0, 2)}, {(0, 0)}]
    assert figure.texts[0].get_text().endswith("; framed: kept")


def test_the_heat_map_is_of_the_epoch_that_early_stopping_derives_from():
    record = replace(recorded(strategy="robust_darts"), genotype=GENOTYPE, result={"derived_epoch": 4})
    figure = plots.gates(record, "normal")
    assert "after epoch 4; framed: kept" in figure.texts[0].get_text()
    assert np.array_equal(figure.axes[0].images[0].get_array(), record.history[3]["gates"]["normal"])
    record = replace(recorded(strategy="operation_strength_darts"), genotype=GENOTYPE, result={"strengths": {}})
    assert "framed: kept by strength" in plots.gates(record, "normal").texts[0].get_text()


def test_what_an_unfinished_search_of_the_kin_would_keep():
    """By the rule of DARTS, and with the limit on skip connections, as its derivation does."""
    parts = PartsConfig(relaxation="sigmoid", max_skips=0)
    config = RunConfig(search=SearchConfig("noisy_darts", discretization="edge", parts=parts))
    record = replace(recorded(), config=config)
    gates, wanted = record.gates("normal")[-1], Discretization("darts", max_skips=0)
    assert kept(record, "normal") == wanted.cell(gates.tolist(), OPERATIONS, label="normal")
    assert [edge.node for edge in kept(record, "normal")] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert "skip_connect" not in {edge.operation for edge in kept(record, "normal")}


def test_choices_are_drawn_together_with_those_that_have_the_same_candidates():
    record = recorded(CHOICES)
    figure = plots.gates(record, "choices")
    layers = [name for name in CHOICES if name.startswith("layer_")]
    last = record.history[-1]["gates"]
    images = [ax.images[0].get_array() for ax in figure.axes[:-1]]
    assert np.array_equal(images[0], [last[name] for name in layers])
    others = [name for name in CHOICES if name not in layers]
    assert [image.tolist() for image in images[1:]] == [[last[name]] for name in others]
    panels = plots.trajectories(record, "choices").axes
    assert len(panels) == len(CHOICES)
    depth = next(ax for ax in panels if ax.get_title("left") == "depth")
    assert {line.get_label() for line in depth.lines if not line.get_label().startswith("_")} == {"1", "2", "3", "4"}
    assert "framed" not in figure.texts[0].get_text()
    legends = [[text.get_text() for text in legend.texts] for legend in plots.trajectories(record, "choices").legends]
    assert legends[:3] == [list(CHOICES["layer_0"][1]), ["3", "5"], ["1", "2", "3", "4"]]
    assert legends[5] == ["_a_conv…name_3x3", r"\$b\$"]


def test_the_histogram_counts_all_gates_of_every_epoch():
    record = recorded({**DARTS, "depth": (0, (1, 2))}, epochs=4)
    ax = plots.histogram(record).axes[0]
    counts = ax.images[0].get_array()
    assert counts.shape == (20, 4)
    for epoch, gates in enumerate(record.history):
        every = [*itertools.chain(*gates["gates"]["normal"], *gates["gates"]["reduce"]), *gates["gates"]["depth"]]
        expected = [sum(part / 20 <= gate < (part + 1) / 20 for gate in every) for part in range(20)]
        assert counts[:, epoch].tolist() == expected
    assert ax.images[0].get_extent() == [0.5, 4.5, 0, 1]


# -- what is drawn: numbers of epochs ---------------------------------------------------------------------------------


def of_one_epoch(**gates) -> dict:
    return {"operations": {label: list(OPERATIONS) for label in gates}, "gates": gates}


@pytest.mark.parametrize("case", PARSE["cases"])
def test_dominant_skip_connections_of_gates_that_the_authors_published(case):
    """Their code's own choice of two edges a node, each with its strongest operation, whatever the gates."""
    gates = {"normal": case["normal_gates"], "reduce": case["reduce_gates"]}
    record = replace(recorded(epochs=1), history=({"epoch": 0, **of_one_epoch(**gates)},))
    lines = plots.skips(record).axes[0].lines
    for line, cell in zip(lines, ("normal", "reduce"), strict=True):
        expected = sum(operation == "skip_connect" for operation, *_ in case["darts"][cell])
        assert line.get_label() == f"{cell} (of 8)"
        assert line.get_ydata().tolist() == [expected]


def test_dominant_skip_connections_where_they_take_over():
    def gates(epoch):  # in the normal cell node after node, in the reduction cell none
        normal = [[0.6, 0.1, 0.9 if node - 1 <= epoch else 0.2, 0.1, 0.1, 0.1, 0.1] for node, _ in PAIRS]
        return of_one_epoch(normal=normal, reduce=[[0.9, 0, 0, 0, 0, 0, 0]] * 14)

    record = replace(recorded(), history=tuple({"epoch": epoch, **gates(epoch)} for epoch in range(6)))
    ax = plots.skips(record).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 2, 4, 6, 8, 8], [0] * 6]
    assert ax.get_ylim()[1] == pytest.approx(8, abs=0.5), "of eight there could be"
    layers = recorded(CHOICES)
    (line,) = plots.skips(layers).axes[0].lines
    strongest = [[np.argmax(epoch["gates"][f"layer_{n}"]) == 6 for n in range(7)] for epoch in layers.history]
    assert line.get_ydata().tolist() == [sum(epoch) for epoch in strongest]
    assert line.get_label() == "choices (of 7)"
    without = recorded({"depth": (0, (1, 2))})
    assert "skips" not in plots.figures(without, ["decided", "histogram"])
    with pytest.raises(InputError, match="no gate of random stands for skip_connect, so there are none to count"):
        plots.skips(without)


def test_numbers_of_epochs_are_those_of_the_record():
    record = recorded()
    share, count = plots.decided(record).axes
    assert share.lines[0].get_ydata() == pytest.approx([100 * epoch["decided_gates"] for epoch in record.history])
    assert count.lines[0].get_ydata().tolist() == [epoch["open_gates"] for epoch in record.history]
    assert share.get_title("left") == "Decided: share of the 196 gates under 0.1 or over 0.9"
    assert count.get_title("left") == "Open: gates of at least 0.85"
    (accuracy,) = plots.accuracy(record).axes
    assert accuracy.lines[0].get_ydata() == pytest.approx([100 * epoch["val_acc"] for epoch in record.history])
    assert accuracy.get_ylabel() == "%"
    several, zero_one = plots.losses(record).axes
    for line, name in zip(several.lines, ("train_loss", "arch_loss", "val_loss"), strict=True):
        assert line.get_ydata().tolist() == [epoch[name] for epoch in record.history]
    assert zero_one.lines[0].get_ydata().tolist() == [-0.2] * 10
    for ax in (share, count, accuracy, several, zero_one):
        assert ax.lines[0].get_xdata().tolist() == list(range(1, 11))
        assert all(float(tick).is_integer() for tick in ax.get_xticks())
    assert len(plots.losses(recorded(strategy="darts")).axes) == 1


def test_the_gap_has_the_epochs_at_which_it_was_measured():
    record = recorded()
    line = plots.gap(record).axes[0].lines[-1]
    assert line.get_xdata().tolist() == [1, 3, 4, 6, 7, 9, 10]
    assert line.get_ydata() == pytest.approx([10 / epoch for epoch in (1, 3, 4, 6, 7, 9, 10)])
    never = recorded(discretization_gap=lambda epoch: None)
    with pytest.raises(InputError, match="no discretisation gap was measured in random; search with gap_batches"):
        plots.gap(never)
    assert "gap" not in plots.figures(never, ["accuracy", "losses"])


def test_other_metrics_and_searches_without_any():
    error = recorded(val_acc=lambda epoch: None, val_mse=lambda epoch: epoch / 2)
    (ax,) = plots.accuracy(error).axes
    assert ax.get_ylabel() == "val_mse"
    assert ax.lines[0].get_ydata().tolist() == [epoch / 2 for epoch in range(10)]
    assert plots.gap(error).axes[0].get_ylabel() == "val_mse"
    only_losses = replace(error, history=({"epoch": 0, "train_loss": 1.0},))
    assert list(plots.figures(only_losses)) == ["losses"]
    with pytest.raises(InputError, match="the search random was never validated, so there is no accuracy to show"):
        plots.accuracy(only_losses)
    nothing = replace(error, history=({"epoch": 0},))
    assert plots.figures(nothing) == {}
    with pytest.raises(InputError, match="the history of random has neither gates nor losses"):
        plots.save(nothing, "nowhere")


# -- all of them ------------------------------------------------------------------------------------------------------


def test_a_search_of_choices_is_drawn_from_its_history(search, choices, classification, tmp_path, monkeypatch):
    search(choices(), classification(max_epochs=2), FairDARTS(history=tmp_path / "history.jsonl"))
    record = read_recorded(tmp_path)
    found = plots.figures(record)
    names = ["gates_choices", "trajectories_choices", "histogram", "decided", "accuracy", "losses"]
    assert list(found) == names
    for figure in found.values():
        check_legible(figure, monkeypatch)
    first = next(ax for ax in found["trajectories_choices"].axes if ax.get_title("left") == "first")
    assert [list(line.get_ydata()) for line in first.lines[:3]] == record.gates("first")[:, 0].T.tolist()


def test_a_search_that_is_not_finished_shows_what_it_would_keep():
    gates = [[0.1] * 7 for _ in PAIRS]
    gates[0][3] = gates[3][2] = gates[13][5] = 0.9  # 0 → 2, 1 → 3 and 4 → 5, whose node 4 is not built
    running = replace(recorded(), history=({"epoch": 6, **of_one_epoch(normal=gates, reduce=[[0.2] * 7] * 14)},))
    found = plots.figures(running, ["cell"])
    assert list(found) == ["cell_normal", "cell_reduce"]
    assert found["cell_normal"].texts[0].get_text() == "What the normal cell keeps after epoch 7"
    operations = [end for end in ends(found["cell_normal"]) if end[0]]
    assert sorted(operations) == [("dil_conv_3x3", "5", "4"), ("sep_conv_3x3", "2", "0"), ("skip_connect", "3", "1")]
    assert [end for end in ends(found["cell_reduce"]) if end[0]] == [("max_pool_3x3", "2", "0")]
    finished = plots.figures(replace(running, genotype=Genotype(GENOTYPE.normal, GENOTYPE.reduce)), ["cell_normal"])
    assert finished["cell_normal"].texts[0].get_text() == "Derived: the normal cell"
    assert len(arrows(finished["cell_normal"])) == len(GENOTYPE.pruned().normal) + len(GENOTYPE.pruned().normal_concat)


def test_files_are_replaced_and_the_same_record_gives_the_same(tmp_path):
    record = recorded(epochs=3)
    folder = tmp_path / "new" / "plots"
    paths = plots.save(record, folder, only=["skips", "gates_normal"])
    assert [path.name for path in paths] == ["gates_normal.png", "gates_normal.svg", "skips.png", "skips.svg"]
    before = [path.read_bytes() for path in paths]
    assert before[0][:4] == b"\x89PNG"
    assert b"<svg" in before[1]
    paths[2].write_text("an earlier one")
    assert plots.save(record, folder, only=["gates_normal", "skips"]) == paths
    assert [path.read_bytes() for path in paths] == before
    assert [p.name for p in plots.save(record, folder, ["png"], edge=("normal", 3, 0))] == ["trajectory_normal_0_3.png"]
    with pytest.raises(InputError, match="unknown format 'pdf'; known: png, svg"):
        plots.save(record, folder, ["pdf"])
    with pytest.raises(InputError, match="random has no figure 'cel'; it has: cell_normal, cell_reduce, gates_normal"):
        plots.save(record, folder, only=["cel"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write figures to .*file: .*; give another folder"):
        plots.save(record, tmp_path / "file", ["png"], ["skips"])


def test_nothing_global_of_matplotlib_is_changed():
    user = {"font.size": 20, "axes.titlelocation": "right", "lines.linewidth": 7}
    with matplotlib.rc_context(user):
        before = dict(matplotlib.rcParams)
        figure = plots.accuracy(recorded())
        assert dict(matplotlib.rcParams) == before
        assert figure.axes[0].get_title("left")
        assert figure.axes[0].title.get_fontsize() < 20
    code = """
import sys
from records import recorded
from nni_fairdarts import plots
assert "matplotlib" not in sys.modules
plots.figures(recorded(epochs=1), ["skips"])
print("matplotlib.pyplot" in sys.modules)
"""
    run = {"capture_output": True, "text": True, "cwd": Path(__file__).parent}
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert done.stdout == "False\n", done.stderr


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for name in [
        name for name in sys.modules if name.split(".")[0] == "matplotlib" or name.startswith("nni_fairdarts.plots.")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"figures need matplotlib; pip install .* with its extra \[plots\]"):
        _ = plots.figures
    with pytest.raises(AttributeError, match="has no attribute 'figure'"):
        _ = plots.figure
