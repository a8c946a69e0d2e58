"""The gated counterparts of NNI's ``Repeat`` and of the hub's stages."""

from nni.nas.hub.pytorch.nasnet import NDSStage, NDSStageDifferentiable
from nni.nas.nn.pytorch import Repeat

from nni_fairdarts._nni import BaseSuperNetModule
from nni_fairdarts.errors import InputError
from nni_fairdarts.supernet.gated import OPTIONS_KEY, gated_sum
from nni_fairdarts.supernet.values import ValueWeights


class GatedRepeat(Repeat, BaseSuperNetModule):
    """Σ_d p_d · x_d, with x_d what comes out of the first d blocks (x_0 what goes in) and p_d the depth's weight.

    A network has one depth, so the weights are one of many: see ``nni_fairdarts.gates.one_of_many``.
    """

    def __init__(self, module: Repeat, value_weights: ValueWeights):
        super().__init__(list(module.blocks), module.depth_choice)
        self.value_weights = value_weights

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: a ``Repeat`` with a choice of depth becomes a ``GatedRepeat``."""
        if type(module) is not Repeat or isinstance(module.depth_choice, int):
            return None
        return cls(module, ValueWeights([module.depth_choice], memo, mutate_kwargs[OPTIONS_KEY], f"Repeat {name!r}"))

    def forward(self, x):
        """Takes and returns what the blocks do: a tensor, or a list, tuple or dict of tensors of the same shapes."""
        depths, states = self.value_weights.values(self.depth_choice), []
        for depth in range(self.max_depth + 1):
            if depth:
                x = self.blocks[depth - 1](x)
            if depth in depths:
                states.append(self.align(x, depth))
        return gated_sum("/".join(self.value_weights.labels), states, self.value_weights.of(self.depth_choice))

    def align(self, state, depth: int):
        """What a state must look like to be summed with those of other depths."""
        return state

    def resample(self, memo):
        return {}

    def export(self, memo):
        return self.value_weights.export(memo)

    def export_probs(self, memo):
        return self.value_weights.export_probs(memo)


class GatedStage(GatedRepeat):
    """A hub stage of cells (state: the outputs of the last two cells) with a choice of depth.

    The first cell hands on an output of the stage before; NNI's stage says how that gets the shape of this one's.
    """

    def __init__(self, module: NDSStage, value_weights: ValueWeights):
        super().__init__(module, value_weights)
        self.first_cell_transformation = module.first_cell_transformation_factory()

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: a stage with a choice of depth becomes a ``GatedStage``."""
        if not isinstance(module, NDSStage) or isinstance(module.depth_choice, int):
            return None
        options = mutate_kwargs[OPTIONS_KEY]
        if module.min_depth < 1:
            raise InputError(
                f"{name}: a depth of the space leaves a stage without cells, which NNI cannot build; every num_cells "
                "must be 3 or more"
            )
        stage = cls(module, ValueWeights([module.depth_choice], memo, options, f"stage {name!r}"))
        if stage.first_cell_transformation is not None:
            stage.first_cell_transformation.to(options.like)
        return stage

    def align(self, state, depth):
        # With one cell at most the next stage was built for what that cell hands on.
        if depth > 1 or self.max_depth == 1 or self.first_cell_transformation is None:
            return state
        before_last, last = state
        return [self.first_cell_transformation(before_last), last]


REPLACED = {NDSStageDifferentiable: GatedStage}
"""NNI's own hooks, which hub spaces add by themselves and NNI's documentation asks for, and ours in their place."""
