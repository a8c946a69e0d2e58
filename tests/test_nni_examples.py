"""The experiments under examples/nni, paper and family: valid for NNI, for its tuner, and for the trials they start."""

import json
import runpy
from functools import cache
from pathlib import Path

import pytest
import yaml
from nni.experiment import ExperimentConfig

from nni_fairdarts import InputError
from nni_fairdarts.arguments import as_fields, read_config
from nni_fairdarts.config import OURS, RunConfig
from nni_fairdarts.discretize import Discretization
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.manager.commands import check_command, trial_config
from nni_fairdarts.manager.records import Experiment, Trial
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.parameters import applied

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted((EXAMPLES / "nni").glob("*.yaml"))
PAPER = sorted((EXAMPLES / "paper").glob("*.yaml"))
FAMILY = EXAMPLES / "family/digits.yaml"
RECIPES = sorted(path for path in FAMILY.parent.glob("*.yaml") if path != FAMILY)
CUDA = {"platform", "trialGpuNumber", "useActiveGpu", "maxTrialNumberPerGpu"}


def content(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def drawn(path: Path) -> list[dict]:
    """Every parameter set that the experiment's own tuner makes of its search space."""
    from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

    tuner = GridSearchTuner()
    tuner.update_search_space(content(path)["searchSpace"])
    return [tuner.generate_parameters(i) for i in range(content(path)["maxTrialNumber"])]


@cache
def trials(path: Path) -> list[RunConfig]:
    """What each trial of an experiment runs."""
    base = trial_config(content(path)["trialCommand"], EXAMPLES)
    return [applied(base, parameters) for parameters in drawn(path)]


@pytest.mark.parametrize("path", [*FILES, *PAPER, FAMILY], ids=lambda path: path.stem)
def test_nni_reads_it_and_every_trial_can_run(path):
    config = ExperimentConfig.load(path)
    if path.stem == "remote":  # the key files are placeholders
        return
    canonical = config.canonical_copy()
    folder = Path(canonical.trial_code_directory)
    assert folder == EXAMPLES
    check_command(canonical.trial_command, folder, canonical.search_space)
    configs = trials(path)
    assert len({str(config) for config in configs}) == len(configs)  # the grid is exhausted, and none is run twice


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.endswith("_cpu")], ids=lambda path: path.stem)
def test_the_variant_for_the_cpu_is_the_same_experiment(path):
    cpu, cuda = content(path), content(path.with_stem(path.stem.removesuffix("_cpu")))
    assert cpu.pop("trainingService") == {"platform": "local"}
    assert cuda.pop("trainingService").keys() == CUDA
    assert cpu == cuda


@pytest.mark.parametrize("path", [path for path in PAPER if path.stem.endswith("_digits")], ids=lambda path: path.stem)
def test_the_papers_experiments_are_on_digits_too(path):
    """Over the same seeds and the same values of what is varied; only DARTS has its published settings on CIFAR-10."""
    digits, cifar = content(path), content(path.with_stem(path.stem.removesuffix("_digits")))
    assert digits["trialCommand"].endswith("digits.yaml")
    assert cifar["trialCommand"].endswith("cifar10.yaml")
    assert digits["trainingService"] == {"platform": "local"}
    assert cifar["trainingService"].keys() == CUDA
    assert digits["maxTrialNumber"] == cifar["maxTrialNumber"]
    ours, theirs = digits["searchSpace"], cifar["searchSpace"]
    assert ours.keys() == theirs.keys()
    assert ours["seed"]["_value"] == [0, 1, 2]
    for name, choice in theirs.items():
        values = [v["_name"] if isinstance(v, dict) else v for v in choice["_value"]]
        assert ours[name]["_value"] == values


def test_digits_has_a_variant_for_cuda():
    cpu, cuda = content(EXAMPLES / "nni/digits.yaml"), content(EXAMPLES / "nni/digits_cuda.yaml")
    assert cuda["trialCommand"] == cpu["trialCommand"] + " --device cuda"
    assert cuda["searchSpace"] == cpu["searchSpace"]
    assert cuda["trainingService"].keys() == CUDA


def test_darts_has_its_own_settings_where_both_are_compared():
    made = [config.search for config in trials(EXAMPLES / "nni/compare.yaml")]
    darts = [search for search in made if search.strategy == "darts"]
    fair = [search for search in made if search.strategy == "fairdarts"]
    assert len(darts) == len(fair) == 7
    assert {(s.batch_size, s.learning_rate, s.arc_learning_rate) for s in darts} == {(64, 0.025, 3e-4)}
    assert {(s.batch_size, s.learning_rate, s.arc_learning_rate) for s in fair} == {(128, 0.005, 3e-3)}


# -- the family ----------------------------------------------------------------------------------------------------


def test_the_family_is_compared_on_the_same_terms():
    """Every strategy with three seeds; nothing differs but what belongs to one of them."""
    configs = trials(FAMILY)
    runs = {(config.search.strategy, config.seed) for config in configs}
    assert runs == {(strategy, seed) for strategy in (*OURS, "darts", "random_search") for seed in range(3)}
    assert {c.search.epochs for c in configs if c.search.strategy != "random_search"} == {12}
    own = ("seed", "search.strategy", "search.epochs", "search.warmup_epochs", "search.random_skips", "search.parts.")
    shared = [{key: value for key, value in as_fields(c).items() if not key.startswith(own)} for c in configs]
    assert all(settings == shared[0] for settings in shared)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_its_strategy_does_anyway(path):
    """Each setting of α stands there to be read: without it the strategy comes out the same."""
    config = read_config(path)
    assert config.name == config.search.strategy == path.stem
    assert (config.data.name, config.retrain) == ("cifar10", read_config(EXAMPLES / "cifar10.yaml").retrain)
    assert made_of(config.search) == made_of(type(config.search)(strategy=path.stem))


def made_of(search) -> dict:
    """What a strategy has been given: its plain attributes, and what changes over the epochs."""
    strategy = build(search)
    plain = (int, float, str, tuple, Path, type(None), Discretization, EarlyStopping)
    found = {name: value for name, value in vars(strategy).items() if isinstance(value, plain) and name != "repairs"}
    moving = getattr(strategy, "moving", None)
    return found | ({} if moving is None else {"disturbance": moving.disturbance, "temperature": moving.temperature})


def test_the_recipes_are_the_published_ones():
    """../shared/variants.md: epochs, batch, learning rate and its end, α's learning rate, channels, cells."""
    darts = (50, 64, 0.025, 0.001, 3e-4, 16, 8)
    others = {
        "p_darts": (75, 96, 0.025, 0.0, 6e-4, 16, 8),  # the cells are its stages'
        "pc_darts": (50, 256, 0.1, 0.0, 6e-4, 16, 8),
        "dr_nas": (50, 64, 0.1, 0.0, 6e-4, 36, 20),
        "noisy_darts": (50, 128, 0.05, 0.001, 3e-4, 16, 8),
        "random_search": (1, 128, 0.005, 0.001, None, 16, 8),  # it searches nothing
    }
    strategies = {*OURS, "darts", "random_search"} - {"fairdarts"}  # that one: examples/cifar10.yaml
    assert {path.stem for path in RECIPES} == strategies
    for path in RECIPES:
        config = read_config(path)
        s, space = config.search, config.space
        found = (s.epochs, s.batch_size, s.learning_rate, s.learning_rate_min, s.arc_learning_rate)
        assert (*found, space.width, space.num_cells) == others.get(path.stem, darts)
        assert (s.momentum, s.weight_decay, s.gradient_clip_val, s.train_portion) == (0.9, 3e-4, 5, 0.5)


def test_the_familys_table_is_of_means_over_the_seeds_beside_what_a_step_costs(tmp_path):
    run = runpy.run_path(str(FAMILY.parent / "run.py"), run_name="run")
    rows = [("p_darts, stage 1 of 3", 0.5, 10), ("p_darts, stage 2 of 3", 9, 9), ("p_darts, stage 3 of 3", 2, 1024)]
    rows = [
        {"strategy": name, "status": "measured", "step": {"seconds": seconds}, "peak_bytes": mib * 2**20}
        for name, seconds, mib in rows
    ]
    (tmp_path / "costs.json").write_text(json.dumps({"rows": [*rows, {"strategy": "darts", "status": "failed"}]}))
    run["costs"].__globals__["COSTS"] = tmp_path / "costs.json"
    found = {"parameters": 1000, "supernet_accuracy": 0.5}
    results = [
        ("p_darts", {**found, "default": 0.98, "normal_skips": 1, "discretization_gap": -0.01}),
        ("darts", {**found, "default": 0.9}),
        ("p_darts", {**found, "default": 0.99, "normal_skips": 2, "discretization_gap": 0.01}),
        ("p_darts", None),
    ]
    trials = tuple(Trial(i, str(i), "succeeded", name, i, result=result) for i, (name, result) in enumerate(results))
    lines = run["table"](Experiment("id", "", tmp_path, trials), run["costs"]()).splitlines()
    assert lines[2:] == [
        "| `p_darts` | 2 | 98.50 ± 0.71 % | 1.5 ± 0.7 | 0.00 ± 1.41 % | 1,000 ± 0 | 50.00 ± 0.00 % "
        "| 0.50 to 2.00 s | 10 to 1,024 MiB |",
        "| `darts` | 1 | 90.00 % | – | – | 1,000 | 50.00 % |  |  |",
    ]


SPACE = {"seed": {"_type": "choice", "_value": [0]}}


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("nni-fairdarts trial --config nowhere.yaml", ["trialCommand", "nowhere.yaml"]),
        ("python -m nni_fairdarts trial --config digits.yaml --search.epoch 3", ["did you mean search.epochs?"]),
        ("nni-fairdarts trial --config=digits.yaml --search.threshold 2", ["search.threshold must be in (0, 1)"]),
        ("nni-fairdarts trial --config 'digits.yaml", ["is no command: No closing quotation"]),
        ("nni-fairdarts run --config digits.yaml", ["is no trial", "write nni-fairdarts trial --config FILE"]),
        ("nni-fairdarts trail --config digits.yaml", ["is no trial"]),
    ],
)
def test_a_command_that_could_not_run_is_refused(command, texts):
    with pytest.raises(InputError) as error:
        check_command(command, EXAMPLES, SPACE)
    for text in texts:
        assert text in str(error.value)


def test_strategies_that_could_not_run_are_refused(monkeypatch):
    command = "nni-fairdarts trial --config digits.yaml"
    with pytest.raises(InputError, match="'proxyless' does not fit: .*NNI's cannot search cells"):
        check_command(command, EXAMPLES, {"strategy": {"_type": "choice", "_value": ["darts", "proxyless"]}})
    monkeypatch.setattr("nni_fairdarts.manager.commands.find_spec", lambda name: None)
    for value in ("enas", {"_name": "enas"}):
        with pytest.raises(InputError, match="the strategy enas needs tianshou"):
            check_command(command, EXAMPLES, {"strategy": {"_type": "choice", "_value": ["darts", value]}})
    with pytest.raises(InputError, match="searchSpace is empty"):
        check_command(command, EXAMPLES, {})


def test_the_space_is_held_against_the_command():
    with pytest.raises(InputError, match="the search space's sed: 0 does not fit: a trial cannot vary 'sed', did you"):
        check_command("nni-fairdarts trial --config digits.yaml", EXAMPLES, {"sed": SPACE["seed"]})


@pytest.mark.parametrize(
    "command",
    [
        "python trial.py --config x",
        "cd x && nni-fairdarts trial --config nowhere.yaml",
        "nni-fairdarts trial --config nowhere.yaml 2>&1",
        "nni-fairdarts trial --config nowhere.yaml >log.txt",
        "nni-fairdarts trial --config digits.yaml; echo done",
        "nni-fairdarts trial --config $CONFIG",
        "nni-fairdarts trial --config ~/digits.yaml",
    ],
)
def test_other_commands_are_the_users_own_affair(command):
    assert trial_config(command, EXAMPLES) is None
    check_command(command, EXAMPLES, {"anything": SPACE["seed"]})
