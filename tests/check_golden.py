#!/usr/bin/env python
"""Judge recorded files: run this package on their inputs and compare with their outputs, in float64.

    python tests/check_golden.py FILE...

Understands search steps and derived logits (.npz with a ``meta`` entry), gate matrices with what the rules make of
them, counts of derived networks, and published genotypes (.json). Prints the largest deviation of every quantity;
exits with 1 where one is over 1e-10, with 2 where a file cannot be judged.
"""

import contextlib
import io
import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

TOLERANCE = 1e-10
GOLDEN = Path(__file__).parent / "golden"
BATCHES = {"train_x", "train_y", "val_x", "val_y"}
OUTPUTS = {
    "val_logits", "val_cross_entropy", "zero_one_loss", "val_total", "grad_alphas_normal", "grad_alphas_reduce",
    "train_logits", "train_loss", "weight_grad_norm",
}  # fmt: skip

Deviations = Iterator[tuple[str, float]]


# -- search steps --------------------------------------------------------------------------------------------------


class Recorded(Dataset):
    """One recorded batch per item: of the training ("train") or of the validation half ("val")."""

    def __init__(self, file, half: str, steps: int):
        self.items = [
            (torch.from_numpy(file[f"step{i}/{half}_x"]), torch.from_numpy(file[f"step{i}/{half}_y"]))
            for i in range(steps)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def search_step(file, meta: dict) -> Deviations:
    """Whole bilevel steps through NNI's DARTS space, evaluator and sequential engine, by both kinds of supernet."""
    for kind, fused in (("fused", True), ("plain", False)):
        for quantity, value in search_step_by(file, meta, fused):
            yield f"{kind}: {quantity}", value


def darts_step(file, meta: dict) -> Deviations:
    """Whole bilevel steps of DARTS: softmax with "none", α's gradient of first or of second order."""
    order = "second" if meta["second_order"] else "first"
    settings = {"relaxation": "softmax", "discretization": "darts", "alpha_gradient": order}
    for kind, fused in (("fused", True), ("plain", False)):
        for quantity, value in search_step_by(file, {**DARTS_HAS_NONE, **meta}, fused, **settings):
            yield f"{kind}: {quantity}", value


DARTS_HAS_NONE = {"zero_one_weight": 0.0, "zero_one_loss": "none"}


def search_step_by(file, meta: dict, fused: bool, **settings) -> Deviations:
    from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.hub.pytorch import DARTS as HubDARTS
    from nni.nas.space import RawFormatModelSpace

    from nni_fairdarts import FairDARTS
    from nni_fairdarts.spaces import DARTS

    for step in range(meta["steps"]):
        recorded = {k.split("/", 1)[1] for k in file if k.startswith(f"step{step}/")}
        if not (recorded >= BATCHES and OUTPUTS & recorded):
            raise Unjudged(f"step {step} lacks {', '.join(sorted((BATCHES | OUTPUTS) - recorded))}")
    before, after = supernet_names(file, "before"), supernet_names(file, "after")
    if before.keys() != after.keys():
        raise Unjudged(f"before and after differ in what they hold: {sorted(before.keys() ^ after.keys())[:3]}")
    torch.set_default_dtype(torch.float64)
    seen: list[dict] = []  # per step
    first_order = settings.get("alpha_gradient", "first") == "first"

    class Evaluation(LightningModule):
        """Cross entropy and SGD as recorded; keeps what passes by."""

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.model(x)
            loss = nn.functional.cross_entropy(logits, y)
            if batch_idx % 2 == 0:  # NNI numbers the α step 2k and the weight step 2k + 1
                if batch_idx // 2 == len(seen):  # of second order the network sees more batches in it
                    seen.append({})
                if first_order:
                    seen[-1].update(val_logits=logits.detach(), val_cross_entropy=loss.detach())
            else:
                seen[-1].update(train_logits=logits.detach(), train_loss=loss.detach())
            return loss

        def on_before_backward(self, loss):
            if first_order and "train_logits" not in seen[-1]:
                seen[-1]["val_total"] = loss.detach()
                seen[-1]["zero_one_loss"] = strategy.oneshot_module.zero_one().detach()

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
            seen[-1]["weight_grad_norm"] = torch.stack(norms).norm()
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

        def configure_optimizers(self):
            return torch.optim.SGD(
                self.parameters(), meta["weight_lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"]
            )

    def keep_gradients(optimizer, *_):
        if isinstance(optimizer, torch.optim.Adam):  # α's
            choices = strategy.oneshot_module.choices()
            seen[-1].update({f"grad_alphas_{label}": c.alpha.grad.clone() for label, c in choices.items()})

    classes, channels = file["before/weights/classifier.weight"].shape[0], file["step0/train_x"].shape[1]
    sizes = {"width": meta["channels"], "num_cells": meta["cells"], "dataset": "cifar"}
    if (classes, channels) == (10, 3):
        space = HubDARTS(**sizes)
    else:
        space = DARTS(**sizes, num_classes=classes, in_channels=channels)
    space.double()

    def batches(half):
        return DataLoader(Recorded(file, half, meta["steps"]), batch_size=None, shuffle=False)

    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, precision="64-true",
    )  # fmt: skip
    evaluator = Lightning(Evaluation(), trainer, train_dataloaders=batches("train"), val_dataloaders=batches("val"))
    strategy = FairDARTS(
        arc_learning_rate=meta["alpha_lr"],
        arc_betas=tuple(meta["alpha_betas"]),
        arc_weight_decay=meta["alpha_weight_decay"],
        zero_one_weight=meta["zero_one_weight"],
        zero_one_loss=meta["zero_one_loss"],
        gradient_clip_val=meta["clip"],
        log_prob_every_n_step=0,
        fused=fused,
        **settings,
    )
    strategy.initialize(RawFormatModelSpace.from_model(space, evaluator), SequentialExecutionEngine())
    supernet = strategy.supernet
    load(supernet, before)
    hook = register_optimizer_step_pre_hook(keep_gradients)
    try:
        strategy.run()
    finally:
        hook.remove()
    assert len(seen) == meta["steps"], f"{len(seen)} steps ran instead of {meta['steps']}"

    for step, values in enumerate(seen):
        for name in sorted(name for name in OUTPUTS if f"step{step}/{name}" in file):
            yield f"step {step} {name}", deviation(values[name], file[f"step{step}/{name}"])
    state = supernet.state_dict()
    kinds: dict[str, float] = {}
    for name, value in after.items():
        kind = "alphas" if "alpha" in name else "batch-norm statistics" if "running" in name else "weights"
        kinds[kind] = max(kinds.get(kind, 0.0), deviation(state[name], value))
    for kind, value in kinds.items():
        yield f"after {kind}", value


def partial_channel_forward(file, meta: dict) -> Deviations:
    """A forward and a backward pass of PC-DARTS' supernet, and what it derives, by both kinds of supernet."""
    for kind, fused in (("fused", True), ("plain", False)):
        for quantity, value in partial_channel_forward_by(file, meta, fused):
            yield f"{kind}: {quantity}", value


def partial_channel_forward_by(file, meta: dict, fused: bool) -> Deviations:
    from nni_fairdarts import FairDARTS, Genotype
    from nni_fairdarts.genotype import parse as parse_text
    from nni_fairdarts.spaces import DARTS

    torch.set_default_dtype(torch.float64)
    space = DARTS(meta["channels"], meta["cells"], "cifar", in_channels=file["x"].shape[1])
    strategy = FairDARTS(
        relaxation="softmax", zero_one_weight=0.0, discretization="darts", partial_channels=meta["partial"],
        edge_normalization=True, fused=fused,
    )  # fmt: skip
    supernet = strategy.mutate_model(space.double())
    load(supernet, supernet_names(file, "before"))
    logits = supernet.train()(torch.from_numpy(file["x"]))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(file["y"]))
    loss.backward()
    yield "logits", deviation(logits, file["logits"])
    yield "cross_entropy", deviation(loss, file["cross_entropy"])
    cells = {m.label: m for m in supernet.modules() if isinstance(getattr(m, "beta", None), nn.Parameter)}
    for kind, cell in cells.items():
        yield f"grad_alphas_{kind}", deviation(cell.alpha.grad, file[f"grad_alphas_{kind}"])
        yield f"grad_betas_{kind}", deviation(cell.beta.grad, file[f"grad_betas_{kind}"])
    sample = {}
    for cell in cells.values():
        sample.update(cell.export(sample))
    yield "genotype", float(Genotype.from_sample(sample, style="darts") != parse_text(str(file["genotype"])))


def supernet_names(file, moment: str) -> dict[str, np.ndarray]:
    """The recorded state under the names of NNI's DARTS space once gated."""
    meta = json.loads(str(file["meta"]))
    operations = meta.get("operations") or json.loads((GOLDEN / "parse.json").read_text())["operations"]
    cells: dict[str, tuple[int, int]] = {}
    layers = meta["cells"]
    starts = [i * layers // 3 for i in range(4)]
    for stage in range(3):
        for place, cell in enumerate(range(starts[stage], starts[stage + 1])):
            cells[str(cell)] = (stage, place)
    own = {}
    for key in file.files:
        if key in [f"{moment}/{name}s_{kind}" for name in ("alpha", "beta") for kind in ("normal", "reduce")]:
            name, kind = key.removeprefix(f"{moment}/").split("s_")
            for cell, (stage, place) in cells.items():
                if (int(cell) in (layers // 3, 2 * layers // 3)) == (kind == "reduce"):
                    own[f"stages.{stage}.blocks.{place}.{name}"] = file[key]
        elif key.startswith(f"{moment}/weights/"):
            name = key.removeprefix(f"{moment}/weights/")
            parts = name.split(".")
            if parts[0] != "cells":
                own[name] = file[key]
                continue
            stage, place = cells[parts[1]]
            prefix = f"stages.{stage}.blocks.{place}"
            if parts[2].startswith("preprocess"):
                rest = [p for p in parts[3:] if p != "op"]
                own[f"{prefix}.preprocessor.pre{parts[2][-1]}." + ".".join(rest)] = file[key]
            else:
                edge, operation = parts[3], operations[int(parts[5])]
                rest = [p for p in parts[6:] if p != "op"]
                own[f"{prefix}.edges.{edge}.{operation}." + ".".join(rest)] = file[key]
    return own


def load(network: nn.Module, weights: dict[str, np.ndarray]) -> None:
    missing, unknown = network.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise Unjudged(f"not recorded: {missing[:3]}; not in the supernet: {unknown[:3]}")


# -- derived networks ----------------------------------------------------------------------------------------------


def derived_logits(file, meta: dict) -> Deviations:
    """Logits in evaluation mode, with weights read under their published names."""
    from nni_fairdarts.genotype import published
    from nni_fairdarts.network import DerivedNetwork
    from nni_fairdarts.published import load_published

    weights = {k.removeprefix("weights/"): torch.from_numpy(file[k]) for k in file.files if k.startswith("weights/")}
    network = DerivedNetwork(
        published(meta["architecture"]),
        width=meta["channels"],
        num_cells=meta["cells"],
        num_classes=weights["classifier.weight"].shape[0],
        in_channels=file["x"].shape[1],
        auxiliary_loss=meta["auxiliary_head"],
    ).double()
    load_published(network, weights).eval()
    with torch.no_grad():
        yield "logits", deviation(network(torch.from_numpy(file["x"])), file["logits"])


def derived_counts(content: dict) -> Deviations:
    """Parameters and multiply-adds of published architectures: exact whole numbers."""
    from nni_fairdarts.genotype import PUBLISHED_NAMES, Genotype, published
    from nni_fairdarts.network import DerivedNetwork, count_multiply_adds, count_parameters

    shape = tuple(content["input"][1:])
    for name, counts in content["architectures"].items():
        recorded = counts["genotype"]
        if {len(edge) for cell in ("normal", "reduce") for edge in recorded[cell]} == {2}:
            cells = [
                [(op, 2 + k // 2, source) for k, (op, source) in enumerate(recorded[c])] for c in ("normal", "reduce")
            ]
            genotype = Genotype(*cells, style="darts")
        else:
            genotype = Genotype(recorded["normal"], recorded["reduce"])
        if name in PUBLISHED_NAMES and genotype != published(name):
            raise Unjudged(f"{name} is published otherwise")
        network = DerivedNetwork(
            genotype, content["init_channels"], content["layers"], in_channels=shape[0], auxiliary_loss=True
        )
        measured = {
            "params": lambda net=network: count_parameters(net),
            "params_with_auxiliary_head": lambda net=network: count_parameters(net, auxiliary_head=True),
            "macs": lambda net=network: count_multiply_adds(net, shape),
        }
        for quantity in sorted(measured.keys() & counts.keys()):
            yield f"{name} {quantity}", abs(measured[quantity]() - counts[quantity])


# -- gates and genotypes -------------------------------------------------------------------------------------------


def parse(content: dict) -> Deviations:
    """What each rule keeps of recorded gates: 0 where it is the same, edge by edge, else the number of differences."""
    from nni_fairdarts.discretize import keep

    rules = {"darts": "darts", "threshold_sparse": "sparse", "threshold_edge": "edge"}
    for number, case in enumerate(content["cases"]):
        for recorded, rule in rules.items():
            for cell, expected in case.get(recorded, {}).items():
                edges = keep(case[f"{cell}_gates"], rule, case["threshold"], tuple(content["operations"]))
                if rule == "darts":
                    found = [[edge.operation, edge.source] for edge in edges]
                else:
                    found = [[edge.operation, edge.node, edge.source] for edge in edges]
                differences = sum(a != b for a, b in zip(found, expected, strict=False))
                yield f"case {number} {recorded} {cell}", differences + abs(len(found) - len(expected))


def genotypes(content: dict) -> Deviations:
    """Published text forms against their recorded tuples: 0 where they say the same."""
    from nni_fairdarts.genotype import parse as parse_text

    for name, recorded in content["genotypes"].items():
        genotype = parse_text(recorded["published_as"])
        wrong = 0
        for cell in ("normal", "reduce"):
            for edge, expected in zip(getattr(genotype, cell), recorded[cell], strict=True):
                found = [edge.operation, edge.node, edge.source]
                wrong += found != expected if len(expected) == 3 else [found[0], found[2]] != expected
            wrong += list(getattr(genotype, f"{cell}_concat")) != recorded[f"{cell}_concat"]
        yield name, wrong


# -- judging -------------------------------------------------------------------------------------------------------

RECORDED = {
    "search_step": search_step,
    "darts_step": darts_step,
    "partial_channel_forward": partial_channel_forward,
    "derived_logits": derived_logits,
}
LISTED = {"cases": parse, "architectures": derived_counts, "genotypes": genotypes}


def deviation(found: torch.Tensor, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite where shapes differ or a number is not finite."""
    found = found.detach().numpy()
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max()) if found.size else 0.0


class Unjudged(ValueError):
    """A file that lacks what its judgement needs."""


def judge(path: Path) -> list[tuple[str, float]]:
    """Every quantity in a file with its largest deviation. Raises ValueError for a file of an unknown kind."""
    check: Callable
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            file = Archive({name: archive[name] for name in archive.files})
        meta = json.loads(str(file["meta"]))
        if meta.get("kind") not in RECORDED:
            raise ValueError(f"unknown kind {meta.get('kind')!r}; known: {', '.join(RECORDED)}")
        default = torch.get_default_dtype()
        try:
            return list(RECORDED[meta["kind"]](file, meta))
        finally:
            torch.set_default_dtype(default)
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, check in LISTED.items():
        if key in content:
            return list(check(content))
    raise ValueError(f"has none of the entries {', '.join(LISTED)}")


class Archive(dict):
    """The arrays of an .npz, read at once."""

    @property
    def files(self):
        return list(self)


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    for name in ("nni", "pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    status = 0
    for argument in arguments:
        print(argument)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the search's line per epoch
                results = judge(Path(argument))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"  cannot be judged: {error}")
            status = 2
            continue
        for quantity, value in results:
            over = not value <= TOLERANCE
            status = max(status, int(over))
            print(f"  {quantity:<40} {value:.2e}" + ("  over 1e-10" if over else ""))
        if not results:
            print("  holds nothing to compare")
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
