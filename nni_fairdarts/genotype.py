"""Genotypes: which operations a cell keeps, their text, JSON and NNI sample forms, and pruning."""

import ast
import json
import os
import re
from dataclasses import astuple, dataclass, replace
from importlib import resources
from pathlib import Path

from nni_fairdarts.edges import (
    Edge,
    cell_sample,
    checked_concat,
    checked_edges,
    prune,
    sampled_edges,
    shortened,
)
from nni_fairdarts.errors import InputError
from nni_fairdarts.files import write_text

CELLS = ("normal", "reduce")
STYLES = ("fairdarts", "darts")
VERSION = 1
_TEXTS = json.loads(resources.files("nni_fairdarts").joinpath("published.json").read_text("utf-8"))
PUBLISHED_NAMES = tuple(_TEXTS)


@dataclass(frozen=True)
class Genotype:
    """The operations kept in the normal and the reduction cell, and the nodes each cell concatenates.

    Style "fairdarts" (published as 3-tuples) allows any number of edges per node, and drop path acts on a
    node's sum; style "darts" (2-tuples) has exactly two edges per node in node order, and drop path acts on
    each operation. A cell may be empty. Lists are turned into tuples, (operation, node, source) into Edge.

    Raises InputError for an unknown operation or style, and for nodes or sources that cannot be.
    Source: Fair DARTS, arXiv 1911.12126; DARTS, arXiv 1806.09055.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    normal_concat: tuple[int, ...] = (2, 3, 4, 5)
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5)
    style: str = "fairdarts"

    def __post_init__(self):
        if self.style not in STYLES:
            raise InputError(f"unknown style {self.style!r}; known: {', '.join(STYLES)}")
        for cell in CELLS:
            edges = checked_edges(cell, getattr(self, cell))
            concat = checked_concat(f"{cell}_concat", getattr(self, f"{cell}_concat"))
            if self.style == "darts":
                _check_darts(cell, edges, concat)
            object.__setattr__(self, cell, edges)
            object.__setattr__(self, f"{cell}_concat", concat)

    def to_json(self) -> dict:
        """The genotype as JSON values; ``from_json`` reads it back."""
        cells = {}
        for cell in CELLS:
            cells[cell] = [list(astuple(edge)) for edge in getattr(self, cell)]
            cells[f"{cell}_concat"] = list(getattr(self, f"{cell}_concat"))
        return {"version": VERSION, "style": self.style, **cells}

    @classmethod
    def from_json(cls, values: dict) -> "Genotype":
        """The genotype that ``to_json`` wrote.

        Raises InputError for a newer version, a missing or unknown key, and a wrong value, naming the key.
        """
        if not isinstance(values, dict):
            raise InputError(f"a genotype must be a JSON object, got {values!r}")
        version = values.get("version", VERSION)
        if type(version) is not int or version < 1:
            raise InputError(f"version must be a whole number from 1, got {version!r}")
        if version > VERSION:
            raise InputError(
                f"version is {version}, and this package reads up to version {VERSION}; upgrade nni-fairdarts"
            )
        keys = ("version", "style", *(f"{cell}{suffix}" for cell in CELLS for suffix in ("", "_concat")))
        if missing := [key for key in keys if key not in values]:
            raise InputError(f"a genotype needs the keys {', '.join(keys)}; missing: {', '.join(missing)}")
        if unknown := [str(key) for key in values if key not in keys]:
            raise InputError(f"unknown keys in a genotype: {', '.join(unknown)}; known: {', '.join(keys)}")
        return cls(**{key: values[key] for key in keys[1:]})

    def save(self, path) -> None:
        """Write the JSON form to ``path``; the file is complete or not there at all.

        Raises InputError when the path cannot be written.
        """
        path = Path(path)
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in self.to_json().items()]
        text = "{\n" + ",\n".join(lines).replace("], [", "],\n    [") + "\n}\n"
        try:
            write_text(path, text)
        except OSError as error:
            raise InputError(f"cannot write a genotype to {path}: {error.strerror}; choose another path") from error

    @classmethod
    def load(cls, path) -> "Genotype":
        """The genotype in a file: the JSON form that ``save`` writes, or the published text form.

        Raises InputError, with the path, when the file is missing or holds neither.
        """
        try:
            text = Path(path).read_text("utf-8")
            return cls.from_json(json.loads(text)) if text.lstrip().startswith("{") else parse(text)
        except OSError as error:
            raise InputError(f"cannot read a genotype from {path}: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no genotype: {error}") from error

    def to_text(self) -> str:
        """The published text form, which ``parse`` reads back (two empty cells come back as "fairdarts")."""
        fields = []
        for cell in CELLS:
            edges, concat = getattr(self, cell), getattr(self, f"{cell}_concat")
            rows = [(e.operation, e.source) if self.style == "darts" else astuple(e) for e in edges]
            span = range(concat[0], concat[0] + len(concat)) if concat else ()
            nodes = span if concat and concat == tuple(span) else list(concat)
            fields += [f"{cell}={rows}", f"{cell}_concat={nodes}"]
        return f"Genotype({', '.join(fields)})"

    def to_sample(self) -> dict:
        """NNI's sample: op_{node}_{slot} -> operation and input_{node}_{slot} -> [source], per cell.

        Slots count a node's edges in their order; a node without edges has no key. The concatenated nodes
        are not part of a sample.
        """
        return {**cell_sample("normal", self.normal), **cell_sample("reduce", self.reduce)}

    @classmethod
    def from_sample(cls, sample: dict, nodes: int = 4, style: str = "fairdarts") -> "Genotype":
        """The genotype of NNI's sample, edges by node then slot, all ``nodes`` nodes concatenated.

        Keys outside normal/ and reduce/ are other choices of the search space and are ignored.
        Raises InputError for a malformed key, an operation without input or the reverse, a gap in a node's
        slots, and an unknown operation or source.
        """
        slots = {cell: {} for cell in CELLS}
        for key, value in sample.items():
            cell, slash, name = key.partition("/")
            if cell not in slots or not slash:
                continue
            kind, *place = name.split("_")
            if (
                kind not in ("op", "input")
                or len(place) != 2
                or not all(re.fullmatch(r"\d{1,4}", part) for part in place)
            ):
                raise InputError(f"expected {cell}/op_NODE_SLOT or {cell}/input_NODE_SLOT in a sample, got {key!r}")
            slots[cell].setdefault(tuple(map(int, place)), {})[kind] = value
        concat = tuple(range(2, 2 + nodes))
        normal, reduce = (sampled_edges(cell, slots[cell], concat) for cell in CELLS)
        return cls(normal, reduce, concat, concat, style)

    def pruned(self) -> "Genotype":
        """The genotype as it is built: no node without inputs, no edge from one; "darts" stays as it is.

        The concatenation keeps the nodes that are left, so a cell's output may be narrower, or empty.
        """
        if self.style == "darts":
            return self
        fields = {}
        for cell in CELLS:
            fields[cell] = prune(getattr(self, cell))
            left = {edge.node for edge in fields[cell]}
            fields[f"{cell}_concat"] = tuple(n for n in getattr(self, f"{cell}_concat") if n in left)
        return Genotype(style=self.style, **fields)

    def loose_ends(self) -> "Genotype":
        """The same edges with only the nodes concatenated that no other node uses (NNI's ``loose_end``)."""
        pruned, fields = self.pruned(), {}
        for cell in CELLS:
            used = {edge.source for edge in getattr(pruned, cell)}
            fields[f"{cell}_concat"] = tuple(n for n in getattr(self, f"{cell}_concat") if n not in used)
        return replace(self, **fields)

    def skip_connections(self) -> dict:
        """How many skip connections each cell keeps: {"normal": n, "reduce": m}."""
        return {cell: sum(edge.operation == "skip_connect" for edge in getattr(self, cell)) for cell in CELLS}

    def __str__(self):
        pruned, lines = self.pruned(), []
        for cell in CELLS:
            lines.append(cell)
            terms = {}
            for edge in sorted(getattr(pruned, cell), key=lambda edge: edge.node):
                terms.setdefault(edge.node, []).append(f"{edge.operation}({edge.source})")
            lines += [f"  {node} = {' + '.join(inputs)}" for node, inputs in terms.items()]
            concat = getattr(pruned, f"{cell}_concat")
            dropped = [node for node in getattr(self, f"{cell}_concat") if node not in concat]
            note = f" (dropped: {', '.join(map(str, dropped))})" if dropped else ""
            lines.append(f"  output = {', '.join(map(str, concat)) or 'nothing'}{note}")
        return "\n".join(lines)


def parse(text: str) -> Genotype:
    """The genotype in a published text: Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...).

    3-tuples (operation, node, source) are Fair DARTS' form, 2-tuples (operation, source) are DARTS', two per
    node in node order. A leading "NAME =" is accepted. The text is read as literals and never evaluated.
    Raises InputError for anything else.
    """
    name, equals, rest = text.partition("=")
    try:
        call = ast.parse((rest if equals and name.strip().isidentifier() else text).strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and getattr(call.func, "id", None) == "Genotype" and not call.args):
            raise ValueError("not a call of Genotype with named fields")
        expected = [f"{cell}{suffix}" for cell in CELLS for suffix in ("", "_concat")]
        found = [str(keyword.arg) for keyword in call.keywords]
        if sorted(found) != sorted(expected):
            raise ValueError(f"its fields are {', '.join(found) or 'none'}")
        fields = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            "expected the text Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...) "
            f"with literal values, got {shortened(text)}: {error}"
        ) from error
    for cell in CELLS:
        if not (isinstance(fields[cell], list | tuple) and all(isinstance(e, list | tuple) for e in fields[cell])):
            raise InputError(f"{cell} must be a list of tuples, got {shortened(fields[cell])}")
    lengths = {len(edge) for cell in CELLS for edge in fields[cell]}
    if lengths == {2}:
        for cell in CELLS:
            fields[cell] = [(op, 2 + k // 2, source) for k, (op, source) in enumerate(fields[cell])]
        return Genotype(**fields, style="darts")
    if lengths <= {3}:
        return Genotype(**fields, style="fairdarts")
    raise InputError(
        "edges must be all (operation, node, source) or all (operation, source), in both cells alike; "
        f"got tuples of length {', '.join(map(str, sorted(lengths)))}"
    )


def published(name: str) -> Genotype:
    """A published architecture by its exact name, one of PUBLISHED_NAMES. Raises InputError for another name."""
    if name not in PUBLISHED_NAMES:
        raise InputError(f"unknown published genotype {name!r}; known: {', '.join(PUBLISHED_NAMES)}")
    return parse(_TEXTS[name])


def resolve(text_or_path) -> Genotype:
    """The genotype that a user names: a published name, a published text, or the path of a file.

    Raises InputError when it is none of them, or when the text or the file is broken.
    """
    if text_or_path in PUBLISHED_NAMES:
        return published(text_or_path)
    if isinstance(text_or_path, str) and "Genotype(" in text_or_path:
        return parse(text_or_path)
    if isinstance(text_or_path, str | os.PathLike) and os.path.exists(text_or_path):
        return Genotype.load(text_or_path)
    raise InputError(
        f"{shortened(text_or_path)} is neither the path of a genotype file (there is no such file), "
        "nor a text that starts with Genotype(, nor a published name; "
        f"known names: {', '.join(PUBLISHED_NAMES)}"
    )


def _literal(node):
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    bounds = [ast.literal_eval(bound) for bound in node.args]
    if getattr(node.func, "id", None) != "range" or node.keywords or [type(b) for b in bounds] != [int, int]:
        raise ValueError("the only call allowed inside is range(a, b) with whole numbers")
    if bounds[1] - bounds[0] > 1000:  # a stranger's range(2, 10**12) must not fill the memory
        raise ValueError(f"range({bounds[0]}, {bounds[1]}) is no cell's list of nodes")
    return range(*bounds)


def _check_darts(cell, edges, concat):
    nodes = [edge.node for edge in edges]
    if nodes != [2 + k // 2 for k in range(len(nodes) // 2 * 2)]:
        raise InputError(
            f"style darts needs exactly two edges for each of the nodes 2, 3, ... in order; {cell} has edges for the "
            f"nodes {', '.join(map(str, nodes))}; use style fairdarts for any other number"
        )
    if nodes and not set(concat) <= set(nodes):
        raise InputError(
            f"{cell}_concat of style darts must name nodes that have edges, {sorted(set(nodes))}; got {list(concat)}"
        )
