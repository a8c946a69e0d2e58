"""Early stopping: the rules over records, and searches that they end."""

import numpy as np
import pytest
import torch

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.early import RULES, EarlyStopping, ranking_settles, sharpness_rises, skips_appear
from nni_fairdarts.history import read_history


def records(count, **series):
    """``count`` records; a series is a function of the epoch."""
    return [{"epoch": e, **{key: value(e) for key, value in series.items()}} for e in range(count)]


def test_skips_appear_in_the_normal_cell():
    made = records(4, skip_connections=lambda e: {"normal": e, "reduce": 9})
    assert [skips_appear(made[: n + 1]) for n in range(4)] == [None, None, 2, 3]
    assert skips_appear(made, most=4) is None
    other = records(1, skip_connections=lambda e: {"first": 1, "second": 1})
    assert skips_appear(other) == 0
    assert skips_appear(records(1)) is None


def test_the_ranking_of_operations_with_weights_settles():
    """From epoch 3 on the convolutions keep their order; what poolings and skip connections do is not looked at."""
    names = {"normal": ["max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"]}

    def gates(epoch):
        low, high = (0.2, 0.8) if epoch < 3 else (0.8, 0.2)
        return {"normal": [[epoch / 20, 0.5 - epoch / 30, low, high], [0, 0, 0.1, 0.2]]}

    made = records(20, operations=lambda e: names, gates=gates)
    found = [ranking_settles(made[: n + 1], epochs=4) for n in range(20)]
    assert found[:6] == [None] * 6
    assert found[6:] == list(range(6, 20))
    assert ranking_settles(made[:3], epochs=3) == 2
    choice = records(3, operations=lambda e: {"c": ["1", "2"]}, gates=lambda e: {"c": [0.1 * e, 0.1]})
    assert [ranking_settles(choice[:n], epochs=2) for n in (1, 2, 3)] == [None, None, 2]


def naive_sharpness(values, factor, first):
    """Word by word: at each epoch the mean of the last five, and of the five that ended four before."""
    for now in range(len(values)):
        if now < 8:
            continue
        last, earlier = values[now - 4 : now + 1], values[now - 8 : now - 3]
        if sum(last) / 5 > factor * (sum(earlier) / 5) and now - 6 >= first:
            return now, now - 6
    return None


@pytest.mark.parametrize("seed", range(5))
def test_sharpness_rises(seed):
    generator = np.random.RandomState(seed)
    values = list(np.cumsum(generator.rand(40)) + 10 * generator.rand())
    made = records(40, alpha_eigenvalue=lambda e: values[e])
    for factor, first in ((1.3, 10), (1.1, 0), (2.0, 3)):
        found = [(n, sharpness_rises(made[: n + 1], factor, first=first)) for n in range(40)]
        stop = next(((n, epoch) for n, epoch in found if epoch is not None), None)
        assert stop == naive_sharpness(values, factor, first)


def test_the_first_rule_that_speaks_ends_it():
    made = records(3, skip_connections=lambda e: {"normal": 3}, alpha_eigenvalue=lambda e: 1.0)
    assert EarlyStopping(("eigenvalue", "skips")).epoch(made) == ("skips", 2)
    assert EarlyStopping(("eigenvalue",)).epoch(made) is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rules": ()}, "rules must be a list of at least one of skips, ranking, eigenvalue, got ()"),
        ({"rules": "skips"}, "rules must be a list"),
        ({"rules": ("skip",)}, "unknown rule 'skip'; known: skips, ranking, eigenvalue"),
        ({"skips": 0}, "skips must be at least 1, got 0"),
        ({"ranking_epochs": 1}, "ranking_epochs must be at least 2, got 1"),
        ({"factor": 1.0}, "factor must be more than 1, got 1.0; RobustDARTS uses 1.3"),
    ],
)
def test_nonsense_is_refused(settings, text):
    with pytest.raises(InputError) as error:
        EarlyStopping(**settings)
    assert text in str(error.value)


# -- searches that end early ------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(choices, classification, search, tmp_path):
    """stopped(rules, epochs): a search of a small space that may end early; (its strategy, its records)."""

    def run(stopping, epochs=5):
        torch.manual_seed(0)
        strategy = FairDARTS(
            early_stopping=stopping, arc_learning_rate=0.3, history=tmp_path / "history.jsonl", log_prob_every_n_step=0
        )
        search(choices(), classification(max_epochs=epochs), strategy)
        return strategy, read_history(tmp_path / "history.jsonl")

    return run


def test_a_search_ends_behind_the_epoch_and_derives_its_architecture(stopped, monkeypatch):
    """A rule that looks two epochs back: the architecture is of that epoch's gates, and later ones are not trained."""
    monkeypatch.setitem(RULES, "skips", lambda records, most: 1 if len(records) == 4 else None)
    strategy, history = stopped(EarlyStopping(("skips",)))
    assert [record["epoch"] for record in history] == [0, 1, 2, 3]
    assert strategy.oneshot_module.derived_epoch == 1
    for label, choice in strategy.oneshot_module.choices().items():
        assert choice.values() == history[1]["gates"][label]
        assert choice.values() != history[3]["gates"][label]
        assert str(strategy.oneshot_module.export()[label]) == choice.operations[np.argmax(choice.values())]


def test_a_search_that_no_rule_ends_goes_to_its_end(stopped):
    strategy, history = stopped(EarlyStopping(("ranking",), ranking_epochs=5), epochs=3)
    assert len(history) == 3
    assert strategy.oneshot_module.derived_epoch is None
    for label, choice in strategy.oneshot_module.choices().items():
        assert choice.values() == history[-1]["gates"][label]
