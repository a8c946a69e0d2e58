import colorsys
import os
import pickle
import re
import shutil
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from nni_fairdarts.data import Augmentation, Cutout, retrain_loaders, search_loaders, transforms
from nni_fairdarts.datasets import load, search_subset
from nni_fairdarts.errors import InputError

PLAIN = Augmentation(crop_padding=0, flip=False, cutout=0)
IMAGENET = Augmentation(kind="imagenet")
DIGITS = load("digits")


def raises(*texts):
    """The InputError whose message has every text, in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(text)) for text in texts))


def images_of(dataset):
    return torch.stack([image for image, _ in dataset])


def write_pngs(root, held_out="test", classes="0123456789", size=(32, 32)):
    digits = load_digits()
    for part, start in (("train", 0), (held_out, 1000)):
        for index in range(start, start + 60):
            if str(digits.target[index]) in classes:
                path = root / part / str(digits.target[index]) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((digits.images[index] * 15).astype("uint8")).resize(size, 0).save(path)
    return root


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Writes a module with the given text and returns its name, importable."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        name = f"user_data_{os.urandom(4).hex()}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom nni_fairdarts.datasets import *\n" + text)
        return name

    return write


# data sets


def test_digits_are_scikit_learns_scaled_to_bytes():
    images = torch.cat([images_of(DIGITS.train), images_of(DIGITS.test)])
    assert (len(DIGITS.train), len(DIGITS.test)) == (1437, 360)
    assert (DIGITS.num_classes, DIGITS.in_channels, DIGITS.image_size, DIGITS.name) == (10, 1, 8, "digits")
    assert images.dtype == torch.uint8
    assert images.shape == (1797, 1, 8, 8)
    source = sorted(map(bytes, np.rint(load_digits().images * (255 / 16)).astype("uint8").reshape(1797, 64)))
    assert sorted(map(bytes, images.reshape(1797, 64).numpy())) == source
    counts = np.bincount([label for _, label in DIGITS.test])
    assert counts.min() >= 35
    assert counts.max() <= 37
    pixels = images_of(DIGITS.train).double() / 255
    assert DIGITS.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    assert DIGITS.std == pytest.approx([float(pixels.std(unbiased=False))], abs=1e-6)


def test_digits_split_ignores_the_seed():
    assert torch.equal(images_of(load("digits", seed=7).test), images_of(DIGITS.test))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_its_own_layout(name, classes, tmp_path, monkeypatch):
    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder, rng = tmp_path / cls.base_folder, np.random.default_rng(0)
    folder.mkdir()
    written = {}
    for file, _ in [*cls.train_list, *cls.test_list]:
        rows, labels = rng.integers(0, 256, (3, 3072), dtype=np.uint8), [0, 3, classes - 1]
        written[file] = rows.reshape(3, 3, 32, 32)
        (folder / file).write_bytes(pickle.dumps({"data": rows, "labels" if classes == 10 else "fine_labels": labels}))
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: [str(i) for i in range(classes)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # the real files have known md5s
    data = load(name, tmp_path)
    assert (data.num_classes, data.in_channels, data.image_size) == (classes, 3, 32)
    assert np.array_equal(images_of(data.train), np.concatenate([written[file] for file, _ in cls.train_list]))
    assert np.array_equal(images_of(data.test), written[cls.test_list[0][0]])
    assert [label for _, label in data.test] == [0, 3, classes - 1]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_reads_back_what_was_written(held_out, tmp_path):
    data = load("folder", write_pngs(tmp_path, held_out), image_size=32)
    assert (data.num_classes, data.in_channels, data.image_size, len(data.test)) == (10, 3, 32, 60)
    digits = load_digits()
    order = [i for digit in range(10) for i in np.flatnonzero(digits.target[1000:1060] == digit)]
    expected = (digits.images[1000:1060][order] * 15).astype("uint8").repeat(4, 1).repeat(4, 2)
    assert np.array_equal(images_of(data.test), expected[:, None].repeat(3, 1))
    assert [label for _, label in data.test] == digits.target[1000:1060][order].tolist()


def test_folder_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    data = load("folder", write_pngs(tmp_path, size=(32, 16)), image_size=8)
    assert images_of(data.train).shape == (60, 3, 8, 8)


def test_image_size_resizes_other_sets_too():
    data = load("digits", image_size=16)
    assert data.image_size == 16
    assert data.train[0][0].shape == (1, 16, 16)
    assert data.train[0][0].dtype == torch.uint8
    expected = torch.nn.functional.interpolate(DIGITS.train[0][0][None].float(), 16, mode="bilinear")[0]
    torch.testing.assert_close(data.train[0][0].float(), expected, atol=1, rtol=0)
    assert load("digits", image_size=8).train[0][0].equal(DIGITS.train[0][0])


TRIPLE = """
def f(root):
    images = [(torch.full((3, 6, 6), i, dtype=torch.uint8), torch.tensor(i % 4)) for i in range(40)]
    return images, images[:8], 4
"""


def test_user_function_may_return_data_sets(user):
    name = f"{user(TRIPLE)}:f"
    data = load(name)
    assert (data.num_classes, data.in_channels, data.image_size, data.name) == (4, 3, 6, name)
    assert data.mean == data.std == (0.5,) * 3
    assert len(data.test) == 8
    assert data.train[6][0].unique().tolist() == [6]
    assert data.train[6][1] == 2
    assert load(name, image_size=12).train[0][0].shape == (3, 12, 12)


def test_user_function_may_return_image_data_and_gets_the_root(user, tmp_path):
    module = user(
        "def f(root):\n    from dataclasses import replace\n    return replace(load('digits'), name=str(root))"
    )
    data = load(f"{module}:f", tmp_path, seed=5)
    assert data.name == str(tmp_path)
    assert data.mean == DIGITS.mean
    assert data.split_seed == 5
    assert load(f"{module}:f", image_size=16).image_size == 16


def test_user_function_may_give_pil_images(user):
    data = load(
        user("from PIL import Image\ndef f(root):\n    d = [(Image.new('L', (6, 6), 9), 0)]; return d, d, 2") + ":f"
    )
    assert data.train[0][0].equal(torch.full((1, 6, 6), 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("mnist",), ["unknown data set 'mnist'; known: digits, cifar10, cifar100, folder, or module:function"]),
        (("digits", "data", False, 0), ["image_size must be a positive number of pixels, got 0"]),
        (("no_such_module:f",), ["cannot import", "'no_such_module:f'", "ModuleNotFoundError", "PYTHONPATH"]),
        (("json:nothing",), ["cannot import", "AttributeError", "'nothing'", "expected module:function"]),
        (("json:__name__",), ["must be a function, got str"]),
        (("builtins:dict",), ["must return an ImageData or (train, test, num_classes), got dict"]),
    ],
)
def test_bad_names(arguments, texts):
    with raises(*texts):
        load(*arguments)


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("a = [(torch.zeros(3, 6, 6), 0)]", ["(train) must be PIL images or uint8", "got torch.float32 (3, 6, 6)"]),
        ("a = [('x.png', 0)]", ["must be PIL images or uint8 tensors (C, H, W), got str"]),
        ("a = [(torch.zeros(3, 6, 4).byte(), 0)]", ["must be square, got 6x4", "--data.image_size"]),
        ("a = [(torch.zeros(3, 6, 6).byte(), 2)]", ["labels of", "must be in 0 .. 1, got 2"]),
        ("a = []", ["must be a data set with a length and images, got list"]),
        ("a = iter([])", ["must be a data set with a length and images, got list_iterator"]),
        ("b = [(torch.zeros(3, 4, 4).byte(), 0)]", ["must have one shape, got (3, 6, 6) and (3, 4, 4)"]),
    ],
)
def test_bad_user_data(line, texts, user):
    good = "a = b = [(torch.zeros(3, 6, 6).byte(), 0)]"
    with raises(*texts):
        load(f"{user(f'def f(root):{chr(10)}    {good}; {line}; return a, b, 2')}:f")


def test_user_image_data_must_be_what_it_announces(user):
    module = user("def f(root):\n    import dataclasses\n    return dataclasses.replace(load('digits'), in_channels=3)")
    with raises("announces (3, 8) channels and pixels, but its images are (1, 8, 8)"):
        load(f"{module}:f")


CIFAR = [
    ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
    ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
]


@pytest.mark.parametrize(("name", "archive", "folder"), CIFAR)
def test_missing_cifar_says_how_to_get_it_and_fetches_nothing(name, archive, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: pytest.fail("downloaded unasked"))
    page, root = "https://www.cs.toronto.edu/~kriz/cifar.html", tmp_path / "none"
    texts = [f"cannot read {name}: it is missing or damaged", root / folder, archive, page, root / folder, "exists"]
    with raises(*texts, "--data.download true"):
        load(name, root)


@pytest.mark.parametrize(("name", "archive", "folder"), CIFAR)
def test_failed_download_says_why(name, archive, folder, tmp_path, monkeypatch):
    def offline(self):
        raise URLError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with raises(f"cannot download {name}", "no network", tmp_path / folder, archive, "cifar.html") as caught:
        load(name, tmp_path, download=True)
    assert "--data.download" not in str(caught.value)


LAYOUT = "/train/CLASS/*.png and"


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_root_must_be_a_readable_folder(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with raises("must be a folder, got the file", tmp_path / "file", "--data.root"):
        load(name, tmp_path / "file", image_size=32)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything, whatever the mode
    with raises(tmp_path, "must be readable, got no permission"):
        load(name, tmp_path, image_size=32)


def test_bad_folders(tmp_path):
    with raises("'folder' needs image_size", "--data.image_size 32"):
        load("folder", tmp_path)
    with raises("cannot read the image folder", tmp_path / "none", LAYOUT, "(or val)"):
        load("folder", tmp_path / "none", image_size=32)
    (tmp_path / "train").mkdir()
    with raises("any class folder", LAYOUT):
        load("folder", tmp_path, image_size=32)
    (tmp_path / "train" / "empty").mkdir()
    with raises("classes empty", LAYOUT):
        load("folder", tmp_path, image_size=32)


def test_folder_classes_must_agree(tmp_path):
    write_pngs(tmp_path, classes="0123")
    for path in (tmp_path / "test" / "2").iterdir():
        path.unlink()
    (tmp_path / "test" / "2").rmdir()
    with raises("train and test have different classes, only one has 2;", LAYOUT):
        load("folder", tmp_path, image_size=32)


def test_many_differing_classes_are_not_all_listed(tmp_path):
    write_pngs(tmp_path)
    shutil.rmtree(tmp_path / "test")
    write_pngs(tmp_path / "other")
    (tmp_path / "other" / "test" / "0").rename(tmp_path / "other" / "test" / "x")
    for digit in "12345":
        shutil.rmtree(tmp_path / "other" / "test" / digit)
    (tmp_path / "other" / "test").rename(tmp_path / "val")
    with raises("train and val have different classes, only one has 0, 1, 2, 3, 4 and 2 more;", LAYOUT):
        load("folder", tmp_path, image_size=32)


def test_imagenets_own_test_folder_is_left_alone(tmp_path):
    write_pngs(tmp_path, "val")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").touch()
    assert len(load("folder", tmp_path, image_size=32).test) == 60
    shutil.rmtree(tmp_path / "val")
    with raises("cannot read the image folder", "any class folder", LAYOUT):
        load("folder", tmp_path, image_size=32)


@pytest.mark.parametrize("name", ["folder", "user"])
def test_images_as_stored(name, user, tmp_path):
    if name == "user":
        name = user("def f(root):\n    d = [(torch.zeros(3, 9, i).byte(), 0) for i in (12, 30)]; return d, d, 2") + ":f"
        shapes = [(3, 9, 12), (3, 9, 30)]
    else:
        shapes = [(3, 20, 40)] * 60
    data = load(name, write_pngs(tmp_path, size=(40, 20)), image_size=16, as_stored=True)
    assert [tuple(image.shape) for image, _ in data.train] == shapes
    assert (data.image_size, data.as_stored) == (16, True)
    assert batches(retrain_loaders(data, 2, IMAGENET)[0])[0].shape == (len(shapes), 3, 16, 16)
    assert load(name, tmp_path, image_size=16).as_stored is False


def test_user_image_data_may_be_as_stored(user):
    module = user(
        "def f(root):\n    d = [(torch.zeros(3, 9, 12).byte(), 0)]\n"
        "    return ImageData(d, d, 2, 3, 6, (0.5,) * 3, (0.5,) * 3, 'mine', as_stored=True)"
    )
    assert load(f"{module}:f").train[0][0].shape == (3, 6, 6)
    data = load(f"{module}:f", as_stored=True)
    assert data.train[0][0].shape == (3, 9, 12)
    assert data.image_size == 6


# the part of a data set that a search sees


def numbered(size=40, classes=4):
    """Image i has pixels i and label i % classes."""
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 6, 6)
    dataset = TensorDataset(images, torch.arange(size) % classes)
    return replace(DIGITS, train=dataset, test=dataset, num_classes=classes, in_channels=3, image_size=6, name="n")


@pytest.mark.parametrize("kind", ["pairs", "subset", "folder", "digits"])
@pytest.mark.parametrize(("classes", "images"), [(3, None), (None, 4), (3, 4), (2, 2)])
def test_search_subset_against_what_it_is_drawn_from(kind, classes, images, tmp_path):
    data = {
        "pairs": numbered,
        "subset": lambda: replace(numbered(), train=Subset(numbered().train, list(range(20, 40)))),
        "folder": lambda: load("folder", write_pngs(tmp_path), image_size=8),
        "digits": lambda: DIGITS,
    }[kind]()
    part = search_subset(data, classes, images, seed=3)
    assert part.num_classes == (classes or data.num_classes)
    source = {}
    for image, label in data.train:
        source.setdefault(bytes(image.numpy()), []).append(int(label))
    old = [source[bytes(image.numpy())] for image, _ in part.train]  # equal images: any of their labels
    new = [label for _, label in part.train]
    assert set(new) == set(range(part.num_classes))
    originals = [
        next(iter(set.intersection(*(set(o) for o, n in zip(old, new, strict=True) if n == k)))) for k in set(new)
    ]
    assert originals == sorted(set(originals))  # the classes keep their order
    wanted = [sum(int(label) == original for _, label in data.train) for original in originals]
    assert np.bincount(new).tolist() == (wanted if images is None else [images] * part.num_classes)
    held_out = [originals.index(int(label)) for _, label in data.test if int(label) in originals]
    assert [label for _, label in part.test] == held_out


def test_search_subset_is_drawn_with_its_seed():
    def drawn(*arguments):
        part = search_subset(numbered(100, 10), *arguments)
        return [int(image[0, 0, 0]) for image, _ in part.train]

    first = drawn(4, 5, 0)
    assert first == drawn(4, 5, 0) == sorted(set(first))
    assert len(first) == 20
    seeds = [drawn(4, 5, seed) for seed in range(10)]
    assert len(set(map(tuple, seeds))) == 10
    assert {i % 10 for part in seeds for i in part} == set(range(10))
    assert {i % 10 for i in drawn(4, 9, 0)} == {i % 10 for i in first}
    assert set(drawn(4, None, 0)) == {i for i in range(100) if i % 10 in {i % 10 for i in first}}


def test_nothing_asked_nothing_taken():
    assert search_subset(DIGITS) is DIGITS


def test_a_folders_subset_is_drawn_without_reading_images(tmp_path):
    for path in write_pngs(tmp_path).rglob("*.png"):
        path.write_bytes(b"no image")
    part = search_subset(load("folder", tmp_path, image_size=32), 3, 2)
    assert (len(part.train), part.num_classes) == (6, 3)


def test_search_loaders_split_the_subset():
    weights, alpha, validation = search_loaders(search_subset(numbered(), 3, 8), 4, PLAIN, train_portion=0.75)
    assert [len(loader.dataset) for loader in (weights, alpha, validation)] == [18, 6, 6]
    assert set(batches(weights)[1].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((5,), ["search_classes must be in 2 .. 4, the classes of 'n', got 5; leave it unset for all"]),
        ((1,), ["search_classes must be in 2 .. 4", "got 1"]),
        ((None, 11), ["search_images_per_class must be in 2 .. 10, the images of the smallest class", "'n', got 11"]),
        ((2, 1), ["search_images_per_class must be in 2 .. 10", "got 1"]),
    ],
)
def test_bad_search_subsets(arguments, texts):
    with raises(*texts):
        search_subset(numbered(), *arguments)


# augmentation


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8])
def test_cutout_against_the_naive_version(length):
    torch.manual_seed(length)
    for _ in range(100):
        image, state = torch.rand(2, 9, 7) + 1, torch.get_rng_state()
        got = Cutout(length)(image)
        torch.set_rng_state(state)
        row, column = int(torch.randint(9, ())), int(torch.randint(7, ()))
        expected = image.clone()
        for i in range(9):
            for j in range(7):
                if 0 <= i - row + length // 2 < length and 0 <= j - column + length // 2 < length:
                    expected[:, i, j] = 0
        assert torch.equal(got, expected)
        assert image.min() >= 1


def test_no_augmentation_only_normalises():
    image = DIGITS.train[0][0]
    expected = (image.float() / 255 - DIGITS.mean[0]) / DIGITS.std[0]
    for augmentation in (None, PLAIN):
        torch.testing.assert_close(transforms(DIGITS, augmentation)(image), expected)


def test_each_augmentation_does_its_own_part_only():
    image = DIGITS.train[0][0]
    plain = transforms(DIGITS, None)(image)
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2), value=-DIGITS.mean[0] / DIGITS.std[0])

    def seen(**changes):
        return [transforms(DIGITS, replace(PLAIN, **changes))(image) for _ in range(200)]

    def missing(options, images):
        close = [[torch.allclose(option, image, atol=1e-6) for option in options] for image in images]
        return [image for image, row in zip(images, close, strict=False) if not any(row)], np.any(close, axis=0).mean()

    pl.seed_everything(0)
    assert missing([plain, plain.flip(-1)], seen(flip=True)) == ([], 1)
    windows = [padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    left_out, used = missing(windows, seen(crop_padding=2))
    assert left_out == []
    assert used > 0.9
    for image_cut in seen(cutout=4):  # zeros, after normalisation
        changed = image_cut != plain
        assert 4 <= changed.sum() <= 16
        assert (image_cut[changed] == 0).all()


@pytest.mark.parametrize("field", ["crop_padding", "cutout"])
def test_augmentation_sizes_are_not_negative(field):
    with raises(f"{field} must be 0 (none) or a number of pixels, got -1"):
        Augmentation(**{field: -1})


def test_cutout_must_leave_something():
    with raises("cutout must be smaller than the images' 8 pixels, got 16; 0 turns it off"):
        transforms(DIGITS, Augmentation(cutout=16))


def as_stored(image, size=8):
    """A data set of one image, normalised by nothing."""
    channels = image.shape[0]
    pairs, unit = [(image, 0)], ((0.0,) * channels, (1.0,) * channels)
    return replace(DIGITS, train=pairs, test=pairs, in_channels=channels, image_size=size, as_stored=True,
                   mean=unit[0], std=unit[1])  # fmt: skip


@pytest.mark.parametrize(("shape", "resized"), [((40, 64), (9, 14)), ((70, 16), (39, 9)), ((5, 5), (9, 9))])
def test_images_as_stored_are_evaluated_on_their_centre(shape, resized):
    image = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(image[None] / 255, resized, mode="bilinear", antialias=True)[0]
    top, left = (round((side - 8) / 2) for side in resized)
    got = transforms(as_stored(image), None)(image)
    torch.testing.assert_close(got, expected[:, top : top + 8, left : left + 8], atol=1.1 / 255, rtol=0)


def test_random_resized_crops_see_the_whole_image():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[..., :10] = image[..., -10:] = 200  # neither border is in the centre's square
    change = transforms(as_stored(image), replace(IMAGENET, flip=False))
    pl.seed_everything(0)
    seen = torch.stack([change(image) for _ in range(300)])
    assert seen.shape == (300, 3, 8, 8)
    for column in (0, -1):
        assert 0.05 < (seen[..., column].mean((1, 2)) > 0.2).float().mean() < 0.5


def test_flips_of_the_imagenet_augmentation():
    image = torch.arange(40, 120, dtype=torch.uint8).expand(3, 40, 80)  # brighter to the right, whatever the jitter
    pl.seed_everything(0)
    for flip, share in ((False, 0), (True, 0.5)):
        change = transforms(as_stored(image), replace(IMAGENET, flip=flip))
        seen = torch.stack([change(image) for _ in range(300)])
        mirrored = (seen[..., 0] > seen[..., -1]).all((1, 2))
        assert mirrored.float().mean() == pytest.approx(share, abs=0.1 * share)


def test_colours_are_jittered_as_published():
    grey, colour = (
        torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, 20, 30) for c in ((90,) * 3, (90, 60, 40))
    )
    pl.seed_everything(0)
    change = transforms(as_stored(grey), IMAGENET)
    brightness = torch.stack([change(grey).mean() for _ in range(500)]) * 255 / 90  # nothing else changes plain grey
    assert brightness.min() == pytest.approx(0.6, abs=0.03)  # each step rounds down to a byte
    assert brightness.max() == pytest.approx(1.4, abs=0.03)
    hues = [colorsys.rgb_to_hsv(*change(colour)[:, 0, 0].tolist())[0] for _ in range(500)]
    turned = [(hue - colorsys.rgb_to_hsv(90, 60, 40)[0] + 0.5) % 1 - 0.5 for hue in hues]  # only hue turns a colour
    assert min(turned) == pytest.approx(-0.2, abs=0.03)
    assert max(turned) == pytest.approx(0.2, abs=0.03)
    (jitter,) = (step for step in change.transforms if isinstance(step, v2.ColorJitter))
    assert (jitter.contrast, jitter.saturation) == ((0.6, 1.4), (0.6, 1.4))


def test_grey_images_may_be_augmented_as_imagenet():
    data = load("digits", image_size=16, as_stored=True)
    images, _ = batches(search_loaders(data, 300, replace(IMAGENET, cutout=4))[0])
    assert images.shape == (718, 1, 16, 16)
    assert (images == 0).sum((1, 2, 3)).min() >= 4  # cutout comes last, on normalised images


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda: Augmentation(kind="imagnet"), ["unknown augmentation 'imagnet'; known: crop, imagenet"]),
        (lambda: transforms(as_stored(torch.zeros(2, 9, 9)), IMAGENET), ["must have 1 or 3 channels, got 2", "'crop'"]),
        (lambda: transforms(as_stored(torch.zeros(3, 9, 9)), PLAIN), ["'crop' takes images of one size", "image_size"]),
    ],
)
def test_augmentations_that_do_not_fit(make, texts):
    with raises(*texts):
        make()


# loaders


def batches(loader):
    images, labels = zip(*loader, strict=False)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(("portion", "first"), [(0.5, 718), (0.8, 1149)])
def test_search_halves_are_disjoint_and_cover_the_set(portion, first):
    weights, alpha, validation = (batches(x) for x in search_loaders(DIGITS, 32, PLAIN, train_portion=portion))
    everything = torch.stack([transforms(DIGITS, None)(image) for image, _ in DIGITS.train])
    labels = torch.tensor([label for _, label in DIGITS.train])
    assert torch.equal(validation[0], everything[first:])
    assert torch.equal(validation[1], labels[first:])

    def rows(part):
        return sorted(map(bytes, torch.cat([part[0].flatten(1), part[1][:, None]], 1).numpy()))

    assert rows(weights) == rows((everything[:first], labels[:first]))
    assert rows(alpha) == rows(validation)
    assert not torch.equal(weights[0], everything[:first])
    assert not torch.equal(alpha[0], validation[0])


def test_search_split_of_class_ordered_sets_is_a_fixed_permutation(user):
    module = user(TRIPLE)

    def halves(seed):
        weights, _, validation = search_loaders(load(f"{module}:f", seed=seed), 4, PLAIN)
        return [((batches(x)[0][:, 0, 0, 0] / 2 + 0.5) * 255).round().int().tolist() for x in (weights, validation)]

    (weights, validation), again, other = halves(0), halves(0), halves(1)
    assert sorted(weights + validation) == list(range(40))
    assert validation != sorted(validation)
    assert validation == again[1]
    assert validation != other[1]


def test_only_training_loaders_augment():
    pl.seed_everything(0)
    _, alpha, validation = search_loaders(DIGITS, 64, Augmentation())
    train, test = retrain_loaders(DIGITS, 64, Augmentation(cutout=4))
    normalise = transforms(DIGITS, None)
    assert torch.equal(batches(test)[0], torch.stack([normalise(image) for image, _ in DIGITS.test]))
    plain = {bytes(normalise(image).numpy()) for image, _ in DIGITS.train}

    def untouched(loader):
        return np.mean([bytes(image.numpy()) in plain for image in batches(loader)[0]])

    assert untouched(alpha) < 0.1
    assert untouched(train) < 0.1
    assert untouched(validation) == 1
    assert batches(train)[0].shape == (1437, 1, 8, 8)


def test_retraining_never_ends_on_a_lone_image():
    assert 1437 % 4 == 1
    assert [len(x) for _, x in retrain_loaders(DIGITS, 4, None)[0]] == [4] * 359
    assert len(batches(retrain_loaders(DIGITS, 5, None)[0])[1]) == 1437


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_the_same_batches(workers):
    def epochs(seed):
        pl.seed_everything(seed, workers=True)
        loaders = search_loaders(DIGITS, 100, Augmentation(cutout=4), workers)[:2]
        return [batches(loader) for _ in range(2) for loader in loaders]

    first, again, other = epochs(2), epochs(2), epochs(3)
    for (a, i), (b, j), (c, k) in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(i, j)
        assert not torch.equal(a, c)
        assert not torch.equal(i, k)
    assert not torch.equal(first[0][0], first[2][0])  # drawn afresh in the next epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_many_sizes_are_loaded(workers, tmp_path):
    for number, path in enumerate(sorted(write_pngs(tmp_path).rglob("*.png"))):
        Image.open(path).resize((20 + number % 7, 20 + number % 5)).save(path)
    data = load("folder", tmp_path, image_size=16, as_stored=True)

    def epoch(seed):
        pl.seed_everything(seed, workers=True)
        return [batches(loader)[0] for loader in search_loaders(data, 10, IMAGENET, workers)]

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert [images.shape for images in first] == [(30, 3, 16, 16)] * 3
    assert [torch.equal(a, b) for a, b in zip(first, again, strict=True)] == [True] * 3
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [False, False, True]


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_loaders_suit_nni_and_spawned_workers(name, tmp_path):
    from nni.common.serializer import is_traceable

    data = load(name, write_pngs(tmp_path), image_size=16)
    whole = search_subset(load(name, tmp_path, image_size=16, as_stored=True), 5, 4)
    loaders = [*search_loaders(data, 8, Augmentation()), *retrain_loaders(data, 8, Augmentation())]
    for loader in [*loaders, *search_loaders(whole, 8, IMAGENET), *retrain_loaders(whole, 8, IMAGENET)]:
        assert is_traceable(loader)
        copy = pickle.loads(pickle.dumps(loader.dataset))
        torch.manual_seed(0)
        expected = loader.dataset[3][0]
        torch.manual_seed(0)
        assert torch.equal(copy[3][0], expected)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"batch_size": 900}, ["batch_size 900 is larger than the 718 images of the weights' half; at most 718 works"]),
        ({"batch_size": 300, "train_portion": 0.9}, ["larger than the 144 images of the alpha half; at most 144"]),
        ({"batch_size": 0}, ["batch_size must be at least 1, got 0"]),
        ({"workers": -1}, ["workers must be 0 (load in the main process) or more, got -1"]),
        *(
            ({"train_portion": x}, ["train_portion must be in (0, 1)", f"got {x} of 1437", "the paper uses 0.5"])
            for x in (0, 1, 1.5, -0.1, 1e-9, float("nan"))
        ),
    ],
)
def test_bad_search_loaders(options, texts):
    with raises(*texts):
        search_loaders(DIGITS, **{"batch_size": 8, "augmentation": None, **options})


def test_bad_retrain_loaders():
    with raises("batch_size 1438 is larger than the 1437 images of the training set; at most 1437 works"):
        retrain_loaders(DIGITS, 1438, None)
