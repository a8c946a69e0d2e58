"""Searches under load, shortly; ``load.py`` has many more epochs and searches."""

import pytest
from load import TINY, Gauge, at_once, left, search_here, state, stop_by


@pytest.fixture(scope="module")
def _warm(tmp_path_factory):
    """What is made once in a process is there."""
    search_here(tmp_path_factory.mktemp("warm") / "search", epochs=1, **TINY)


@pytest.mark.usefixtures("_warm")
def test_twenty_epochs_leave_nothing_and_do_not_grow(tmp_path):
    before, gauge = state(), Gauge(20)
    search_here(tmp_path / "search", gauge, epochs=20, **TINY)
    assert left(before, state()) == []
    slopes = gauge.slopes(warm_up=8)
    assert slopes["Python objects"][1] < 2, slopes
    assert slopes["file handles"][1] < 0.1, slopes


@pytest.mark.usefixtures("_warm")
def test_an_exception_leaves_neither_files_nor_workers(tmp_path):
    before = state()
    with pytest.raises(ZeroDivisionError):
        search_here(tmp_path / "search", stop_by(ZeroDivisionError()), workers=2, epochs=3, **TINY)
    assert left(before, state()) == []


def test_what_is_left_is_seen(tmp_path):
    before = state()
    with open(tmp_path / "forgotten", "w"):
        assert left(before, state()) == [f"1 file handles: {tmp_path / 'forgotten'}"]
        before = state()
    assert left(before, state()) == [f"closed file handles: {tmp_path / 'forgotten'}"]


def test_two_at_once_give_what_one_does(tmp_path):
    alone = search_here(tmp_path / "alone", workers=2, epochs=1)
    at_once(tmp_path, 2, alone.facts(), epochs=1)
