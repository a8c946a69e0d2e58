"""Where images come from: scikit-learn's digits, CIFAR, image folders, and users' functions."""

from __future__ import annotations

import os
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

from nni_fairdarts.datasets.images import Arrays, ImageData, Mapped, at_size
from nni_fairdarts.errors import InputError
from nni_fairdarts.failures import DEBUG
from nni_fairdarts.users import called

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
    except InputError:
        raise
    except Exception as error:  # PIL raises many kinds for damaged files, and one for pixels by the hundred million
        raise InputError(f"cannot read the image {path}: {error}; replace it or remove it") from error


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in os.scandir(folder))


DATA_SETS = {"digits": _digits, "cifar10": partial(_cifar, 10), "cifar100": partial(_cifar, 100), "folder": _folder}


class Users(Mapped):
    """A data set of a user's, `where` in errors: every image and label is looked at when it is read.

    Images come as uint8 tensors (C, H, W), of `shape` where that is given. Raises InputError for any other.
    """

    def __init__(self, dataset: Dataset, num_classes: int, where: str, shape: tuple[int, int, int] | None = None):
        super().__init__(dataset, v2.PILToTensor())
        self.num_classes, self.where, self.shape = num_classes, where, shape

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)  # where a loop over the set ends
        try:
            image, label = super().__getitem__(index)
        except InputError:
            raise
        except Exception as error:  # the user's code can raise anything
            raise InputError(
                f"cannot read image {index} of {self.where}: {type(error).__name__}: {error}; mend it, or the function "
                f"({DEBUG}=1 shows where it was raised)"
            ) from error
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
            what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"images of {self.where} must be PIL images or uint8 tensors (C, H, W), got {what} for image {index}"
            )
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"labels of {self.where} must be in 0 .. {self.num_classes - 1}, got {label} for image {index}"
            )
        if self.shape is not None and tuple(image.shape) != self.shape:
            raise InputError(
                f"image {index} of {self.where} is {tuple(image.shape)}, but the first is {self.shape}; "
                "--data.image_size resizes and crops them"
            )
        return image, label


def _checked(dataset: Dataset, num_classes: int, where: str, image_size: int | None) -> tuple[Users, tuple]:
    """A user's data set, and the shape (C, H, W) that its images are to have, of the first one."""
    try:
        there = hasattr(dataset, "__getitem__") and len(dataset) > 0
    except Exception:  # the user's code can raise anything
        there = False
    if not there:
        raise InputError(f"{where} must be a data set with a length and images, got {type(dataset).__name__}")
    users = Users(dataset, num_classes, where)
    shape = tuple(users[0][0].shape)
    if image_size is not None:
        return users, (shape[0], image_size, image_size)
    if shape[1] != shape[2]:
        raise InputError(
            f"images of {where} must be square, got {shape[1]}x{shape[2]}; --data.image_size resizes and crops them"
        )
    users.shape = shape
    return users, shape


def _user(name: str, root: Path, image_size: int | None, seed: int) -> ImageData:
    made = called(name, "data function", root=root)
    if isinstance(made, ImageData):
        train, test, num_classes = made.train, made.test, made.num_classes
        image_size = made.image_size if image_size is None and made.as_stored else image_size
    elif isinstance(made, tuple) and len(made) == 3:
        train, test, num_classes = made
    else:
        raise InputError(f"{name} must return an ImageData or (train, test, num_classes), got {type(made).__name__}")
    if type(num_classes) is not int or num_classes < 2:
        raise InputError(f"{name} must return a whole number of classes, at least 2, got {num_classes!r}")
    train, shape = _checked(train, num_classes, f"{name} (train)", image_size)
    test, test_shape = _checked(test, num_classes, f"{name} (test)", image_size)
    if shape != test_shape:
        raise InputError(f"train and test images of {name} must have one shape, got {shape} and {test_shape}")
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
