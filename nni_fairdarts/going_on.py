"""A one-shot strategy that keeps checkpoints of its own and goes on from them when NNI resumes its experiment."""

from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

from nni.nas.evaluator.pytorch import Lightning

from nni_fairdarts.checkpoints import Checkpoints, checkpoints_of, newest
from nni_fairdarts.history import beside_logs, forget_beginning
from nni_fairdarts.randomness import Place
from nni_fairdarts.stopping import stoppable


class GoesOn:
    """Mixed into a one-shot strategy of NNI's, before it.

    ``history``: the file; None for one beside Lightning's logs. ``checkpoints``: the folder; None for ``resume`` beside
    Lightning's logs. ``checkpoint_steps``: steps between two checkpoints within an epoch; 0 for none.
    """

    history: Path | None = None
    checkpoints: Path | None = None
    checkpoint_steps: int = 0
    _own_checkpoints: Checkpoints | None = None  # where the trainer brings none, as those of a run do

    def mutate_evaluator(self, evaluator):
        """NNI's, with the checkpoints that the trainer brings, else with new ones for the one-shot module to bring."""
        if isinstance(evaluator, Lightning):
            theirs = checkpoints_of(evaluator.trainer)
            if theirs is None:
                self._own_checkpoints = Checkpoints(Place(), self._folder(evaluator.trainer), self.checkpoint_steps)
            self._checkpoints = theirs or self._own_checkpoints
        return super().mutate_evaluator(evaluator)

    def _folder(self, trainer) -> Path | None:
        """Where checkpoints are kept; None where the trainer is to save none."""
        if self.checkpoints is not None or not trainer.checkpoint_callbacks:
            return self.checkpoints
        if (logs := beside_logs(trainer)) is not None:
            return logs.parent / "resume"
        theirs = getattr(trainer.checkpoint_callback, "dirpath", None)
        # A name of its own: other searches may save in the same place.
        return Path(theirs or trainer.default_root_dir) / f"resume-{uuid4().hex[:8]}"

    def _run(self) -> None:
        with stoppable() if self._checkpoints.folder else nullcontext():
            super()._run()

    def state_dict(self) -> dict:
        """What NNI keeps of the experiment, already when it starts: where checkpoints and history will be."""
        state, trainer = super().state_dict(), self._mutated_model_space.evaluator.trainer
        if self._checkpoints.folder is not None:
            history = self.history or beside_logs(trainer)
            state["checkpoints"] = str(self._checkpoints.folder.absolute())
            state["history"] = None if history is None else str(history.absolute())
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from the newest whole checkpoint, whether NNI has heard of it or not, in the same places."""
        if "checkpoints" in state_dict:
            folder = self._checkpoints.folder = Path(state_dict["checkpoints"])
            if self.history is None and state_dict["history"] is not None:
                self.oneshot_module.history = Path(state_dict["history"])
            if (checkpoint := newest(folder)) is not None:
                state_dict = {**state_dict, "ckpt_path": str(checkpoint)}
            elif self.oneshot_module.history is not None:
                forget_beginning(self.oneshot_module.history, folder)
        super().load_state_dict(state_dict)
