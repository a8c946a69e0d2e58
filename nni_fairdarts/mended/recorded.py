"""What NNI's one-shot strategies and their modules lack beside FairDARTS: a validation, records, an order of α."""

from collections.abc import Iterator
from pathlib import Path

import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.nn.pytorch import InputChoice, LayerChoice
from nni.nas.strategy import GumbelDARTS, RandomOneShot
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn

from nni_fairdarts.checkpoints import checkpoints_of
from nni_fairdarts.discretize import decided_share, open_gates
from nni_fairdarts.errors import InputError
from nni_fairdarts.guests import ForwardedHooks, search_data, wrap_transfers
from nni_fairdarts.randomness import SeededLoaders
from nni_fairdarts.recording import RecordsEpochs
from nni_fairdarts.requirements import check_module, check_trainer
from nni_fairdarts.scaling import unscaled
from nni_fairdarts.supernet import alphas_of
from nni_fairdarts.supernet.gated import DECIDED


class RecordsNNI(RecordsEpochs, ForwardedHooks):
    """What NNI's one-shot modules lack of ``FairDartsModule``: a validation, records, α in an order.

    Strategies that sample a network for each step (proxyless, enas, random) sample one for each validation batch too.
    The gates of DARTS' family are the shares of its softmax, without the noise of gumbel_darts.
    """

    threshold: float = 0.85

    def arch_parameters(self) -> list[nn.Parameter]:
        return alphas_of(self)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, *args, **kwargs):
        learns = self._alphas() and self.trainer.current_epoch >= self.warmup_epochs
        self._due = ["arch_loss", "train_loss"] if learns else ["train_loss"]
        return super().training_step(*args, **kwargs)

    def on_before_backward(self, loss: Tensor):
        name = self._due.pop(0)  # NNI goes backwards from α's loss first
        self.note_loss(name, unscaled(loss, self.trainer), self.trainer.fit_loop.epoch_loop.batch_idx)
        self._batches += name == "train_loss"
        return super().on_before_backward(loss)

    # -- validation: NNI has none but of random -----------------------------------------------------------------------

    def validation_step(self, *args, **kwargs):
        self.resample()
        return self.training_module.validation_step(*args, **kwargs)

    def on_train_epoch_end(self):
        self.advance_plateaus()
        result = super().on_train_epoch_end()
        self.log_probs(self.shares())  # NNI logs them at some steps, which Lightning's loggers may pass over
        return result

    # -- record -------------------------------------------------------------------------------------------------------

    def loss_record(self) -> dict:
        arch_loss = {"arch_loss": self.mean("arch_loss")} if self._alphas() else {}
        return {**super().loss_record(), **arch_loss}

    def gate_record(self) -> dict:
        operations, gates = {}, {}
        for label, shares in self.shares().items():
            names, shares = list(shares), list(shares.values())
            kind, _, edge = label.rpartition("/")
            if kind and edge.replace("_", "").isdigit():  # an edge of a cell, like normal/2_0
                operations[kind] = names
                gates.setdefault(kind, []).append(shares)
            else:
                operations[label], gates[label] = names, shares
        everything = list(_flat(list(gates.values())))
        if not everything:
            return {}
        return {
            "decided_gates": decided_share(everything),
            "open_gates": open_gates(everything, self.threshold),
            "gates_total": len(everything),
            "skip_connections": self.skip_connections(),
            "operations": operations,
            "gates": gates,
        }

    def shares(self) -> dict[str, dict]:
        """{label, or edge of a cell: {what a gate stands for: its share of the softmax}}."""
        shares = {}
        for label, (names, alpha) in self._alphas().items():
            with torch.no_grad():  # a cell's last one is "none", which is never chosen
                shares[label] = dict(zip(names, alpha.softmax(-1).tolist(), strict=False))
        return shares

    def skip_connections(self) -> dict[str, int]:
        """How many skip connections the export would keep now: of each kind of cell, and of each choice of layers."""
        skips: dict[str, int] = {}
        sample = self.export()
        for module in self.supernet_modules():
            if isinstance(module, LayerChoice):
                chosen = sample[module.label]
                skips[module.label] = int(chosen == "skip_connect" or isinstance(module[chosen], nn.Identity))
            elif hasattr(module, "op_names"):  # a cell
                kept = [v for key, v in sample.items() if key.startswith(f"{module.label}/op_")]
                skips[module.label] = kept.count("skip_connect")
        return skips

    def rounded_alphas(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        chosen = {m.label: m.n_chosen or 1 for m in self.supernet_modules() if isinstance(m, InputChoice)}
        for label, (names, alpha) in self._alphas().items():
            rounded = torch.full_like(alpha, -DECIDED)
            rounded[alpha[: len(names)].topk(chosen.get(label, 1)).indices] = DECIDED
            yield alpha, rounded

    def _alphas(self) -> dict[str, tuple[list, nn.Parameter]]:
        """{label, or edge of a cell: (what its gates stand for, α)}; nothing of strategies without α."""
        found = {}
        for module in self.supernet_modules():
            alphas = getattr(module, "_arch_alpha", {})
            if isinstance(alphas, nn.Parameter):
                alphas = {module.label: alphas}
            for label, alpha in alphas.items():
                names = getattr(module, "op_names", None) or list(_candidates(module, label))
                found.setdefault(label, (list(names), alpha))
        return found


def _candidates(module, label: str) -> Iterator:
    """What the gates of a choice stand for: names of layers, numbers of inputs, values."""
    if isinstance(module, LayerChoice):
        return iter(module.names)
    return iter(module.simplify()[label].values)


def _flat(values) -> Iterator[float]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


class Watched:
    """Mixed into a one-shot strategy: the supernet is validated every epoch and each epoch's record is kept and told.

    ``history``, ``listener``, ``measure``: see ``RecordsEpochs``. ``validation_dataloaders``: what the supernet is
    validated on; None for the evaluator's ``val_dataloaders``. ``repairs``: further classes to mix into the module.
    """

    repairs: tuple[type, ...] = ()

    history: Path | None = None
    listener = None
    measure = None
    validation_dataloaders = None
    threshold = 0.85

    def configure_oneshot_module(self, training_module):
        module = super().configure_oneshot_module(training_module)
        if not isinstance(module, RecordsEpochs):
            # NNI names the class of its module in its strategies; there is no other place to put one's own.
            module.__class__ = type(f"Recorded{type(module).__name__}", (*self.repairs, RecordsNNI, type(module)), {})
            module.threshold = self.threshold
            wrap_transfers(module, training_module)
        module.history, module.listener, module.measure = self.history, self.listener, self.measure
        return module

    def mutate_model(self, model):
        try:
            return super().mutate_model(model)
        except TypeError as error:  # NNI's word for choices that its strategy does not have
            raise InputError(
                f"NNI's {type(self).__name__} cannot search this space: {error}; take another strategy, or a space "
                "without such choices"
            ) from error

    def mutate_evaluator(self, evaluator):
        if not isinstance(evaluator, Lightning):  # NNI says what it takes
            return super().mutate_evaluator(evaluator)
        self._checkpoints = checkpoints_of(evaluator.trainer)
        check_module(evaluator.module)
        if not isinstance(self, RandomOneShot):  # Lightning takes its steps
            check_trainer(evaluator.trainer, "search.gradient_clip_val={}", "search.gradient_clip_val=0")
        if isinstance(self, GumbelDARTS) and evaluator.trainer.max_epochs in (None, -1):
            raise InputError(
                "NNI's GumbelDARTS lowers its temperature up to the last epoch, but the evaluator's trainer has "
                f"max_epochs={evaluator.trainer.max_epochs}; give it a number of epochs"
            )
        with search_data(evaluator):
            return super().mutate_evaluator(evaluator)

    def train_dataloader(self, train_dataloader_fn, val_dataloader_fn):
        loaders = super().train_dataloader(train_dataloader_fn, val_dataloader_fn)
        if self._checkpoints is None or isinstance(loaders, CombinedLoader):  # enas brings a loader of its own
            return loaders
        return SeededLoaders(loaders, self._checkpoints.place)

    def val_dataloader(self, train_dataloader_fn, val_dataloader_fn):
        return val_dataloader_fn() if self.validation_dataloaders is None else self.validation_dataloaders
