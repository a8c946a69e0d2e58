"""What TensorBoard is shown of the gates during a search, and that the search is the same with and without."""

import io
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from same_bits import TINY, digest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nni_fairdarts import FairDARTS, InputError, experiment
from nni_fairdarts.arguments import as_fields, changed
from nni_fairdarts.config import RunConfig
from nni_fairdarts.experiment.resuming import check_changes
from nni_fairdarts.history import read_history
from nni_fairdarts.plots.album import chosen
from nni_fairdarts.plots.canvas import styled
from nni_fairdarts.recorded import Recorded, read_recorded
from nni_fairdarts.tensorboard import GateFigures

CELLS = {"space.width": 2, "space.num_cells": 3, "space.operations": ["sep_conv_3x3", "skip_connect"]}
NAMES = {"cell_normal", "cell_reduce", "gates_normal", "gates_reduce"}


def searched(folder, **values):
    """The folder of a tiny search of three epochs."""
    config = changed(RunConfig(), {**TINY, **CELLS, "search.epochs": 3, "runs": str(folder), **values})
    experiment.search(config)
    return config.folder


def shown(folder):
    """What TensorBoard reads in ``folder``: {name: {step: the picture or histogram}} of pictures and of histograms."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    pictures = {tag: {e.step: picture(e.encoded_image_string) for e in events.Images(tag)} for tag in tags["images"]}
    histograms = {t: {e.step: e.histogram_value for e in events.Histograms(t)} for t in tags["histograms"]}
    return pictures, histograms


def drawn(figure) -> np.ndarray:
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png")
    return picture(buffer.getvalue())[..., :3]


def picture(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.mark.parametrize("strategy", ["fairdarts", "darts"])
@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
def test_every_few_epochs_and_after_the_last_and_the_search_is_the_same(strategy, tmp_path):
    before, had_pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    values = {"search.strategy": strategy}
    one, other = (searched(tmp_path / str(every), figure_epochs=every, **values) for every in (2, 0))
    assert digest(one) == digest(other)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
    assert shown(other / "tensorboard") == ({}, {})
    pictures, histograms = shown(one / "tensorboard")
    assert pictures.keys() == NAMES
    for name, steps in pictures.items():
        assert steps.keys() == {2, 3}, name
        assert all(image.shape[2] == 3 and image.std() > 10 for image in steps.values()), name
    for name, draw in chosen(read_recorded(one), sorted(NAMES)).items():  # what the finished search has derived
        np.testing.assert_array_equal(pictures[name][3], drawn(draw()), err_msg=name)
    history = read_history(one / "history.jsonl")
    assert histograms.keys() == {"gates/normal", "gates/reduce"}
    for label in ("normal", "reduce"):
        for epoch in (2, 3):
            gates, told = np.array(history[epoch - 1]["gates"][label]), histograms[f"gates/{label}"][epoch]
            assert (told.num, told.min, told.max) == pytest.approx((gates.size, gates.min(), gates.max()), abs=1e-6)
            assert told.sum == pytest.approx(gates.sum(), abs=1e-5)


@pytest.fixture
def without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "nni_fairdarts.plots"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_without_matplotlib_there_are_histograms_and_one_line(without_matplotlib, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = searched(tmp_path, figure_epochs=1)
    said = [str(warning.message) for warning in caught if "pictures" in str(warning.message)]
    how = "TensorBoard lacks pictures of the gates (matplotlib is not installed; pip install 'nni-fairdarts[plots]')"
    assert said == [how]
    pictures, histograms = shown(folder / "tensorboard")
    assert pictures == {}
    assert {name: list(steps) for name, steps in histograms.items()} == dict.fromkeys(
        ["gates/normal", "gates/reduce"], [1, 2, 3]
    )


@pytest.mark.parametrize("given", [True, False])
def test_a_callback_for_python_users(given, search, classification, loader, choices, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    evaluator = classification(loader(2), loader(2), logger=logger, callbacks=[GateFigures(3)] if given else [])
    strategy = FairDARTS(threshold=0.4)
    search(choices(), evaluator, strategy)
    pictures, histograms = shown(logger.log_dir)
    assert {name: list(steps) for name, steps in pictures.items()} == ({"gates_choices": [1]} if given else {})
    assert list(histograms) == (["gates/first", "gates/second"] if given else [])


def test_a_picture_that_cannot_be_drawn_is_a_warning():
    gates, operations = {"cell": [[float("nan")] * 2] * 14}, {"cell": ["sep_conv_3x3", "skip_connect"]}
    recorded = Recorded("search", ({"epoch": 0, "gates": gates, "operations": operations},))
    figures = GateFigures()
    with pytest.warns(
        RuntimeWarning, match=r"lacks pictures of the gates \(gates must be in \[0, 1\], got nan"
    ) as caught:
        assert figures._pictures(None, recorded) == figures._pictures(None, recorded) == {}
    assert len(caught) == 1


def test_bad_numbers_of_epochs():
    for every in (-1, 1.5, True):
        with pytest.raises(InputError, match=f"every must be a number of epochs, 0 or more, got {every}"):
            GateFigures(every)
    with pytest.raises(InputError, match="run.figure_epochs must be 0 or more, got -1"):
        RunConfig(figure_epochs=-1)


def test_a_search_may_be_gone_on_with_more_pictures(tmp_path):
    check_changes("search", as_fields(RunConfig()), RunConfig(figure_epochs=1), tmp_path)
