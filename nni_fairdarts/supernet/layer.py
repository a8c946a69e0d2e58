"""The gated counterpart of NNI's ``LayerChoice``."""

from nni.nas.nn.pytorch import LayerChoice
from torch import nn

from nni_fairdarts._nni import weighted_sum
from nni_fairdarts.supernet.gated import OPTIONS_KEY, GatedModule, SupernetOptions, shared_alpha
from nni_fairdarts.supernet.norm import drop_scales, normalize_pooling


class GatedLayer(LayerChoice, GatedModule):
    """Sum over the candidates of gate times output: Σ_o σ(α_o) · o(x). Fair DARTS, arXiv 1911.12126."""

    def __init__(self, candidates, alpha: nn.Parameter, options: SupernetOptions, label: str):
        super().__init__(candidates, label=label)
        self.alpha = alpha  # (candidates,)
        self.operations = tuple(str(name) for name in self.names)
        self.options = options

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: a ``LayerChoice`` becomes a ``GatedLayer``; anything else stays."""
        if type(module) is not LayerChoice:
            return None
        options: SupernetOptions = mutate_kwargs[OPTIONS_KEY]
        candidates = module.candidates
        if options.candidate_norm == "paper":
            for candidate in module:
                drop_scales(candidate)
            normal = normalize_pooling({n: module[n] for n in module.names}, (), f"LayerChoice {module.label!r}")
            normal = {name: candidate.to(options.like) for name, candidate in normal.items()}
            candidates = normal if isinstance(candidates, dict) else list(normal.values())
        alpha = shared_alpha(memo, module.label, (len(module),), options)
        return cls(candidates, alpha, options, module.label)

    def forward(self, *args, **kwargs):
        """Takes what each candidate takes; tensors, or lists, tuples and dicts of tensors, are summed."""
        return weighted_sum([self[name](*args, **kwargs) for name in self.names], self.gates().unbind())

    def export(self, memo):
        """The candidate with the largest gate, the earlier one of equals, as NNI's sample."""
        if self.label in memo:
            return {}
        return {self.label: self.names[self._strongest()]}

    def export_probs(self, memo):
        """Every candidate's gate."""
        if self.label in memo:
            return {}
        return {self.label: dict(zip(self.names, self.gate_values(), strict=True))}

    def skip_connections(self) -> int:
        name = self.names[self._strongest()]
        return int(name == "skip_connect" or isinstance(self[name], nn.Identity))

    def _strongest(self) -> int:
        gates = self.gate_values()
        return gates.index(max(gates))
