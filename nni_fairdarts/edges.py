"""Edges of a cell: what they may be, pruning, and the slots of NNI's sample."""

from collections import Counter
from dataclasses import dataclass

from nni_fairdarts.errors import InputError

OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
KNOWN_OPERATIONS = OPERATIONS + (
    "avg_pool_2x2",
    "avg_pool_5x5",
    "max_pool_2x2",
    "max_pool_5x5",
    "max_pool_7x7",
    "conv_1x1",
    "conv_3x3",
    "sep_conv_7x7",
    "dil_sep_conv_3x3",
    "conv_3x1_1x3",
    "conv_7x1_1x7",
)


LARGEST_NODE = 1000  # and edges: far beyond any cell, and what a stranger's file may ask for
MOST_EDGES = 1000


@dataclass(frozen=True)
class Edge:
    """One kept operation: ``node`` <- ``operation(source)``; nodes 0 and 1 are the cell's inputs."""

    operation: str
    node: int
    source: int


def prune(edges, inputs: int = 2) -> tuple[Edge, ...]:
    """The edges left after dropping nodes without inputs and the edges that leave them, until nothing changes.

    ``inputs`` is the number of the cell's inputs, which are always there. Possibly nothing is left.
    """
    edges = tuple(edges)
    while True:
        fed = {*range(inputs), *(edge.node for edge in edges)}
        left = tuple(edge for edge in edges if edge.source in fed)
        if left == edges:
            return edges
        edges = left


def cell_sample(cell: str, edges) -> dict:
    """NNI's sample of one cell: {cell}/op_{node}_{slot} -> operation, {cell}/input_{node}_{slot} -> [source]."""
    sample, slots = {}, Counter()
    for edge in edges:
        slot = f"{edge.node}_{slots[edge.node]}"
        slots[edge.node] += 1
        sample[f"{cell}/op_{slot}"] = edge.operation
        sample[f"{cell}/input_{slot}"] = [edge.source]
    return sample


def checked_edge(where, edge) -> Edge:
    """``edge``, or (operation, node, source), as an Edge. Raises InputError, beginning with ``where``."""
    if not isinstance(edge, Edge):
        if not isinstance(edge, list | tuple) or len(edge) != 3:
            raise InputError(f"{where} must be (operation, node, source), got {shortened(edge)}")
        edge = Edge(*edge)
    if edge.operation not in KNOWN_OPERATIONS:
        raise InputError(
            f"{where}: unknown operation {shortened(edge.operation)}; known: {', '.join(KNOWN_OPERATIONS)}"
        )
    numbers = type(edge.node) is int and type(edge.source) is int
    if not (numbers and edge.node >= 2 and 0 <= edge.source < edge.node):
        raise InputError(
            f"{where}: node must be a whole number from 2 (0 and 1 are the cell's inputs) and source one from 0 "
            f"below node, got node {edge.node!r} and source {edge.source!r}"
        )
    if edge.node > LARGEST_NODE:
        raise InputError(f"{where}: node must be at most {LARGEST_NODE}, got {edge.node}")
    return edge


def checked_edges(cell, edges) -> tuple[Edge, ...]:
    """The edges of a cell as Edges, in their order. Raises InputError, naming the cell and the place."""
    if not isinstance(edges, list | tuple):
        raise InputError(f"{cell} must be a list of edges, got {shortened(edges)}")
    if len(edges) > MOST_EDGES:
        raise InputError(f"{cell} must have at most {MOST_EDGES} edges, got {len(edges)}")
    return tuple(checked_edge(f"{cell}[{i}]", edge) for i, edge in enumerate(edges))


def checked_concat(key, nodes) -> tuple[int, ...]:
    """The nodes that a cell concatenates, each once. Raises InputError, naming ``key``."""
    listed = isinstance(nodes, list | tuple | range) and len(nodes) <= LARGEST_NODE
    if not listed or not all(type(node) is int and node >= 2 for node in nodes) or len(set(nodes)) != len(nodes):
        raise InputError(f"{key} must be a list of different node numbers from 2, got {shortened(nodes)}")
    return tuple(nodes)


def sampled_edges(cell, slots, nodes) -> tuple[Edge, ...]:
    """A cell's edges in NNI's slots, {(node, slot): {"op": operation, "input": [source]}}. Raises InputError."""
    edges = []
    for (node, slot), choice in sorted(slots.items()):
        operation, source = f"{cell}/op_{node}_{slot}", f"{cell}/input_{node}_{slot}"
        if len(choice) != 2:
            present, absent = (operation, source) if "op" in choice else (source, operation)
            raise InputError(f"the sample has {present} without {absent}; give both or neither")
        if node not in nodes:
            raise InputError(f"{operation}: a cell of {len(nodes)} nodes has nodes {list(nodes)}, got node {node}")
        if slot and (node, slot - 1) not in slots:
            raise InputError(f"the sample has {operation} but no {cell}/op_{node}_{slot - 1}; number slots from 0")
        chosen = choice["input"]
        if not isinstance(chosen, list | tuple) or len(chosen) != 1:
            raise InputError(f"{source} must be a list of one node, got {shortened(chosen)}")
        edges.append(checked_edge(operation, (choice["op"], node, chosen[0])))
    return tuple(edges)


def shortened(value, length=80) -> str:
    """``value`` as Python writes it, cut off behind ``length`` letters, for messages."""
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."
