"""The gated counterpart of NNI's ``LayerChoice``."""

import warnings

from nni.nas.nn.pytorch import LayerChoice
from torch import nn

from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.gated import OPTIONS_KEY, GatedModule, SupernetOptions, gated_sum, shared_alpha, strongest
from nni_fairdarts.supernet.moving import disturbed
from nni_fairdarts.supernet.norm import drop_scales, is_zero, normalize_pooling


class GatedLayer(LayerChoice, GatedModule):
    """Sum over the candidates of gate times output: Σ_o σ(α_o) · o(x). Fair DARTS, arXiv 1911.12126.

    A candidate "none" (NNI's ``Zero``, or one of that name without weights) has no gate: nothing would depend on it.
    It is what the choice exports when no gate reaches the threshold or, where the candidates share 1, when "none" has
    the largest share.
    """

    def __init__(self, candidates, alpha: nn.Parameter, options: SupernetOptions, label: str):
        super().__init__(candidates, label=label)
        self.alpha = alpha  # (operations,)
        self.gated_names = gated_names(self)
        self.operations = tuple(str(name) for name in self.gated_names)
        self.zeros = [name for name in self.names if name not in self.gated_names]
        self.options = options
        self.together = None  # what computes all candidates at once, see ``nni_fairdarts.supernet.fused``

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: a ``LayerChoice`` becomes a ``GatedLayer``; anything else stays."""
        if type(module) is not LayerChoice:
            return None
        if taken := [name for name in map(str, module.names) if is_taken(name)]:
            raise InputError(
                f"LayerChoice {module.label!r} has a candidate named {taken[0]!r}, which is taken; give it another name"
            )
        options: SupernetOptions = mutate_kwargs[OPTIONS_KEY]
        candidates = module.candidates
        if options.candidate_norm != "space":
            for candidate in module:
                drop_scales(candidate)
        if options.candidate_norm == "paper":
            normal = normalize_pooling({n: module[n] for n in module.names}, (), f"LayerChoice {module.label!r}")
            normal = {name: candidate.to(options.like) for name, candidate in normal.items()}
            candidates = normal if isinstance(candidates, dict) else list(normal.values())
        moving = options.moving
        if isinstance(candidates, dict):
            candidates = {name: disturbed(candidate, moving) for name, candidate in candidates.items()}
        else:
            candidates = [disturbed(candidate, moving) for candidate in candidates]
        gated = gated_names(module)
        if not gated:
            raise InputError(f"LayerChoice {module.label!r} has only zero operations; give it one that does something")
        none = options.relaxation.none and len(gated) < len(module.names)
        return cls(candidates, shared_alpha(memo, module.label, (len(gated) + none,), options), options, module.label)

    def forward(self, *args, **kwargs):
        """Takes what each candidate takes; tensors, or lists, tuples and dicts of tensors, are summed."""
        if self.together is not None and not kwargs and len(args) == 1 and self.together.takes(args[0]):
            return self.together(args[0], self.scales())
        outputs = [self.run(self[name], *args, **kwargs) for name in self.gated_names]
        return gated_sum(self.label, outputs, self.scales())

    def export(self, memo):
        """The candidate with the largest gate, the earlier one of equals, as NNI's sample.

        With export "multi" the list of those whose gates reach the threshold, for ``nni_fairdarts.freeze``.
        """
        if self.label in memo:
            return {}
        chosen = self.chosen_names()
        return {self.label: chosen if self.options.export == "multi" else chosen[0]}

    def export_probs(self, memo):
        """Every candidate's gate."""
        if self.label in memo:
            return {}
        return {self.label: dict(zip(self.gated_names, self.gate_values(), strict=True))}

    def skip_connections(self) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it is the export that says so
            chosen = self.chosen_names()
        return sum(name == "skip_connect" or isinstance(self[name], nn.Identity) for name in chosen)

    def chosen_names(self) -> list:
        """What the export keeps now, at least one candidate."""
        gates = self.gate_values()
        none = 1 - sum(gates) if self.options.relaxation.shared else self.options.discretization.threshold
        if self.zeros and max(gates) < none:
            return self.zeros[:1]
        places = self.kept() if self.options.export == "multi" else strongest(self.gate_values())
        return [self.gated_names[place] for place in places]


def is_taken(name: str) -> bool:
    """Whether a candidate, which is an attribute of its choice, would hide one that a module here needs."""
    own = ("alpha", "gated_names", "operations", "options", "together", "zeros")
    return name in own or (hasattr(GatedLayer, name) or hasattr(nn.ModuleDict, name)) and not hasattr(LayerChoice, name)


def gated_names(choice: LayerChoice) -> list:
    """The names of a choice's candidates that can put out anything but zeros, in its order."""
    return [name for name in choice.names if not is_zero(name, choice[name])]
