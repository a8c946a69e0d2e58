"""A run as a trial: what it reports, and what NNI's manager, its REST interface and the files make of it."""

import json
import math
import re
import sys

import pytest
from experiments import RUN, choice, command, free_port, started, write

from nni_fairdarts import InputError
from nni_fairdarts.arguments import changed
from nni_fairdarts.config import RunConfig
from nni_fairdarts.experiment.trial import Reports, epoch_metrics, final_metrics, trial
from nni_fairdarts.history import read_history
from nni_fairdarts.manager.results import results

RECORD = {
    "epoch": 3, "train_loss": 0.5, "arch_loss": 1.5, "zero_one_loss": -0.1, "val_loss": 0.4, "val_acc": 0.9,
    "discretization_gap": 0.2, "learning_rate": 0.05, "seconds": 3.0, "decided_gates": 0.75, "open_gates": 20,
    "gates_total": 196, "skip_connections": {"normal": 2, "reduce": 1}, "operations": {}, "gates": {"normal": [[0.5]]},
}  # fmt: skip


# -- what is reported ----------------------------------------------------------------------------------------------


def test_an_epoch_as_numbers():
    expected = {
        "default": 0.9, "train_loss": 0.5, "arch_loss": 1.5, "zero_one_loss": -0.1, "val_loss": 0.4, "val_acc": 0.9,
        "discretization_gap": 0.2, "decided_gates": 0.75, "open_gates": 20, "normal_skips": 2, "reduce_skips": 1,
    }  # fmt: skip
    assert epoch_metrics(RECORD) == expected
    assert next(iter(epoch_metrics(RECORD))) == "default"
    assert epoch_metrics(RECORD, "val_loss")["default"] == 0.4


def test_what_a_strategy_does_not_have_is_left_out():
    record = {"epoch": 0, "train_loss": 0.5, "arch_loss": None, "val_loss": math.nan, "val_acc": 0.25, "seconds": 1.0}
    assert epoch_metrics(record) == {"default": 0.25, "train_loss": 0.5, "val_acc": 0.25}


def test_skip_connections_of_layers_are_counted_together():
    record = {"val_acc": 0.5, "skip_connections": {"layer_0": 1, "layer_1": 0, "layer_2": 1}}
    assert epoch_metrics(record)["skips"] == 2


def test_keys_stay_those_of_the_first_record_and_an_epoch_is_told_once(monkeypatch, tmp_path):
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abc")
    sent = []

    def life():
        reports = Reports(tmp_path)
        reports._channel = type("Channel", (), {"send_metric": lambda self, *metric: sent.append(metric)})()
        reports.parameter_id = 7
        return reports

    first = life()
    first.epoch(0, {"default": 0.5, "val_loss": 1.0})
    first.epoch(1, {"default": 0.6, "arch_loss": 2.0, "val_loss": 0.5})
    second = life()
    second.epoch(1, {"default": 0.1, "val_loss": 0.1})
    second.epoch(2, {"default": 0.7})
    second.final({"default": 0.8})
    assert sent == [
        ("PERIODICAL", 7, "abc", 0, {"default": 0.5, "val_loss": 1.0}),
        ("PERIODICAL", 7, "abc", 1, {"default": 0.6, "val_loss": 0.5}),
        ("PERIODICAL", 7, "abc", 2, {"default": 0.7, "val_loss": 0.5}),
        ("FINAL", 7, "abc", 0, {"default": 0.8}),
    ]


def test_a_final_result_of_another_space():
    searched = {
        "skip_connections": {"layers": 2}, "supernet_accuracy": 0.5, "seconds": 2.0, "nni_sample": {"layer": "a"},
    }  # fmt: skip
    retrained = {"test_accuracy": 0.75, "parameters": 10, "multiply_adds": 20, "seconds": 3.0}
    config = changed(RunConfig(), {"search.strategy": "random", "seed": 4})
    assert final_metrics(config, searched, retrained, {"seed": 4}, 1) == {
        "default": 0.75, "strategy": "random", "seed": 4, "parameters": 10, "multiply_adds": 20, "skip_connections": 2,
        "supernet_accuracy": 0.5, "seconds": 5.0, "genotype": '{"layer": "a"}', "hyperparameters": '{"seed": 4}',
        "parameter_id": 1,
    }  # fmt: skip


def test_outside_nni_a_trial_says_how_to_start_one(monkeypatch):
    monkeypatch.delenv("NNI_OUTPUT_DIR", raising=False)
    with pytest.raises(InputError, match="started by NNI's manager: nni-fairdarts launch --config .*-fairdarts run"):
        trial(RunConfig())


# -- two strategies, two seeds, a real manager -------------------------------------------------------------------------


def test_every_trial_succeeds_and_rest_and_files_agree(compared):
    jobs = compared.trials()
    assert [job["status"] for job in jobs.values()] == ["SUCCEEDED"] * 4
    finals = compared.metrics("FINAL")
    ran = set()
    for id in jobs:
        output = compared.output(id)
        (final,) = finals[id]
        assert final == json.loads((output / "result.json").read_text())
        retrained = json.loads((output / "run" / "retrain" / "result.json").read_text())
        searched = json.loads((output / "run" / "result.json").read_text())
        assert final["default"] == retrained["test_accuracy"]
        assert (final["parameters"], final["multiply_adds"]) == (retrained["parameters"], retrained["multiply_adds"])
        assert final["supernet_accuracy"] == searched["supernet_accuracy"]
        assert final["skip_connections"] == sum(searched["skip_connections"].values())
        assert (final["strategy"], final["seed"]) == (searched["strategy"], searched["seed"])
        begun = json.loads((output / "trial.json").read_text())
        assert begun["trial"] == id
        assert json.loads(final["hyperparameters"]) == begun["hyperparameters"]
        assert begun["hyperparameters"] == {"strategy": final["strategy"], "seed": final["seed"]}
        ran.add((final["strategy"], final["seed"]))
    assert ran == {(strategy, seed) for strategy in ("fairdarts", "darts") for seed in (0, 1)}


def test_every_epoch_is_an_intermediate_result(compared):
    for id, values in compared.metrics("PERIODICAL").items():
        records = read_history(compared.output(id) / "run" / "history.jsonl")
        assert values == [epoch_metrics(record) for record in records]
        assert [value["default"] for value in values] == [record["val_acc"] for record in records]
        assert len(values) == RUN["search"]["epochs"]
        for value in values:
            assert list(value) == list(values[0])
            assert all(isinstance(number, int | float) and math.isfinite(number) for number in value.values())
            assert value.keys() >= {"discretization_gap", "decided_gates", "open_gates", "normal_skips", "reduce_skips"}


def test_the_launched_manager_shows_what_each_trial_really_ran(compared):
    """It is repaired; NNI's own may show another trial's hyper-parameters (see test_swapped)."""
    for id, job in compared.trials().items():
        final = json.loads((compared.output(id) / "result.json").read_text())
        recorded = json.loads(job["hyperParameters"][0])["parameters"]
        assert recorded == {"strategy": final["strategy"], "seed": final["seed"]}


def test_a_trial_is_a_run(compared, tmp_path):
    """The same numbers as of the same configuration without NNI's manager."""
    for id in compared.trials():
        begun = json.loads((compared.output(id) / "trial.json").read_text())
        if begun["hyperparameters"] == {"strategy": "darts", "seed": 1}:
            break
    code = compared.folder.parent
    done = command(
        sys.executable, "-m", "nni_fairdarts", "run", "--config", code / "run.yaml", "--runs", tmp_path,
        "--search.strategy", "darts", "--seed", "1", cwd=code,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def told(run):
        records = read_history(run / "history.jsonl")
        return [{key: value for key, value in record.items() if key != "seconds"} for record in records]

    there, here = compared.output(id) / "run", tmp_path / "search"
    assert told(there) == told(here)
    results_ = [json.loads((run / "retrain" / "result.json").read_text()) for run in (there, here)]
    assert results_[0]["test_accuracy"] == results_[1]["test_accuracy"]


def test_the_table_is_printed_and_written(compared):
    done = command("nni-fairdarts", "results", compared.id)
    assert done.returncode == 0, done.stderr
    for text in ("fairdarts", "darts", "±", "SUCCEEDED".lower()):
        assert text in done.stdout.lower()
    table = json.loads((compared.folder / compared.id / "results.json").read_text())
    rows = {row["id"]: row for row in table["trials"]}
    for id in compared.trials():
        final = json.loads((compared.output(id) / "result.json").read_text())
        assert rows[id]["result"] == final
        assert (rows[id]["strategy"], rows[id]["seed"]) == (final["strategy"], final["seed"])
    assert (compared.folder / compared.id / "results.csv").read_text().count("\n") == 5
    assert results(str(compared.folder / compared.id))  # by its folder too


# -- parameters that NNI hands to the wrong trial ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """Two trials in NNI's own manager; the first asks for its parameters after the second has got some."""
    folder = tmp_path_factory.mktemp("swapped")
    space = {"retrain.width": choice(2, 4), "seed": choice(0)}
    received = 'ls "$NNI_OUTPUT_DIR"/../*/trial.json > /dev/null 2>&1'
    late = f'if [ "$NNI_TRIAL_SEQ_ID" = 0 ]; then until {received}; do sleep 0.2; done; fi'
    run = {"search": {**RUN["search"], "epochs": 1, "gap_batches": 0}}
    trial = f"{late}; exec nni-fairdarts trial --config run.yaml"
    config, port = write(folder, space, run, maxTrialNumber=2, trialCommand=trial), free_port()
    with started(["nnictl", "create", "--config", config, "--port", port], port, folder / "nni") as experiment:
        experiment.wait_for_end(2)
        yield experiment


def test_swapped_every_row_is_true(swapped):
    import torch

    jobs, wrong = swapped.trials(), 0
    results(swapped.id)
    table = json.loads((swapped.folder / swapped.id / "results.json").read_text())
    assert len(table["trials"]) == 2
    for row in table["trials"]:
        run = swapped.output(row["id"]) / "run"
        weights = torch.load(run / "retrain" / "network.pt", weights_only=True)
        truth = weights["stem.0.weight"].shape[0] // 3  # DARTS' stem has three times the width
        assert row["hyperparameters"]["retrain.width"] == truth
        assert re.search(rf"^retrain:\n  width: {truth}$", (run / "config.yaml").read_text(), re.M)
        assert row["result"]["default"] == json.loads((run / "retrain" / "result.json").read_text())["test_accuracy"]
        wrong += json.loads(jobs[row["id"]]["hyperParameters"][0])["parameters"]["retrain.width"] != truth
    assert wrong == 2  # or this test would show nothing
    assert {row["hyperparameters"]["retrain.width"] for row in table["trials"]} == {2, 4}


# -- killed, stopped, resumed ------------------------------------------------------------------------------------------


EPOCHS = 9


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Two trials of many epochs: one killed, the other stopped with their experiment and resumed with it."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = {"search": {**RUN["search"], "epochs": EPOCHS}, "retrain": {**RUN["retrain"], "epochs": 2}}
    config = write(folder, {"seed": choice(0, 1)}, run, maxTrialNumber=2)
    port = free_port()
    told = {}
    with started(["nni-fairdarts", "launch", "--config", config, "--port", port], port, folder / "nni") as experiment:

        def epochs(trial, count):
            path = experiment.output(trial) / "run" / "history.jsonl"
            return path.is_file() and len(read_history(path)) >= count

        def running(trial):
            return next(
                process
                for process in experiment.processes()
                if process.environ().get("NNI_TRIAL_JOB_ID") == trial and "trial" in process.cmdline()
            )

        trials = experiment.wait(lambda: len(experiment.trials()) == 2 and list(experiment.trials()), "two trials")
        experiment.wait(lambda: all(epochs(trial, 2) for trial in trials), "two epochs of each")
        killed, other = map(running, trials)
        other.suspend()  # or it might be at its end before it is stopped
        killed.kill()
        experiment.wait(lambda: experiment.trials()[trials[0]]["status"] != "RUNNING", "the killed one's end")
        told["while the other ran"] = results(experiment.id)
        other.resume()
        assert command("nnictl", "stop", experiment.id).returncode == 0
        experiment.wait(lambda: not experiment.processes(), "the end of every process", 60)
        told["stopped"] = results(experiment.id)
        told["epochs"] = {t: len(read_history(experiment.output(t) / "run" / "history.jsonl")) for t in trials}
        done = command("nni-fairdarts", "launch", "--resume", experiment.id, "--port", port)
        assert done.returncode == 0, done.stdout + done.stderr
        experiment.wait_for_end(2)
        told["trials"] = trials
        yield experiment, told


def test_a_killed_trial_is_told_of_and_the_other_finishes(interrupted):
    experiment, told = interrupted
    results(experiment.id)
    table = json.loads((experiment.folder / experiment.id / "results.json").read_text())
    statuses = {row["id"]: row["status"] for row in table["trials"]}
    killed, other = told["trials"]
    assert statuses[killed].startswith("failed")
    assert statuses[other] == "succeeded"
    assert "failed" in told["while the other ran"]
    assert "stopped" in told["stopped"]


def test_a_resumed_trial_goes_on_with_what_it_had(interrupted):
    experiment, told = interrupted
    id = told["trials"][1]
    run = experiment.output(id) / "run"
    records = read_history(run / "history.jsonl")
    assert [record["epoch"] for record in records] == list(range(EPOCHS))
    assert 2 <= told["epochs"][id] < EPOCHS, "the experiment was to be stopped in the middle"
    log = (experiment.output(id) / "trial.log").read_text()
    counts = [log.count(f"epoch {epoch}/{EPOCHS} ") for epoch in range(1, EPOCHS + 1)]
    assert min(counts) == 1
    assert sum(counts) <= EPOCHS + 1  # one may have been stopped between its record and its checkpoint
    told_ = experiment.metrics("PERIODICAL")[id]
    assert len(told_) == EPOCHS
    assert all(list(numbers) == list(told_[0]) for numbers in told_)
    final = experiment.metrics("FINAL")[id]
    assert final[-1] == json.loads((experiment.output(id) / "result.json").read_text())
    begun = json.loads((experiment.output(id) / "trial.json").read_text())
    assert final[-1]["parameter_id"] == begun["parameter_id"]
    assert final[-1]["seed"] == begun["seed"]


def test_nothing_keeps_running(interrupted):
    experiment, _ = interrupted
    assert command("nnictl", "stop", experiment.id).returncode == 0
    experiment.wait(lambda: not experiment.processes(), "the end of every process", 60)
