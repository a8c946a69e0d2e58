"""Batches of images that are held in memory, augmented as a whole."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, Subset

from nni_fairdarts.datasets.images import Arrays
from nni_fairdarts.datasets.subset import Chosen


class Batches(Dataset):
    """Images in memory, uint8 (N, C, S, S), as normalised and augmented batches.

    The numbers are those of `data.transforms` on one image after another, bit for bit: what is random is drawn image
    by image, in the same order, from torch's global generator on the host, and then applied to the batch at once. A
    loader fetches a whole batch (torch's `__getitems__`) and hands it on with `as_built`.

    within: the images, which of them are in the set, and their labels; see `held`. mean, std: per channel, of pixels
    in [0, 1]. padding: of zeros around a random crop; 0 = no crop. flip: mirror half. cutout: side of the blanked
    square; 0 = none. device: where batches are built, "cpu" or a CUDA device, for loaders without worker processes.
    On CUDA the images are kept there where they fit, and the host only queues what is to be done.
    """

    def __init__(
        self,
        within: tuple[Arrays, Tensor, Tensor],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        padding: int = 0,
        flip: bool = False,
        cutout: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.arrays, self.rows, self.labels = within
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self.padding, self.flip, self.cutout, self.device = padding, flip, cutout, torch.device(device)
        offsets, pixels = 2 * padding + 1, self.arrays.images.shape[-1]
        self.below = {"top": offsets, "left": offsets} if padding else {}  # in the order of data.transforms
        self.below |= {"mirrored": None} if flip else {}  # uniform in [0, 1)
        self.below |= {"row": pixels, "column": pixels} if cutout else {}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Images (B, C, S, S), float32, and labels (B,), int64."""
        images = _gathered(self.arrays, self.rows[indices], self.device)
        drawn = self._drawn(len(indices))
        if self.padding or self.flip:
            images = crop(images, self.padding, drawn.get("top"), drawn.get("left"), drawn.get("mirrored"))
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        images = images.to(torch.float32).mul_(1 / 255).sub_(self.mean).div_(self.std)  # torchvision's own steps
        if self.cutout:
            images.masked_fill_(hole(images.shape[-1], self.cutout, drawn["row"], drawn["column"]), 0)
        return [images, _moved(self.labels[indices], self.device)]

    def _drawn(self, images: int) -> dict[str, Tensor]:
        """What is random in each of so many images, (images,), on the device: int64, or bool for "mirrored".

        The in-place draws are those of torch.randint and torch.rand, in half the time.
        """
        if not self.below:
            return {}
        drawn = torch.empty(images, len(self.below))  # floats hold whole numbers up to 2^24 exactly
        for number, limit in zip(drawn.flatten().unbind(), cycle(self.below.values()), strict=False):
            number.uniform_() if limit is None else number.random_(limit)
        columns = zip(self.below, _moved(drawn, self.device).unbind(1), strict=True)
        return {name: column < 0.5 if name == "mirrored" else column.long() for name, column in columns}


def held(dataset: Dataset) -> tuple[Arrays, Tensor, Tensor] | None:
    """The images in memory that a data set is, or is a part of; the indices of its own and their labels, (n,), int64.

    None for data sets of any other class, subclasses included: what they do with an image is not known here.
    """
    if type(dataset) is Arrays:
        return dataset, torch.arange(len(dataset)), torch.tensor(dataset.labels, dtype=torch.int64)
    if type(dataset) not in (Subset, Chosen) or (whole := held(dataset.dataset)) is None:
        return None
    arrays, rows, labels = whole
    indices = torch.tensor(dataset.indices, dtype=torch.int64)
    own = torch.tensor(dataset.labels, dtype=torch.int64) if type(dataset) is Chosen else labels[indices]
    return arrays, rows[indices], own


def as_built(batch: list[Tensor]) -> list[Tensor]:
    """A loader's collate_fn for batches that come whole."""
    return batch


def crop(
    images: Tensor, padding: int, top: Tensor | None = None, left: Tensor | None = None, mirrored: Tensor | None = None
) -> Tensor:
    """The window (S, S) at (top, left) of each image (B, C, S, S) with `padding` zeros around it, mirrored or not.

    top, left: (B,), int64, in 0 .. 2 · padding; None = 0. mirrored: (B,), bool; None = not. One gather does it all.
    """
    batch, channels, size = images.shape[:3]
    line = torch.arange(size, device=images.device).expand(batch, -1)  # (B, S)
    rows = line if top is None else top[:, None] + line
    columns = line if mirrored is None else torch.where(mirrored[:, None], size - 1 - line, line)
    columns = columns if left is None else left[:, None] + columns
    pixels = rows[:, :, None] * (size + 2 * padding) + columns[:, None, :]  # (B, S, S), in the flat padded image
    flat = pad(images, [padding] * 4).flatten(2)
    return flat.gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)


def hole(size: int, length: int, row: Tensor, column: Tensor) -> Tensor:
    """Where a square of `length` pixels around (row, column), each (B,), covers an image: bool (B, 1, size, size)."""
    line = torch.arange(size, device=row.device)

    def covered(centre: Tensor) -> Tensor:
        offset = line - (centre[:, None] - length // 2)
        return (offset >= 0) & (offset < length)  # (B, S)

    return covered(row)[:, None, :, None] & covered(column)[:, None, None, :]


def _gathered(arrays: Arrays, rows: Tensor, device: torch.device) -> Tensor:
    """The images at `rows` on the device, of its own copy where there is one."""
    if device.type == "cuda" and (images := arrays.on(device)) is not None:
        return images.index_select(0, _moved(rows, device))
    return _moved(arrays.images.index_select(0, rows), device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; the host does not wait for a copy from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
