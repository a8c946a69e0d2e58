"""The report page in a real browser, against the files of the runs that it is about."""

import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import browser as ui
import numpy as np
import pytest
import yaml
from pages import check_drawn, table, tiles
from test_cli import TINY

from nni_fairdarts.cli import main
from nni_fairdarts.config import SearchConfig, from_mapping
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.manager.records import Experiment, Trial
from nni_fairdarts.nni_strategies import STRATEGIES
from nni_fairdarts.plots.comparison import comparisons
from nni_fairdarts.recorded import Recorded, read_recorded
from nni_fairdarts.report.groups import OWNERS, differing, grouped
from nni_fairdarts.report.pages import MARK, page, write_report
from nni_fairdarts.report.retraining import guide
from nni_fairdarts.report.runs import Run, of_experiment, of_recorded, read_sources, told_apart
from nni_fairdarts.report.sections import missing


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tiny run: searched, derived, retrained."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "--config", "tiny.yaml", "--name", "tiny"]) == 0
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with ui.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def opened(running):
    """opened(file): a browser with the page, opened from its file without a network; the page may not complain."""

    def open_page(file):
        running.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        running.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        running.get(Path(file).resolve().as_uri())
        check_drawn(running)
        return running

    yield open_page
    assert ui.errors(running) == []


class Text(HTMLParser):
    """The text of a page, without its style."""

    def __init__(self, html):
        super().__init__()
        self.words, self.silent = [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.silent = tag == "style"

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        if not self.silent:
            self.words.append(data)

    def __str__(self):
        return " ".join("".join(self.words).split())


def text_of(*named, output):
    return str(Text(write_report([str(name) for name in named], output).read_text()))


def read(path):
    return json.loads(path.read_text())


def copied(run, into, name="copy", **changes):
    """A copy of a run with another name, and other settings by their dotted names (with __ for the dot)."""
    folder = into / name
    shutil.copytree(
        run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "nni", "*.pt", "report*", "retrain-*")
    )
    for file in (folder / "config.yaml", folder / "retrain" / "config.yaml"):
        content = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            *section, field = key.split("__")
            (content[section[0]] if section else content)[field] = value
        file.write_text(yaml.safe_dump(content))
    return folder


def changed(path, **changes):
    path.write_text(json.dumps({**read(path), **changes}))


# -- one run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(finished):
    """The page of the tiny run, written by the command."""
    assert main(["report", str(finished)]) == 0
    return finished / "report.html"


def test_page_of_a_run_tells_what_its_files_do(finished, single, opened):
    page = opened(single)
    searched, retrained = read(finished / "result.json"), read(finished / "retrain" / "result.json")
    seconds = round(searched["seconds"] + retrained["seconds"])
    assert page.title == "tiny · fairdarts"
    assert page.find_element("tag name", "h1").text == "tiny"
    assert page.find_element("css selector", "header p").text == "fairdarts, seed 2, finished"
    assert tiles(page) == {
        "accuracy, retrained": (retrained["test_accuracy"], f"{retrained['test_accuracy']:.2%}"),
        "accuracy, supernet": (searched["supernet_accuracy"], f"{searched['supernet_accuracy']:.2%}"),
        "discretisation gap": (searched["discretization_gap"], f"{searched['discretization_gap']:.2%}"),
        "decided gates": (searched["decided_gates"], f"{searched['decided_gates']:.1%}"),
        "skip connections": (total := sum(searched["skip_connections"].values()), str(total)),
        "parameters": (retrained["parameters"], f"{retrained['parameters']:,}"),
        "multiply-adds": (retrained["multiply_adds"], f"{retrained['multiply_adds']:,}"),
        "time": (searched["seconds"] + retrained["seconds"], f"{seconds // 60}:{seconds % 60:02}"),
    }
    assert page.find_elements("css selector", ".notes") == []
    titles = [image.get_attribute("alt") for image in page.find_elements("tag name", "img")]
    assert titles[:2] == ["The derived normal cell", "The derived reduction cell"]
    assert len(titles) >= 11
    facts = dict(row.text.split(" ", 1) for row in page.find_elements("css selector", ".facts tr"))
    (start,) = read(finished / "environment.json")["starts"]
    assert {name: facts[name] for name in start["versions"]} == start["versions"]
    assert (facts["device"], facts["git"]) == (f"cpu {start['device_name']}", "not in a repository")
    assert facts["command"] == " ".join(start["command"])


def test_architecture_and_configuration_are_selected_by_a_click(finished, single, opened):
    page = opened(single)
    taken = []
    for text in page.find_elements("css selector", "pre.copy"):
        text.click()
        taken.append(page.execute_script("return getSelection().toString()"))
    assert Genotype.from_json(json.loads(taken[0])) == Genotype.load(finished / "genotype.json")
    assert json.loads(taken[1]) == read(finished / "result.json")["nni_sample"]
    assert yaml.safe_load(taken[-1]) == yaml.safe_load((finished / "config.yaml").read_text())
    assert str(Genotype.load(finished / "genotype.json")) in [p.text for p in page.find_elements("tag name", "pre")]


def test_command_and_python_lines_retrain_to_the_same_numbers(finished, single, monkeypatch):
    copyable = re.findall(r'<pre class="copy"[^>]*>(.*?)</pre>', single.read_text(), re.S)
    command, python = (Text(part).words for part in copyable[2:4])
    change, retrain = "".join(command).splitlines()
    assert shlex.split(change) == ["cd", str(finished.parents[1])]
    monkeypatch.chdir(shlex.split(change)[1])
    program, *words = shlex.split(retrain)
    assert (program, words) == ("nni-fairdarts", ["retrain", str(finished), "--into", "retrain-2"])
    assert main(words) == 0
    exec(compile("".join(python).replace("retrain-2", "retrain-3"), "page", "exec"), {})
    known = ("test_accuracy", "parameters", "multiply_adds", "genotype")
    results = [read(finished / name / "result.json") for name in ("retrain", "retrain-2", "retrain-3")]
    first, *again = [{key: result[key] for key in known} for result in results]
    assert again == [first, first]


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_unfinished_runs_say_what_is_missing(finished, tmp_path):
    run = copied(finished, tmp_path, "with space")
    quoted, retraining = shlex.quote(str(run)), run / "retrain"
    for name in ("result.json", "genotype.json", "sample.json"):
        (run / name).rename(tmp_path / name)
    history = (run / "history.jsonl").read_text()
    (run / "history.jsonl").write_text(history.splitlines(keepends=True)[0])
    (retraining / "result.json").unlink()
    (tmp_path / "page.html").write_text(f"{MARK} of an earlier run")
    text = text_of(run, output=tmp_path / "page.html")
    assert "earlier" not in text
    assert "fairdarts, seed 2, search unfinished, epoch 1 of 2" in text
    assert "The search is not finished (1 of 2 epochs): nothing is derived yet, and numbers are" in text
    assert f"nni-fairdarts search --resume {quoted}" in text
    assert "What the normal cell would keep after epoch 1" in text
    assert f"accuracy, supernet {json.loads(history.splitlines()[0])['val_acc']:.2%} epoch 1" in text
    assert "accuracy, retrained – not retrained" in text

    (run / "history.jsonl").write_text(history)
    for name in ("result.json", "genotype.json", "sample.json"):
        (tmp_path / name).rename(run / name)
    begun = of_recorded(read_recorded(run))
    assert begun.state == "retraining unfinished"
    assert guide(begun).commands.splitlines()[1:] == [
        f"nni-fairdarts retrain --resume {shlex.quote(str(retraining))}",
        f"nni-fairdarts retrain {quoted} --into retrain-2",
    ]
    assert guide(replace(begun, experiment="abc")).commands == "nni-fairdarts launch --resume abc"
    shutil.rmtree(retraining)
    never = of_recorded(read_recorded(run))
    assert never.latest == {"seconds": read(run / "result.json")["seconds"]}
    assert "seconds" not in never.measured
    assert never.state == "not retrained"
    assert guide(never).commands.splitlines()[1:] == [f"nni-fairdarts retrain {quoted}"]
    assert missing(never) == [
        "It is not retrained: the accuracy, parameters and multiply-adds of the derived network are unknown."
    ]


def test_spaces_without_cells_and_strategies_without_gates(tmp_path):
    """As ``recording`` writes them: choices of one row, and records of a strategy that has no gates."""
    sample = {"layer1": "conv", "layer2": "skip_connect"}
    folders = {}
    for strategy in ("fairdarts", "random"):
        folder = folders[strategy] = tmp_path / strategy
        folder.mkdir()
        config = {**TINY, "name": strategy, "space": {"name": "mine:Space"}, "search": {"strategy": strategy}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        record = {"train_loss": 1.0, "val_loss": 0.9, "val_acc": 0.5, "seconds": 1.0, "learning_rate": 0.1}
        if strategy == "fairdarts":
            record["operations"] = {label: ["conv", "skip_connect"] for label in sample}
            record["gates"] = {"layer1": [0.9, 0.2], "layer2": [0.3, 0.6]}
            record |= {"decided_gates": 0.0, "open_gates": 1, "gates_total": 4, "skip_connections": {"layers": 1}}
        history = [json.dumps({"epoch": epoch, **record}) for epoch in range(2)]
        (folder / "history.jsonl").write_text("\n".join(history) + "\n")
        result = {"supernet_accuracy": 0.5, "nni_sample": sample, "skip_connections": {"layers": 1}, "seconds": 2.0}
        (folder / "result.json").write_text(json.dumps(result))
    text = text_of(*folders.values(), output=tmp_path / "page.html")
    assert "There are no derived cells to draw: the space is not of cells." in text
    assert '"layer2": "skip_connect"' in text
    assert "Dominant skip connections over the epochs" in text
    assert "The discretisation gap was not measured." in text
    assert "There are no figures of gates: random samples networks and has no gates." in text
    assert "Decided gates over the epochs. Those under 0.1 or over 0.9. Not recorded in random." in text


# -- several runs ------------------------------------------------------------------------------------------------------

ACCURACIES = {"one": 0.9, "other": 0.85, "longer": 0.95}
EVIL = '<script>alert(1)<!-- "&amp; $\\frac{'
TAG = '<img src="https://example.org/x.png" onerror="document.title=1">'


@pytest.fixture(scope="module")
def several(finished, tmp_path_factory):
    """Runs to be compared, by their names: three of fairdarts, one of darts, and a history without its run."""
    into = tmp_path_factory.mktemp("several")
    found = {
        "one": copied(finished, into, "one", seed=0, search__zero_one_weight=5.0),
        "other": copied(finished, into, "other", seed=1, search__zero_one_weight=5.0),
        "longer": copied(finished, into, "longer", seed=0),
        EVIL: copied(finished, into, EVIL, seed=0, search__strategy="darts", data__name="my:$\\frac{<b>"),
        "bare": into / "bare",
    }
    for number, (name, accuracy) in enumerate(ACCURACIES.items()):
        changed(found[name] / "result.json", discretization_gap=0.1 + number / 7)
        changed(found[name] / "retrain" / "result.json", test_accuracy=accuracy, parameters=1_500_000 + number)
    retraining = found["longer"] / "retrain" / "config.yaml"
    content = yaml.safe_load(retraining.read_text())
    content["retrain"]["epochs"] = 600  # as `retrain RUN --retrain.epochs 600` writes it
    retraining.write_text(yaml.safe_dump(content))
    (start,) = read(found[EVIL] / "environment.json")["starts"]
    changed(
        found[EVIL] / "environment.json", starts=[{**start, "device_name": TAG, "git": {"commit": TAG, "dirty": 1}}]
    )
    changed(found[EVIL] / "result.json", nni_sample={TAG: TAG}, supernet_accuracy=TAG)
    found["bare"].mkdir()
    shutil.copy(finished / "history.jsonl", found["bare"])
    return found


@pytest.fixture(scope="module")
def comparison(several, tmp_path_factory):
    """Their page."""
    return write_report([str(run) for run in several.values()], tmp_path_factory.mktemp("page") / "page.html")


def test_comparison_has_every_run_and_the_means(several, comparison, opened):
    page = opened(comparison)
    assert page.find_element("tag name", "h1").text == page.title == "Comparison of 5 searches"
    rows = table(page, "runs")
    assert [row["run"][0] for row in rows] == list(several)
    for row, folder in zip(rows[:3], several.values(), strict=False):
        searched, retrained = read(folder / "result.json"), read(folder / "retrain" / "result.json")
        accuracy = retrained["test_accuracy"]
        assert row["accuracy, retrained"] == (f"{accuracy:.2%}", accuracy, None)
        assert row["discretisation gap"][1] == searched["discretization_gap"]
        assert row["parameters"] == ("1.50 M", retrained["parameters"], None)
        assert row["state"][0] == "finished"
    assert rows[4]["state"][0] == "without a configuration, 2 epochs"
    last = json.loads((several["bare"] / "history.jsonl").read_text().splitlines()[-1])
    assert rows[4]["accuracy, supernet"] == (f"{last['val_acc']:.2%}\nepoch 2", last["val_acc"], None)
    assert rows[4]["time"][0].endswith("\nof the search")
    about = ("strategy", "zero_one_weight", "data.name", "retrain.epochs", "runs")
    means = table(page, "means")
    assert [tuple(row[name][0] for name in about) for row in means] == [
        ("fairdarts", "5", "digits", "1", "2"),
        ("fairdarts", "10", "digits", "600", "1"),
        ("fairdarts", "?", "?", "?", "1"),
        ("darts", "–", "my:$\\frac{<b>", "1", "1"),
    ]
    mean, deviation = statistics.mean([0.9, 0.85]), statistics.stdev([0.9, 0.85])
    assert means[0]["accuracy, retrained"][0] == "87.50 ± 3.54%"
    assert means[0]["accuracy, retrained"][1:] == pytest.approx((mean, deviation), rel=1e-12)
    assert means[0]["discretisation gap"][1:] == pytest.approx((0.1 + 1 / 14, statistics.stdev([0, 1 / 7])), rel=1e-12)
    assert means[1]["accuracy, retrained"] == ("95.00%", 0.95, None)
    assert means[2]["accuracy, supernet"] == ("", None, None)  # of a search that is not finished


def test_comparison_has_curves_and_cells_and_links(several, comparison, opened):
    page = opened(comparison)
    titles = [image.get_attribute("alt") for image in page.find_elements("tag name", "img")]
    assert titles[:4] == [
        "The supernet in validation, over the epochs",
        "Discretisation gap over the epochs",
        "Dominant skip connections over the epochs, all cells together",
        "Decided gates over the epochs",
    ]
    assert titles.count("The derived normal cell") == 4
    assert titles.count("What the normal cell would keep after epoch 2") == 1
    links = page.find_elements("css selector", "table[aria-labelledby=runs] a")
    assert len(links) == 5
    for link in links:
        target = page.find_element("id", link.get_attribute("href").partition("#")[2])
        assert (target.tag_name, target.text) == ("h2", link.text)


def test_comparison_warns_of_what_does_not_compare(comparison, opened):
    page = opened(comparison)
    said = [sentence.text for sentence in page.find_elements("css selector", "main > .notes li")]
    behind = "Accuracies of these runs do not compare."
    assert said == [
        f"Other data: data.name is digits in one, other and longer; my:$\\frac{{<b> in {EVIL}. {behind}",
        f"Other retraining: retrain.epochs is 1 in one, other and {EVIL}; 600 in longer. {behind}",
        "Not known: the settings of bare. Whether their numbers compare is not known either.",
    ]
    assert "The retraining had other settings: retrain.epochs 600." in page.find_element("tag name", "main").text


def test_texts_from_files_are_shown_as_they_are(comparison, opened):
    page = opened(comparison)
    assert EVIL in [heading.text for heading in page.find_elements("tag name", "h2")]
    assert f"git {TAG}, with changes that are not committed" in page.find_element("tag name", "main").text
    assert json.dumps({TAG: TAG}, indent=2) in [text.text for text in page.find_elements("tag name", "pre")]
    assert ui.errors(page) == []


def test_page_fits_a_telephone(comparison, opened, running):
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    running.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(comparison)
    finally:
        width, height = ui.SIZE
        size |= {"width": width, "height": height, "mobile": False}
        running.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def run_with(name, strategy="fairdarts", measured=None, **settings):
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return Run(name, "finished", settings={"search.strategy": strategy, **named}, measured=measured or {})


def test_groups_are_of_runs_that_differ_in_the_seed_alone():
    runs = [
        run_with("a", seed=0, threads=1, search__zero_one_weight=10, measured={"test_accuracy": 0.5, "parameters": 3}),
        run_with("b", seed=1, threads=2, search__zero_one_weight=10.0, measured={"test_accuracy": 0.25}),
        run_with("c", seed=0, search__zero_one_weight=1.0),
        run_with("d", "darts", seed=0, search__zero_one_weight=4.0),
    ]
    assert differing(runs) == ["search.zero_one_weight"]
    low, high, darts = grouped(runs)
    assert [group.name for group in (low, high, darts)] == [
        "fairdarts, zero_one_weight 1",
        "fairdarts, zero_one_weight 10",
        "darts",
    ]
    assert [run.name for run in high.runs] == ["a", "b"]
    known, unknown = grouped([runs[0], Run("e", "", recorded=searched("e", "fairdarts", [0.5]))])
    assert (known.name, unknown.name) == ("fairdarts", "fairdarts, settings not known")
    assert (high.measured["test_accuracy"].n, high.measured["test_accuracy"].mean) == (2, 0.375)
    assert high.measured["test_accuracy"].standard_deviation == pytest.approx(np.std([0.5, 0.25], ddof=1), rel=1e-12)
    assert high.measured["parameters"].standard_deviation is None


def test_every_setting_is_of_the_strategies_that_read_it():
    class Read(dict):
        """Notes which settings a strategy's arguments are made of."""

        def __getattr__(self, name):
            self[name] = None
            return getattr(SearchConfig(), name)

    has = {}
    for name, (_, arguments) in STRATEGIES.items():
        read_settings = Read()
        arguments(read_settings, "val_acc", None)
        has[name] = set(read_settings)
    several_read = set.union(*has.values())
    known = {f"search.{field}": tuple(s for s in STRATEGIES if field in has[s]) for field in sorted(several_read)}
    del known["search.parts"], known["search.random_skips"]  # by its fields; of random too
    others = ("search.penalty.", "search.random_skips", "search.parts.")  # read elsewhere
    owners = {name: strategies for name, strategies in OWNERS.items() if not name.startswith(others)}
    assert owners == known


def searched(name, strategy, accuracies, done=True):
    config = from_mapping({"search": SearchConfig(strategy=strategy).__dict__ | {}})
    history = tuple({"epoch": epoch, "val_acc": value} for epoch, value in enumerate(accuracies))
    return Recorded(name, history, config=config, result={} if done else None)


def test_curves_are_of_every_run_and_the_mean_of_those_that_are_finished():
    fair = [searched("a", "fairdarts", [0.1, 0.5]), searched("b", "fairdarts", [0.3, 0.6])]
    fair.append(searched("c", "fairdarts", [0.9], done=False))
    figures = comparisons({"fair $x": fair, "darts": [searched("d", "darts", [0.2, 0.4])]})
    assert figures.keys() == {"accuracy"}
    (axes,) = figures["accuracy"].axes
    drawn = [line.get_ydata().tolist() for line in axes.lines]
    assert drawn == [[10, 50], [30, 60], [90], pytest.approx([20, 55]), [20, 40]]
    assert axes.lines[0].get_color() == axes.lines[3].get_color() != axes.lines[4].get_color()
    assert [text.get_text() for text in figures["accuracy"].legends[0].texts] == ["fair $x, mean of 2", "darts"]


# -- experiments: see test_browser.py, too -----------------------------------------------------------------------------


def test_trials_without_files_are_told_of(tmp_path):
    reported = {"default": 0.75, "strategy": "darts", "parameters": 1234, "skip_connections": 2, "seconds": 61.0}
    varied = {"strategy": "darts", "seed": 0, "retrain.width": 4}
    trials = (
        Trial(0, "aaaaa", "succeeded", "darts", 0, 0, varied, reported, "metric"),
        Trial(1, "bbbbb", "failed", "darts", 1, 1, {**varied, "retrain.width": 8}, remarks=("it <died>",)),
        Trial(None, "ccccc", "waiting"),
    )
    source = of_experiment(Experiment("abcde", "", tmp_path, trials))
    text = str(Text(page([source])))
    assert "Experiment abcde 1 succeeded; 1 failed; 1 waiting" in text
    assert "trial 0 darts 0 4 75.00% 2 1,234 1:01 succeeded" in text
    assert "trial 1 darts 1 8 failed" in text
    assert "trial ccccc ? ? ? waiting" in text
    assert "it <died> its run folder is not on this machine, or was not made: there are no figures of it" in text
    assert "Other retraining: retrain.width is 4 in trial 0; 8 in trial 1. Accuracies of these runs do not" in text
    assert "Not known: the settings of trial ccccc." in text
    assert "Curves" not in text


def test_experiments_are_told_apart(tmp_path):
    sources = [of_experiment(Experiment(id, "", tmp_path / id, (Trial(0, "aaaaa", "waiting"),))) for id in ("x", "y")]
    assert [run.name for source in told_apart(sources) for run in source.runs] == ["x trial 0", "y trial 0"]
    assert "<h1>Experiment x and y</h1>" in page(told_apart(sources))


def test_what_is_no_number_is_no_point_of_a_curve():
    recorded = Recorded(
        "a", tuple({"epoch": epoch, "val_acc": value} for epoch, value in enumerate([0.5, "<b>", 10**400]))
    )
    np.testing.assert_array_equal(recorded.series("val_acc"), [0.5, np.nan, np.nan])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_is_named(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = {
        ("nowhere",): "there is no experiment 'nowhere'; .* or give the folder of a search, such as runs/NAME",
        (str(tmp_path),): "holds neither a search .* nor an experiment of NNI's .* give runs/NAME",
        (str(finished), f"{finished}/../tiny"): "tiny is named twice; name every run once",
        (str(finished), "--output", str(tmp_path)): "is a folder; give --output a file's name",
        (str(finished), "--output", str(finished / "config.yaml")): "exists already and is no report; choose another",
        (str(finished), "--output", "no/page.html"): "cannot write into the folder no; choose another place",
    }
    for words, message in said.items():
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(finished, tmp_path):
    run = copied(finished, tmp_path)
    (run / "retrain" / "config.yaml").write_text("seed: [")
    with pytest.raises(InputError, match=r"retrain/config\.yaml"):
        write_report([str(run)])


def test_two_runs_of_a_name_are_told_apart(finished, tmp_path):
    others = [copied(finished, tmp_path / f"{place}/runs", "tiny") for place in "ab"]
    sources = read_sources([str(run) for run in (finished, *others)])
    assert [run.name for source in sources for run in source.runs] == ["runs/tiny", "runs/tiny (2)", "runs/tiny (3)"]


def test_without_matplotlib_its_extra_is_named(finished):
    code = "import sys; sys.modules['matplotlib'] = None; from nni_fairdarts.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "report", str(finished)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "figures need matplotlib; pip install matplotlib, or this package with its extra [plots]" in done.stderr
