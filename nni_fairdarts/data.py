"""Augmentation, and the loaders for a search and for a retraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from nni.nas.evaluator.pytorch import DataLoader  # traced, so that NNI's evaluator does not warn
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from nni_fairdarts.datasets import Batches, ImageData, Mapped, as_built, held
from nni_fairdarts.distributed import Shard
from nni_fairdarts.errors import InputError
from nni_fairdarts.variables import workers_hang


@dataclass(frozen=True)
class Augmentation:
    """What training images go through; the defaults are the published search's, retraining adds cutout 16.

    crop_padding: pixels of zeros around the image before a random crop to its size, of "crop" alone; 0 = no crop.
    flip: mirror half of the images left to right. cutout: side of the blanked square in pixels; 0 = none.
    kind: "crop", or "imagenet": a random part of the image (8 % to all of it, 3:4 to 4:3) resized to its size, and
    jittered colours (brightness, contrast and saturation by up to 40 %, hue by up to 0.2 of the circle), as DARTS
    trains on ImageNet (arXiv 1806.09055).
    Raises InputError for a negative number of pixels and an unknown kind.
    """

    crop_padding: int = 4
    flip: bool = True
    cutout: int = 0
    kind: str = "crop"

    def __post_init__(self):
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 (none) or a number of pixels, got {getattr(self, name)}")
        if self.kind not in AUGMENTATIONS:
            raise InputError(f"unknown augmentation {self.kind!r}; known: {', '.join(AUGMENTATIONS)}")


def _crop(data: ImageData, augmentation: Augmentation) -> list[nn.Module]:
    if data.as_stored:
        raise InputError(
            "the augmentation 'crop' takes images of one size, got images as stored; load them at image_size, or use "
            "'imagenet'"
        )
    padding = augmentation.crop_padding
    if padding > data.image_size:
        raise InputError(
            f"crop_padding must be at most the images' {data.image_size} pixels, got {padding}; 0 turns the crop off"
        )
    return [v2.RandomCrop(data.image_size, padding=padding), *_flip(augmentation)] if padding else _flip(augmentation)


def _resized_crop(data: ImageData, augmentation: Augmentation) -> list[nn.Module]:
    if data.in_channels not in (1, 3):
        raise InputError(
            f"the augmentation 'imagenet' changes colours: images must have 1 or 3 channels, got {data.in_channels}; "
            "use 'crop' (data.augmentation)"
        )
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    return [v2.RandomResizedCrop(data.image_size, antialias=True), *_flip(augmentation), jitter]


def _flip(augmentation: Augmentation) -> list[nn.Module]:
    return [v2.RandomHorizontalFlip()] if augmentation.flip else []


AUGMENTATIONS = {"crop": _crop, "imagenet": _resized_crop}


class Cutout(nn.Module):
    """Set a square of an image (..., H, W) to 0; its centre is a uniformly drawn pixel, the border clips it.

    length: side in pixels (0 = nothing happens). The centre comes from torch's global generator.
    DeVries and Taylor, arXiv 1708.04552, as in the published DARTS code (which rounds an odd length down).
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        top = int(torch.randint(height, ())) - self.length // 2
        left = int(torch.randint(width, ())) - self.length // 2
        image = image.clone()
        image[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return image


def transforms(data: ImageData, augmentation: Augmentation | None) -> Callable:
    """uint8 image (C, H, W) to normalised float32 (C, image_size, image_size); None = for evaluation.

    In the published order: crop, flip, colours, normalise, cutout. For evaluation images as stored are resized, the
    shorter side to image_size / 0.875 (256 for 224), and centre cropped; others are only normalised.
    Raises InputError when the cutout is as large as the image, and where the augmentation cannot take the images.
    """
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    if augmentation is None:
        size = data.image_size
        fit = [v2.Resize(round(size / 0.875), antialias=True), v2.CenterCrop(size)] if data.as_stored else []
        return v2.Compose([*fit, *normalise])
    if augmentation.cutout >= data.image_size:
        raise InputError(
            f"cutout must be smaller than the images' {data.image_size} pixels, got {augmentation.cutout}; "
            "0 turns it off"
        )
    cutout = [Cutout(augmentation.cutout)] if augmentation.cutout else []
    return v2.Compose([*AUGMENTATIONS[augmentation.kind](data, augmentation), *normalise, *cutout])


def _batches(data: ImageData, part: Dataset, augmentation: Augmentation | None, device: str) -> Batches | None:
    """`part` with what `transforms` does, by batch; None where its images must be read and augmented one by one."""
    chosen = Augmentation(crop_padding=0, flip=False) if augmentation is None else augmentation
    if data.as_stored or chosen.kind != "crop" or (found := held(part)) is None:
        return None
    images = found[0].images
    if images.dtype != torch.uint8 or tuple(images.shape[2:]) != (data.image_size,) * 2:
        return None
    return Batches(found, data.mean, data.std, chosen.crop_padding, chosen.flip, chosen.cutout, device)


def _loader(
    data: ImageData,
    batch_size: int,
    workers: int,
    device: str,
    part: Dataset,
    augmentation: Augmentation | None,
    **options,
) -> DataLoader:
    transform = transforms(data, augmentation)
    batches = _batches(data, part, augmentation, "cpu" if workers else device)  # forked workers cannot use CUDA
    return DataLoader(
        Mapped(part, transform) if batches is None else batches,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=None if batches is None else as_built,
        pin_memory=torch.cuda.is_available() and (batches is None or batches.device.type == "cpu"),
        **options,
    )


def _order(part: Dataset, devices: int, seed: int | None) -> dict:
    """A loader's options for its order: shuffled where a seed is given, this process's part of several devices'."""
    return {"shuffle": seed is not None} if devices == 1 else {"sampler": Shard(part, devices, seed)}


def _check_loading(batch_size: int, workers: int, images: int, of: str, devices: int = 1):
    if workers < 0:
        raise InputError(f"workers must be 0 (load in the main process) or more, got {workers}")
    if workers and (why := workers_hang()):
        raise InputError(f"{why} (data.workers 0)")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size > images // devices:
        each = f" that each of {devices} processes has" if devices > 1 else ""
        raise InputError(
            f"batch_size {batch_size} is larger than the {images // devices} images of {of}{each}; at most "
            f"{images // devices} works"
        )


def search_loaders(
    data: ImageData,
    batch_size: int,
    augmentation: Augmentation | None,
    workers: int = 0,
    train_portion: float = 0.5,
    device: str = "cpu",
    devices: int = 1,
    seed: int = 0,
) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Loaders of a bilevel search: the weights' half, the alpha half, and the alpha half for validation.

    The first `train_portion`, in (0, 1), of the training set trains the weights and the rest alpha, both shuffled and
    augmented; validation is neither. Batches: float32 (B, C, H, W) and int64 (B,), the last one may be smaller.
    With workers=0 those of images in memory (digits, CIFAR) are built on `device`, "cpu" or "cuda": the network's.
    Of several `devices` each process's loaders give its own part in batches of `batch_size`, shuffled by `seed`.
    Raises InputError for a portion outside (0, 1), and for a batch larger than the smaller half.
    The published split (arXiv 1911.12126); `ImageData.split_seed` permutes the set first.
    """
    total = len(data.train)
    first = int(train_portion * total) if 0 < train_portion < 1 else 0
    if first == 0:
        raise InputError(
            f"train_portion must be in (0, 1) and leave images for both halves, got {train_portion} "
            f"of {total} images; the paper uses 0.5"
        )
    smaller, of = min((first, "the weights' half"), (total - first, "the alpha half"))
    _check_loading(batch_size, workers, smaller, of, devices)
    order = list(range(total))
    if data.split_seed is not None:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(data.split_seed)).tolist()
    weights, alpha = Subset(data.train, order[:first]), Subset(data.train, order[first:])
    loader = partial(_loader, data, batch_size, workers, device)
    return (
        loader(weights, augmentation, **_order(weights, devices, seed)),
        # Halves of one size would go through the same order side by side.
        loader(alpha, augmentation, **_order(alpha, devices, seed + 2**20)),
        loader(alpha, None, **_order(alpha, devices, None)),
    )


def retrain_loaders(
    data: ImageData,
    batch_size: int,
    augmentation: Augmentation | None,
    workers: int = 0,
    device: str = "cpu",
    devices: int = 1,
    seed: int = 0,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of a retraining: the whole training set, shuffled and augmented, and the test set as it is.

    Batches: float32 (B, C, H, W) and int64 (B,), built and shared out as those of `search_loaders`. Raises InputError
    for a batch larger than the training set.
    """
    _check_loading(batch_size, workers, len(data.train), "the training set", devices)
    test = evaluation_loader(data, batch_size, workers, device, devices)
    # The auxiliary head has a batch norm over 1x1 maps, which cannot train on a last batch of one image.
    lone = batch_size > 1 and len(data.train) // devices % batch_size == 1
    loader = partial(_loader, data, batch_size, workers, device)
    order = _order(data.train, devices, seed)
    return loader(data.train, augmentation, **order, drop_last=lone), test


def evaluation_loader(
    data: ImageData, batch_size: int, workers: int = 0, device: str = "cpu", devices: int = 1
) -> DataLoader:
    """Loader of the test set as it is, in its order; batches as those of `retrain_loaders`."""
    _check_loading(batch_size, workers, batch_size, "the test set")  # which may be smaller than a batch
    if len(data.test) < devices:
        raise InputError(
            f"the test set has {len(data.test)} images, too few for {devices} processes; use fewer devices"
        )
    return _loader(data, batch_size, workers, device, data.test, None, **_order(data.test, devices, None))
