"""The gated counterpart of NNI's ``InputChoice``."""

import torch
from nni.nas.nn.pytorch import InputChoice

from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.gated import OPTIONS_KEY, GatedModule, SupernetOptions, gated_sum, shared_alpha, strongest


class GatedInput(InputChoice, GatedModule):
    """Inputs scaled by their gates: Σ_i σ(α_i) · x_i, or with reduction "mean" that over Σ_i σ(α_i).

    With gates of 0 and 1 both are what NNI's frozen choice of the same inputs returns.
    """

    def __init__(self, module: InputChoice, alpha, options: SupernetOptions):
        super().__init__(module.n_candidates, module.n_chosen, module.reduction, label=module.label)
        self.alpha = alpha  # (n_candidates,)
        self.operations = tuple(range(module.n_candidates))
        self.options = options

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: an ``InputChoice`` becomes a ``GatedInput``; anything else stays."""
        if type(module) is not InputChoice:
            return None
        if module.reduction not in ("sum", "mean"):
            raise InputError(
                f"InputChoice {module.label!r} has reduction {module.reduction!r}, in which every input has a place "
                "of its own and no gate can weigh them; use reduction='sum' or 'mean'"
            )
        options: SupernetOptions = mutate_kwargs[OPTIONS_KEY]
        if options.relaxation.shared and module.n_chosen is None:
            raise InputError(
                f"InputChoice {module.label!r} keeps as many inputs as are open (n_chosen=None), but gates that share "
                "1 do not say how many; give n_chosen, or use the relaxation 'sigmoid'"
            )
        return cls(module, shared_alpha(memo, module.label, (module.n_candidates,), options), options)

    def forward(self, candidate_inputs):
        """Takes a list of ``n_candidates`` tensors, or lists, tuples and dicts of tensors, of the same shapes."""
        gates = self.drawn() if self.training else self.gates()
        if self.reduction == "mean":
            gates = gates / gates.sum().clamp_min(torch.finfo(gates.dtype).tiny)
        return gated_sum(self.label, candidate_inputs, gates)

    def export(self, memo):
        """The ``n_chosen`` inputs with the largest gates or, where that is None or the export "multi", all whose gates
        reach the threshold."""
        if self.label in memo:
            return {}
        free = self.n_chosen is None or self.options.export == "multi"
        return {self.label: self.kept() if free else strongest(self.gate_values(), self.n_chosen)}

    def export_probs(self, memo):
        """Every input's gate."""
        return {} if self.label in memo else {self.label: dict(enumerate(self.gate_values()))}
