"""Data sets by name: scikit-learn's digits, CIFAR, image folders, and users' own; and what of them a search sees."""

from nni_fairdarts.datasets.images import ImageData, Mapped
from nni_fairdarts.datasets.sources import load
from nni_fairdarts.datasets.subset import search_subset

__all__ = ["ImageData", "Mapped", "load", "search_subset"]
