"""Data sets by name: digits, CIFAR, folders, and users' own; what of them a search sees; batches of those in memory."""

from nni_fairdarts.datasets.batches import Batches, as_built, held
from nni_fairdarts.datasets.images import ImageData, Mapped
from nni_fairdarts.datasets.sources import load
from nni_fairdarts.datasets.subset import search_subset

__all__ = ["Batches", "ImageData", "Mapped", "as_built", "held", "load", "search_subset"]
