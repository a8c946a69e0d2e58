"""The bilevel step of a search, its validation and its history."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from nni_fairdarts.alpha_gradients import GRADIENTS, check_optimizer, frozen
from nni_fairdarts.checkpoints import Checkpoints
from nni_fairdarts.discretize import decided_share, open_gates
from nni_fairdarts.distributed import average_gradients, average_statistics, batch_norms, by_hand
from nni_fairdarts.early import EarlyStopping
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import LOSSES, dirichlet_divergence, flat
from nni_fairdarts.graphs import GraphedNetwork, check_graphable
from nni_fairdarts.guests import EvaluatorHooks, loss_of
from nni_fairdarts.penalty import ResourcePenalty
from nni_fairdarts.recording import RecordsEpochs
from nni_fairdarts.scaling import scaler_of
from nni_fairdarts.staged import InStages
from nni_fairdarts.stages import Stage, first_epochs
from nni_fairdarts.supernet import Choice, alphas_of, choices_of
from nni_fairdarts.supernet.fused import check_norms, is_fused, twice_differentiable
from nni_fairdarts.supernet.moving import Disturbance, Moving

FUSED_KEY = "fairdarts_fused"
"""Under this key a checkpoint has whether the supernet's cells were fused."""

TRAIL_KEY = "fairdarts_trail"
"""Under this key a checkpoint has the records and the α of the epochs so far, where early stopping needs them."""

SETTINGS_KEY = "fairdarts_settings"
"""Under this key a checkpoint has the settings of the search."""

EARLIER = {
    "alpha_gradient": "first",
    "relaxation": "sigmoid",
    "alpha_spread": 0.0,
    "partial_channels": 1,
    "edge_normalization": False,
    "divergence_weight": 0.0,
    "arc_gradient_clip_val": None,
    "stages": [],
    "first_epochs": [],
    "temperature": (1.0, 1.0),
    "disturbance": asdict(Disturbance()),
}
"""Settings that older checkpoints lack, and what they were then."""


class FairDartsModule(InStages, RecordsEpochs, EvaluatorHooks):
    """NNI's one-shot module with FairDARTS' losses, half of the gradients, a validation loop and a history.

    One step (Fair DARTS, arXiv 1911.12126): (1) α by Adam on a batch of ``val``: loss of the evaluator + w01 · zero-one
    loss; (2) the weights by the evaluator's optimizer on a batch of ``train``, their gradient norm clipped.
    ``alpha_gradient``: of which order α's is, see ``nni_fairdarts.alpha_gradients``. ``single_level``: one batch of
    ``train`` and one backward pass update both. ``stages`` and ``build``: see ``InStages``.
    """

    def __init__(
        self,
        training_module,
        *,
        arc_learning_rate: float,
        arc_betas: tuple[float, float],
        arc_weight_decay: float,
        zero_one_weight: float,
        zero_one_loss: str,
        threshold: float,
        single_level: bool,
        alpha_gradient: str = "first",
        divergence_weight: float = 0.0,
        moving: Moving | None = None,
        early_stopping: EarlyStopping | None = None,
        strength: Callable[["FairDartsModule"], dict] | None = None,
        sharpness: Callable[["FairDartsModule"], dict] | None = None,
        gradient_clip_val: float | None,
        arc_gradient_clip_val: float | None = None,
        log_prob_every_n_step: int,
        warmup_epochs: int,
        history: Path | None,
        penalty: ResourcePenalty | None = None,
        cuda_graphs: bool = False,
        checkpoints: Checkpoints | None = None,
        stages: tuple[Stage, ...] = (),
        build: Callable[[int, dict], nn.Module] | None = None,
        more_settings: Mapping = MappingProxyType({}),
    ):
        super().__init__(
            training_module,
            arc_learning_rate=arc_learning_rate,
            gradient_clip_val=gradient_clip_val,
            log_prob_every_n_step=log_prob_every_n_step,
            warmup_epochs=warmup_epochs,
        )
        self.stages = stages
        self.build = build
        self.arc_gradient_clip_val = arc_gradient_clip_val
        self.arc_betas = arc_betas
        self.arc_weight_decay = arc_weight_decay
        self.zero_one_weight = zero_one_weight
        self.zero_one_name = zero_one_loss
        self.zero_one_loss = LOSSES[zero_one_loss]
        self.threshold = threshold
        self.single_level = single_level
        self.alpha_gradient = alpha_gradient
        self.divergence_weight = divergence_weight
        self.moving = Moving() if moving is None else moving
        self.early_stopping = early_stopping
        self.strength = strength
        self.sharpness = sharpness
        self.derived_epoch: int | None = None  # of a search that was stopped early: whose architecture is derived
        self._trail: list[dict] = []  # of every epoch: its record and α
        self.history = history
        self.penalty = penalty
        self.cuda_graphs = cuda_graphs
        self.checkpoints = checkpoints
        self.more_settings = more_settings

    # -- parameters -------------------------------------------------------------------------------------------------

    def choices(self) -> dict[str, Choice]:
        """The choice of each label, in the order of the space; modules of one label share it."""
        choices: dict[str, Choice] = {}
        for module in self.supernet_modules():
            for choice in choices_of(module):
                choices.setdefault(choice.label, choice)
        return choices

    def arch_parameters(self) -> list[nn.Parameter]:
        return alphas_of(self)

    def skip_connections(self) -> dict[str, int]:
        """How many skip connections the discretisation would keep now, for each label that has operations."""
        skips: dict[str, int] = {}
        for module in self.supernet_modules():
            if hasattr(module, "skip_connections") and module.label not in skips:
                skips[module.label] = module.skip_connections()
        return skips

    def configure_architecture_optimizers(self):
        alphas = self.arch_parameters()
        if not alphas:
            raise InputError(
                "nothing to search: the space has no choice that became a gate; give it a LayerChoice, or use a hub "
                "space"
            )
        return torch.optim.Adam(
            alphas, self.arc_learning_rate, betas=self.arc_betas, weight_decay=self.arc_weight_decay
        )

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def settings(self) -> dict:
        """What a search may not go on with other values of."""
        names = ("arc_learning_rate", "arc_betas", "arc_weight_decay", "zero_one_weight", "threshold", "single_level")
        more = ("gradient_clip_val", "arc_gradient_clip_val", "warmup_epochs", "alpha_gradient", "divergence_weight")
        own = {name: getattr(self, name) for name in names + more}
        own["stages"] = [asdict(stage) for stage in self.stages]
        own["first_epochs"] = first_epochs(self.stages, self.trainer.max_epochs) if self.stages else []
        return {**own, "zero_one_loss": self.zero_one_name, **self.more_settings}

    def on_save_checkpoint(self, checkpoint):
        checkpoint[FUSED_KEY] = is_fused(self)
        checkpoint[SETTINGS_KEY] = self.settings()
        checkpoint[TRAIL_KEY] = self._trail
        return super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint):
        was, now = {**EARLIER, **checkpoint.get(SETTINGS_KEY, {})}, self.settings()
        if differing := [
            f"{name} ({was.get(name)!r}, now {now[name]!r})" for name in now if was.get(name) != now[name]
        ]:
            raise InputError(
                f"the checkpoint is of a search with other settings: {', '.join(differing)}; set them back to go on "
                "with it, or begin anew"
            )
        was, fused = checkpoint.get(FUSED_KEY, False), is_fused(self)
        if was != fused:
            raise InputError(
                f"the checkpoint is of a search with fused={was}, whose optimizer knows other tensors than one with "
                f"fused={fused}; go on with FairDARTS(fused={was}) (search.fused in a run's config.yaml)"
            )
        self._trail = checkpoint.get(TRAIL_KEY, [])
        return super().on_load_checkpoint(checkpoint)

    # -- training ---------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self):
        result = super().on_train_epoch_start()
        self.moving.begin_epoch(self.trainer.current_epoch, self.trainer.max_epochs or 0, self.place_in_stage())
        return result

    def on_fit_start(self):
        self.supernet_changed()
        self._judge()
        return super().on_fit_start()

    def supernet_changed(self) -> None:
        self._alphas = self.arch_parameters()
        known = set(self._alphas)
        self._weights = [p for p in self.parameters() if p not in known]
        self._choices = self.choices()
        if self.penalty is not None:
            self.penalty.cost(self.weights())  # raises for a profiler of another space
        check_norms(self.training_module.model)
        self._norms = batch_norms(self)
        if self.cuda_graphs:
            check_graphable(self.training_module, self.trainer, self.device)
        self._gradient = self._alpha_gradient()
        self._graphed = GraphedNetwork(self.training_module.model).step if self.cuda_graphs else nullcontext

    def on_fit_end(self):
        if self.derived_epoch is not None:
            (kept,) = (entry["alphas"] for entry in self._trail if entry["record"]["epoch"] == self.derived_epoch)
            with torch.no_grad():
                for alpha, value in zip(self._alphas, kept, strict=True):
                    alpha.copy_(value)
        if self.strength is not None:
            self.moving.ranked = self.strength(self)
        return super().on_fit_end()

    def record_made(self, record: dict) -> None:
        if self.early_stopping is not None:
            plain = json.loads(json.dumps(record))  # as a checkpoint, and the history, can keep it
            self._trail.append({"record": plain, "alphas": [alpha.detach().cpu().clone() for alpha in self._alphas]})
            self._judge()

    def _judge(self) -> None:
        """Stop if a rule says so: behind this epoch, or at once in a search gone on with that had been stopped."""
        found = self.early_stopping and self._trail and self.early_stopping.epoch([e["record"] for e in self._trail])
        if found:
            rule, self.derived_epoch = found
            self.trainer.should_stop = True
            self.print(f"stopped by the rule {rule!r}; the architecture is that of epoch {self.derived_epoch + 1}")

    def teardown(self, stage: str | None = None):
        self._graphed = nullcontext  # frees the graphs' memory
        return super().teardown(stage)

    def training_step(self, batch, batch_idx):
        warm = self.place_in_stage()[0] >= self.warmup_epochs
        with by_hand(self.trainer.strategy):
            if self.single_level:
                result = self._joint_step(batch["train"], batch_idx, warm)
            else:
                if warm:
                    self._alpha_step(batch, batch_idx)
                result = self._weight_step(batch["train"], batch_idx)
        average_statistics(self._norms)
        self._batches += 1
        self.advance_lr_schedulers(batch_idx)
        if self.log_prob_every_n_step and (batch_idx + 1) % self.log_prob_every_n_step == 0:
            self.log_probs(self.export_probs())
        return result

    def backward(self, loss, *args, **kwargs):
        super().backward(loss, *args, **kwargs)
        average_gradients([*self._alphas, *self._weights])

    def _alpha_gradient(self):
        learning = [p for p in self._weights if p.requires_grad]
        (optimizer,) = (o for o in self.trainer.optimizers if not getattr(o, "is_arch_optimizer", False))
        check_optimizer(optimizer, learning, self.alpha_gradient)
        if scaler_of(self.trainer) is not None and self.alpha_gradient != "first":
            raise InputError(
                f"alpha_gradient={self.alpha_gradient!r} puts gradients together that float16's scale multiplies "
                "otherwise than one backward pass; use precision bf16-mixed or 32-true, or 'first'"
            )
        kind = GRADIENTS[self.alpha_gradient]
        return kind(self._alphas, learning, self._norms, optimizer, self.manual_backward)

    def _alpha_step(self, batch, batch_idx: int) -> None:
        def arch_loss() -> Tensor:
            total = self.arch_loss(self._loss(batch["val"], 2 * batch_idx))
            self.note_loss("arch_loss", total, batch_idx)
            return total

        optimizer = self.architecture_optimizers()
        optimizer.zero_grad()
        self._gradient.step = self.trainer.global_step
        with twice_differentiable() if self.alpha_gradient == "exact" else nullcontext():
            self._gradient(arch_loss, lambda: self._loss(batch["train"], 2 * batch_idx))
        self._step_alpha(optimizer)

    def _step_alpha(self, optimizer) -> None:
        if self.arc_gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self._alphas, self.scaled(self.arc_gradient_clip_val))
        optimizer.step()

    def _loss(self, batch, number: int) -> Tensor:
        """The evaluator's loss of a batch."""
        with self._graphed():
            return loss_of(self.training_module.training_step(batch, number))

    def _weight_step(self, batch, batch_idx: int):
        with frozen(self._alphas):
            with self._graphed():
                result = self.training_module.training_step(batch, 2 * batch_idx + 1)
            loss = loss_of(result)
            self.note_loss("train_loss", loss, batch_idx)
            self.advance_optimization(loss, batch_idx, self.gradient_clip_val)
        return result

    def _joint_step(self, batch, batch_idx: int, warm: bool):
        if not warm:
            return self._weight_step(batch, batch_idx)
        optimizer = self.architecture_optimizers()
        optimizer.zero_grad()
        with self._graphed():
            result = self.training_module.training_step(batch, batch_idx)
        loss = loss_of(result)
        total = self.arch_loss(loss)
        self.note_loss("train_loss", loss, batch_idx)
        self.note_loss("arch_loss", total, batch_idx)
        with self.scale_kept():  # the gradients of both are of one backward pass
            self.advance_optimization(total, batch_idx, self.gradient_clip_val)
        self._step_alpha(optimizer)
        return result

    def arch_loss(self, loss: Tensor) -> Tensor:
        """What α descends: the evaluator's loss, with the resource penalty, + w01 · zero-one loss, + divergence."""
        if self.penalty is not None:
            loss, details = self.penalty.forward(loss, self.weights())
            self.log_dict({f"penalty/{name}": value for name, value in details.items()})
            self.note("expected_cost", details["penalty"])
        total = loss + self.zero_one_weight * self.zero_one()
        if self.divergence_weight:
            total = total + self.divergence_weight * sum(
                dirichlet_divergence(c.competing()) for c in self._choices.values()
            )
        return total

    def weights(self) -> dict[str, tuple[tuple, Tensor]]:
        """{label, or edge of a cell: (operations, their gates)}, with gradient."""
        return {name: row for choice in self._choices.values() for name, row in choice.weights().items()}

    def zero_one(self) -> Tensor:
        """Zero-one loss over the gates of all labels together; zero where no gate is left to it."""
        if not self._choices:  # every choice went to hooks of the user's
            return torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # in α's own precision, whatever the network's
            return self.zero_one_loss(flat(choice.present() for choice in self._choices.values()))

    # -- history ----------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self):
        self.advance_plateaus()  # the validation is over
        result = super().on_train_epoch_end()
        self.log_probs(self.export_probs())
        return result

    def epoch_record(self) -> dict:
        record = super().epoch_record()
        return record if self.sharpness is None else {**record, **self.sharpness(self)}

    def loss_record(self) -> dict:
        zero_one = {}
        if self.zero_one_weight:
            with torch.no_grad():
                zero_one["zero_one_loss"] = float(self.zero_one())
        cost = {} if self.penalty is None else {"expected_cost": self.mean("expected_cost")}
        return {**super().loss_record(), "arch_loss": self.mean("arch_loss"), **zero_one, **cost}

    def gate_record(self) -> dict:
        with torch.no_grad():
            everything = flat(c.present() for c in self._choices.values()).tolist() if self._choices else []
        return {
            "decided_gates": decided_share(everything) if everything else None,
            "open_gates": open_gates(everything, self.threshold),
            "gates_total": len(everything),
            "skip_connections": self.skip_connections(),
            "operations": {label: list(choice.operations) for label, choice in self._choices.items()},
            "gates": {label: choice.values() for label, choice in self._choices.items()},
        }

    def rounded_alphas(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        return ((choice.alpha, choice.rounded()) for choice in self.choices().values())
