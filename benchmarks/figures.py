"""How a step's time and memory grow with width, cells, batch and candidates: two pictures out of a result.

    python benchmarks/figures.py benchmarks/results/NAME.json

Writes NAME-time.png and NAME-memory.png beside it. A panel varies one size; the others are those of ``--base``. What
did not fit is a cross at the upper edge. Needs matplotlib: pip install 'nni-fairdarts[plots]'.
"""

import argparse
import json
from pathlib import Path

from variants import LINES, VARIANTS, Size

AXES = {"channels": "channels", "cells": "cells", "batch": "images in a batch", "candidates": "candidates on an edge"}
COLOURS = ("#7f7f7f", "#d95f02", "#1b6ca8", "#2a9d6f")
MARKERS = ("s", "^", "o", "D")
QUANTITIES = {
    "time": ("seconds per step", lambda row: row.get("step", {}).get("seconds")),
    "memory": ("peak memory (GiB)", lambda row: row["peak_bytes"] / 2**30 if "peak_bytes" in row else None),
}
"""A picture's name: what its vertical axis says, and a row's value."""


def sweep(rows: list[dict], axis: str, base: Size) -> list[dict]:
    """The rows whose size is the base but for ``axis``, in its order."""
    fixed = [name for name in AXES if name != axis]
    kept = [row for row in rows if all(row[name] == getattr(base, name) for name in fixed)]
    return sorted(kept, key=lambda row: row[axis])


def draw(result: dict, quantity: str, base: Size, path: Path) -> None:
    """One picture: a panel for each of AXES along which there are at least two sizes. Raises ValueError without any."""
    import matplotlib.pyplot as plt

    panels = {axis: sweep(result["rows"], axis, base) for axis in AXES}
    panels = {axis: rows for axis, rows in panels.items() if len({row[axis] for row in rows}) > 1}
    if not panels:
        raise ValueError(
            f"the result has no two sizes that are {base} but for one thing; measure a sweep or name --base"
        )
    label, value = QUANTITIES[quantity]
    columns = min(2, len(panels))
    figure, frames = plt.subplots(
        (len(panels) + 1) // 2, columns, figsize=(4.2 * columns, 3.2 * ((len(panels) + 1) // 2) + 0.6), squeeze=False
    )
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    for i, frame in enumerate(frames.flat):
        if i >= len(panels):
            frame.set_visible(False)
            continue
        axis = list(panels)[i]
        _panel(frame, panels[axis], axis, value)
        if i % 2 == 0:
            frame.set_ylabel(label)
    handles = {h.get_label(): h for frame in frames.flat for h in frame.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    machine = result["machine"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, threads: {machine['threads']}"
    figure.supxlabel(f"otherwise {_in_words(base)}; {device}", fontsize=8, color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(frame, rows: list[dict], axis: str, value) -> None:
    """Lines of the variants over one axis: from zero, or both scales logarithmic where the sizes span a factor of 8."""
    frame.set_xlabel(AXES[axis])
    places = sorted({row[axis] for row in rows})
    if places[-1] >= 8 * places[0]:
        frame.set_xscale("log", base=2)
        frame.set_yscale("log", base=2)
        frame.yaxis.set_major_formatter("{x:g}")
        frame.minorticks_off()
        frame.set_xlabel(f"{AXES[axis]} (both scales logarithmic)")
    for name, colour, marker in zip(LINES, COLOURS, MARKERS, strict=True):
        points = [(row[axis], value(row)) for row in rows if row["variant"] == name and value(row) is not None]
        if points:
            x, y = zip(*points, strict=True)
            frame.plot(x, y, color=colour, marker=marker, ms=5, lw=1.6, label=VARIANTS[name].title)
    if frame.get_yscale() == "linear":
        frame.set_ylim(bottom=0)
    _crosses(frame, rows, axis)
    frame.set_xticks(places, [str(place) for place in places])
    frame.grid(axis="y", color="#dddddd", lw=0.6)
    frame.set_axisbelow(True)
    frame.spines[["top", "right"]].set_visible(False)


def _crosses(frame, rows: list[dict], axis: str) -> None:
    """A cross at the upper edge for what did not fit, those of one size side by side."""
    lost: dict[int, int] = {}
    for name, colour in zip(LINES, COLOURS, strict=True):
        for row in rows:
            if row["variant"] == name and row.get("status") == "does not fit":
                shift = 9 * lost.setdefault(row[axis], 0)
                lost[row[axis]] += 1
                frame.annotate(
                    "×",
                    (row[axis], 1),
                    (-shift, 0),
                    xycoords=frame.get_xaxis_transform(),
                    textcoords="offset points",
                    color=colour,
                    fontsize=14,
                    ha="center",
                    va="center",
                    annotation_clip=False,
                )
    if lost:
        frame.set_title("× does not fit", fontsize=8, loc="left", color="#555555")


def _in_words(size: Size) -> str:
    return f"{size.channels} channels, {size.cells} cells, batch {size.batch}, {size.candidates} candidates"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="NAME.json, as step.py wrote it")
    parser.add_argument("--base", type=Size.parse, default=Size.parse("16x8x16"))
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("error: figures need matplotlib; run: pip install 'nni-fairdarts[plots]'") from None
    matplotlib.use("Agg")
    result = json.loads(args.result.read_text())
    for quantity in QUANTITIES:
        path = args.result.with_name(f"{args.result.stem}-{quantity}.png")
        try:
            draw(result, quantity, args.base, path)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        print(path)


if __name__ == "__main__":
    main()
