"""Random search: architectures drawn at random with so many skip connections, what a search has to be better than."""

from pathlib import Path

import nni.nas.strategy
from nni.nas.hub.pytorch.nasnet import NDS

from nni_fairdarts.errors import InputError
from nni_fairdarts.going_on import GoesOn
from nni_fairdarts.mended.recorded import Watched
from nni_fairdarts.mended.repairs import SKIP, DrawnOnce, ExactSkips, SeededSampling
from nni_fairdarts.requirements import check_number


class RandomSearch(Watched, GoesOn, nni.nas.strategy.RandomOneShot):
    """Random search with exactly so many skip connections: Fair DARTS (arXiv 1911.12126) finds that M = 2 does well.

    The derived architecture is drawn with torch's generator, uniformly among those whose normal cell has as many skip
    connections and in which no node takes an input twice: the same seed draws the same one. The supernet, in which each
    step trains such an architecture, is there for the record alone: nothing of it is asked when one is drawn.

    Parameters
    ----------
    skips
        M, of the normal cell of a space of NNI's hub, 0 or more; None draws from any space whatever comes.
    mutation_hooks
        NNI's, for choices of your own kind.
    validation_dataloaders, history, checkpoints, checkpoint_steps
        As those of ``nni_fairdarts.strategy.GatedSearch``.

    Raises
    ------
    InputError
        For values outside these ranges and, before anything is trained, for a space without such architectures.
    """

    def __init__(
        self,
        skips: int | None = 2,
        *,
        mutation_hooks: list | None = None,
        validation_dataloaders=None,
        history: str | Path | None = None,
        checkpoints: str | Path | None = None,
        checkpoint_steps: int = 0,
    ):
        if skips is not None:
            check_number("skips", skips, "0 or more, or None for any number", lambda v: v >= 0, whole=True)
        check_number("checkpoint_steps", checkpoint_steps, "0 or more", lambda v: v >= 0, whole=True)
        super().__init__(mutation_hooks=mutation_hooks)
        self.skips = skips
        self.validation_dataloaders = validation_dataloaders
        self.history = None if history is None else Path(history)
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        self.checkpoint_steps = checkpoint_steps
        drawing = SeededSampling if skips is None else type("ExactSkips", (ExactSkips,), {"skips": skips})
        self.repairs = (DrawnOnce, drawing)

    def extra_repr(self) -> str:
        return f"skips={self.skips}"

    def check_space(self, space) -> None:
        """Raise InputError for a model space in which no normal cell has ``skips`` skip connections."""
        if self.skips is None:
            return
        slots = [choice.values for label, choice in space.simplify().items() if label.startswith("normal/op_")]
        if not slots or not isinstance(space, NDS):
            raise InputError(
                f"random search with {self.skips} skip connections counts those of a normal cell, but "
                f"{type(space).__name__} has no cells of NNI's hub; take a space such as nni.nas.hub.pytorch.DARTS, or "
                "any number of them: RandomSearch(skips=None), search.strategy: random"
            )
        operations = slots[0]
        least = 0 if set(operations) - {SKIP} else len(slots)
        most = len(slots) if SKIP in operations else 0
        if not least <= self.skips <= most:
            raise InputError(
                f"random search with {self.skips} skip connections cannot draw a normal cell: {type(space).__name__} "
                f"has {len(slots)} operations in it, each one of {', '.join(operations)}; take another number, or a "
                f"space with {SKIP} and other operations"
            )

    def mutate_evaluator(self, evaluator):
        if getattr(evaluator, "trainer", None) is not None and evaluator.trainer.world_size > 1:
            raise InputError(
                f"random search runs in one process, for it learns nothing that several would share, but the trainer "
                f"has {evaluator.trainer.world_size}; use devices=1"
            )
        return super().mutate_evaluator(evaluator)

    def mutate_model(self, model):
        self.check_space(model)
        return super().mutate_model(model)

    def configure_oneshot_module(self, training_module):
        module = super().configure_oneshot_module(training_module)
        module.checkpoints = self._own_checkpoints
        return module
