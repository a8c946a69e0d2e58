"""NNI's DARTS space for any number of classes and input channels."""

from collections import Counter
from collections.abc import Sequence

from nni.nas.hub.pytorch import DARTS as HubDARTS
from nni.nas.space import model_context
from torch import nn

from nni_fairdarts.edges import OPERATIONS
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype


class DARTS(HubDARTS):
    """NNI's DARTS space with ``num_classes`` and ``in_channels``; its own has 3 channels and 10 or 1000 classes.

    ``operations``: the candidates on every edge, some of the paper's seven; None for all. The other arguments are
    NNI's; ``width`` and ``num_cells`` default to the published search's 16 and 8. Raises InputError for numbers below
    1 and for other operations. ``freeze`` keeps these three, which NNI's would reset.
    """

    def __init__(
        self,
        width=16,
        num_cells=8,
        dataset="cifar",
        auxiliary_loss: bool = False,
        drop_path_prob: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 3,
        operations: Sequence[str] | None = None,
    ):
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if operations is not None:
            if not operations or len(set(operations)) < len(operations) or not set(operations) <= set(OPERATIONS):
                got = ", ".join(operations) or "none"
                raise InputError(f"operations must be some of {', '.join(OPERATIONS)}, each once, got {got}")
            self.DARTS_OPS = list(operations)  # what NNI's constructor reads
        super().__init__(width, num_cells, dataset, auxiliary_loss, drop_path_prob)
        self.in_channels = in_channels
        self.num_labels = num_classes
        stem = self.stem if dataset == "cifar" else self.stem0
        stem[0] = _rebuilt(stem[0], in_channels=in_channels)
        self.classifier = _rebuilt(self.classifier, out_features=num_classes)
        if auxiliary_loss:
            self.auxiliary_head.classifier = _rebuilt(self.auxiliary_head.classifier, out_features=num_classes)

    def freeze(self, sample):
        genotype = Genotype.from_sample(sample, self.num_nodes_per_cell)
        for cell in ("normal", "reduce"):
            inputs = Counter(edge.node for edge in getattr(genotype, cell))
            if odd := {node: count for node, count in inputs.items() if count != 2}:
                raise InputError(
                    f"NNI freezes cells whose nodes have exactly two inputs, but in the {cell} cell "
                    + ", ".join(f"node {node} has {count}" for node, count in odd.items())
                    + "; build the network with nni_fairdarts.derive_network(space, sample)"
                )
        with model_context(sample):
            return type(self)(
                self.width,
                self.num_cells,
                self.dataset,
                self.auxiliary_loss,
                self.drop_path_prob,
                self.num_labels,
                self.in_channels,
                self.op_candidates,
            )


def _rebuilt(layer: nn.Module, **changes) -> nn.Module:
    """A layer like ``layer`` but for ``changes``: one of NNI's, which carry their arguments, or a Conv2d or Linear."""
    if hasattr(layer, "trace_kwargs"):
        return type(layer)(*layer.trace_args, **{**layer.trace_kwargs, **changes})
    if isinstance(layer, nn.Linear):
        return nn.Linear(changes.get("in_features", layer.in_features), changes.get("out_features", layer.out_features))
    return nn.Conv2d(
        changes.get("in_channels", layer.in_channels),
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        bias=layer.bias is not None,
    )
