"""Choices of one value, of a width, a kernel, a depth: their weights."""

from collections.abc import Iterable
from functools import reduce

import torch
from nni.mutable import Categorical
from torch import Tensor, nn

from nni_fairdarts._nni import MixedOperationSamplingPolicy
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import one_of_many
from nni_fairdarts.supernet.gated import OPTIONS_KEY, Choice, SupernetOptions, shared_alpha, strongest


class ValueWeights(nn.Module):
    """Weights of the choices that some expressions (a kernel, ``2 * width``) are made of, one of many each.

    α is shared by all who name the same label. Raises InputError where a choice is not of finitely many values.
    """

    def __init__(self, expressions: Iterable, memo: dict, options: SupernetOptions, where: str):
        super().__init__()
        self._expressions = list(expressions)
        self._leaves: dict[str, tuple] = {}
        for expression in self._expressions:
            for label, leaf in expression.simplify().items():
                self._leaves[label] = finite_values(label, leaf, where)
        # A choice of one value has no α: nothing would depend on it.
        self._open = tuple(label for label, values in self._leaves.items() if len(values) > 1)
        self.alphas = nn.ParameterList(
            shared_alpha(memo, label, (len(self._leaves[label]),), options, exclusive=True) for label in self._open
        )
        self._values = []
        for index, expression in enumerate(self._expressions):
            values, table = self._table(expression)
            self._values.append(values)
            self.register_buffer(f"table_{index}", table.to(options.like.device), persistent=False)

    def choices(self) -> tuple[Choice, ...]:
        return tuple(
            Choice(label, self._leaves[label], alpha, one_of_many, exclusive=True)
            for label, alpha in zip(self._open, self.alphas, strict=True)
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._leaves)

    def values(self, expression) -> tuple:
        """The values that ``expression`` can have, ascending."""
        return self._values[self._index(expression)]

    def of(self, expression) -> Tensor:
        """The weight of each of the expression's ``values``, (values,), summing to 1."""
        table = getattr(self, f"table_{self._index(expression)}")  # (values, combinations)
        gates = [choice.gates() for choice in self.choices() if choice.label in expression.simplify()]
        if not gates:
            return table[:, 0]
        joint = reduce(torch.kron, gates)
        return (table.to(joint.dtype) * joint).sum(1)  # no matrix product: autocast would make it half precision

    def export(self, memo: dict) -> dict:
        """The value with the largest weight for each label not in ``memo``; the earlier of equals."""
        chosen = {label: values[0] for label, values in self._leaves.items()}
        chosen |= {c.label: c.operations[strongest(c.values())[0]] for c in self.choices()}
        return {label: value for label, value in chosen.items() if label not in memo}

    def export_probs(self, memo: dict) -> dict:
        """Every value's weight for each label not in ``memo``."""
        return {
            c.label: dict(zip(c.operations, c.values(), strict=True)) for c in self.choices() if c.label not in memo
        }

    def _index(self, expression) -> int:
        return next(i for i, known in enumerate(self._expressions) if known is expression)

    def _table(self, expression) -> tuple[tuple, Tensor]:
        """Values, and (values, combinations): 1 where a combination of the open choices' values makes the value.

        Combinations are in the order of ``torch.kron`` of the choices' weights: the last label's runs fastest.
        """
        labels = [label for label in self._open if label in expression.simplify()]
        makes, sample = {}, {}
        for value in expression.grid(memo=sample):
            place = 0
            for label in labels:
                place = place * len(self._leaves[label]) + self._leaves[label].index(sample[label])
            makes.setdefault(value, []).append(place)
        values = tuple(sorted(makes))
        table = torch.zeros(len(values), max(place for places in makes.values() for place in places) + 1)
        for row, value in enumerate(values):
            table[row, makes[value]] = 1
        return values, table


def finite_values(label: str, leaf, where: str) -> tuple:
    """The values of a choice. Raises InputError where they are not finitely many."""
    if not isinstance(leaf, Categorical):
        raise InputError(
            f"FairDARTS needs choices among finitely many values, but {where} has {label!r}, {leaf!r}; use "
            "nni.choice with a list of values"
        )
    return tuple(leaf.values)


class ValuePolicy(MixedOperationSamplingPolicy):
    """NNI's seam between a mixed operation and a strategy: the weights of the operation's arguments."""

    def __init__(self, operation, memo, mutate_kwargs):
        options: SupernetOptions = mutate_kwargs[OPTIONS_KEY]
        operation.to(options.like)  # before α is part of it, which stays in single precision or better
        operation.value_weights = ValueWeights(
            operation.mutable_arguments.values(), memo, options, operation.bound_type.__name__
        )

    def resample(self, operation, memo):
        return {}

    def export(self, operation, memo):
        return operation.value_weights.export(memo)

    def export_probs(self, operation, memo):
        return operation.value_weights.export_probs(memo)

    def forward_argument(self, operation, name):
        """The argument or, where it has a choice, {value: its weight}."""
        if name not in operation.mutable_arguments:
            return operation.init_arguments[name]
        expression, weights = operation.mutable_arguments[name], operation.value_weights
        return dict(zip(weights.values(expression), weights.of(expression).unbind(), strict=True))
