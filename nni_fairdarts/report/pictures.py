"""Figures inside a page: SVG as data in an image's address, so that nothing in one reaches the page or another."""

import base64
import io
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDE = 760
"""From so many pixels on a figure is scrolled on a narrow screen, not shrunk until it cannot be read."""


@dataclass(frozen=True)
class Picture:
    """An image's address, its size in pixels, what it shows in a few words, and more about it."""

    name: str
    address: str
    width: int
    height: int
    title: str
    caption: str = ""

    @property
    def wide(self) -> bool:
        return self.width >= WIDE


def picture(name: str, figure: Figure, title: str, caption: str = "") -> Picture:
    """The figure as SVG; the same bytes for the same figure."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    address = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(name, address, width, height, title, caption)
