"""Parameters of a trial, and the search space they come from."""

import pytest

from nni_fairdarts import InputError
from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig
from nni_fairdarts.parameters import applied, check_search_space, flat

NESTED = {"strategy": {"_name": "darts", "learning_rate": 0.025, "inner": {"_name": "x", "epochs": 3}}, "seed": 1}


def test_nested_parameters_lie_flat():
    assert flat(NESTED) == {"strategy": "darts", "learning_rate": 0.025, "inner": "x", "epochs": 3, "seed": 1}


def test_names_are_fields_and_those_of_search_stand_alone():
    parameters = {
        "strategy": {"_name": "gumbel_darts", "temperature": [2.0, 0.5]}, "seed": 7, "zero_one_weight": 5,
        "threshold": 0.5, "retrain.width": 8, "search.epochs": 3.0, "search.penalty.scale": 2, "space.operations": None,
    }  # fmt: skip
    config = applied(RunConfig(), parameters)
    assert (config.search.strategy, config.search.temperature, config.seed) == ("gumbel_darts", (2.0, 0.5), 7)
    assert (config.search.zero_one_weight, config.search.threshold, config.search.epochs) == (5.0, 0.5, 3)
    assert (config.retrain.width, config.search.penalty.scale) == (8, 2.0)
    untouched = {"seed": 2, "search.strategy": "fairdarts", "search.zero_one_weight": 10.0, "search.threshold": 0.85}
    untouched |= {
        "search.temperature": [1.0, 0.33],
        "retrain.width": 36,
        "search.epochs": 50,
        "search.penalty.scale": 1,
    }
    assert changed(config, untouched) == RunConfig()


@pytest.mark.parametrize(
    ("parameters", "texts"),
    [
        ({"treshold": 0.5}, ["a trial cannot vary 'treshold', did you mean threshold? known: ", "zero_one_weight"]),
        ({"name": "x"}, ["a trial cannot vary 'name'"]),
        ({"runs": "/tmp"}, ["a trial cannot vary 'runs'"]),
        ({"strategy": "drats"}, ["strategy", "drats", "gumbel_darts"]),
        ({"threshold": 1.5}, ["search.threshold must be in (0, 1), got 1.5; the paper uses 0.85"]),
        ({"epochs": 2.5}, ["search.epochs", "2.5"]),
        ({"seed": "a"}, ["seed", "Expected a whole number. Got value: a"]),
    ],
)
def test_what_does_not_fit_is_refused(parameters, texts):
    with pytest.raises(InputError) as error:
        applied(RunConfig(), parameters)
    for text in texts:
        assert text in str(error.value)


SEEDS = {"_type": "choice", "_value": [0, 1]}
GOOD = {
    "strategy": {
        "_type": "choice",
        "_value": [{"_name": "fairdarts"}, {"_name": "darts", "batch_size": {"_type": "choice", "_value": [64]}}],
    },
    "seed": {"_type": "randint", "_value": [0, 4]},
    "zero_one_weight": {"_type": "loguniform", "_value": [0.1, 100]},
    "epochs": {"_type": "quniform", "_value": [10, 50, 10]},
    "arc_weight_decay": {"_type": "normal", "_value": [0, 1]},
}


def test_a_space_that_fits():
    check_search_space(RunConfig(), GOOD)


def test_values_are_tried_beside_the_others():
    profiled = {"penalty.profiler": {"_type": "choice", "_value": ["flops", "params"]}}
    baseline = {"penalty.baseline": {"_type": "choice", "_value": [1e6]}}
    check_search_space(RunConfig(), {**profiled, **baseline})
    with pytest.raises(InputError, match="penalty.profiler: 'flops' does not fit: .*baseline must be more than 0"):
        check_search_space(RunConfig(), profiled)
    nested = {"_name": "darts", **profiled, **baseline}  # a penalty is fairdarts' own
    with pytest.raises(InputError, match="does not fit.*none with darts"):
        check_search_space(RunConfig(), {"strategy": {"_type": "choice", "_value": [{"_name": "fairdarts"}, nested]}})


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ({"seed": [0, 1]}, ["the search space's seed must be a mapping with _type and _value", "got [0, 1]"]),
        ({"seed": {"_type": "choice", "_value": []}}, ["the search space's seed must be a mapping"]),
        ({"sed": {"_type": "choice", "_value": [0]}}, ["the search space's sed: 0 does not fit", "did you mean seed?"]),
        ({"seed": {"_type": "choice", "_value": [0, -1]}}, ["space's seed: -1", "run.seed must be 0 or more"]),
        ({"seed": {"_type": "randint", "_value": [-2, 4]}}, ["the search space's seed: -2"]),
        ({"threshold": {"_type": "uniform", "_value": [0.5, 1.0]}}, ["the search space's threshold: 1.0"]),
        (
            {"strategy": {"_type": "choice", "_value": [{"_name": "darts", "epoch": SEEDS}]}},
            ["the search space's epoch: 0", "did you mean epochs?"],
        ),
        ({"strategy": {"_type": "choice", "_value": [{"name": "darts"}]}}, ["needs a _name"]),
        ({"seed": {"_type": "uniform", "_value": [0, 3]}}, ["space's seed: 1.24", "Expected a whole number"]),
        ({"seed": {"_type": "chioce", "_value": [1]}}, ["space's seed has the _type 'chioce'; NNI knows choice"]),
        ({"seed": {"_type": "randint", "_value": [5]}}, ["seed: randint takes 2 numbers as _value, got [5]"]),
        ({"threshold": {"_type": "loguniform", "_value": [0, 1]}}, ["loguniform begins above 0, got [0, 1]"]),
    ],
)  # fmt: skip
def test_a_space_that_does_not_fit_is_refused(entry, texts):
    with pytest.raises(InputError) as error:
        check_search_space(RunConfig(), {**GOOD, **entry})
    for text in texts:
        assert text in str(error.value)
