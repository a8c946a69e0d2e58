"""From gates to a genotype: the three rules of the Fair DARTS paper and its published code."""

import warnings
from dataclasses import dataclass

from nni_fairdarts.edges import OPERATIONS, Edge, prune
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import Genotype


def _darts(rows, threshold):
    """A node's two strongest edges, each with its strongest operation, whatever the gates."""
    # Stable sort and list.index: of equal gates the lower source and the earlier operation.
    strongest = sorted(range(len(rows)), key=lambda source: max(rows[source]), reverse=True)[:2]
    return [(source, rows[source].index(max(rows[source]))) for source in strongest]


def _sparse(rows, threshold):
    """What ``darts`` keeps, where the gate reaches the threshold."""
    return [(source, op) for source, op in _darts(rows, threshold) if rows[source][op] >= threshold]


def _edge(rows, threshold):
    """Every edge's two strongest operations, weaker first, where the gate reaches the threshold."""
    kept = []
    for source, row in enumerate(rows):
        strongest = sorted(range(len(row)), key=row.__getitem__)[-2:]
        kept += [(source, op) for op in strongest if row[op] >= threshold]
    return kept


SKIP = "skip_connect"

# One node's gates (sources x operations) and the threshold -> kept (source, operation index), in published order.
RULES = {"darts": _darts, "sparse": _sparse, "edge": _edge}


@dataclass(frozen=True)
class Discretization:
    """A rule of RULES and its threshold in (0, 1), which "darts" ignores.

    ``max_skips``: most skip connections of a normal cell; None for any number. Raises InputError for an unknown rule or
    a value out of range. Fair DARTS, arXiv 1911.12126.
    """

    rule: str = "sparse"
    threshold: float = 0.85
    max_skips: int | None = None

    def __post_init__(self):
        if self.rule not in tuple(RULES):
            raise InputError(f"unknown rule {self.rule!r}; known: {', '.join(RULES)}")
        if not isinstance(self.threshold, int | float) or not 0 < self.threshold < 1:
            raise InputError(f"threshold must be in (0, 1), got {self.threshold!r}; the paper uses 0.85")
        if self.max_skips is not None and (type(self.max_skips) is not int or self.max_skips < 0):
            raise InputError(f"max_skips must be 0 or more, or None for any number, got {self.max_skips!r}")

    def kept(self, gates, operations=OPERATIONS, inputs: int = 2, label: str = "the") -> tuple[Edge, ...]:
        """What the rule keeps of the cell ``label``, possibly nothing; of a normal cell at most ``max_skips`` skips."""
        if label == "normal" and self.max_skips is not None:
            gates = limit_skips(gates, self.max_skips, self.rule, self.threshold, operations, inputs)
        return keep(gates, self.rule, self.threshold, operations, inputs)

    def cell(self, gates, operations=OPERATIONS, inputs: int = 2, label: str = "the") -> tuple[Edge, ...]:
        """What ``keep`` keeps or, where pruning would leave nothing of it, the strongest operation on an input.

        gates: (edges, operations) as for ``keep``. Equal gates: earlier node, lower source, earlier operation.
        Warns (RuntimeWarning, with ``label`` as the cell's name) when it falls back. The fallback is this
        package's: the published code crashes on such a cell.
        """
        kept = self.kept(gates, operations, inputs, label)
        if prune(kept, inputs):
            return kept
        barred = SKIP if label == "normal" and self.max_skips == 0 else None
        gate, edge = max(
            (
                (gate, Edge(operation, node, source))
                for node, rows in _by_node(gates, operations, inputs)
                for source, row in enumerate(rows[:inputs])
                for operation, gate in zip(operations, row, strict=True)
                if operation != barred or len(operations) == 1
            ),
            key=lambda candidate: candidate[0],
        )
        warnings.warn(
            f"{label} cell: rule {self.rule} with threshold {self.threshold} keeps nothing that is connected to the "
            f"inputs; kept only the strongest gate on an input, {gate:.4g} "
            f"({edge.node} <- {edge.operation}({edge.source})); lower the threshold to keep more",
            RuntimeWarning,
            stacklevel=2,
        )
        return (edge,)


def keep(gates, rule="sparse", threshold=0.85, operations=OPERATIONS, inputs: int = 2) -> tuple[Edge, ...]:
    """Exactly the edges that a rule keeps, possibly none, in the order of the published parser.

    gates: (edges, operations), in [0, 1]; rows in the order node 2 <- 0, 1; node 3 <- 0, 1, 2; ...; lists or
    anything with ``tolist``. inputs: the number of the cell's inputs. A gate equal to the threshold is kept.
    Equal gates: the lower source; within an edge the earlier operation, in rule "edge" the later one.
    Raises InputError for gates of another shape or range, an unknown rule and a threshold out of (0, 1).
    Source: Fair DARTS, arXiv 1911.12126, and its published code.
    """
    settings = Discretization(rule, threshold)
    return tuple(
        Edge(operations[op], node, source)
        for node, rows in _by_node(gates, operations, inputs)
        for source, op in RULES[settings.rule](rows, settings.threshold)
    )


def limit_skips(gates, most: int, rule="sparse", threshold=0.85, operations=OPERATIONS, inputs: int = 2) -> list:
    """The gates with as many skip connections' set to 0, the weakest kept one first, as it takes to keep ``most``.

    Each time the rule chooses anew, so that the strongest alternative takes the place of what was lowered. P-DARTS,
    arXiv 1904.12760, section 3.3. Arguments as of ``keep``.
    """
    rows = _plain(gates)
    places = {}
    for node, inner in _by_node(rows, operations, inputs):
        for source in range(len(inner)):
            places[node, source] = len(places)
    while True:
        skips = [edge for edge in keep(rows, rule, threshold, operations, inputs) if edge.operation == SKIP]
        if len(skips) <= most:
            return rows
        column = operations.index(SKIP)
        weakest = min((places[edge.node, edge.source] for edge in skips), key=lambda place: rows[place][column])
        if rows[weakest][column] == 0:  # nothing is weaker, and the rule takes it all the same
            return rows
        rows[weakest] = [0.0 if k == column else gate for k, gate in enumerate(rows[weakest])]


def discretize(
    normal, reduce, rule="sparse", threshold=0.85, operations=OPERATIONS, max_skips: int | None = None
) -> Genotype:
    """The genotype of two gate matrices, every node concatenated; style "darts" for rule "darts".

    normal, reduce: (edges, operations), in [0, 1], 14 x 7 in the paper. Raises InputError as ``keep`` does and
    warns as ``Discretization.cell`` does. Source: Fair DARTS, arXiv 1911.12126.
    """
    settings = Discretization(rule, threshold, max_skips)
    fields = {}
    for cell, gates in (("normal", normal), ("reduce", reduce)):
        fields[cell] = settings.cell(gates, operations, label=cell)
        fields[f"{cell}_concat"] = tuple(node for node, _ in _by_node(gates, operations, 2))
    return Genotype(style="darts" if rule == "darts" else "fairdarts", **fields)


def decided_share(gates) -> float:
    """The share of gates below 0.1 or above 0.9, in [0, 1]. Raises InputError when there are none."""
    gates = [float(gate) for gate in gates]
    if not gates:
        raise InputError("decided_share needs at least one gate, got none")
    return sum(gate < 0.1 or gate > 0.9 for gate in gates) / len(gates)


def open_gates(gates, threshold=0.85) -> int:
    """The number of gates that reach the threshold."""
    return sum(float(gate) >= threshold for gate in gates)


def _plain(values):
    values = values.tolist() if hasattr(values, "tolist") else values
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _by_node(gates, operations, inputs):
    """[(node, its rows)], after checking the matrix's shape and range."""
    if type(inputs) is not int or inputs < 1:
        raise InputError(f"inputs must be a whole number from 1, got {inputs!r}; a DARTS cell has 2")
    if not operations:
        raise InputError("operations must name at least one operation, got none")
    rows = _plain(gates)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InputError("gates must be a matrix (edges, operations): a list of lists, an array or a tensor")
    for i, row in enumerate(rows):
        if len(row) != len(operations):
            raise InputError(
                f"gates must have {len(operations)} columns, one per operation ({', '.join(operations)}); "
                f"row {i} has {len(row)}"
            )
        for gate in row:
            if not isinstance(gate, int | float) or not 0 <= gate <= 1:
                raise InputError(f"gates must be in [0, 1], got {gate!r} in row {i}; pass sigmoid(alpha), not alpha")
    nodes, start = [], 0
    while start < len(rows):
        node = inputs + len(nodes)
        nodes.append((node, rows[start : start + node]))
        start += node
    if not rows or start != len(rows):
        sizes = [sum(range(inputs, inputs + n)) for n in range(1, 6)]
        raise InputError(
            f"gates must have one row per edge, {', '.join(map(str, sizes))}, ... rows for 1, 2, 3, 4, 5, ... nodes "
            f"and {inputs} inputs; got {len(rows)}"
        )
    return nodes
