"""A genotype -> the network it stands for, built from the operations of NNI's hub."""

from collections.abc import Mapping

import torch
from nni.mutable import Mutable
from nni.nas.hub.pytorch.nasnet import NDS, OPS, AuxiliaryHead, CellPreprocessor
from nni.nas.hub.pytorch.utils.nn import DropPath
from nni.nas.space import model_context
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nni_fairdarts.edges import Edge
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import CELLS, Genotype

STEMS = ("cifar", "imagenet")
SHRINKING = ("avg_pool_2x2", "max_pool_2x2")  # NNI's, without padding: at stride 1 a map loses a row and a column


class DerivedCell(nn.Module):
    """One cell of a derived network: each node sums its kept operations, the nodes are concatenated.

    ``edges`` must be pruned: every edge leaves an input or a node that has inputs itself.
    """

    def __init__(
        self,
        edges: tuple[Edge, ...],
        concat: tuple[int, ...],
        style: str,
        channels: tuple[int, int, int],
        reduction: bool,
        reduction_before: bool,
    ):
        super().__init__()
        before_last, last, own = channels
        self.preprocessor = CellPreprocessor(before_last, last, own, reduction_before)
        self.ops = nn.ModuleList(OPS[e.operation](own, 2 if reduction and e.source < 2 else 1, True) for e in edges)
        self.edges = edges
        self.concat = concat
        self.drop_path = DropPath(0.0)
        self.drop_operations = style == "darts"
        self.out_channels = own * len(concat)

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Outputs of the two cells before, (N, C, H, W) -> (N, out_channels, H, W), halved H, W in a reduction cell."""
        states = dict(enumerate(self.preprocessor([before_last, last])))
        for node in sorted({edge.node for edge in self.edges}):
            terms = []
            for edge, op in zip(self.edges, self.ops, strict=True):
                if edge.node == node:
                    term = op(states[edge.source])
                    if self.drop_operations and not isinstance(op, nn.Identity):
                        term = self.drop_path(term)
                    terms.append(term)
            total = sum(terms[1:], terms[0])
            states[node] = total if self.drop_operations else self.drop_path(total)
        return torch.cat([states[node] for node in self.concat], 1)


class DerivedNetwork(nn.Module):
    """The network of a genotype, as Fair DARTS and DARTS train it from scratch.

    Arguments are named as in NNI's DARTS space: ``width`` channels of the first cells, ``num_cells`` cells (the
    reduction cells at 1/3 and 2/3 of the depth), ``dataset`` for the stem ("cifar": none of the resolution is lost,
    "imagenet": an eighth remains), ``auxiliary_loss`` for a second classifier behind the second reduction cell,
    which needs 32×32 images with the CIFAR stem (a map of 8×8 there) and 224×224 with the ImageNet stem.

    In training mode with ``auxiliary_loss`` it returns (logits, auxiliary logits), else logits, (N, num_classes).
    A genotype is pruned first: nodes without inputs are not concatenated, so the next cell's input is narrower.
    Raises InputError for sizes that cannot be built.
    """

    def __init__(
        self,
        genotype: Genotype,
        width: int = 36,
        num_cells: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        dataset: str = "cifar",
        auxiliary_loss: bool = False,
        drop_path_prob: float = 0.0,
        image_size: int | None = None,
    ):
        super().__init__()
        self.genotype = genotype
        pruned = genotype.pruned()
        _check_buildable(pruned, width, num_cells, dataset)
        if image_size is not None:
            check_image_size(image_size, dataset)
        if auxiliary_loss and image_size is not None:
            check_auxiliary_head(image_size, dataset)
        self.dataset = dataset
        self.auxiliary_loss = auxiliary_loss
        reductions = (num_cells // 3, 2 * num_cells // 3)
        with model_context({}):  # NNI's layers come out as plain torch ones
            if dataset == "cifar":
                self.stem = _stem(in_channels, 3 * width)
                before_last = last = 3 * width
            else:
                self.stem0 = nn.Sequential(
                    *_stem(in_channels, width // 2, stride=2),
                    nn.ReLU(inplace=True),
                    *_stem(width // 2, width, stride=2),
                )
                self.stem1 = nn.Sequential(nn.ReLU(inplace=True), *_stem(width, width, stride=2))
                before_last = last = width
            self.cells = nn.ModuleList()
            channels, reduction_before = width, dataset == "imagenet"
            for index in range(num_cells):
                reduction = index in reductions
                channels *= 2 if reduction else 1
                edges, concat = (
                    (pruned.reduce, pruned.reduce_concat) if reduction else (pruned.normal, pruned.normal_concat)
                )
                cell = DerivedCell(
                    edges, concat, genotype.style, (before_last, last, channels), reduction, reduction_before
                )
                self.cells.append(cell)
                before_last, last, reduction_before = last, cell.out_channels, reduction
                if index == reductions[1] and auxiliary_loss:
                    self.auxiliary_head = _auxiliary_head(last, num_classes, dataset)
            self.auxiliary_cell = reductions[1]
            self.global_pooling = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(last, num_classes)
        self.set_drop_path_prob(drop_path_prob)

    def forward(self, images: Tensor):
        if self.dataset == "cifar":
            before_last = last = self.stem(images)
        else:
            before_last = self.stem0(images)
            last = self.stem1(before_last)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last)
            if index == self.auxiliary_cell and self.auxiliary_loss and self.training:
                _check_auxiliary_map(last.shape[-1], self.dataset)
                auxiliary = self.auxiliary_head(last)
        logits = self.classifier(self.global_pooling(last).flatten(1))
        return logits if auxiliary is None else (logits, auxiliary)

    def set_drop_path_prob(self, drop_prob: float) -> None:
        """Set the probability, in [0, 1), with which a path is dropped in training mode (NNI's name for it)."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = drop_prob


def _stem(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out_channels)
    )


def _auxiliary_head(channels: int, num_classes: int, dataset: str) -> nn.Module:
    head = AuxiliaryHead(channels, num_classes, dataset)
    # NNI's first ReLU works in place on the cell's output, which the next cells read as well.
    head.features[0] = nn.ReLU()
    if dataset == "imagenet":  # the published ImageNet head has no batch norm here
        head.features[6] = nn.Identity()
    return head


def check_image_size(image_size: int, dataset: str) -> None:
    """Raise InputError for images so small that nothing is left of them behind the stem and two reductions."""
    least = 4 if dataset == "cifar" else 32
    if image_size < least:
        raise InputError(
            f"images of {image_size}×{image_size} are too small for the {dataset} stem and two reduction cells, which "
            f"need {least}×{least} or more; resize them (data.image_size)"
            + (", or use the cifar stem (space.dataset)" if dataset == "imagenet" else "")
        )


def auxiliary_map_size(image_size: int, dataset: str) -> int:
    """Side of the map that the auxiliary head sees, for images of side ``image_size``: each halving rounds up."""
    for _ in range(2 if dataset == "cifar" else 5):
        image_size = (image_size + 1) // 2
    return image_size


def check_auxiliary_head(image_size: int, dataset: str) -> None:
    """Raise InputError where images of side ``image_size`` give the auxiliary head a map it cannot take."""
    _check_auxiliary_map(auxiliary_map_size(image_size, dataset), dataset)


def _check_auxiliary_map(side: int, dataset: str) -> None:
    sides, images = (((8, 9, 10), 32), ((7, 8), 224))[dataset == "imagenet"]
    if side not in sides:
        raise InputError(
            f"the auxiliary head of the {dataset} stem needs a map of {sides[0]}×{sides[0]} behind the second "
            f"reduction cell (images of {images}×{images}), but it is {side}×{side}; turn the auxiliary loss off "
            "(auxiliary_weight 0), or resize the images"
        )


def _check_buildable(genotype: Genotype, width: int, num_cells: int, dataset: str) -> None:
    if dataset not in STEMS:
        raise InputError(f"unknown stem {dataset!r}; known: {', '.join(STEMS)}")
    if num_cells < 3:
        raise InputError(f"num_cells must be at least 3 (normal, reduction, reduction), got {num_cells}")
    if width < 2 or width % 2:
        raise InputError(f"width must be an even number of channels, at least 2, got {width}")
    for kind in CELLS:
        if not (getattr(genotype, kind) and getattr(genotype, f"{kind}_concat")):
            raise InputError(
                f"the {kind} cell of this genotype keeps no operation that its inputs reach; derive it at a lower "
                "threshold, or give the cell an edge from node 0 or 1"
            )
        for edge in getattr(genotype, kind):
            if edge.operation in SHRINKING and (kind == "normal" or edge.source > 1):
                raise InputError(
                    f"the {kind} cell has {edge.operation} from node {edge.source} to {edge.node}, where maps keep "
                    "their size: it would make them smaller; put another operation in its place"
                )


# -- from NNI ------------------------------------------------------------------------------------------------------


def derive_network(space: NDS, sample: Mapping, style: str = "fairdarts") -> DerivedNetwork:
    """The network that ``sample`` (NNI's architecture dict, with any number of slots per node) names in ``space``.

    Classes and channels are those of the space's layers; ``width`` and ``depth`` are the sample's where the space
    leaves them open. The weights are fresh. ``style``: see ``Genotype``.
    """
    if not isinstance(space, NDS):
        raise InputError(
            f"derive_network takes a DARTS-like hub space, got {type(space).__name__}; use space.freeze(sample)"
        )
    sizes = {name: _size(space, sample, name, label) for name, label in (("width", "width"), ("num_cells", "depth"))}
    sample = {label: choice for label, choice in sample.items() if label not in ("width", "depth")}
    genotype = Genotype.from_sample(sample, nodes=space.num_nodes_per_cell, style=style)
    if space.merge_op == "loose_end":
        genotype = genotype.loose_ends()
    return DerivedNetwork(
        genotype,
        **sizes,
        num_classes=space.classifier.out_features,
        in_channels=stem_channels(space),
        dataset=space.dataset,
        auxiliary_loss=space.auxiliary_loss,
        drop_path_prob=space.drop_path_prob,
    )


def _size(space: NDS, sample: Mapping, name: str, label: str) -> int:
    """``space``'s width or number of cells or, where it is a choice (NNI labels it ``label``), what the sample says."""
    size = getattr(space, name)
    if isinstance(size, int):
        return size
    known = list(size.grid()) if isinstance(size, Mutable) else list(size)
    if sample.get(label) not in known:
        raise InputError(f"the sample's {label} must be one of {', '.join(map(str, known))}, got {sample.get(label)!r}")
    return sample[label]


def stem_channels(space: NDS) -> int:
    """Channels of the images that a hub space takes."""
    return (space.stem if space.dataset == "cifar" else space.stem0)[0].in_channels


# -- size ----------------------------------------------------------------------------------------------------------


def count_parameters(network: nn.Module, auxiliary_head: bool = False) -> int:
    """Number of learnable parameters; those of an auxiliary head only when asked for."""
    return sum(
        p.numel() for name, p in network.named_parameters() if auxiliary_head or not name.startswith("auxiliary_head.")
    )


def count_multiply_adds(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and linear layers for one image of ``shape`` (C, H, W), in evaluation mode."""
    parameter = next(network.parameters())
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        network.train(training)
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations
