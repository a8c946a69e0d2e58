"""A derived network that has been trained: ``load`` it, ``evaluate`` it on a test set, ``export`` it to a file."""

from importlib import import_module

_PLACES = {
    "Evaluation": "evaluating",
    "Exported": "exporting",
    "Trained": "loading",
    "check_export": "exporting",
    "evaluate": "evaluating",
    "export": "exporting",
    "load": "loading",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str):  # the commands' parsers are made without torch
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
