"""FairDARTS for Microsoft NNI: see README.md.

Importing the package changes nothing in the process and loads neither torch nor NNI; the names below load what they
need when they are first used.
"""

from importlib import import_module

_PLACES = {
    "DerivedNetwork": "network",
    "Discretization": "discretize",
    "Edge": "edges",
    "FairDARTS": "strategy",
    "Genotype": "genotype",
    "InputError": "errors",
    "NonFiniteLoss": "errors",
    "derive_network": "network",
    "freeze": "freezing",
    "inherit": "inheritance",
    "load_published": "published",
    "reestimate_batch_norm": "inheritance",
    "register": "strategy",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__():
    return __all__
