"""Figures of a search: what its gates did, what it lost and won, and the cells that it derived.

Every function that draws takes an ``ax`` of yours, or none for a figure of its own, and returns the figure. Nothing
global of matplotlib is changed, and pyplot is not imported.
"""

from importlib import import_module

from nni_fairdarts.errors import InputError

_PLACES = {
    "COLORS": "colors",
    "accuracy": "curves",
    "cell": "cells",
    "decided": "curves",
    "figures": "album",
    "gap": "curves",
    "gates": "matrices",
    "histogram": "matrices",
    "losses": "curves",
    "save": "album",
    "skips": "curves",
    "trajectories": "panels",
    "trajectory": "panels",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError(
            "figures need matplotlib; pip install matplotlib, or this package with its extra [plots]"
        ) from error


def __dir__():
    return __all__
