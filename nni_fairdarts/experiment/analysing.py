"""The supernet of a search from its last checkpoint, and what ``nni_fairdarts.analysis`` says of it."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from nni.nas.evaluator.pytorch import Lightning, Trainer
from torch import Tensor, nn

from nni_fairdarts.analysis import DiscretizationGap, dominant_by_epoch, entropy_by_epoch, loss_curvature
from nni_fairdarts.checkpoints import newest, read
from nni_fairdarts.config import RunConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.experiment.common import prepare, training_of
from nni_fairdarts.experiment.parts import make_space
from nni_fairdarts.experiment.searching import check_search
from nni_fairdarts.folder import run_of
from nni_fairdarts.gap import same_random_numbers
from nni_fairdarts.guests import loss_of, transferred, validation_batches
from nni_fairdarts.metrics import word, written
from nni_fairdarts.nni_strategies import build
from nni_fairdarts.recorded import read_recorded
from nni_fairdarts.recording import RecordsEpochs

SAMPLING = ("proxyless", "enas", "random", "random_search")
"""Strategies whose steps run one sampled network: no loss is a function of α alone."""


@dataclass(frozen=True)
class Searched:
    """A search's supernet as its last checkpoint has it, in the one-shot module that trained it.

    ``evaluator``: the module's data and, in ``evaluator.module``, the user's or this package's training steps.
    ``validation``: what the supernet was validated on.
    """

    module: RecordsEpochs
    evaluator: Lightning
    trainer: pl.Trainer
    validation: object
    config: RunConfig

    @property
    def supernet(self) -> nn.Module:
        return self.module.training_module.model

    def validated(self, *callbacks: pl.Callback) -> dict[str, float]:
        """The metrics of a validation, with these callbacks."""
        self.trainer.callbacks.extend(callbacks)
        try:
            (metrics,) = self.trainer.validate(self.module, dataloaders=self.validation, verbose=False)
        finally:
            for callback in callbacks:
                self.trainer.callbacks.remove(callback)
        return metrics

    def loss(self, supernet: nn.Module, batch) -> Tensor:
        """The loss of a batch that the evaluator's training step returns: what α learns from, without zero-one loss."""
        owner = self.module.training_module
        with _silent(owner):
            return loss_of(owner.training_step(transferred(self.evaluator, batch), 0))


@contextmanager
def _silent(owner: pl.LightningModule):
    """What the module logs inside goes nowhere."""
    kept = vars(owner).get("log")
    owner.log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if kept is None:
            del owner.log
        else:
            owner.log = kept


def supernet_of(folder: Path) -> Searched:
    """Rebuild the supernet of the search in ``folder``, weights and α of its last checkpoint.

    Raises InputError where there is no run, no whole checkpoint, or the space and its data are not what they were.
    """
    folder = Path(folder)
    config = run_of(folder)
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{folder / 'checkpoints'} has no checkpoint; give the folder of a search that has saved one")
    parts = check_search(config)
    prepare(config)
    space = make_space(config, parts.images)
    if parts.evaluator is None:
        weights_loader, alpha_loader, validation = parts.loaders
        trainer = Trainer(
            max_epochs=config.search.epochs,
            accelerator="gpu" if config.device == "cuda" else config.device,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        training = training_of(parts.images, config.search)
        evaluator = Lightning(training, trainer, train_dataloaders=weights_loader, val_dataloaders=alpha_loader)
    else:
        evaluator, trainer = parts.evaluator, parts.evaluator.trainer
        validation = validation_batches(evaluator)
    strategy = build(config.search, config.metric)
    strategy.validation_dataloaders = validation
    model = strategy.mutate_model(space)
    module = strategy.mutate_evaluator(evaluator).module
    module.set_model(model)
    try:
        content = read(checkpoint)
        module.restore_supernet(content)
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:  # torch lists every name
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{checkpoint} is of another supernet than {folder / 'config.yaml'} says: {reason}") from error
    return Searched(module, evaluator, trainer, validation, config)


def analyse(folder: Path, gap_batches: int | None = None, hessian_batches: int = 0, progress: bool = True) -> dict:
    """Numbers about the search in ``folder``, as JSON values: a record's, and those of the supernet it ended with.

    "epochs"; {label: [per epoch]} of "dominant_skips" and "entropy" (see ``nni_fairdarts.analysis``); "accuracy", the
    run's "metric" of a validation; "discretization_gap", with batch norms from ``gap_batches`` batches (by default the
    run's; 0 leaves it out); "curvature" of the validation loss in α over ``hessian_batches`` batches of the validation
    (0 leaves it out: it takes up to 300 products, each of a few steps' time). Both are None for strategies that have
    none. The gap is that of the history but for the batches that are drawn for its batch norms. Nothing is written,
    and random states are afterwards as they were. Raises InputError as ``supernet_of`` and ``read_recorded`` do.
    """
    for name, batches in (("gap_batches", gap_batches or 0), ("hessian_batches", hessian_batches)):
        if batches < 0:
            raise InputError(f"{name} must be 0 (none) or a number of batches, got {batches}")
    recorded = read_recorded(folder)
    result = {
        "run": str(folder),
        "strategy": recorded.strategy,
        "epochs": recorded.epochs.tolist(),
        "dominant_skips": {label: counts.tolist() for label, counts in dominant_by_epoch(recorded).items()},
        "entropy": {label: values.tolist() for label, values in entropy_by_epoch(recorded).items()},
    }
    with same_random_numbers():
        searched = supernet_of(folder)
        config = searched.config
        count = config.search.gap_batches if gap_batches is None else gap_batches
        gap = None
        if count and recorded.labels:
            gap = _Gap(DiscretizationGap(searched.evaluator, count, config.metric, searched.validation))
        metrics = searched.validated(*([] if gap is None else [gap]))
        result["metric"] = config.metric
        result["accuracy"] = metrics.get(config.metric)
        result["discretization_gap"] = None if gap is None else gap.value
        curvature = None
        if hessian_batches and config.search.strategy not in SAMPLING:
            curvature = loss_curvature(
                searched.supernet, searched.validation, searched.loss, count=hessian_batches, progress=progress
            ).to_json()
        result["curvature"] = curvature
    return result


def analysis_table(result: dict) -> str:
    """What ``analyse`` has returned, as a table of epochs and a line for each number of the supernet."""
    kinds = {"skips": result["dominant_skips"], "entropy": result["entropy"]}
    columns = {f"{label} {name}": values for name, found in kinds.items() for label, values in found.items()}
    head = ["epoch", *columns]
    rows = [
        [str(epoch), *(_short(values[i]) for values in columns.values())] for i, epoch in enumerate(result["epochs"])
    ]
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines = lines if columns else []
    metric = result.get("metric")
    if result["accuracy"] is not None:
        name = f"supernet {word(metric)}"
        lines.append(f"{name:<18}  {written(result['accuracy'], metric)} (validation)")
    if result["discretization_gap"] is not None:
        gap = written(result["discretization_gap"], metric)
        lines.append(f"discretisation gap  {gap} (lost when gates are rounded)")
    if curvature := result["curvature"]:
        rest = "" if curvature["converged"] else "; it has not settled"
        lines.append(
            f"curvature in α      {curvature['largest']:.4g} ± {curvature['residual']:.1g} (largest eigenvalue, of "
            f"{curvature['products']} products{rest})"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


class _Gap(pl.Callback):
    """Measures the gap behind a validation, while the one-shot module is still at work."""

    def __init__(self, measure: DiscretizationGap):
        self.measure = measure
        self.value: float | None = None

    def on_validation_end(self, trainer, pl_module):
        self.value = self.measure(pl_module).get("discretization_gap")
