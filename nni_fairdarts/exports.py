"""What a search hands to NNI: the one model that it derives."""

import weakref

from nni.nas.space import ModelStatus, RawFormatModelSpace
from torch import nn

from nni_fairdarts.freezing import freeze
from nni_fairdarts.guests import training_batches, transferred
from nni_fairdarts.inheritance import inherit, reestimate_batch_norm


class DerivedModelSpace(RawFormatModelSpace):
    """One frozen model of NNI's kind whose ``sample`` may keep more, or less, than NNI's can say.

    ``supernet``: where its weights come from, fresh ones without it; with ``candidate_norm`` "paper" it keeps the batch
    norms behind poolings too. ``reestimate_batches``: of the evaluator's training loader, for its batch norms.
    """

    def __init__(
        self,
        model_space,
        evaluator,
        sample,
        style="fairdarts",
        supernet=None,
        candidate_norm="space",
        reestimate_batches=0,
    ):
        super().__init__(model_space, evaluator)
        self.sample = sample
        self.style = style
        self.supernet = supernet
        self.candidate_norm = candidate_norm
        self.reestimate_batches = reestimate_batches
        self.status = ModelStatus.Frozen
        self._model: weakref.ReferenceType | None = None

    def executable_model(self) -> nn.Module:
        """The derived network; the same object as long as somebody holds it."""
        model = self._model() if self._model is not None else None
        if model is None:
            norm = "space" if self.supernet is None else self.candidate_norm
            model = freeze(self.model_space, self.sample, self.style, norm)
            if self.supernet is not None:
                inherit(model, self.supernet, self.sample)
                if self.reestimate_batches:
                    batches, forward = training_batches(self.evaluator), _training_forward(self.evaluator)
                    reestimate_batch_norm(model, batches, self.reestimate_batches, forward)
            self._model = weakref.ref(model)
        return model


def _training_forward(evaluator):
    """Feeds a batch to a network as a training step of the evaluator does, transfer hooks included; logs nothing."""
    module = evaluator.module

    def forward(network, batch):
        batch = transferred(evaluator, batch)
        model = module.model
        module.set_model(network)
        module.log = lambda *args, **kwargs: None
        try:
            module.training_step(batch, 0)
        finally:
            del module.log
            module.set_model(model)

    return forward
