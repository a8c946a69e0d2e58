"""What an NNI profiler holds, an expression over choices -> a sum of terms, each a table of costs."""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from nni.mutable import Categorical, MutableExpression, MutableSymbol

from nni_fairdarts.errors import InputError

MOST_COMBINATIONS = 1_000_000
"""A term's cost is a table over all combinations of the choices that it depends on; more are refused."""

Terms = dict[tuple[str, ...], np.ndarray]
"""Labels, in the order in which the expression names them -> costs in float64, an axis for each label."""

COMPARISONS = {operator.lt, operator.le, operator.eq, operator.ne, operator.ge, operator.gt}
CONDITIONS = COMPARISONS | {operator.and_, operator.or_}


@dataclass(frozen=True, eq=False)
class _Table:
    """What an expression is, by the values of ``labels``: Python objects, an axis for each label."""

    labels: tuple[str, ...]
    cells: np.ndarray


class Compiler:
    """Reads an expression from the top as a sum of costs, and from the bottom as tables.

    Sums, switches, and costs under a condition (``depth >= 2``) stay apart: each candidate and each layer is a term of
    its own. What they are made of (channels times kernel times map) becomes a table over the labels it depends on,
    computed with NNI's own functions on NNI's own values. Expressions share their parts, so tables are kept.
    """

    def __init__(self):
        self.values: dict[str, list] = {}
        """Values of every label that was met."""
        self._tables: dict[int, _Table] = {}  # by id: the expression outlives the compiler
        self._rank: dict[str, int] = {}

    # -- costs --------------------------------------------------------------------------------------------------------

    def terms(self, expression) -> Terms:
        """The terms of ``expression``, those of the same labels merged."""
        merged: Terms = {}
        for part, sign in _addends(expression):
            for labels, costs in self._part(part).items():
                merged[labels] = merged[labels] + sign * costs if labels in merged else sign * costs
        return merged

    def _part(self, part) -> Terms:
        if not isinstance(part, MutableExpression):
            return {(): np.float64(part)}
        split = _SPLITS.get(_name(part))
        terms = split(self, part) if split is not None else None
        if terms is None:
            table = self.table(part)
            terms = {table.labels: table.cells.astype(np.float64)}
        return terms

    def _float(self, part) -> Terms:
        return self.terms(part.arguments[0])

    def _product(self, part) -> Terms | None:
        left, right = part.arguments
        for factor, cost in ((left, right), (right, left)):
            if not isinstance(factor, MutableExpression):
                return {labels: float(factor) * costs for labels, costs in self.terms(cost).items()}
            if getattr(factor, "function", None) in CONDITIONS:
                return self._times(self.table(factor), self.terms(cost))
        return None

    def _switch(self, part) -> Terms:
        branch, *pairs = part.arguments
        merged: Terms = {}
        for key, cost in zip(pairs[::2], pairs[1::2], strict=True):
            # Unreduced: a LayerChoice of candidates that cost the same still costs the sum of what stays on.
            chosen = self._apply(operator.eq, [self.table(branch), self.table(key)])
            for labels, costs in self._times(chosen, self.terms(cost)).items():
                merged[labels] = merged[labels] + costs if labels in merged else costs
        return merged

    def _times(self, table: _Table, terms: Terms) -> Terms:
        """Every term under a condition, 1 where it holds and 0 elsewhere."""
        products: Terms = {}
        factor = table.cells.astype(np.float64)
        for labels, costs in terms.items():
            union = self._union([labels, table.labels])
            product = self._spread(costs, labels, union) * self._spread(factor, table.labels, union)
            products[union] = products[union] + product if union in products else product
        return products

    # -- tables -------------------------------------------------------------------------------------------------------

    def table(self, expression) -> _Table:
        """All values of ``expression``, over the labels that it changes with."""
        stack = [expression]  # no recursion: the map behind layer 50 is computed from all maps before
        while stack:
            part = stack[-1]
            missing = [a for a in getattr(part, "arguments", ()) if id(a) not in self._tables]
            if not missing:
                stack.pop()
                if id(part) not in self._tables:
                    self._tables[id(part)] = self._table(part)
            stack += reversed(missing)
        return self._tables[id(expression)]

    def _table(self, part) -> _Table:
        """The table of ``part``, whose arguments have theirs."""
        if isinstance(part, MutableSymbol):
            return self._symbol(part)
        if not isinstance(part, MutableExpression):
            return _Table((), _cells([part], ()))
        return _without_idle_axes(self._apply(part.function, [self._tables[id(a)] for a in part.arguments]))

    def _symbol(self, symbol) -> _Table:
        if not isinstance(symbol, Categorical):
            raise InputError(
                f"the profiler's cost depends on {symbol!r}; a penalty can follow choices of one among given values "
                "(nni.choice, LayerChoice, Repeat) only"
            )
        known = self.values.setdefault(symbol.label, symbol.values)
        if known != symbol.values:
            raise InputError(
                f"label {symbol.label!r} is shared by choices of different values, {known} and {symbol.values}; give "
                "them labels of their own"
            )
        self._rank.setdefault(symbol.label, len(self._rank))
        return _Table((symbol.label,), _cells(symbol.values, (len(symbol.values),)))

    def _apply(self, function: Callable, tables: list[_Table]) -> _Table:
        labels = self._union([table.labels for table in tables])
        columns = [self._spread(table.cells, table.labels, labels).ravel() for table in tables]
        return _Table(labels, _cells([function(*row) for row in zip(*columns, strict=True)], self._shape(labels)))

    # -- axes ---------------------------------------------------------------------------------------------------------

    def _union(self, groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(sorted({label for group in groups for label in group}, key=self._rank.__getitem__))

    def _shape(self, labels: tuple[str, ...]) -> tuple[int, ...]:
        shape = tuple(len(self.values[label]) for label in labels)
        if math.prod(shape) > MOST_COMBINATIONS:
            raise InputError(
                f"one part of the profiler's cost depends on {len(labels)} choices together ({', '.join(labels)}), "
                f"{math.prod(shape):,} combinations; at most {MOST_COMBINATIONS:,} can be weighed. Give choices the "
                "same label, or take the penalty from a profiler of fewer of them"
            )
        return shape

    def _spread(self, cells: np.ndarray, labels: tuple[str, ...], union: tuple[str, ...]) -> np.ndarray:
        """``cells`` with an axis for every label of ``union``, which holds ``labels`` in the same order."""
        shape = self._shape(union)
        own = tuple(size if label in labels else 1 for label, size in zip(union, shape, strict=True))
        return np.broadcast_to(np.reshape(cells, own), shape)


_SPLITS = {
    "mul": Compiler._product,
    "float": Compiler._float,
    "_switch_fn": Compiler._switch,
}
"""What is read as costs by the name of NNI's function; its switch is no function of a module's."""


def _name(expression) -> str:
    return getattr(getattr(expression, "function", None), "__name__", "")


def _addends(expression) -> Iterable[tuple]:
    """The parts of nested sums and differences, with their signs, from left to right: sums are as deep as networks."""
    signs = {operator.add: (1, 1), operator.sub: (1, -1), operator.neg: (-1,), operator.pos: (1,)}
    stack = [(expression, 1)]
    while stack:
        part, sign = stack.pop()
        own = signs.get(getattr(part, "function", None))
        if own is None:
            yield part, sign
        else:
            stack += [(argument, sign * s) for argument, s in zip(part.arguments, own, strict=True)][::-1]


def _cells(values: list, shape: tuple[int, ...]) -> np.ndarray:
    """An array of Python objects, which may be tuples: numpy would look into them."""
    cells = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        cells[place] = value
    return cells.reshape(shape)


def _without_idle_axes(table: _Table) -> _Table:
    """The table without labels that nothing changes with."""
    labels, cells = table.labels, table.cells
    for label in table.labels:
        axis = labels.index(label)
        first = np.take(cells, [0], axis)
        if (cells == first).all():
            cells, labels = np.take(cells, 0, axis), tuple(other for other in labels if other != label)
            cells = np.asarray(cells, dtype=object) if labels else _cells([cells], ())
    return _Table(labels, cells)
