"""Which images, and what is searched."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from nni_fairdarts.config.checks import check, check_values


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how training images are varied.

    Args:
        name: digits, cifar10, cifar100, folder (ROOT/train/CLASS, ROOT/test/CLASS) or module:function.
        root: folder of the data set.
        download: let torchvision fetch CIFAR when it is not in root.
        image_size: side in pixels that images are resized to; unset keeps theirs, a folder needs it.
        augmentation: crop (zeros around the image, then a random crop to its size) or imagenet (a random part of the
            image as stored, resized to image_size, and jittered colours; evaluation resizes to image_size / 0.875 and
            keeps the centre).
        crop_padding: width of the zeros that crop adds; 0 for no crop.
        flip: mirror half of the training images.
        search_classes: number of classes, drawn with the seed, that the search sees; unset for all.
        search_images_per_class: training images of each, drawn with the seed; unset for all.
        workers: processes that load ahead of the training; 0 loads in the main process, which is right for digits and
            CIFAR on a CUDA device: they stay there, where they fit, and their batches are built there.
    """

    name: str = "cifar10"
    root: str = "data"
    download: bool = False
    image_size: Optional[int] = None  # noqa: UP045 (jsonargparse shows it better)
    augmentation: Literal["crop", "imagenet"] = "crop"
    crop_padding: int = 4
    flip: bool = True
    search_classes: Optional[int] = None  # noqa: UP045
    search_images_per_class: Optional[int] = None  # noqa: UP045
    workers: int = 0

    def __post_init__(self):
        check_values("data", self)
        check("data", self.image_size is None or self.image_size >= 1, "image_size", self.image_size, "at least 1")
        for name in ("crop_padding", "workers"):
            check("data", getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check("data", self.root.isprintable() and self.root != "", "root", repr(self.root), "the path of a folder")
        for name in ("search_classes", "search_images_per_class"):
            value = getattr(self, name)
            check("data", value is None or value >= 2, name, value, "at least 2, or unset for all")


@dataclass(frozen=True)
class SpaceConfig:
    """What is searched: NNI's DARTS space, or one of yours. In a file ``space: module:Class`` is short for its name.

    Args:
        name: darts, or module:Class, a model space of yours (or a function that makes one).
        arguments: keyword arguments of that class; num_classes and in_channels are the images' where it takes them.
        width: of darts: channels of the first cells.
        num_cells: of darts: cells in a row; the reduction cells are at 1/3 and 2/3 of the depth.
        dataset: of darts: the stem, cifar (keeps the resolution) or imagenet (an eighth of it remains).
        operations: of darts: the candidates on every edge; unset for the paper's seven.
    """

    name: str = "darts"
    arguments: dict = field(default_factory=dict)
    width: int = 16
    num_cells: int = 8
    dataset: Literal["cifar", "imagenet"] = "cifar"
    operations: Optional[list[str]] = None  # noqa: UP045

    def __post_init__(self):
        check_values("space", self)
        ours = self.name == "darts"
        check("space", ours or ":" in self.name, "name", repr(self.name), "darts, or module:Class of yours")
        given = self.arguments or "none"
        check(
            "space", not (ours and self.arguments), "arguments", given, "empty for darts; they are for your own space"
        )
        check("space", self.width >= 2 and self.width % 2 == 0, "width", self.width, "an even number, at least 2")
        check("space", self.num_cells >= 3, "num_cells", self.num_cells, "at least 3 (normal, reduction, reduction)")
