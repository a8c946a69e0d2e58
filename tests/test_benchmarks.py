"""The scripts under benchmarks/: the command at its tiniest size, and what it counts and draws, against other ways."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS as HubDARTS
from nni.nas.space import RawFormatModelSpace
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nni_fairdarts.config import OURS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its files import each other as a script's do

import counting  # noqa: E402
import family  # noqa: E402
import family_loop  # noqa: E402
import loops  # noqa: E402
import report  # noqa: E402
from lightning_loop import Training  # noqa: E402
from variants import LINES, VARIANTS, Size, Variant, sizes_of, variants_of  # noqa: E402

TINY = "4x3x2x2"
PLAIN = Variant("plain", {"fused": False})


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True
    )


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(what the command printed, the path of its results without an ending)."""
    out = tmp_path_factory.mktemp("benchmark") / "tiny"
    flags = ["--sizes", TINY, "--variants", "plain", "--threads", 1, "--repeats", 1]
    done = run("step.py", *flags, "--bandwidth", 10, "--flops", 0.1, "--out", out)
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_the_command_measures_what_its_table_says(tiny):
    printed, out = tiny
    result = json.loads(out.with_suffix(".json").read_text())
    nni, plain = result["rows"]
    assert (nni["variant"], plain["variant"]) == ("nni", "plain")
    for row in (nni, plain):
        assert (row["size"], row["channels"], row["cells"], row["batch"], row["candidates"]) == (TINY, 4, 3, 2, 2)
        assert row["status"] == "measured"
        assert 2**20 < row["peak_bytes"] < 2**30
        assert row["step"]["seconds"] == statistics.median(row["step"]["times"]) > 0
        assert row["step"]["ratio"] == nni["step"]["seconds"] / row["step"]["seconds"]
        assert row["step"]["spread"] == 0  # of one run
        assert row["peak_share"] == row["peak_bytes"] / nni["peak_bytes"]
        assert sum(row["counts"]["kinds"].values()) == pytest.approx(1)
        found = row["lightning"]
        assert found["overhead"] == statistics.median(found["through"]) / statistics.median(found["bare"]) - 1
        assert 0 < found["loading_share"] < 1
        assert len(found["loading"]) == len(found["through"]) == len(found["bare"]) == 1
        assert row["floor"]["seconds"] >= row["floor"]["bytes"] / 10e9
        assert row["floor"]["seconds"] >= row["floor"]["operations"] / 0.1e12
        assert row["floor"]["seconds"] < row["step"]["seconds"]
    # Half of the gradients are not computed, and no output is multiplied by a gate of "none".
    assert plain["counts"]["operators"] < nni["counts"]["operators"]
    assert plain["floor"]["operations"] < nni["floor"]["operations"]
    machine = result["machine"]
    assert machine["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine["threads"] == 1
    page = out.with_suffix(".md").read_text()
    for text in (printed, page):
        assert machine["cpu"] in text
        for row in (nni, plain):
            line = next(line for line in text.splitlines() if TINY in line and row["title"] in line)
            assert f"{row['step']['ratio']:.2f}" in line
            assert f"{row['counts']['operators']:,}" in line
            assert f"{row['peak_bytes'] / 2**20:,.0f}" in line


def test_results_are_not_overwritten_and_a_finished_size_is_kept(tiny):
    printed, out = tiny
    before = out.with_suffix(".json").read_text()
    flags = ["--sizes", TINY, "--out", out]
    refused = run("step.py", *flags)
    assert refused.returncode == 2
    assert f"{out}.json is there already; give another --out, or --resume" in refused.stderr
    assert run("step.py", *flags, "--resume").stdout == printed
    assert out.with_suffix(".json").read_text() == before


def test_what_does_not_fit_is_said():
    job = {"task": "solo", "size": "16x3x16", "variants": ["plain"], "device": "cpu", "threads": 1, "counts": False}
    done = run("measure.py", json.dumps({**job, "memory": 100 * 2**20}))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    found = {key: value for answer in answers for key, value in answer.items()}
    assert (found["variant"], found["free_bytes"], found["status"]) == ("plain", 100 * 2**20, "does not fit")
    assert "peak_bytes" not in found
    row = {**found, "size": "16x3x16", "title": "plain", "load_before": 0.0}
    assert report.in_short(row) == "does not fit in 0.1 GiB"


# -- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [VARIANTS["nni"], PLAIN, VARIANTS["fused"]], ids=["nni", "plain", "fused"])
def test_the_bare_loop_takes_the_step_that_a_search_takes(variant, lightning):
    """One step through NNI's strategy, evaluator and Lightning, from the same weights on the same batches."""
    size = Size.parse(TINY)
    bare = loops.BareLoop(variant, size, "cpu")
    alpha_batch, weight_batch = (torch.utils.data.TensorDataset(images, labels) for images, labels in bare.batches)
    training = Training(10, loops.SGD["lr"], 0.001, loops.SGD["momentum"], loops.SGD["weight_decay"])
    evaluator = lightning(
        training,
        DataLoader(weight_batch, batch_size=size.batch),
        DataLoader(alpha_batch, batch_size=size.batch),
        limit_val_batches=0,
    )
    strategy = loops.strategy_of(variant)
    space = RawFormatModelSpace.from_model(loops.space_of(size), evaluator)
    strategy.initialize(space, SequentialExecutionEngine())
    strategy.supernet.load_state_dict(bare.supernet.state_dict())
    before = {name: value.clone() for name, value in bare.supernet.state_dict().items()}
    strategy.run()
    bare.step()
    after = bare.supernet.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if "alpha" in name)
    for name, value in strategy.supernet.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)


def test_the_space_of_all_candidates_is_nnis():
    ours, nnis = loops.space_of(Size.parse("4x3x2")), HubDARTS(4, 3, "cifar")
    assert [p.shape for p in ours.parameters()] == [p.shape for p in nnis.parameters()]
    assert ours.op_candidates == nnis.op_candidates


def test_what_the_installed_package_lacks_is_not_available():
    with pytest.raises(loops.NotAvailable, match="this FairDARTS has no argument folded"):
        loops.strategy_of(Variant("folded", {"folded": True, "recompute": True}))
    assert loops.strategy_of(Variant("recompute", {"recompute": True, "folded": False})).recompute is True
    with pytest.raises(loops.NotAvailable, match="CUDA graphs need a CUDA device"):
        loops.BareLoop(Variant("graph", {}, graph=True), Size.parse(TINY), "cpu")


def test_a_deterministic_variant_is_so_while_it_steps():
    loop = loops.BareLoop(Variant("deterministic", {}, deterministic=True), Size.parse(TINY), "cpu")
    seen = []
    loop.supernet.register_forward_pre_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    for _ in range(2):
        loop.step()
    assert seen == [True] * 4
    assert not torch.are_deterministic_algorithms_enabled()


def test_sizes_and_variants_are_checked():
    assert sizes_of(["16x8x16", "width", "16x8x16x3"])[0] == Size(16, 8, 16)
    assert len(sizes_of(["width", "8x8x16"])) == len(sizes_of(["width"]))
    assert [str(Size.parse(text)) for text in ("16x8x16", "16x8x16x7", "16x8x16x3")] == ["16x8x16"] * 2 + ["16x8x16x3"]
    for text, message in (
        ("16x8", "CHANNELSxCELLSxBATCH"),
        ("15x8x16", "channels must be even"),
        ("16x2x16", "cells at least 3"),
        ("16x8x16x8", "1 to 7 candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            Size.parse(text)
    assert variants_of(["plain"], "cpu") == ["nni", "plain"]
    assert not {"fused-graph", "fused-compile", "fused-deterministic"} & set(variants_of(None, "cpu"))
    assert variants_of(None, "cuda") == list(VARIANTS)
    with pytest.raises(ValueError, match="unknown variant 'fusd'; known: nni, plain"):
        variants_of(["fusd"], "cpu")


# -- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (6, 2, 1), (3, 1, 2)])
def test_a_convolutions_bytes_and_operations_are_those_by_hand(groups, stride, dilation):
    layer = nn.Conv2d(6, 12, 3, stride, dilation, dilation, groups, bias=False)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with counting.Work() as work:
        y = layer(x)
        y.backward(torch.ones_like(y))
    once = 2 * y.numel() * (6 // groups) * 9
    assert [(name, done) for name, _, done in work.calls if done] == [
        ("convolution", once),
        ("convolution_backward", 2 * once),
    ]
    forward = 4 * (x.numel() + layer.weight.numel() + y.numel())
    moved = {name: moved for name, moved, _ in work.calls}
    assert moved["convolution"] == forward
    assert moved["convolution_backward"] == 4 * (y.numel() + 2 * x.numel() + 2 * layer.weight.numel())
    if groups == 1:  # where torch's own formula holds
        with FlopCounterMode(display=False) as counter:
            layer(x).backward(torch.ones_like(y))
        assert work.flops == counter.get_total_flops()


def test_bytes_are_of_distinct_elements_and_views_are_free():
    x = torch.ones(8, 1)
    with counting.Work() as work:
        x.expand(8, 100).add(torch.zeros(1).expand(8, 100)).view(-1).mul_(2.0)
    assert [(name, moved) for name, moved, _ in work.calls] == [
        ("zeros", 4),
        ("add", 4 * (8 + 1 + 800)),
        ("mul_", 4 * (800 + 800)),
    ]
    assert work.seconds(bandwidth=4.0, rate=1.0) == sum(moved for _, moved, _ in work.calls) / 4


def test_operators_that_do_work_are_counted_once():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)

    def step():
        with torch.no_grad():
            layer(x).relu().flatten(1)[:, ::2].add(1.0).sum()

    found = counting.profiled(step, "cpu")
    assert found["operators"] == 4
    assert set(found["kinds"]) == {"convolution forward", "ReLU", "copies and sums", "everything else"}  # the views


# -- the family ----------------------------------------------------------------------------------------------------


def test_the_family_is_that_of_the_experiment():
    known = family.strategies()
    assert next(iter(known)) == "fairdarts"
    assert {*OURS, "darts"} <= set(known)
    assert known["pc_darts"] == {"strategy": "pc_darts", "warmup_epochs": 4}


def test_a_search_is_timed_step_by_step_and_what_it_computes_besides_by_itself():
    size, steps = Size.parse(TINY), 2
    parameters = {"strategy": "operation_strength_darts", "parts.strength_batches": 1}
    watch = family_loop.searched(parameters, size, "cpu", steps, before=0, whole=True)
    assert [len(epoch["times"]) for epoch in watch.epochs] == [steps]
    assert min(watch.epochs[0]["times"]) > 0
    assert watch.epochs[0]["peak_bytes"] > 2**20
    assert list(watch.besides) == ["strength"]
    assert watch.besides["strength"]["seconds"] > sum(watch.epochs[0]["times"])  # 57 passes against some 10
    bare = family_loop.searched({"strategy": "robust_darts"}, size, "cpu", steps, before=0, whole=False)
    assert ([len(epoch["times"]) for epoch in bare.epochs], bare.besides) == ([steps], {})


def test_the_familys_table_is_against_fairdarts():
    def turn(*epochs, **besides):
        stages = [{"times": times, "peak_bytes": mib * 2**20} for times, mib in epochs]
        return {"status": "measured", "epochs": stages, "besides": besides}

    turns = {
        "fairdarts": [turn(([1.0, 3.0], 100)), turn(([2.0, 2.0], 300)), turn(([2.0, 9.0], 200))],
        "p_darts": [turn(([1.0], 50), ([8.0], 400))],
        "robust_darts": [turn(([2.0], 200), sharpness={"seconds": 7.0, "peak_bytes": 2**30})],
        "darts": [{"status": "does not fit", "why": "MemoryError"}],
    }
    rows = [row for name, found in turns.items() for row in family.rows_of(name, found, 0.5)]
    assert family.table(rows)[1:] == [
        ["fairdarts", "2.00 s", "1.00", "38%", "200", "1.00", ""],
        ["p_darts, stage 1 of 2", "1.00 s", "0.50", "0%", "50", "0.25", ""],
        ["p_darts, stage 2 of 2", "8.00 s", "4.00", "0%", "400", "2.00", ""],
        ["robust_darts", "2.00 s", "1.00", "0%", "200", "1.00", "eigenvalue, each epoch: 7.00 s, 1,024 MiB"],
        ["darts", "does not fit", "", "", "", "", "MemoryError"],
    ]


# -- figures -------------------------------------------------------------------------------------------------------


def _rows(*texts):
    """Rows as step.py writes them; the largest batch fits nothing."""
    for text in texts:
        size = Size.parse(text)
        sizes = {name: getattr(size, name) for name in ("channels", "cells", "batch", "candidates")}
        for name in LINES:
            row = {**sizes, "size": text, "variant": name, "title": VARIANTS[name].title, "load_before": 0.1}
            if size.batch == 64:
                yield {**row, "status": "does not fit", "free_bytes": 2**30}
            else:
                seconds = size.batch * size.channels / 64
                yield {**row, "status": "measured", "peak_bytes": 2**30, "step": {"seconds": seconds}}


def test_figures_are_drawn_of_every_sweep(tiny, tmp_path):
    result = json.loads(tiny[1].with_suffix(".json").read_text())
    result["rows"] = list(_rows("16x8x16", "8x8x16", "16x8x32", "16x8x64"))
    (tmp_path / "some.json").write_text(json.dumps(result))
    done = run("figures.py", tmp_path / "some.json")
    assert done.returncode == 0, done.stderr
    for name in ("some-time.png", "some-memory.png"):
        assert str(tmp_path / name) in done.stdout
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    alone = run("figures.py", tmp_path / "some.json", "--base", "16x5x8")
    assert "the result has no two sizes that are 16x5x8 but for one thing" in alone.stderr
    lines = report.text(result).splitlines()
    assert sum("does not fit in 1.0 GiB" in line for line in lines) == len(LINES)
