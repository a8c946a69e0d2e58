"""A few faults of ``faults.py``, which has many more: a killed search ends as if nothing had happened."""

import signal
from random import Random

from faults import truncated
from load import search_here
from searches import Search, compare, differences


def test_a_search_killed_again_and_again_ends_the_same(tmp_path):
    """As its folder is made; as the third checkpoint is written, the second one damaged; behind the last epoch.

    By the real command line, in processes of their own, with workers, but for the search that it is compared with.
    """
    reference = search_here(tmp_path / "reference", workers=2).facts()
    search = Search(tmp_path / "search")
    _killed(search, r"run/\.?config", 2)
    assert search.epochs() == 0
    _killed(search, r"checkpoints/epoch002", 1)
    assert search.epochs() == 3
    damaged = search.checkpoints()[-1]
    truncated(damaged, Random(0))
    life = _killed(search, r"run/\.?genotype", 1)
    assert f"cannot read the checkpoint {damaged.relative_to(search.place)}" in life.said()
    assert search.epochs() == 4
    assert not search.finished()
    search.go_on()
    compare(search, reference)


def _killed(search: Search, pattern: str, count: int):
    """A life that was killed at the ``count``th change of a file that ``pattern`` matches."""
    life = search.start(trip=(pattern, count, 0))
    assert life.end() == -signal.SIGKILL, life.said()
    return life


def test_what_differs_is_seen():
    """The comparison sees a single bit, and what is missing."""
    import torch

    one, other = {"alpha": torch.zeros(3), "history": [1.0]}, {"alpha": torch.zeros(3), "history": [1.0]}
    assert differences(one, other) == []
    other["alpha"][1] = -0.0
    assert differences(one, other) == ["/alpha"]
    assert differences(one, {"history": [1.0, 2.0]}) == ["/alpha", "/history (1 and 2 long)"]
