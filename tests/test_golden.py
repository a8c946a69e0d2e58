"""The recorded files, judged by check_golden; and that it does not judge wrong ones as right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from check_golden import TOLERANCE, judge, main
from recorder import SearchNetwork, record_search_steps

GOLDEN = Path(__file__).parent / "golden"
QUANTITIES = {
    "darts_second_order_c4_l3.npz": 22,
    "derived.json": 9,
    "derived_a_c4_l5.npz": 1,
    "genotypes.json": 12,
    "parse.json": 24,
    "partial_channel_c8_l3.npz": 14,
    "search_step_c4_l3.npz": 38,
}


def test_every_file_is_judged():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(QUANTITIES)


@pytest.mark.parametrize("name", QUANTITIES)
def test_recorded_values_are_met(name):
    results = judge(GOLDEN / name)
    assert len(results) == QUANTITIES[name]
    limit = TOLERANCE if name.endswith("npz") else 0
    assert [(quantity, value) for quantity, value in results if not value <= limit] == []
    assert TOLERANCE == 1e-10


def perturbed(path, name, change):
    """A copy under ``path`` of the recorded file ``name`` after ``change`` of its content, in place."""
    copy = path / name
    if name.endswith("json"):
        content = json.loads((GOLDEN / name).read_text())
        change(content)
        copy.write_text(json.dumps(content))
    else:
        with np.load(GOLDEN / name) as archive:
            content = {key: archive[key] for key in archive.files}
        change(content)
        np.savez(copy, **content)
    return copy


def shift(key, by=2e-10):
    def change(content):
        content[key] = content[key].copy()
        content[key].flat[-1] += by

    return change


def shift_step(content):
    for key in ("after/alphas_reduce", "step1/weight_grad_norm"):
        content[key] = content[key] + 2e-10


def miscount(content):
    (name, counts), *_ = content["architectures"].items()
    counts["params"] += 1
    content["architectures"] = {name: counts}


def swap_operation(content):
    edge = content["cases"][0]["threshold_sparse"]["normal"][0]
    edge[0] = "avg_pool_3x3" if edge[0] != "avg_pool_3x3" else "max_pool_3x3"


def drop_edge(content):
    content["cases"][1]["threshold_edge"]["reduce"].pop()


def retell(content):
    content["genotypes"]["DARTS_V2"]["normal_concat"] = [2, 3, 4]


@pytest.mark.parametrize(
    ("name", "change", "over"),
    [
        ("derived_a_c4_l5.npz", shift("logits"), ["logits"]),
        ("derived_a_c4_l5.npz", shift("x", 1e-3), ["logits"]),
        (
            "search_step_c4_l3.npz",
            shift_step,
            [f"{kind}: {name}" for kind in ("fused", "plain") for name in ("step 1 weight_grad_norm", "after alphas")],
        ),
        ("derived.json", miscount, ["FairDARTS_a params"]),
        ("parse.json", swap_operation, ["case 0 threshold_sparse normal"]),
        ("parse.json", drop_edge, ["case 1 threshold_edge reduce"]),
        ("genotypes.json", retell, ["DARTS_V2"]),
    ],
)
def test_a_perturbed_copy_fails(tmp_path, capsys, name, change, over):
    assert main([str(perturbed(tmp_path, name, change))]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("over 1e-10")]
    assert [" ".join(line.split()[:-3]) for line in lines] == over


def test_a_failure_among_several_files_is_reported(tmp_path):
    wrong = perturbed(tmp_path, "parse.json", drop_edge)
    assert main([str(wrong), str(GOLDEN / "parse.json")]) == 1
    assert main([str(GOLDEN / "parse.json"), str(GOLDEN / "genotypes.json")]) == 0


@pytest.mark.parametrize(
    ("name", "write", "text"),
    [
        ("step.npz", lambda p: np.savez(p, meta='{"kind": "weather"}'), "unknown kind 'weather'; known: search_step, "),
        ("step.npz", lambda p: np.savez(p, x=1), "meta"),
        ("list.json", lambda p: p.write_text("{}"), "none of the entries cases, architectures, genotypes"),
        ("list.json", lambda p: p.write_text("{"), "cannot be judged"),
        ("list.json", lambda p: p.write_text('{"cases": [], "operations": []}'), "holds nothing to compare"),
        ("missing.json", lambda p: None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_judged(tmp_path, capsys, name, write, text):
    write(tmp_path / name)
    assert main([str(tmp_path / name)]) == 2
    assert text in capsys.readouterr().out


def test_no_file_is_no_success(capsys):
    assert main([]) == 2
    assert "check_golden.py FILE..." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ({"channels": 2, "cells": 8, "steps": 1, "zero_one_loss": "l1", "zero_one_weight": 3.0}, {}),
        ({"channels": 4, "cells": 5, "steps": 3, "zero_one_loss": "l2", "zero_one_weight": 10.0}, {"channels": 1}),
        ({"channels": 2, "cells": 4, "steps": 2, "zero_one_loss": "l1", "zero_one_weight": 10.0}, {"classes": 7}),
    ],
    ids=["8 cells", "5 cells", "4 cells"],
)
def test_steps_of_other_sizes_are_met(tmp_path, sizes, data):
    """Recorded by a search network of the tests' own."""
    meta = json.loads(str(np.load(GOLDEN / "search_step_c4_l3.npz")["meta"])) | {"batch": 3, **sizes}
    record_search_steps(tmp_path / "steps.npz", meta, **data)
    results = judge(tmp_path / "steps.npz")
    assert len(results) == 2 * (8 * sizes["steps"] + 3)
    assert [(quantity, value) for quantity, value in results if not value <= TOLERANCE] == []


def test_the_recorder_records_what_was_recorded(tmp_path):
    """From the same start and batches, its first step is the published code's."""
    with np.load(GOLDEN / "search_step_c4_l3.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    meta = json.loads(str(golden["meta"]))
    network = SearchNetwork(meta["channels"], meta["cells"], 10, 3).double()
    prefix = "before/weights/"
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in golden.items() if k.startswith(prefix)}
    missing, unknown = network.load_state_dict(state, strict=False)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)
    normal, reduce = (torch.from_numpy(golden[f"before/alphas_{kind}"]) for kind in ("normal", "reduce"))
    logits = network(torch.from_numpy(golden["step0/val_x"]), normal, reduce)
    np.testing.assert_allclose(logits.detach().numpy(), golden["step0/val_logits"], rtol=0, atol=1e-10)


def broken(content, change):
    for key in [key for key in content if change in key]:
        del content[key]


@pytest.mark.parametrize("change", ["after/alphas", "step1/train_x", "before/weights/stem", "before/alphas"])
def test_a_file_that_lacks_something_is_not_judged(tmp_path, capsys, change):
    path = perturbed(tmp_path, "search_step_c4_l3.npz", lambda content: broken(content, change))
    assert main([str(path)]) == 2
    assert "cannot be judged: " in capsys.readouterr().out


def test_a_cut_file_and_one_with_nan_are_not_met(tmp_path, capsys):
    (tmp_path / "cut.npz").write_bytes((GOLDEN / "derived_a_c4_l5.npz").read_bytes()[:5000])
    assert main([str(tmp_path / "cut.npz")]) == 2
    path = perturbed(tmp_path, "search_step_c4_l3.npz", shift("after/weights/classifier.bias", np.nan))
    assert main([str(path)]) == 1


def test_counts_of_two_tuples_are_judged(tmp_path, capsys):
    """DARTS_V2 has 3.349342 M parameters without its auxiliary head."""
    recorded = json.loads((GOLDEN / "genotypes.json").read_text())["genotypes"]["DARTS_V2"]
    content = json.loads((GOLDEN / "derived.json").read_text())
    content["architectures"] = {"DARTS_V2": {"genotype": recorded, "params": 3349342}}
    (tmp_path / "v2.json").write_text(json.dumps(content))
    assert judge(tmp_path / "v2.json") == [("DARTS_V2 params", 0)]
