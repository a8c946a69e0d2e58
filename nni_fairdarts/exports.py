"""What a search hands to NNI: the one model that it derives."""

import weakref

from nni.nas.space import ModelStatus, RawFormatModelSpace
from torch import nn

from nni_fairdarts.freezing import freeze
from nni_fairdarts.inheritance import inherit, reestimate_batch_norm


class DerivedModelSpace(RawFormatModelSpace):
    """One frozen model of NNI's kind whose ``sample`` may keep more, or less, than NNI's can say.

    ``supernet``: where its weights come from, fresh ones without it; ``reestimate_batches``: of the evaluator's
    training loader, for its batch norms.
    """

    def __init__(self, model_space, evaluator, sample, style="fairdarts", supernet=None, reestimate_batches=0):
        super().__init__(model_space, evaluator)
        self.sample = sample
        self.style = style
        self.supernet = supernet
        self.reestimate_batches = reestimate_batches
        self.status = ModelStatus.Frozen
        self._model: weakref.ReferenceType | None = None

    def executable_model(self) -> nn.Module:
        """The derived network; the same object as long as somebody holds it."""
        model = self._model() if self._model is not None else None
        if model is None:
            model = freeze(self.model_space, self.sample, self.style)
            if self.supernet is not None:
                inherit(model, self.supernet, self.sample)
                if self.reestimate_batches:
                    batches, forward = _training_batches(self.evaluator), _training_forward(self.evaluator.module)
                    reestimate_batch_norm(model, batches, self.reestimate_batches, forward)
            self._model = weakref.ref(model)
        return model


def _training_batches(evaluator):
    """The evaluator's training loader, or its data module's."""
    module = evaluator.datamodule
    return evaluator.train_dataloaders if module is None else module.train_dataloader()


def _training_forward(module):
    """Feeds a batch to a network as the evaluator's ``training_step`` does, whatever its batches are; logs nothing."""

    def forward(network, batch):
        model = module.model
        module.set_model(network)
        module.log = lambda *args, **kwargs: None
        try:
            module.training_step(batch, 0)
        finally:
            del module.log
            module.set_model(model)

    return forward
