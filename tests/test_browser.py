"""NNI's web UI in a real browser: a finished experiment as a user sees it."""

import json
import os
import re
import statistics
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.request import urlopen

import browser as ui
import psutil
import pytest
from experiments import one_tensorboard_starts
from pages import check_drawn, table

from nni_fairdarts.report.pages import write_report


@pytest.fixture(scope="module")
def experiment(compared):
    """A finished experiment of four trials: {"url": …, "trials": {id: {"result": dict, "intermediate": [dict]}}}."""
    ui.programs()
    reported = compared.metrics("PERIODICAL")
    trials = {
        id: {"result": json.loads((compared.output(id) / "result.json").read_text()), "intermediate": reported[id]}
        for id in compared.trials()
    }
    return {"url": compared.url, "trials": trials}


@pytest.fixture(scope="module")
def running(experiment, tmp_path_factory):
    with ui.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def browser(running):
    """The browser; a test fails where the page complained."""
    yield running
    assert ui.errors(running) == []


@pytest.fixture
def pictures(tmp_path):
    """The folder for screenshots."""
    folder = Path(os.environ.get("NNI_FAIRDARTS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(metric):
    """A metric as NNI shows it: six decimals, halves rounded up, without zeros at the end."""
    rounded = Decimal(metric).quantize(Decimal("0.000001"), ROUND_HALF_UP)
    return f"{rounded:f}".rstrip("0").rstrip(".")


def with_gap(experiment):
    """The first trial that reports a discretisation gap, and what it reported after each epoch."""
    for trial, told in experiment["trials"].items():
        if "discretization_gap" in told["intermediate"][0]:
            return trial, told["intermediate"]
    raise AssertionError("no trial with a discretisation gap")


# -- pages ---------------------------------------------------------------------------------------------------------


def test_overview_counts_the_trials(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/oview")
    table = ui.cells(browser, "#succTable")
    ui.picture(browser, pictures / "overview.png")
    trials = experiment["trials"]
    others = dict.fromkeys(("Running", "Stopped", "Waiting", "Failed"), 0)
    assert ui.counts(browser) == {"Succeeded": len(trials), **others}
    assert {line["id"]: line["accuracy"] for line in table} == {
        trial: shown(told["result"]["default"]) for trial, told in trials.items()
    }
    best = max(told["result"]["default"] for told in trials.values())
    assert float(browser.find_element("css selector", ".bestMetric .focus-text").text) == pytest.approx(best, abs=1e-6)


def test_detail_tells_status_and_accuracy(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    table = ui.cells(browser, "#tableList")
    ui.picture(browser, pictures / "detail.png")
    assert {line["id"]: (line["status"], line["latestAccuracy"]) for line in table} == {
        trial: ("SUCCEEDED", f"{shown(told['result']['default'])} (FINAL)")
        for trial, told in experiment["trials"].items()
    }


def test_row_opens(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    trial, told = next(iter(experiment["trials"].items()))
    opened = ui.expand(browser, trial)
    ui.picture(browser, pictures / "row.png")
    for name in json.loads(told["result"]["hyperparameters"]):
        assert f"{name}:" in opened.text


def test_intermediate_curve(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    trial, records = with_gap(experiment)
    dialog = ui.intermediate(browser, trial)
    ui.picture(browser, pictures / "intermediate.png")
    assert "Intermediate results" in dialog.text
    assert ui.curve(browser) == [record["default"] for record in records]


def test_other_key_is_drawn(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    trial, records = with_gap(experiment)
    ui.intermediate(browser, trial)
    keys = ui.keys(browser)
    assert list(keys) == list(records[0])
    ui.choose(browser, keys["discretization_gap"])
    ui.picture(browser, pictures / "gap.png")
    assert ui.curve(browser) == [record["discretization_gap"] for record in records]


def test_all_curves(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    ui.tab(browser, "Intermediate result")
    ui.picture(browser, pictures / "curves.png")
    trials = experiment["trials"].items()
    assert ui.curves(browser) == {
        trial: [record["default"] for record in told["intermediate"]] for trial, told in trials
    }


def test_hyper_parameter_chart(browser, experiment, pictures):
    browser.get(f"{experiment['url']}/detail")
    ui.tab(browser, "Hyper-parameter")
    results = [told["result"] for told in experiment["trials"].values()]
    assert set(ui.axes(browser)) >= set().union(*results)
    ui.wait(browser, lambda: ui.drawn(browser, ".parcoords canvas.foreground") > 1000, "a line of a trial")
    ui.picture(browser, pictures / "hyper-parameters.png")


def test_tensorboard_button(browser, experiment):
    browser.get(f"{experiment['url']}/detail")
    trials = list(experiment["trials"])[:2]
    with one_tensorboard_starts():
        said = ui.tensorboard(browser, trials)
        assert "You are starting a new TensorBoard" in said
        with urlopen(f"{experiment['url']}/api/v1/nni/tensorboard-tasks", timeout=10) as answer:
            (task,) = json.load(answer)
        url = f"http://127.0.0.1:{task['port']}/data/plugin/scalars/tags"
        tags = ui.wait(browser, lambda: loaded(url, len(trials)), "the scalars of both trials")
    runs = {re.sub(r"^\d+-|/.*$", "", run): set(names) for run, names in tags.items()}
    assert runs.keys() == set(trials)
    searches = {run: set(names) for run, names in tags.items() if run.endswith("/search")}
    assert len(searches) == 2
    for names in searches.values():
        assert names >= {"train_loss", "val_acc", "decided_gates", "open_gates", "discretization_gap"}
        assert len([name for name in names if name.startswith("prob/normal/")]) == 14 * 7  # every gate


def loaded(url, trials):
    """TensorBoard's tags by run, once it has a search and a retraining of so many trials."""
    try:
        with urlopen(url, timeout=10) as answer:
            tags = json.load(answer)
    except OSError:  # it starts
        return None
    return tags if len(tags) == 2 * trials else None


# -- the report: see test_report.py, too ---------------------------------------------------------------------------


def test_report_compares_the_trials(browser, experiment, compared, pictures, tmp_path):
    file = write_report([compared.id], tmp_path / "page.html")
    browser.get(file.as_uri())
    check_drawn(browser)
    results = [told["result"] for told in experiment["trials"].values()]
    rows = table(browser, "runs")
    for key, name in (("default", "accuracy, retrained"), ("parameters", "parameters"), ("seconds", "time")):
        assert [row[name][1] for row in rows] == [result[key] for result in results]
    told = [(row["strategy"][0], row["seed"][0], row["state"][0]) for row in rows]
    assert told == [(result["strategy"], str(result["seed"]), "succeeded") for result in results]
    for row in table(browser, "means"):
        mine = [result["default"] for result in results if result["strategy"] == row["strategy"][0]]
        expected = statistics.mean(mine), statistics.stdev(mine)
        assert row["accuracy, retrained"][1:] == pytest.approx(expected, rel=1e-12)
    assert len(browser.find_elements("css selector", "img[alt='The derived reduction cell']")) == len(results)
    ui.picture(browser, pictures / "report.png")


# -- the browser itself --------------------------------------------------------------------------------------------


def test_metrics_are_rounded_as_shown():
    assert [shown(metric) for metric in (121 / 128, 0.9, 1.0, 2 / 3)] == ["0.945313", "0.9", "1", "0.666667"]


def test_nothing_of_a_browser_is_left(tmp_path):
    with pytest.raises(KeyError), ui.chromium(tmp_path):
        raise KeyError
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_chromium_is_named(monkeypatch, tmp_path, ci, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install chromium chromium-driver"):
        ui.programs()
