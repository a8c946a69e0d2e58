"""The gated counterpart of NNI's ``Cell``."""

from collections.abc import Iterable
from functools import partial

import torch
from nni.nas.nn.pytorch import Cell
from nni.nas.nn.pytorch.cell import create_cell_op_candidates, preprocess_cell_inputs
from torch import Tensor, nn

from nni_fairdarts.edges import cell_sample
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import edge_shares
from nni_fairdarts.supernet.gated import OPTIONS_KEY, Choice, GatedModule, SupernetOptions, shared_alpha
from nni_fairdarts.supernet.moving import disturbed
from nni_fairdarts.supernet.norm import drop_scales, is_zero, normalize_pooling
from nni_fairdarts.supernet.partial import PartialChannels, narrowed
from nni_fairdarts.supernet.recompute import run


class Edges(nn.ModuleList):
    """The candidates on every edge of a cell, {operation: module} each, of the cell's ``operations``."""

    def __init__(
        self,
        edges: Iterable[nn.ModuleDict] = (),
        operations: tuple[str, ...] = (),
        recompute: bool = False,
        partial: PartialChannels | None = None,
    ):
        super().__init__(edges)
        self.operations = operations
        self.recompute = recompute
        self.partial = partial
        columns = [(e, operations.index(name)) for e, edge in enumerate(self) for name in edge]
        self.places = [e * len(operations) + column for e, column in columns]  # of the candidates' gates

    def forward(self, states: list[Tensor], gates: Tensor, weights: Tensor) -> list[Tensor]:
        """``states`` with those of all nodes behind them; gates (edges, operations), weights of the edges (edges,)."""
        states = list(states)
        seen = states if self.partial is None else [self.partial.seen(x) for x in states]
        scalars = gates.flatten().unbind()  # in (0, 1)
        gates = iter([scalars[place] for place in self.places])
        edges, done = iter(self), 0
        while done < len(self):
            outputs = (run(op, x, recompute=self.recompute) for x in seen for op in next(edges).values())
            terms = [next(gates) * output for output in outputs]
            total = sum(terms[1:], terms[0])
            into = weights[done : done + len(states)]
            done += len(states)
            if self.partial is None:
                states.append(total)
            else:
                states.append(self.partial.joined(total, states, into))
                seen.append(self.partial.seen(states[-1]))
        return states

    def plain(self) -> "Edges":
        """These; a fused cell's, one by one."""
        return self


class GatedCell(GatedModule):
    """A cell in which every node sums over all earlier states and all operations of gate times output.

    State j of node i: x_i = Σ_{j<i} Σ_o σ(α_{ij,o}) · o(x_j); the nodes are concatenated.
    Fair DARTS, arXiv 1911.12126: no softmax, no "none" operation. Where the relaxation shares 1 among the operations of
    an edge, as DARTS' softmax does, "none" has a share.

    ``alpha`` is (edges, operations, and "none" before them where it has a share), edges in the order node 2 from 0, 1;
    node 3 from 0, 1, 2; ... ``beta``, (edges,) or None: the edges into a node have weights that share 1. ``left``,
    (edges, n) or None: α's columns of what the edges still have; the gates of the others are 0.
    """

    def __init__(self, cell: Cell, alpha: nn.Parameter, options: SupernetOptions, beta: nn.Parameter | None = None):
        super().__init__()
        self._label = cell.label
        self.options = options
        self.num_nodes = cell.num_nodes
        self.num_predecessors = cell.num_predecessors
        self.output_node_indices = list(range(self.num_predecessors, self.num_predecessors + self.num_nodes))
        self.concat_dim = cell.concat_dim
        self.preprocessor = cell.preprocessor
        self.postprocessor = cell.postprocessor
        self.alpha = alpha
        self.beta = beta
        self.operations = tuple(cell.op_candidates_factory)
        part = options.partial_channels
        made_by = cell.op_candidates_factory if part == 1 else narrowed(cell, part)
        left = options.left.get(cell.label)
        self.register_buffer("left", None if left is None else left.to(alpha.device), persistent=False)
        there = self.choices()[0].there().tolist()
        candidates = (
            self._candidates(made_by, node, source, row)
            for (node, source), row in zip(self.edge_indices(), there, strict=True)
        )
        passing = None if part == 1 else PartialChannels(part)
        self.edges = Edges(candidates, self.operations, options.recompute, passing)
        if options.candidate_norm != "space" and isinstance(self.preprocessor, nn.Module):
            drop_scales(self.preprocessor)
        for mutable in cell.simplify().values():  # the space keeps its labels, for strategies that come after
            self.add_mutable(mutable)

    def edge_indices(self):
        return [(node, source) for node in self.output_node_indices for source in range(node)]

    def edge_labels(self) -> tuple[str, ...]:
        """Names of α's rows, like ``normal/2_0``: node 2 from state 0."""
        return tuple(f"{self.label}/{node}_{source}" for node, source in self.edge_indices())

    def choices(self):
        gates = partial(self.options.gates, left=self.left)
        weights = None if self.beta is None else self.edge_weights
        exclusive, rows = self.options.relaxation.shared, self.edge_labels()
        return (Choice(self.label, self.operations, self.alpha, gates, exclusive, rows, weights, self.left),)

    def edge_weights(self) -> Tensor:
        """What scales each edge, (edges,): 1, or those into a node share 1."""
        if self.beta is None:
            return self.alpha.new_ones(len(self.alpha))
        return edge_shares(self.beta, self.output_node_indices)

    def arch_parameters(self):
        """The architecture parameters of this module."""
        yield self.alpha
        if self.beta is not None:
            yield self.beta

    def _candidates(self, made_by, node: int, source: int, there: list[bool]) -> nn.ModuleDict:
        ops, _ = create_cell_op_candidates(made_by, node, 0, source)
        if zeros := [name for name, op in ops.items() if is_zero(name, op)]:
            raise InputError(
                f"Cell {self.label!r} has the operation {zeros[0]!r}, whose gate nothing depends on; leave it out: "
                "with a gate on every operation an edge is off when all its gates are"
            )
        ops = {name: disturbed(op, self.options.moving) for name, op in ops.items()}
        if self.options.candidate_norm != "space":
            for op in ops.values():
                drop_scales(op)
        if self.options.candidate_norm == "paper":
            whole = self.options.partial_channels == 1 and isinstance(self.preprocessor, nn.Module)
            kin = [self.preprocessor] if whole else []
            ops = normalize_pooling(ops, kin, f"Cell {self.label!r}, edge {source} to {node}")
        wanted = {name: op for (name, op), left in zip(ops.items(), there, strict=True) if left}
        return nn.ModuleDict(wanted).to(self.options.like)

    @property
    def label(self) -> str:
        return self._label

    @classmethod
    def mutate(cls, module, name, memo, mutate_kwargs):
        """NNI's mutation hook: a ``Cell`` becomes a ``GatedCell``; anything else stays."""
        if type(module) is not Cell:
            return None
        options: SupernetOptions = mutate_kwargs[OPTIONS_KEY]
        edges = sum(module.num_predecessors + node for node in range(module.num_nodes))
        candidates = len(module.op_candidates_factory) + options.relaxation.none  # and "none"
        alpha = shared_alpha(memo, module.label, (edges, candidates), options)
        beta = shared_alpha(memo, f"{module.label}/edges", (edges,), options) if options.edge_normalization else None
        return cls(module, alpha, options, beta)

    def forward(self, *inputs):
        """Inputs: ``num_predecessors`` tensors, or one list of them; returns what the postprocessor returns."""
        inputs = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states = list(self.preprocessor(inputs))
        gates, weights = self.scales(), self.edge_weights()
        states = self.edges(states, gates if self.beta is None else gates * weights[:, None], weights)
        output = torch.cat(states[self.num_predecessors :], self.concat_dim)
        return self.postprocessor(output, inputs)

    def export(self, memo):
        """What the discretisation keeps, as NNI's labels with as many slots per node as it keeps."""
        if any(key.startswith(f"{self.label}/") for key in memo):
            return {}
        discretization = self.options.discretization
        edges = discretization.cell(self.gate_values(), self.operations, self.num_predecessors, self.label)
        return cell_sample(self.label, edges)

    def export_probs(self, memo):
        """Every edge's gates, under labels like ``normal/2_0`` (node 2 from state 0)."""
        labels = self.edge_labels()
        if labels[0] in memo:
            return {}
        return {
            label: dict(zip(self.operations, row, strict=True))
            for label, row in zip(labels, self.gate_values(), strict=True)
        }

    def skip_connections(self) -> int:
        rule = self.options.discretization
        kept = rule.kept(self.gate_values(), self.operations, self.num_predecessors, self.label)
        return sum(edge.operation == "skip_connect" for edge in kept)
