"""One look for every operation, in all figures: a color, a line style and a marker."""

from collections.abc import Iterable
from dataclasses import dataclass

from nni_fairdarts.edges import KNOWN_OPERATIONS


@dataclass(frozen=True)
class Look:
    """How what belongs to an operation is drawn; ``dashes`` and ``marker`` in matplotlib's words."""

    color: str
    dashes: str | tuple
    marker: str


# The seven operations of the paper have the colors of Okabe and Ito (Color Universal Design, 2008) without yellow,
# which is hard to see on white: told apart with any kind of color vision. There are no eighteen such colors, so those
# of the other operations, of Tol's palettes (SRON/EPS/TN/09-002), come with line styles: where two of them have the
# same style, they too are told apart with any color vision.
_SOLID, _DASHED, _DOTTED, _MIXED = "solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
_LOOKS = {
    "max_pool_3x3": Look("#56B4E9", _SOLID, "o"),
    "avg_pool_3x3": Look("#0072B2", _SOLID, "s"),
    "skip_connect": Look("#D55E00", _SOLID, "D"),
    "sep_conv_3x3": Look("#009E73", _SOLID, "^"),
    "sep_conv_5x5": Look("#000000", _SOLID, "v"),
    "dil_conv_3x3": Look("#E69F00", _SOLID, "P"),
    "dil_conv_5x5": Look("#CC79A7", _SOLID, "X"),
    "avg_pool_2x2": Look("#CCBB44", _DASHED, "s"),
    "avg_pool_5x5": Look("#661100", _DASHED, "s"),
    "max_pool_2x2": Look("#EE3377", _DASHED, "o"),
    "max_pool_5x5": Look("#44AA99", _DASHED, "o"),
    "max_pool_7x7": Look("#332288", _DOTTED, "o"),
    "conv_1x1": Look("#117733", _DASHED, "*"),
    "conv_3x3": Look("#882255", _DOTTED, "*"),
    "sep_conv_7x7": Look("#EE6677", _DOTTED, "^"),
    "dil_sep_conv_3x3": Look("#999933", _DOTTED, "P"),
    "conv_3x1_1x3": Look("#AA4499", _MIXED, "<"),
    "conv_7x1_1x7": Look("#CC3311", _MIXED, ">"),
}
COLORS = {name: look.color for name, look in _LOOKS.items()}
"""The color of every operation that this package knows."""

DROPPED = "#9A9A9A"
"""Of what a derived cell does not keep, and of lines that help to read a figure."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for every name; names that are no known operations get, in their order, those that are left over.

    So a record's operations look alike in all of its figures, and in those of every search of the same space.
    """
    names = list(dict.fromkeys(names))
    taken = {name: _LOOKS[name] for name in names if name in _LOOKS}
    free = [look for look in _ALL if look not in taken.values()]
    others = [name for name in names if name not in _LOOKS]
    taken |= {name: (free or _ALL)[place % len(free or _ALL)] for place, name in enumerate(others)}
    return taken


def _all() -> list[Look]:
    """Every known operation's look, then their colors with the other line styles."""
    found = [_LOOKS[name] for name in KNOWN_OPERATIONS]
    for shift in range(1, 4):
        styles = [_SOLID, _DASHED, _DOTTED, _MIXED]
        found += [Look(look.color, styles[(styles.index(look.dashes) + shift) % 4], look.marker) for look in found[:18]]
    return found


_ALL = _all()
