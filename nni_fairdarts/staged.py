"""A search in stages: at the first epoch of each one its supernet takes the place of the one before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from nni_fairdarts.distributed import same_in_all
from nni_fairdarts.stages import Stage, first_epochs
from nni_fairdarts.supernet.carrying import carry, carry_optimizer

STAGE_KEY = "fairdarts_stage"
"""Under this key a checkpoint has the stage that it was saved in, and what its edges still have."""


class InStages:
    """Mixed into a one-shot module: supernets that follow each other within one training.

    ``stages``: none for a search with one supernet; ``build(number of the stage, what edges still have)`` makes the
    supernet of one. ``stage`` is the number of the present one, from 0. Callbacks that are asked before the module, in
    ``on_train_epoch_start``, still see the stage before.
    """

    stages: tuple[Stage, ...] = ()
    build: Callable[[int, dict[str, Tensor]], nn.Module] | None = None
    stage = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._left: dict[str, Tensor] = {}

    def supernet_changed(self) -> None:
        """What is to be done behind a change of the supernet and its optimizers."""

    def place_in_stage(self) -> tuple[int, int]:
        """(the present epoch, counted from the first one of its stage; how many the stage has)."""
        epoch, epochs = self.trainer.current_epoch, self.trainer.max_epochs
        if not self.stages:
            return epoch, epochs or 0
        firsts = first_epochs(self.stages, epochs)
        return epoch - firsts[self.stage], firsts[self.stage + 1] - firsts[self.stage]

    def on_train_epoch_start(self):
        if self.stages:
            firsts = first_epochs(self.stages, self.trainer.max_epochs)
            while self.trainer.current_epoch >= firsts[self.stage + 1]:
                self._next_stage()
        return super().on_train_epoch_start()

    def _next_stage(self) -> None:
        self.stage += 1
        stage, trainer = self.stages[self.stage], self.trainer
        for label, choice in self.choices().items():
            if stage.operations is not None and choice.rows and stage.operations < choice.competing().shape[-1]:
                self._left[str(label)] = choice.strongest(stage.operations).cpu()
        old, optimizers, schedules = self.training_module.model, trainer.optimizers, trainer.lr_scheduler_configs
        new = trainer.precision_plugin.convert_module(self.build(self.stage, self._left).to(self.device))
        if stage.keep:
            carry(old, new)
        same_in_all(new)
        self.set_model(new)
        trainer.strategy.setup_optimizers(trainer)
        if stage.keep:
            for before, after in zip(optimizers, trainer.optimizers, strict=True):
                carry_optimizer(old, before, new, after)
            for before, after in zip(schedules, trainer.lr_scheduler_configs, strict=True):
                after.scheduler.load_state_dict(before.scheduler.state_dict())
        self.count_steps()
        self.supernet_changed()
        left = {row.shape[-1] for row in self._left.values()}
        fewer = f", {', '.join(map(str, sorted(left)))} operations left on each edge" if left else ""
        self.print(f"stage {self.stage + 1} of {len(self.stages)}{fewer}")

    # -- schedules ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self):
        with self._epochs_of_schedule():
            return super().configure_optimizers()

    @contextmanager
    def _epochs_of_schedule(self) -> Iterator[None]:
        """Inside, the trainer's ``max_epochs`` are those of the stages that share the present one's schedules."""
        if not self.stages:
            yield
            return
        firsts, loop = first_epochs(self.stages, self.trainer.max_epochs), self.trainer.fit_loop
        fresh = [i for i, stage in enumerate(self.stages) if i == 0 or not stage.keep]
        begin = max(i for i in fresh if i <= self.stage)
        end = min((i for i in fresh if i > self.stage), default=len(self.stages))
        whole, loop.max_epochs = loop.max_epochs, firsts[end] - firsts[begin]
        try:
            yield
        finally:
            loop.max_epochs = whole

    # -- checkpoints and records --------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint):
        if self.stages:
            checkpoint[STAGE_KEY] = {"stage": self.stage, "left": self._left}
        return super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint):
        self.restore_supernet(checkpoint)
        with self._epochs_of_schedule():
            return super().on_load_checkpoint(checkpoint)

    def restore_supernet(self, checkpoint) -> None:
        """Build the supernet that a checkpoint is of, where it is not the first stage's."""
        state = checkpoint.get(STAGE_KEY, {"stage": 0})
        if state["stage"] > self.stage:
            self.stage, self._left = state["stage"], dict(state["left"])
            self.set_model(self.build(self.stage, self._left).to(self.device))

    def epoch_record(self) -> dict:
        record = super().epoch_record()
        return {**record, "stage": self.stage + 1} if self.stages else record
