"""Where images come from: scikit-learn's digits, CIFAR, image folders, and users' functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from nni_fairdarts.datasets.images import Arrays, ImageData, Mapped, at_size, to_size
from nni_fairdarts.errors import InputError
from nni_fairdarts.users import imported

# Per channel, of pixels in [0, 1] of the training part; "folder" has ImageNet's.
MEAN_STD = {
    "digits": ((0.305434,), (0.375957,)),
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
    "folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _check_root(root: Path):
    # os, not Path: those raise where a parent folder may not be entered.
    if os.path.isfile(root):
        raise InputError(f"the data root must be a folder, got the file {root}; give the folder with --data.root")
    if os.path.isdir(root) and not os.access(root, os.R_OK | os.X_OK):
        raise InputError(
            f"the data root {root} must be readable, got no permission; change it or give another --data.root"
        )


def _digits(root: Path, download: bool, image_size: int | None, seed: int) -> ImageData:
    from sklearn.datasets import load_digits  # here: slow to import, and no other set needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8)
    parts = train_test_split(range(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    train, test = (Arrays(images[part], digits.target[part]) for part in parts)
    return ImageData(train, test, 10, 1, 8, *MEAN_STD["digits"], "digits")


def _cifar(num_classes: int, root: Path, download: bool, image_size: int | None, seed: int) -> ImageData:
    name = f"cifar{num_classes}"
    cls = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[num_classes]
    _check_root(root)
    try:
        parts = [cls(root, train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError, HTTPException) as error:
        cause = error if download or isinstance(error, OSError) else "it is missing or damaged"
        folder = root / cls.base_folder
        raise InputError(
            f"cannot {'download' if download else 'read'} {name}: {cause}. Looked for {folder.absolute()}. "
            f"Fetch {cls.filename} from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it in {root}, "
            f"so that {folder} exists" + ("" if download else ", or let --data.download true try to fetch it")
        ) from error
    train, test = (Arrays(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), p.targets) for p in parts)
    return ImageData(train, test, num_classes, 3, 32, *MEAN_STD[name], name)


def _folder(root: Path, download: bool, image_size: int | None, seed: int) -> ImageData:
    if image_size is None:
        raise InputError("data set 'folder' needs image_size (pixels), for example --data.image_size 32")
    layout = f"expected {root}/train/CLASS/*.png and {root}/test/CLASS/*.png (or val), the same classes in both"
    _check_root(root)
    try:
        # ImageNet's own test folder has images without labels; its val is what accuracies are stated on.
        held_out = "test" if _has_folders(root / "test") or not (root / "val").is_dir() else "val"
        train, test = (
            datasets.ImageFolder(root / part, v2.PILToTensor(), loader=_image) for part in ("train", held_out)
        )
    except OSError as error:
        raise InputError(f"cannot read the image folder {root.absolute()}: {error}; {layout}") from error
    differing = sorted(set(train.classes) ^ set(test.classes))
    if differing:
        names = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise InputError(f"train and {held_out} have different classes, only one has {names}; {layout}")
    return ImageData(train, test, len(train.classes), 3, image_size, *MEAN_STD["folder"], "folder", seed, True)


def _image(path: str) -> Image.Image:
    """The image in a file, as RGB. Raises InputError, naming the file, where it cannot be read as it is meant."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # would be cut off at 255, to white
                raise InputError(f"the image {path} has more than 8 bits a pixel; convert it to 8 bits")
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # PIL raises both for damaged files
        raise InputError(f"cannot read the image {path}: {error}; replace it or remove it") from error


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in os.scandir(folder))


DATA_SETS = {"digits": _digits, "cifar10": partial(_cifar, 10), "cifar100": partial(_cifar, 100), "folder": _folder}


def _first_shape(dataset: Dataset, prepare: Callable, num_classes: int, where: str) -> tuple[int, int, int]:
    """(C, H, W) of the first image of a user's data set once prepared, after checking it and its label."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset)):
        raise InputError(f"{where} must be a data set with a length and images, got {type(dataset).__name__}")
    image, label = Mapped(dataset, prepare)[0]
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"images of {where} must be PIL images or uint8 tensors (C, H, W), got {what}")
    channels, height, width = image.shape
    if height != width:
        raise InputError(
            f"images of {where} must be square, got {height}x{width}; --data.image_size resizes and crops them"
        )
    if not 0 <= label < num_classes:
        raise InputError(f"labels of {where} must be in 0 .. {num_classes - 1}, got {label}")
    return channels, height, width


def _user(name: str, root: Path, image_size: int | None, seed: int) -> ImageData:
    made = imported(name, "data function")(root=root)
    if isinstance(made, ImageData):
        train, test, num_classes = made.train, made.test, made.num_classes
        image_size = made.image_size if image_size is None and made.as_stored else image_size
    elif isinstance(made, tuple) and len(made) == 3:
        train, test, num_classes = made
    else:
        raise InputError(f"{name} must return an ImageData or (train, test, num_classes), got {type(made).__name__}")
    prepare = v2.PILToTensor() if image_size is None else to_size(image_size)
    shape = _first_shape(train, prepare, num_classes, f"{name} (train)")
    test_shape = _first_shape(test, prepare, num_classes, f"{name} (test)")
    if shape != test_shape:
        raise InputError(f"train and test images of {name} must have one shape, got {shape} and {test_shape}")
    train, test = (Mapped(part, v2.PILToTensor()) for part in (train, test))
    (channels, size, _), as_stored = shape, image_size is not None
    if not isinstance(made, ImageData):
        half = (0.5,) * channels
        return ImageData(train, test, num_classes, channels, size, half, half, name, seed, as_stored)
    announced = (made.in_channels, made.image_size)
    if announced != (channels, size if image_size is None else made.image_size):
        raise InputError(f"{name} announces {announced} channels and pixels, but its images are {shape}")
    split_seed = seed if made.split_seed is None else made.split_seed
    return replace(made, train=train, test=test, image_size=size, split_seed=split_seed, as_stored=as_stored)


def load(
    name: str,
    root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    as_stored: bool = False,
) -> ImageData:
    """A data set by name.

    name: "digits" (scikit-learn's 8x8 images, a fixed stratified split with 20 % test), "cifar10", "cifar100",
    "folder" (root/train/CLASS/*.png and root/test/CLASS/*.png, or val; read lazily), or "module:function": called
    with root=Path(root), returns an ImageData or (train, test, num_classes) with PIL images or uint8 tensors
    (C, H, W); mean and std are then 0.5. image_size: shorter side resized to it and centre cropped; None = as stored
    ("folder" needs it). download: fetch a missing CIFAR; nothing is fetched otherwise. seed: of the permutation
    before the search's split of "folder" and "module:function" sets; the others are split in their stored order.
    as_stored: leave the images in the sizes they have; the augmentation takes image_size out of them.
    Raises InputError when the name is unknown or the data are missing, unreadable or not as described.
    """
    data = _load(name, Path(root).expanduser(), download, image_size, seed)
    if data.num_classes < 2:
        raise InputError(f"a data set needs at least 2 classes, {name!r} has {data.num_classes}")
    size = data.image_size if image_size is None else image_size
    return replace(data, image_size=size, as_stored=True) if as_stored else at_size(data, size)


def _load(name: str, root: Path, download: bool, image_size: int | None, seed: int) -> ImageData:
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be a positive number of pixels, got {image_size}")
    if ":" in name:
        return _user(name, root, image_size, seed)
    if name not in DATA_SETS:
        raise InputError(
            f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}, or module:function for a function of yours"
        )
    return DATA_SETS[name](root, download, image_size, seed)
