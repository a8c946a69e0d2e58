"""What a data set is here, and its images at one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2


@dataclass(frozen=True)
class ImageData:
    """A data set ready to be loaded.

    train, test: yield (uint8 image tensor (in_channels, image_size, image_size), label in 0 .. num_classes - 1).
    mean, std: per channel, of pixels in [0, 1]. split_seed: how `search_loaders` halves `train`: None = in the
    stored order, a number = after a fixed permutation with that seed, for sets stored class by class. as_stored: the
    images come in their own sizes (in_channels, H, W), and `data.transforms` takes image_size out of them.
    """

    train: Dataset
    test: Dataset
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    split_seed: int | None = None
    as_stored: bool = False


class Arrays(Dataset):
    """Images (N, C, H, W) and labels (N,) held in memory, and on CUDA devices that ask for them (`on`)."""

    def __init__(self, images: Tensor, labels):
        self.images, self.labels = images, [int(label) for label in labels]
        self._copies: dict[torch.device, Tensor | None] = {}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    def __getstate__(self):
        return {**vars(self), "_copies": {}}  # another process makes its own

    def on(self, device: torch.device) -> Tensor | None:
        """The images on a CUDA device, copied there when first asked for and kept; None where they do not fit.

        They fit where they take no more than an eighth of the memory that is free then: the rest is the network's.
        """
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device not in self._copies:
            free, _ = torch.cuda.mem_get_info(device)
            self._copies[device] = self.images.to(device) if self.images.nbytes <= free / 8 else None
        return self._copies[device]


class Mapped(Dataset):
    """A data set whose images pass through `transform` when they are read."""

    def __init__(self, dataset: Dataset, transform: Callable):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return self.transform(image), int(label)


def to_size(size: int) -> Callable:
    """PIL image or tensor to a tensor (C, size, size): the shorter side is resized to `size`, the centre kept."""
    return v2.Compose([v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def at_size(data: ImageData, size: int) -> ImageData:
    """`data` with images of `size` pixels."""
    if size == data.image_size and not data.as_stored:
        return data
    train, test = Mapped(data.train, to_size(size)), Mapped(data.test, to_size(size))
    return replace(data, train=train, test=test, image_size=size, as_stored=False)
