"""FairDARTS for Microsoft NNI: see README.md."""

from nni_fairdarts.discretize import Discretization, discretize
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Edge, Genotype
from nni_fairdarts.network import DerivedNetwork, derive_network
from nni_fairdarts.published import load_published
from nni_fairdarts.strategy import FairDARTS, register

__all__ = [
    "DerivedNetwork",
    "Discretization",
    "Edge",
    "FairDARTS",
    "Genotype",
    "InputError",
    "derive_network",
    "discretize",
    "load_published",
    "register",
]
