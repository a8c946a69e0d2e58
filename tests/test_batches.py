"""Batches of images in memory: the numbers of torchvision's transforms on one image after another, bit for bit."""

import pickle
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from nni_fairdarts.config import DataConfig, RetrainConfig, RunConfig
from nni_fairdarts.data import Augmentation, retrain_loaders, search_loaders
from nni_fairdarts.datasets import Batches, ImageData, Mapped, held, load, search_subset
from nni_fairdarts.datasets.images import Arrays, at_size
from nni_fairdarts.experiment import retraining, searching

PLAIN = Augmentation(crop_padding=0, flip=False)
EVERYTHING = Augmentation(crop_padding=2, flip=True, cutout=4)
AUGMENTATIONS = {
    "nothing": None,
    "plain": PLAIN,
    "crop": replace(PLAIN, crop_padding=3),
    "wide crop": replace(PLAIN, crop_padding=8),
    "flip": replace(PLAIN, flip=True),
    "cutout": replace(PLAIN, cutout=3),
    "crop and flip": Augmentation(crop_padding=1),
    "everything": EVERYTHING,
}


class OneByOne(Dataset):
    """A data set of its own class: its images are read and augmented one at a time."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


def images_in_memory(channels=3, size=9, images=53, **settings):
    generator = torch.Generator().manual_seed(channels * size)
    train, test = (
        Arrays(
            torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator),
            torch.randint(4, (count,), generator=generator),
        )
        for count in (images, 23)
    )
    mean, std = (0.49139968, 0.48215827, 0.44653124)[:channels], (0.24703233, 0.24348505, 0.26158768)[:channels]
    return replace(ImageData(train, test, 4, channels, size, mean, std, "in memory"), **settings)


def one_by_one(data):
    return replace(data, train=OneByOne(data.train), test=OneByOne(data.test))


def all_loaders(data, augmentation, workers=0, **options):
    """The search's three and the retraining's two."""
    return [
        *search_loaders(data, 8, augmentation, workers, **options),
        *retrain_loaders(data, 8, augmentation, workers, **options),
    ]


def two_epochs(loaders):
    """Every batch, and the state of the generator afterwards."""
    pl.seed_everything(5, workers=True, verbose=False)
    return [batch for _ in range(2) for loader in loaders for batch in loader], torch.get_rng_state()


def assert_same_epochs(data, augmentation, workers=0):
    whole, apart = (all_loaders(kind, augmentation, workers) for kind in (data, one_by_one(data)))
    assert {type(loader.dataset) for loader in whole} == {Batches}
    assert {type(loader.dataset) for loader in apart} == {Mapped}
    (ours, state), (expected, expected_state) = two_epochs(whole), two_epochs(apart)
    for batch, other in zip(ours, expected, strict=True):
        assert type(batch) is type(other) is list
        for tensor, twin in zip(batch, other, strict=True):
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (twin.dtype, twin.shape, twin.stride())
            assert tensor.numpy().tobytes() == twin.numpy().tobytes()  # -0 is not 0 here
    assert torch.equal(state, expected_state)
    return ours


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 9)])
def test_epochs_are_those_of_single_images(channels, size, augmentation):
    batches = assert_same_epochs(images_in_memory(channels, size), augmentation)
    assert {len(labels) for _, labels in batches} == {8, 26 % 8, 27 % 8, 53 % 8, 23 % 8}


@pytest.mark.parametrize("settings", [{}, {"split_seed": 3}, {"images": 49}])
def test_epochs_of_worker_processes_are_those_of_single_images(settings):
    assert_same_epochs(images_in_memory(**settings), EVERYTHING, workers=2)


@pytest.mark.parametrize("settings", [{"split_seed": 3}, {"images": 49}])  # a lone image would be the last batch
def test_epochs_of_other_splits_are_those_of_single_images(settings):
    assert_same_epochs(images_in_memory(**settings), EVERYTHING)


def test_epochs_of_a_search_subset_are_those_of_single_images():
    assert_same_epochs(search_subset(images_in_memory(), 3, 7, seed=1), EVERYTHING)


def test_epochs_of_digits_are_those_of_single_images():
    assert_same_epochs(load("digits"), Augmentation(crop_padding=1, cutout=2))


def test_epochs_in_double_precision_by_default_are_those_of_single_images():
    torch.set_default_dtype(torch.float64)  # torch.rand draws other numbers then
    try:
        assert_same_epochs(images_in_memory(), EVERYTHING)
    finally:
        torch.set_default_dtype(torch.float32)


def test_single_images_may_be_read_too():
    for loader, other in zip(
        all_loaders(images_in_memory(), EVERYTHING),
        all_loaders(one_by_one(images_in_memory()), EVERYTHING),
        strict=True,
    ):
        assert len(loader.dataset) == len(other.dataset)
        torch.manual_seed(0)
        image, label = loader.dataset[-2]
        torch.manual_seed(0)
        expected, expected_label = other.dataset[-2]
        assert torch.equal(image, expected)
        assert (label, type(label)) == (expected_label, int)


# what is in memory


def parts(arrays):
    chosen = search_subset(images_in_memory(), 3, 6).train
    return {
        "arrays": arrays,
        "subset": Subset(arrays, [5, 5, -1, 0]),
        "subset of a subset": Subset(Subset(arrays, range(10, 30)), [3, 1, -2]),
        "numpy indices": Subset(arrays, torch.tensor([4, 2]).numpy()),
        "no image": Subset(arrays, []),
        "chosen": chosen,
        "subset of chosen": Subset(chosen, [7, 3]),
    }


@pytest.mark.parametrize("kind", parts(images_in_memory().train))
def test_held_images_and_labels_are_those_of_the_set(kind):
    dataset = parts(images_in_memory().train)[kind]
    arrays, rows, labels = held(dataset)
    assert rows.dtype == labels.dtype == torch.int64
    assert len(rows) == len(labels) == len(dataset)
    for index in range(len(dataset)):
        image, label = dataset[index]
        assert torch.equal(arrays.images[rows[index]], image)
        assert labels[index] == label


class Doubled(Subset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image * 2, label

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def changed_by_the_user():
    data = images_in_memory()
    return replace(data, train=Doubled(data.train, range(40)), test=Doubled(data.test, range(20)))


def tensors():
    data = images_in_memory()
    pairs = TensorDataset(data.train.images, torch.tensor(data.train.labels))
    return replace(data, train=pairs, test=pairs)


def floats():
    data = images_in_memory()
    images = Arrays(data.train.images / 255, data.train.labels)
    return replace(data, train=images, test=images)


ONE_BY_ONE = {
    "a user's": (tensors, EVERYTHING),
    "a user's subset": (changed_by_the_user, EVERYTHING),
    "resized": (lambda: at_size(images_in_memory(), 12), EVERYTHING),
    "larger than they are said to be": (lambda: images_in_memory(image_size=7), EVERYTHING),
    "not bytes": (floats, EVERYTHING),
    "augmented as ImageNet": (images_in_memory, Augmentation(kind="imagenet")),
    "as stored": (lambda: images_in_memory(image_size=6, as_stored=True), Augmentation(kind="imagenet")),
}


@pytest.mark.parametrize(("make", "augmentation"), ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_other_images_are_read_one_by_one(make, augmentation):
    data = make()
    loaders = all_loaders(data, augmentation)
    training = [loader.dataset for loader in (loaders[0], loaders[1], loaders[3])]
    assert {type(dataset) for dataset in training} == {Mapped}
    (ours, _), (expected, _) = two_epochs(loaders), two_epochs(all_loaders(one_by_one(data), augmentation))
    for (images, labels), (other, other_labels) in zip(ours, expected, strict=True):
        assert torch.equal(images, other)
        assert torch.equal(labels, other_labels)


# devices


def dataset_and_pinning(loaders):
    return [(loader.dataset.device.type, loader.pin_memory) for loader in loaders]


@pytest.mark.parametrize(
    ("device", "available", "workers", "expected"),
    [
        ("auto", True, 0, ("cuda", False)),
        ("cuda", True, 0, ("cuda", False)),
        ("auto", True, 2, ("cpu", True)),
        ("cpu", True, 0, ("cpu", True)),
        ("auto", False, 0, ("cpu", False)),
    ],
)
def test_batches_are_built_where_the_network_is(device, available, workers, expected, monkeypatch):
    """Building the loaders touches no device: a launch builds those of every trial."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    settings = DataConfig("digits", workers=workers)
    config = RunConfig(device=device, data=settings, retrain=RetrainConfig(auxiliary_weight=0, cutout=4))
    images = load("digits")
    assert dataset_and_pinning(searching.search_loaders(config, images)) == [expected] * 3
    assert dataset_and_pinning(retraining.retrain_loaders(config, images)) == [expected] * 2


def test_images_on_a_device_stay_behind_when_a_set_is_sent_elsewhere():
    images = images_in_memory().train
    images._copies[torch.device("cuda", 0)] = images.images
    copy = pickle.loads(pickle.dumps(images))
    assert copy._copies == {}
    assert torch.equal(copy.images, images.images)


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@on_cuda
@pytest.mark.parametrize("free", ["all", "little"])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_batches_on_cuda_are_those_of_the_host(augmentation, free, monkeypatch):
    data = images_in_memory()
    if free == "little":
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (8 * data.train.images.nbytes - 1, 0))
    there = all_loaders(data, augmentation, device="cuda")
    (ours, state), (expected, expected_state) = two_epochs(there), two_epochs(all_loaders(data, augmentation))
    assert torch.equal(state, expected_state)
    assert (data.train.on(torch.device("cuda")) is None) == (free == "little")
    for batch, other in zip(ours, expected, strict=True):
        assert {tensor.device.type for tensor in batch} == {"cuda"}
        assert all(torch.equal(tensor.cpu(), twin) for tensor, twin in zip(batch, other, strict=True))


@on_cuda
def test_the_host_does_not_wait_for_cuda():
    loaders = all_loaders(images_in_memory(), EVERYTHING, device="cuda")
    two_epochs(loaders)  # copies the images, the means and the deviations
    torch.cuda.set_sync_debug_mode("error")
    try:
        two_epochs(loaders)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
def test_loaders_of_one_set_share_its_copy_on_cuda():
    data = images_in_memory()
    two_epochs(all_loaders(data, EVERYTHING, device="cuda"))
    (copy,) = data.train._copies.values()
    assert copy.device.type == "cuda"
