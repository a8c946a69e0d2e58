"""The part of a large data set that a search sees."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

import torch
from torch.utils.data import Dataset, Subset
from torchvision.datasets import DatasetFolder

from nni_fairdarts.datasets.images import Arrays, ImageData, Mapped
from nni_fairdarts.errors import InputError


class Chosen(Dataset):
    """The images at `indices` of a data set, with labels of their own."""

    def __init__(self, dataset: Dataset, indices: list[int], labels: list[int]):
        self.dataset, self.indices, self.labels = dataset, indices, labels

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[self.indices[index]][0], self.labels[index]


@singledispatch
def labels_of(dataset: Dataset) -> list[int]:
    """The label of every image, in order; images are read only where the data set keeps no labels beside them."""
    return [int(dataset[index][1]) for index in range(len(dataset))]


@labels_of.register(Arrays)
@labels_of.register(Chosen)
def _(dataset) -> list[int]:
    return dataset.labels


@labels_of.register(Mapped)
def _(dataset: Mapped) -> list[int]:
    return labels_of(dataset.dataset)


@labels_of.register(Subset)
def _(dataset: Subset) -> list[int]:
    labels = labels_of(dataset.dataset)
    return [labels[index] for index in dataset.indices]


@labels_of.register(DatasetFolder)
def _(dataset: DatasetFolder) -> list[int]:
    change = dataset.target_transform or int
    return [int(change(label)) for label in dataset.targets]


def search_subset(
    data: ImageData, classes: int | None = None, images_per_class: int | None = None, seed: int = 0
) -> ImageData:
    """Some classes of `data`, and some images of each in its training part, drawn with `seed`; None = all.

    The classes keep their order and are numbered 0 .. classes - 1; the images stay in the stored order. The test part
    keeps all its images of these classes. One seed gives the same classes whatever the number of images.
    Raises InputError for fewer than 2 of either, for more classes than there are, and where a class has fewer images.
    """
    if classes is None and images_per_class is None:
        return data
    number = data.num_classes if classes is None else classes
    if not 2 <= number <= data.num_classes:
        raise InputError(
            f"search_classes must be in 2 .. {data.num_classes}, the classes of {data.name!r}, got {number}; leave it "
            "unset for all"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(torch.randperm(data.num_classes, generator=generator)[:number].tolist())
    numbers = {label: new for new, label in enumerate(chosen)}
    train = _of_classes(data.train, numbers)
    if images_per_class is not None:
        train = _drawn(train, number, images_per_class, data.name, generator)
    return replace(data, train=train, test=_of_classes(data.test, numbers), num_classes=number)


def _of_classes(dataset: Dataset, numbers: dict[int, int]) -> Chosen:
    kept = [(index, numbers[label]) for index, label in enumerate(labels_of(dataset)) if label in numbers]
    return Chosen(dataset, [index for index, _ in kept], [label for _, label in kept])


def _drawn(dataset: Chosen, classes: int, images: int, name: str, generator: torch.Generator) -> Chosen:
    members = [[] for _ in range(classes)]
    for position, label in enumerate(dataset.labels):
        members[label].append(position)
    fewest = min(map(len, members))
    if not 2 <= images <= fewest:
        raise InputError(
            f"search_images_per_class must be in 2 .. {fewest}, the images of the smallest class drawn from {name!r}, "
            f"got {images}; leave it unset for all"
        )
    drawn = (
        positions[i] for positions in members for i in torch.randperm(len(positions), generator=generator)[:images]
    )
    kept = sorted(drawn)
    return Chosen(dataset.dataset, [dataset.indices[i] for i in kept], [dataset.labels[i] for i in kept])
