"""The report page in a real browser, against the files of the runs that it is about."""

import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import browser as ui
import numpy as np
import pytest
import yaml
from test_cli import TINY

from nni_fairdarts.cli import main
from nni_fairdarts.config import SearchConfig, from_mapping
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.nni_strategies import STRATEGIES
from nni_fairdarts.plots.comparison import comparisons
from nni_fairdarts.recorded import Recorded
from nni_fairdarts.report.groups import OWNERS, differing, grouped
from nni_fairdarts.report.pages import write_report
from nni_fairdarts.report.runs import Run


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


def check_drawn(page):
    """Every image is drawn at the size that the page gives it, nothing was fetched, and nothing is run."""
    script = "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width, i.alt])"

    def loaded():
        found = page.execute_script(script)
        return found if all(image[0] for image in found) else None

    images = ui.wait(page, loaded, "the images")
    for _, width, height, shown, alt in images:
        assert min(width, height, shown) > 100
        assert alt
    assert page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert page.execute_script("return document.scripts.length") == 0
    page_width = page.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= page.execute_script("return innerWidth"), "the page is wider than the window"


def tiles(page, section=""):
    """{what: (number in full, as shown)} of the first numbers on a page."""
    found = {}
    for tile in page.find_elements("css selector", f"{section} .tiles > div"):
        number = tile.find_elements("css selector", "data")
        text = tile.find_element("css selector", ".value").text
        found[tile.find_element("tag name", "dt").text] = (
            float(number[0].get_attribute("value")) if number else None,
            text,
        )
    return found


def table(page, heading):
    """A table's rows, {heading: (text, number, deviation)}."""
    part = page.find_element("css selector", f"table[aria-labelledby={heading}]")
    names = [th.text.replace("\n", " ") for th in part.find_elements("css selector", "thead th")]
    rows = []
    for row in part.find_elements("css selector", "tbody tr"):
        cells = []
        for cell in row.find_elements("css selector", "th, td"):
            number = cell.find_elements("css selector", "data")
            values = [number[0].get_attribute(name) if number else None for name in ("value", "data-deviation")]
            cells.append((cell.text, *(None if value is None else float(value) for value in values)))
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


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
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "nni", "*.pt", "report*"))
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


def test_page_of_a_run_tells_what_its_files_do(finished, opened, capsys):
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"report in {finished / 'report.html'}\n"
    page = opened(finished / "report.html")
    searched, retrained = read(finished / "result.json"), read(finished / "retrain" / "result.json")
    seconds = round(searched["seconds"] + retrained["seconds"])
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


def test_architecture_and_configuration_are_selected_by_a_click(finished, opened, tmp_path):
    page = opened(write_report([str(finished)], tmp_path / "page.html"))
    taken = {}
    for part in ("architecture", "configuration"):
        heading = f"#run-{part} ~"
        for pre in page.find_elements("css selector", f"{heading} pre.copy, {heading} div pre.copy"):
            pre.click()
            text = page.execute_script("return getSelection().toString()")
            taken.setdefault(part, []).append(text)
    genotype, sample = map(json.loads, taken["architecture"][:2])
    assert Genotype.from_json(genotype) == Genotype.load(finished / "genotype.json")
    assert sample == read(finished / "result.json")["nni_sample"]
    assert yaml.safe_load(taken["configuration"][-1]) == yaml.safe_load((finished / "config.yaml").read_text())
    assert str(Genotype.load(finished / "genotype.json")) in [p.text for p in page.find_elements("tag name", "pre")]


def test_command_and_python_lines_retrain_to_the_same_numbers(finished, tmp_path, monkeypatch):
    run = copied(finished, tmp_path, "with space")
    html = write_report([str(run)]).read_text()
    command, python = (Text(part).words for part in re.findall(r'<pre class="copy"[^>]*>(.*?)</pre>', html, re.S)[2:4])
    change, retrain = "".join(command).splitlines()
    assert shlex.split(change) == ["cd", str(finished.parents[1])]
    monkeypatch.chdir(shlex.split(change)[1])
    program, *words = shlex.split(retrain)
    assert (program, words) == ("nni-fairdarts", ["retrain", str(run), "--into", "retrain-2"])
    assert main(words) == 0
    exec(compile("".join(python).replace("retrain-2", "retrain-3"), "page", "exec"), {})
    known = ("test_accuracy", "parameters", "multiply_adds", "genotype")
    results = [read(run / name / "result.json") for name in ("retrain", "retrain-2", "retrain-3")]
    assert [{key: result[key] for key in known} for result in results[1:]] == 2 * [
        {key: results[0][key] for key in known}
    ]


def test_page_is_as_wide_as_a_telephone(finished, opened, running, tmp_path):
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    running.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(write_report([str(finished), str(copied(finished, tmp_path, seed=7))], tmp_path / "page.html"))
    finally:
        width, height = ui.SIZE
        running.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**size, "width": width, "height": height, "mobile": False}
        )


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_unfinished_runs_say_what_is_missing(finished, tmp_path):
    run = copied(finished, tmp_path)
    html = tmp_path / "page.html"
    retraining = run / "retrain"
    (retraining / "result.json").unlink()
    text = text_of(run, output=html)
    assert "It is not retrained: the accuracy, parameters and multiply-adds of the derived network are unknown." in text
    assert f"nni-fairdarts retrain --resume {retraining} nni-fairdarts retrain {run} --into retrain-2" in text
    assert "retraining unfinished" in text
    shutil.rmtree(retraining)
    text = text_of(run, output=html)
    assert "fairdarts, seed 2, not retrained" in text
    assert f"nni-fairdarts retrain {run} In Python" in text

    for name in ("result.json", "genotype.json", "sample.json"):
        (run / name).unlink()
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text(lines[0])
    text = text_of(run, output=html)
    assert "fairdarts, seed 2, search unfinished, epoch 1 of 2" in text
    assert (
        "The search is not finished (1 of 2 epochs): nothing is derived yet, and numbers are the last epoch's." in text
    )
    assert f"nni-fairdarts search --resume {run}" in text
    assert "What the normal cell would keep after epoch 1" in text
    accuracy = json.loads(lines[0])["val_acc"]
    assert f"accuracy, supernet {accuracy:.2%} after epoch 1" in text
    assert "accuracy, retrained – not retrained" in text


def test_a_history_alone_is_shown(finished, tmp_path):
    shutil.copy(finished / "history.jsonl", tmp_path)
    text = text_of(tmp_path / "history.jsonl", output=tmp_path / "page.html")
    assert "There is no config.yaml beside the history, so its settings are not known" in text
    assert "Figures" in text
    assert "Retraining" not in text


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
    text = text_of(folders["fairdarts"], output=tmp_path / "page.html")
    assert "There are no derived cells to draw: the space is not of cells." in text
    assert '"layer2": "skip_connect"' in text
    assert "Dominant skip connections over the epochs" in text
    assert "The discretisation gap was not measured." in text
    text = text_of(*folders.values(), output=tmp_path / "page.html")
    assert "There are no figures of gates: random samples networks and has no gates." in text
    assert "Decided gates over the epochs. Those under 0.1 or over 0.9. Not recorded in random." in text


# -- several runs ------------------------------------------------------------------------------------------------------


ACCURACIES = {
    ("fairdarts", 1): {0: 0.9, 1: 0.85},
    ("fairdarts", 10): {0: 0.95, 1: 0.97, 2: 0.93},
    ("darts", None): {0: 0.8, 1: 0.6},
}


@pytest.fixture(scope="module")
def several(finished, tmp_path_factory):
    """Runs of ACCURACIES, with other numbers each; {name: folder}."""
    into, found = tmp_path_factory.mktemp("several"), {}
    for (strategy, weight), seeds in ACCURACIES.items():
        for seed, accuracy in seeds.items():
            name = f"{strategy}-{weight}-{seed}"
            search = {"search__strategy": strategy, "search__zero_one_weight": float(weight or 3)}
            folder = found[name] = copied(finished, into, name, seed=seed, **search)
            gap = 0.1 + seed / 7 + (strategy == "darts") / 3
            changed(folder / "result.json", discretization_gap=gap, supernet_accuracy=accuracy - 0.1)
            changed(folder / "retrain" / "result.json", test_accuracy=accuracy, parameters=1_500_000 + seed)
    return found


def test_comparison_has_every_run_and_the_means(several, opened, tmp_path):
    page = opened(write_report([str(folder) for folder in several.values()], tmp_path / "page.html"))
    assert page.find_element("tag name", "h1").text == "Comparison of 7 searches"
    assert page.find_elements("css selector", "main > .notes") == []
    rows = table(page, "runs")
    assert [row["run"][0] for row in rows] == list(several)
    for row, folder in zip(rows, several.values(), strict=True):
        searched, retrained = read(folder / "result.json"), read(folder / "retrain" / "result.json")
        accuracy = retrained["test_accuracy"]
        assert row["accuracy, retrained"] == (f"{accuracy:.2%}", accuracy, None)
        assert row["discretisation gap"][1] == searched["discretization_gap"]
        assert row["parameters"] == ("1.50 M", retrained["parameters"], None)
        assert row["state"][0] == "finished"
    means = table(page, "means")
    assert [(row["strategy"][0], row["zero_one_weight"][0], row["runs"][0]) for row in means] == [
        ("fairdarts", "1", "2"),
        ("fairdarts", "10", "3"),
        ("darts", "–", "2"),
    ]
    for row, ((strategy, weight), seeds) in zip(means, ACCURACIES.items(), strict=True):
        mean, deviation = statistics.mean(seeds.values()), statistics.stdev(seeds.values())
        assert row["accuracy, retrained"][1:] == pytest.approx((mean, deviation), rel=1e-12)
        assert row["accuracy, retrained"][0] == f"{mean * 100:.2f} ± {deviation * 100:.2f}%"
        gaps = [
            read(f / "result.json")["discretization_gap"]
            for n, f in several.items()
            if n.startswith(f"{group[0]}-{group[1]}-")
        ]
        assert row["discretisation gap"][1:] == pytest.approx(
            (statistics.mean(gaps), statistics.stdev(gaps)), rel=1e-12
        )
    alts = [image.get_attribute("alt") for image in page.find_elements("css selector", "#curves ~ .pair img")]
    assert alts[:4] == [
        "The supernet in validation, over the epochs",
        "Discretisation gap over the epochs",
        "Dominant skip connections over the epochs, all cells together",
        "Decided gates over the epochs",
    ]
    assert alts.count("The derived normal cell") + len(
        page.find_elements("css selector", "img.wide[alt='The derived normal cell']")
    ) == len(several)
    for link in page.find_elements("css selector", "table[aria-labelledby=runs] a"):
        target = page.find_element("id", link.get_attribute("href").partition("#")[2])
        assert (target.tag_name, target.text) == ("h2", link.text)


def test_names_and_texts_are_shown_as_they_are(finished, opened, tmp_path):
    name = '<script>alert(1)<!-- "&amp; $\\frac{'
    run = copied(finished, tmp_path, name, seed=8, data__name="my:$\\frac{<b>")
    start = read(run / "environment.json")["starts"][0]
    bad = '<img src="https://example.org/x.png" onerror="document.title=1">'
    changed(run / "environment.json", starts=[{**start, "device_name": bad, "git": {"commit": bad, "dirty": True}}])
    changed(run / "result.json", nni_sample={bad: bad}, supernet_accuracy=bad)
    page = opened(write_report([str(finished), str(run)], tmp_path / "page.html"))
    (heading,) = [h for h in page.find_elements("tag name", "h2") if "alert" in h.text]
    assert heading.text == name
    assert f"git {bad}, with changes that are not committed" in page.find_element("tag name", "body").text
    (warning,) = page.find_elements("css selector", "main > .notes li")
    assert warning.text.startswith("Other data: data.name is digits in tiny; my:$\\frac{<b> in <script>alert(1)")
    assert page.title == "Comparison of 2 searches"


def test_other_data_and_other_retraining_are_named(finished, tmp_path):
    cifar = copied(finished, tmp_path, "cifar", data__name="cifar10")
    longer = copied(finished, tmp_path, "longer")
    content = yaml.safe_load((longer / "retrain" / "config.yaml").read_text())
    content["retrain"]["epochs"] = 600  # as `retrain RUN --retrain.epochs 600` writes it
    (longer / "retrain" / "config.yaml").write_text(yaml.safe_dump(content))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(finished / "history.jsonl", bare)
    text = text_of(finished, cifar, longer, bare, output=tmp_path / "page.html")
    assert (
        "Other data: data.name is digits in tiny and longer; cifar10 in cifar. Accuracies of these runs do not" in text
    )
    assert "Other retraining: retrain.epochs is 1 in tiny and cifar; 600 in longer. Accuracies of these" in text
    assert "Not known: the settings of bare. Whether their numbers compare is not known either." in text
    assert "The retraining had other settings: retrain.epochs 600." in text


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
    owners = {name: strategies for name, strategies in OWNERS.items() if ".penalty." not in name}
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


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_is_named(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = {
        ("nowhere",): "there is no experiment 'nowhere'; .* or give the folder of a search, such as runs/NAME",
        (str(tmp_path),): "holds neither a search .* nor an experiment of NNI's .* give runs/NAME",
        (str(finished), f"{finished}/../tiny"): "tiny is named twice; name every run once",
        (str(finished), "--output", str(tmp_path)): "is a folder; give --output a file's name",
        (str(finished), "--output", str(finished / "config.yaml")): "exists already and is no report; choose another",
        (str(finished), "--output", "no/page.html"): "cannot write no/page.html: No such file or directory; choose",
    }
    for words, message in said.items():
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_a_name_are_told_apart(finished, tmp_path):
    (tmp_path / "other").mkdir()
    other = copied(finished, tmp_path / "other", "tiny")
    text = text_of(finished, other, output=tmp_path / "page.html")
    assert "runs/tiny" in text
    assert "other/tiny" in text


def test_an_earlier_report_is_replaced_and_the_same_run_gives_the_same_page(finished, tmp_path):
    run, file = copied(finished, tmp_path), tmp_path / "copy" / "report.html"
    assert write_report([str(run)]) == file
    before = file.read_bytes()
    assert write_report([str(run)]).read_bytes() == before


def test_without_matplotlib_its_extra_is_named(finished):
    code = "import sys; sys.modules['matplotlib'] = None; from nni_fairdarts.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "report", str(finished)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "figures need matplotlib; install it with: pip install 'nni-fairdarts[plots]'" in done.stderr


def test_damaged_files_are_named(finished, tmp_path):
    run = copied(finished, tmp_path)
    (run / "retrain" / "config.yaml").write_text("seed: [")
    with pytest.raises(InputError, match=r"retrain/config\.yaml"):
        write_report([str(run)])
