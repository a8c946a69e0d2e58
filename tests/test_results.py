"""``nni-fairdarts results``: what it says of trials under a real manager, against what the trials wrote themselves."""

import csv
import hashlib
import io
import json
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from experiments import free_port
from nni.experiment import Experiment as Manager

from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import published
from nni_fairdarts.manager.listing import is_managed
from nni_fairdarts.manager.records import Experiment, Trial, read
from nni_fairdarts.manager.results import as_csv, as_json, results
from nni_fairdarts.manager.spread import Spread, groups, spread
from nni_fairdarts.manager.table import as_text, brief, clock, formatted

# Stands in for a trial: the files and metrics of one, and the trouble that its number says. What it received and
# reported it notes in a file of its own under WITNESS, which nothing but these tests read.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import nni
from nni import trial

witness, folder = Path(os.environ["WITNESS"]), Path(os.environ["NNI_OUTPUT_DIR"])
number, id = nni.get_sequence_id(), nni.get_trial_id()

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def note(**what):
    (witness / f"{id}.json").write_text(json.dumps(what))

# Trial 0 asks after trial 1, so it gets what the manager notes for that one; trial 8 asks last, and because trial 4
# dies without asking it gets what is noted for trial 7.
for other in {0: [1], 8: [5, 6, 7]}.get(number, []):
    while not (witness / f"{other} asked").exists():
        time.sleep(0.05)
if number == 4:
    kill()
ran = nni.get_next_parameter()
(witness / f"{number} asked").touch()
note(ran=ran)
nni.report_intermediate_result({"default": 0.5})
if number == 3:
    kill()
parameter_id = trial._params["parameter_id"]
content = {"trial": id, "parameter_id": parameter_id, "parameters": ran, "hyperparameters": ran, **ran}
(folder / "trial.json").write_text(json.dumps(content))
if number == 2:
    kill()
if number == 5:
    sys.exit()
if number == 8 and not (witness / "resumed").exists():
    time.sleep(600)
result = {
    "default": 0.9 + ran["seed"] / 300,
    **ran,
    "parameters": 83642 + ran["seed"],
    "multiply_adds": 1144320,
    "skip_connections": ran["seed"] % 3,
    "supernet_accuracy": 1 / 3,
    "seconds": 65.25,
    "genotype": os.environ["GENOTYPE"],
    "hyperparameters": json.dumps(ran),
    "parameter_id": parameter_id,
}
if ran["strategy"] == "fairdarts":
    result["discretization_gap"] = ran["seed"] / 700
(folder / "result.json").write_text(json.dumps(result))
note(ran=ran, result=result)
if number != 7:
    nni.report_final_result(result)
sys.exit(number == 6)
"""
# NNI's manager listens on every interface; during these tests on this machine's own alone.
LOOPBACK = """
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    return typeof port === 'number' ? listen.call(this, port, '127.0.0.1', ...rest) : listen.call(this, port, ...rest);
};
"""
SPACE = {
    "strategy": {"_type": "choice", "_value": ["fairdarts", "darts"]},
    "seed": {"_type": "choice", "_value": [0, 1, 2, 3, 4]},
}
KILLED = "killed by a signal, not by NNI, whose web UI says canceled"
SWAPPED = "NNI's web UI and export show hyper-parameters of another trial here"
UNREPORTED = "its final metric is not in NNI's database; the result is from its result.json"


def wait(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the experiment does not get there"
        time.sleep(0.2)


def kept(folder, copy):
    """A copy of what the results are read from."""
    shutil.copytree(folder / "db", copy / "db")
    shutil.copytree(folder / "environments", copy / "environments")
    return copy


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """An experiment of nine trials, two at a time: while trial 8 runs, after the manager stopped, after a resume."""
    base = tmp_path_factory.mktemp("results")
    code, witness, home = base / "code", base / "witness", base / "experiments"
    for folder in (code, witness, home):
        folder.mkdir()
    (code / "trial.py").write_text(SCRIPT)
    (base / "loopback.js").write_text(LOOPBACK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WITNESS", str(witness))
        patch.setenv("GENOTYPE", published("FairDARTS_a").to_text())
        patch.setenv("NODE_OPTIONS", f"--require {base}/loopback.js")  # and no repair: NNI as it comes
        manager = Manager("local")
        manager.config.experiment_name = "stand-ins"
        manager.config.experiment_working_directory = home
        manager.config.trial_code_directory = code
        manager.config.trial_command = f"{sys.executable} trial.py"
        manager.config.trial_concurrency = 2
        manager.config.max_trial_number = 9
        manager.config.search_space = SPACE
        manager.config.tuner.name = "GridSearch"
        resumed = Manager(None, id=manager.id)
        folder = home / manager.id

        def noted():
            return {path.stem: json.loads(path.read_text()) for path in witness.glob("*.json")}

        try:
            manager.start(free_port())
            open_ended = ("WAITING", "RUNNING")
            wait(lambda: [j.status in open_ended for j in manager.list_trial_jobs()] == [False] * 8 + [True])
            wait(lambda: (witness / "8 asked").exists())
            jobs, running, witnesses = manager.list_trial_jobs(), read(folder), noted()
            manager.stop()
            stopped, copy = read(folder), kept(folder, base / "copy")
            (witness / "resumed").touch()
            resumed.resume(free_port(), wait_completion=False)
            wait(lambda: resumed.get_status() == "DONE")
            pid = resumed._proc.pid
        finally:
            manager.stop()
            resumed.stop()
    assert not psutil.pid_exists(pid), "the manager still runs"
    return SimpleNamespace(
        id=manager.id,
        home=home,
        folder=folder,
        copy=copy,
        jobs=jobs,
        witnesses=witnesses,
        running=running,
        stopped=stopped,
        resumed=read(folder),
        last_witnesses=noted(),
    )


@pytest.fixture
def copy(seen, tmp_path):
    """A copy of the stopped experiment that a test may change."""
    return Path(shutil.copytree(seen.copy, tmp_path / "copy"))


def change(folder, sql, *values):
    with sqlite3.connect(folder / "db" / "nni.sqlite") as connection:
        connection.execute(sql, values)
    connection.close()


def report(folder, trial, value):
    """Have a trial report another final metric, encoded as NNI does: JSON of JSON."""
    change(
        folder,
        "update MetricData set data = ? where type = 'FINAL' and trialJobId = ?",
        json.dumps(json.dumps(value)),
        trial.id,
    )


# -- under a real manager ---------------------------------------------------------------------------------------------


def test_rows_say_what_the_trials_ran_and_the_manager_does_not(seen):
    for trial in seen.running.trials:
        if trial.number != 4:
            witness = seen.witnesses[trial.id]
            assert trial.hyperparameters == witness["ran"]
            assert (trial.strategy, trial.seed) == (witness["ran"]["strategy"], witness["ran"]["seed"])
            assert trial.result == witness.get("result")
    ran = {id: witness["ran"] for id, witness in seen.witnesses.items()}
    wrong = [j.sequenceId for j in seen.jobs if j.hyperParameters[0].parameters != ran.get(j.trialJobId)]
    assert {0, 1, 8} <= set(wrong)
    marked = [trial.number for trial in seen.running.trials if SWAPPED in trial.remarks]
    assert marked == [number for number in wrong if number != 4]  # what trial 4 should have run, nobody ran as trial 4


def test_status_and_remarks(seen):
    trials = {trial.number: trial for trial in seen.running.trials}
    assert list(trials) == list(range(9))
    statuses = [trial.status for trial in trials.values()]
    assert statuses == ["succeeded"] * 2 + ["failed"] * 3 + ["succeeded", "failed", "succeeded", "running"]
    for number in (2, 3, 4):
        assert KILLED in trials[number].remarks
    assert "ended without an error, but reported no result" in trials[5].remarks
    assert "failed after its result was complete; the result counts" in trials[6].remarks
    assert UNREPORTED in trials[7].remarks
    sources = [trial.source for trial in trials.values()]
    assert sources == ["metric", "metric", None, None, None, None, "metric", "file", None]


def test_trials_that_died_early(seen):
    trials = {trial.number: trial for trial in seen.running.trials}
    own = seen.folder / "environments" / "local-env" / "trials"
    assert (own / trials[2].id / "trial.json").exists()
    assert not (own / trials[3].id / "trial.json").exists()
    assert trials[3].hyperparameters == seen.witnesses[trials[3].id]["ran"]
    assert trials[4].id not in seen.witnesses
    assert (trials[4].hyperparameters, trials[4].strategy, trials[4].seed) == (None, None, None)


def test_stopping_the_manager_changes_nothing_but_the_trial_that_ran(seen):
    assert seen.stopped.trials[:-1] == seen.running.trials[:-1]
    before, after = seen.running.trials[-1], seen.stopped.trials[-1]
    assert (before.status, after.status) == ("running", "stopped")
    assert after.hyperparameters == before.hyperparameters


def test_a_resumed_trial_is_what_it_ran_last(seen):
    first, second = seen.stopped.trials[-1], seen.resumed.trials[-1]
    assert seen.resumed.trials[:-1] == seen.stopped.trials[:-1]
    assert second.id == first.id
    assert second.status == "succeeded"
    assert second.result == seen.last_witnesses[second.id]["result"]
    # NNI gives a resumed trial the parameters that it noted for it, which were not those of its first run.
    assert second.hyperparameters == seen.last_witnesses[second.id]["ran"] != seen.witnesses[first.id]["ran"]
    assert SWAPPED not in second.remarks


def test_without_the_trials_files_as_after_a_remote_run(seen, copy):
    shutil.rmtree(copy / "environments")
    for there, here in zip(read(copy).trials, seen.stopped.trials, strict=True):
        if here.number == 7:
            assert (there.result, there.hyperparameters) == (None, here.hyperparameters)
            assert "ended without an error, but reported no result" in there.remarks
        else:
            assert there == here


def test_by_id_and_by_folder_in_files_and_text(seen, tmp_path):
    listed = hashlib.md5((Path.home() / "nni-experiments" / ".experiment").read_bytes()).digest()
    database = (seen.folder / "db" / "nni.sqlite").read_bytes()
    text = results(seen.id, width=80)
    assert f"experiment {seen.id} (stand-ins): 5 succeeded, 4 failed" == text.splitlines()[0]
    assert text.endswith(f"in full  {seen.folder / 'results.csv'}\n         {seen.folder / 'results.json'}")
    rows = list(csv.DictReader((seen.folder / "results.csv").open(encoding="utf-8")))
    assert [row["number"] for row in rows] == list("012345678")
    for row in rows:
        witness = seen.last_witnesses.get(row["id"], {"ran": {"strategy": "", "seed": ""}})
        assert (row["strategy"], row["seed"]) == (witness["ran"]["strategy"], str(witness["ran"]["seed"]))
        result = witness.get("result", {})
        for column, key in (("accuracy", "default"), ("discretization_gap", "discretization_gap")):
            assert row[column] == (repr(result[key]) if key in result else "")  # every digit
    assert len(json.loads((seen.folder / "results.json").read_text(encoding="utf-8"))["trials"]) == 9

    again = results(str(seen.home / "_latest"), tmp_path / "a.csv", tmp_path / "b.json", 80)
    assert again.splitlines()[:-2] == text.splitlines()[:-2]
    assert (tmp_path / "a.csv").read_text() == (seen.folder / "results.csv").read_text()
    assert hashlib.md5((Path.home() / "nni-experiments" / ".experiment").read_bytes()).digest() == listed
    assert (seen.folder / "db" / "nni.sqlite").read_bytes() == database


def test_means_of_a_real_experiment(seen):
    made = {group.strategy: group for group in groups(seen.resumed)}
    finished = [w["result"] for w in seen.last_witnesses.values() if "result" in w]
    for strategy, group in made.items():
        scores = [result["default"] for result in finished if result["strategy"] == strategy]
        mean = sum(scores) / len(scores)
        found = group.measured["default"]
        assert found.n == len(scores)
        assert found.mean == pytest.approx(mean, rel=1e-12)
        deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
        assert found.standard_deviation == pytest.approx(deviation, rel=1e-10)
    assert sum(group.measured["default"].n for group in made.values()) == len(finished) == 5
    assert "discretization_gap" not in made["darts"].measured


# -- databases changed by hand ----------------------------------------------------------------------------------------


def test_an_edited_file_is_told_of_and_not_believed(seen, copy):
    trial = seen.stopped.trials[0]
    path = copy / "environments" / "local-env" / "trials" / trial.id / "result.json"
    path.write_text(json.dumps({**trial.result, "default": 0.999, "extra": 1}))
    now = read(copy).trials[0]
    assert now.result == trial.result
    assert "its result.json differs from what it reported in default, extra; what it reported is shown" in now.remarks
    path.write_text("{")
    assert any(remark.startswith("its result.json cannot be read (") for remark in read(copy).trials[0].remarks)


@pytest.mark.parametrize(
    ("value", "shown"), [(97.5, "97.5"), ("a string", "a string"), ({"default": 3, "status": "x"}, "3"), (None, "")]
)
def test_scripts_that_are_not_ours(seen, copy, value, shown):
    shutil.rmtree(copy / "environments")
    for trial in seen.stopped.trials:
        report(copy, trial, value)
    experiment = read(copy)
    trial = experiment.trials[0]
    assert trial.result == (value if isinstance(value, dict) else {"default": value})
    assert trial.hyperparameters == seen.witnesses[trial.id]["ran"]  # by the metric's id
    rows = list(csv.DictReader(io.StringIO(as_csv(experiment))))
    assert rows[0]["default"] == shown
    assert "accuracy" not in rows[0]
    if isinstance(value, dict):
        assert (rows[0]["status"], rows[0]["result.status"]) == ("succeeded", "x")
    text = as_text(experiment, 100)
    assert f" {shown}  succeeded" in text or value is None
    assert ("mean ±" in text) == (value in (97.5, {"default": 3, "status": "x"}))
    json.loads(as_json(experiment))


def test_numbers_that_are_none_are_blank(seen, copy):
    trial = seen.stopped.trials[0]
    report(copy, trial, {**trial.result, "default": math.nan, "parameters": math.inf, "multiply_adds": None})
    experiment = read(copy)
    row = next(csv.DictReader(io.StringIO(as_csv(experiment))))
    assert (row["accuracy"], row["parameters"], row["multiply_adds"]) == ("", "", "")
    assert row["skip_connections"] == str(trial.result["skip_connections"])
    result = json.loads(as_json(experiment), parse_constant=pytest.fail)["trials"][0]["result"]
    assert (result["default"], result["parameters"], result["seconds"]) == (None, None, 65.25)
    assert sum(group.measured["default"].n for group in groups(experiment)) == 3


def test_a_parameter_id_given_again_after_a_resume(seen, copy):
    """NNI counts parameter ids from the start again: a later set of the same id is not what an earlier trial ran."""
    id = seen.stopped.trials[3].parameter_id
    other = json.dumps({"parameter_id": id, "parameters": {"strategy": {"_name": "other", "seed": 9}}})
    insert = "insert into TrialJobEvent (timestamp, trialJobId, event, data, sequenceId) values (?, 'later', ?, ?, 1)"
    now = int(time.time() * 1000)
    change(copy, insert, now, "WAITING", other)
    change(copy, insert, now, "FAILED", None)
    metric = "insert into MetricData values (?, 'later', ?, 'PERIODICAL', 0, '\"0.5\"')"
    change(copy, metric, now + 5, str(id))
    experiment = read(copy)
    assert experiment.trials[4].hyperparameters == seen.witnesses[experiment.trials[4].id]["ran"]
    change(copy, metric.replace("later", experiment.trials[4].id), now + 9, str(id))  # it goes on after the resume
    assert read(copy).trials[4] == experiment.trials[4]
    later = experiment.trials[2]
    assert (later.id, later.number, later.strategy, later.seed) == ("later", 1, "other", 9)
    for id in (experiment.trials[1].id, "later"):  # two of one number: with their ids
        assert f"1 {id}" in as_text(experiment, 100)


def test_canceled_by_the_user_is_not_killed(seen, copy):
    trial = seen.stopped.trials[2]
    change(copy, "insert into TrialJobEvent (trialJobId, event) values (?, 'USER_TO_CANCEL')", trial.id)
    now = read(copy).trials[2]
    assert now.status == "canceled"
    assert KILLED not in now.remarks


def test_a_manager_killed_while_it_wrote(seen, copy):
    """What it had half written is taken back by SQLite, in a copy: the experiment's folder is only read."""
    script = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("pragma cache_size = 1")
connection.execute("begin")
connection.execute("delete from TrialJobEvent")
for k in range(2000):
    connection.execute("insert into MetricData values (0, 'x', '0', 'FINAL', 0, ?)", ("y" * 1000,))
os.kill(os.getpid(), signal.SIGKILL)
"""
    database = copy / "db" / "nni.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(database)])
    assert done.returncode == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in (copy / "db").iterdir()}
    assert "nni.sqlite-journal" in before
    assert read(copy).trials == seen.stopped.trials
    assert {path.name: path.read_bytes() for path in (copy / "db").iterdir()} == before


def test_a_manager_that_only_shows_an_experiment_runs_no_trial():
    for action, managed in (("view", False), ("resume", True)):
        command = [sys.executable, "-c", "input()", "--experiment-id", "shown123", "--action", action]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            wait(lambda p=process: "shown123" in psutil.Process(p.pid).cmdline())
            assert is_managed("shown123") is managed
        finally:
            process.kill()
            process.wait()
    assert not is_managed("shown123")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_experiments_are_answered_with_the_known_ones(seen, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=rf"there is no experiment 'nosuchid'; .* the latest first: .*{seen.id}"):
        results("nosuchid")
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(InputError, match="the latest first: none, the list is empty"):
        results("nosuchid")
    listing = home / "nni-experiments" / ".experiment"
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps({f"id{k}": {"startTime": 100 + k, "logDir": "/nowhere"} for k in range(7)}))
    with pytest.raises(InputError, match="the latest first: id6, id5, id4, id3, id2 and 2 older ones"):
        results("nosuchid")
    with pytest.raises(InputError, match=r"there is no folder /nowhere/id6 \(from NNI's list, .*\.experiment\)"):
        results("id6")
    listing.write_text("{")
    with pytest.raises(InputError, match=r"cannot be read \(Expecting .*give the experiment's folder, with a / in it"):
        results("id6")
    assert results(str(seen.copy), tmp_path / "a.csv", tmp_path / "a.json").startswith(f"experiment {seen.id} ")


def test_folders_that_are_no_experiment(seen, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*/gone; give the experiment's folder"):
        results(str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"is not an experiment's folder: it has no db/nni.sqlite$"):
        results(str(tmp_path))
    with pytest.raises(InputError, match=rf"it holds experiments, give one of them: .*{seen.id}"):
        results(str(seen.home))
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "nni.sqlite").write_text("not a database, but long enough to look at" * 10)
    with pytest.raises(InputError, match=r"nni.sqlite cannot be read as the database .*: file is not a database"):
        results(str(tmp_path))
    (tmp_path / "db" / "nni.sqlite").write_bytes(b"")
    with pytest.raises(InputError, match=r"no such table: ExperimentProfile; has the experiment started\?"):
        results(str(tmp_path))


def test_files_that_cannot_be_written(seen, tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*/no/a.csv: No such file .*; choose .* --csv"):
        results(str(seen.copy), tmp_path / "no" / "a.csv", tmp_path / "a.json")
    with pytest.raises(
        InputError, match=r"cannot write .*/no/a.json: No such file .*; choose another place with --json$"
    ):
        results(str(seen.copy), tmp_path / "a.csv", tmp_path / "no" / "a.json")


# -- numbers and their text, without a manager ------------------------------------------------------------------------


def trial(number, score=None, strategy="fairdarts", seed=0, remarks=(), **other):
    result = None
    if score is not None:
        result = {"default": score, "strategy": strategy, "parameters": 1000 * (number + 1), "multiply_adds": 1144320}
        result |= {"skip_connections": number, "seconds": 3725.5, "genotype": published("FairDARTS_b").to_text()}
    return Trial(
        number,
        f"id{number}",
        "failed" if score is None else "succeeded",
        strategy,
        seed,
        number,
        {"strategy": strategy, "seed": seed, **other},
        result,
        remarks=remarks,
    )


def experiment(*trials):
    return Experiment("abcdefgh", "digits", Path("/somewhere"), trials)


def test_spread_in_closed_form():
    assert spread([7]) == Spread(1, 7, None)
    found = spread([1, 2, 3, 4])
    assert (found.n, found.mean) == (4, 2.5)
    assert found.standard_deviation == pytest.approx(math.sqrt(5 / 3), rel=1e-15)  # n - 1, not n
    assert spread([0.1, 0.1, 0.1]).standard_deviation == 0


def test_groups_are_per_strategy_and_whatever_varied_but_the_seed():
    made = groups(
        experiment(
            trial(0, 0.8, seed=0, weight=5, width=16),
            trial(1, 0.6, seed=0, weight=10, width=16),
            trial(2, 0.9, seed=1, weight=5, width=16),
            trial(3, None, seed=2, weight=5, width=16),
            trial(4, 0.5, "darts", weight=5, width=16),
        )
    )
    found = [(group.strategy, group.hyperparameters, group.measured["default"].n) for group in made]
    assert found == [("fairdarts", {"weight": 5}, 2), ("fairdarts", {"weight": 10}, 1), ("darts", {"weight": 5}, 1)]
    assert made[0].measured["default"].mean == pytest.approx(0.85, rel=1e-15)
    assert made[0].measured["default"].standard_deviation == pytest.approx(math.sqrt(0.005), rel=1e-14)
    assert made[0].measured["parameters"] == Spread(2, 2000, math.sqrt(2e6))
    assert made[1].measured["skip_connections"] == Spread(1, 1, None)


@pytest.mark.parametrize(
    ("key", "score", "value", "deviation", "text"),
    [
        ("default", "accuracy", 0.97224, None, "97.22%"),
        ("default", "accuracy", 0.97224, 0.0045, "97.22 ± 0.45%"),
        ("discretization_gap", "accuracy", -0.0312, 0.001, "-3.12 ± 0.10%"),
        ("default", "default", 1234.5678, 0.25, "1234.57 ± 0.25"),
        ("parameters", "accuracy", 83642, None, "83,642"),
        ("parameters", "accuracy", 83642.5, 1200.4, "83,642 ± 1,200"),
        ("parameters", "accuracy", 3321642, 461000.0, "3.32 ± 0.46 M"),
        ("multiply_adds", "accuracy", 52314432, None, "52.3 M"),
        ("multiply_adds", "accuracy", 1523144320, None, "1,523 M"),
        ("skip_connections", "accuracy", 3, None, "3"),
        ("skip_connections", "accuracy", 2.5, 0.70711, "2.5 ± 0.7"),
    ],
)
def test_numbers_as_text(key, score, value, deviation, text):
    assert formatted(key, score, value, deviation) == text


def test_another_metric_is_not_called_accuracy():
    assert "accuracy" in as_text(experiment(trial(0, 0.5)), 80)
    other = trial(0, 0.5)
    other.result["metric"] = "val_mse"
    assert "accuracy" not in as_text(experiment(other), 80)


def test_clock():
    assert [clock(s) for s in (0.4, 65.25, 3599.4, 3600, 5400)] == ["0:00", "1:05", "59:59", "1.0 h", "1.5 h"]


def test_genotypes_in_brief():
    text = "Genotype(normal=[('sep_conv_3x3', 2, 0), ('skip_connect', 3, 1), ('dil_conv_5x5', 3, 0)], "
    text += "normal_concat=range(2, 6), reduce=[], reduce_concat=range(2, 6))"
    assert brief(text) == [("normal", "2=sep3(0)  3=skip(1)+dil5(0)"), ("reduce", "empty")]
    assert brief('{"layer":\n "conv"}') == [("", '{"layer": "conv"}')]


def test_the_text():
    whole = experiment(
        trial(0, 0.9, seed=0, zero_one_weight=5),
        trial(1, 0.8, seed=1, zero_one_weight=5),
        trial(2, 0.7, "darts", seed=0, zero_one_weight=0.5),
        Trial(3, "id3", "failed", remarks=("died",)),
    )
    assert as_text(whole, 100) == TEXT.strip("\n")


TEXT = """
experiment abcdefgh (digits): 3 succeeded, 1 failed

                         zero_
                          one_                     mult-
trial  strategy   seed  weight  accuracy  params    adds  skips   time  status
-----  ---------  ----  ------  --------  ------  ------  -----  -----  ---------
    0  fairdarts     0       5    90.00%   1,000  1.14 M      0  1.0 h  succeeded
    1  fairdarts     1       5    80.00%   2,000  1.14 M      1  1.0 h  succeeded
    2  darts         0     0.5    70.00%   3,000  1.14 M      2  1.0 h  succeeded
    3  ?             ?       ?                                          failed

mean ± standard deviation over trials

            zero_
             one_
strategy   weight  n       accuracy       params      mult-adds      skips
---------  ------  -  -------------  -----------  -------------  ---------
fairdarts       5  2  85.00 ± 7.07%  1,500 ± 707  1.14 ± 0.00 M  0.5 ± 0.7
darts         0.5  1         70.00%        3,000         1.14 M          2

genotypes (2=sep3(0): node 2 is sep_conv_3x3 of node 0)

0  normal  2=sep3(0)+sep3(1)  3=sep3(1)  4=dil3(0)+sep5(1)  5=dil5(1)
   reduce  2=skip(0)+dil3(1)  3=skip(0)+dil3(1)  4=max3(0)+sep3(1)  5=skip(2)+max3(0)
1  normal  2=sep3(0)+sep3(1)  3=sep3(1)  4=dil3(0)+sep5(1)  5=dil5(1)
   reduce  2=skip(0)+dil3(1)  3=skip(0)+dil3(1)  4=max3(0)+sep3(1)  5=skip(2)+max3(0)
2  normal  2=sep3(0)+sep3(1)  3=sep3(1)  4=dil3(0)+sep5(1)  5=dil5(1)
   reduce  2=skip(0)+dil3(1)  3=skip(0)+dil3(1)  4=max3(0)+sep3(1)  5=skip(2)+max3(0)

trial 3: died
"""


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_lines_are_as_wide_as_the_terminal_and_nothing_is_lost(width):
    long = [trial(k, 0.9, "gumbel_darts", k, ("x " * 100,), zero_one_weight=k, arc_learning_rate=0.1) for k in range(3)]
    long.append(trial(3, 0.9, "gumbel_darts", 3, zero_one_weight=1, arc_learning_rate=0.2))
    lines = as_text(experiment(*long), width).splitlines()
    assert max(len(line) for line in lines) <= width
    for word in ("strategy", "seed", "accuracy", "params", "skips", "time", "status"):
        assert any(word in line.split() for line in lines), f"{word} is lost"


def test_nothing_from_a_database_reaches_the_terminal_as_it_is():
    evil = Trial(0, "id0", "succeeded", hyperparameters={}, result={"default": "\x1b[2Jgone\nnext line"})
    text = as_text(experiment(evil), 80)
    assert "\x1b" not in text
    assert "[2Jgone next …" in text
    assert as_text(Experiment("abcdefgh", "", Path("/x"), ()), 80) == "experiment abcdefgh: no trial yet"


def test_files_hold_all_digits_and_come_back():
    whole = experiment(
        trial(0, 1 / 3, seed=0, weight=0.1, cell={"a": [1, 2]}),
        trial(1, 0.1 + 0.2, seed=1, weight=0.2, cell=None),
        trial(2, seed=2, remarks=("one, with a comma", "two")),
    )
    rows = list(csv.DictReader(io.StringIO(as_csv(whole))))
    start = ["number", "id", "strategy", "seed", "hyperparameters.weight", "hyperparameters.cell", "accuracy"]
    assert list(rows[0])[: len(start)] == start
    assert [float(row["accuracy"] or "nan") for row in rows[:2]] == [1 / 3, 0.1 + 0.2]
    assert rows[0]["hyperparameters.cell"] == '{"a": [1, 2]}'
    assert (rows[2]["accuracy"], rows[2]["remarks"]) == ("", "one, with a comma; two")
    assert rows[0]["genotype"] == published("FairDARTS_b").to_text()

    back = json.loads(as_json(whole))
    assert (back["experiment"], back["name"]) == ("abcdefgh", "digits")
    for entry, original in zip(back["trials"], whole.trials, strict=True):
        assert entry.pop("remarks") == list(original.remarks)
        assert Trial(**entry, remarks=original.remarks) == original
    assert back["statistics"][0]["measured"]["default"] == {"n": 1, "mean": 1 / 3, "standard_deviation": None}
