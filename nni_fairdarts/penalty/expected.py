"""A cost over architectures, as NNI's profilers hold it -> its expectation, a differentiable function of the gates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from nni.mutable import MutableExpression
from torch import Tensor

from nni_fairdarts.errors import InputError
from nni_fairdarts.penalty.terms import Compiler

Weights = Mapping[str, tuple[tuple, Tensor]]
"""Label -> its values, and the gate of each, a 1-D tensor."""


@dataclass(frozen=True, eq=False)
class Term:
    """Costs of one part of a network, by the values of ``labels``: (K1, K2, ...) in float64."""

    labels: tuple[str, ...]
    costs: np.ndarray


class ExpectedCost:
    """E = Σ_terms Σ_v cost(v) · Π_label g_label(v_label): the expected cost under gates g, one term for each part.

    A candidate costs what it costs times its gate, so a ``LayerChoice`` costs Σ_o g_o · cost_o: the sum over what
    stays on, not a mean. Where gates sum to 1 (depths, widths, kernels) it is the expectation. Labels are independent,
    so the gates of what lies inside each other multiply. Shapes that are the same whatever is chosen depend on nothing:
    what comes behind a ``LayerChoice`` costs the same under any gates.

    ``expression`` is that of an NNI ``ExpressionProfiler``; it is read once. At gates of 0 and 1 with a single 1 per
    label, E is the profiler's ``profile(sample)``, exactly. Raises InputError for choices that are not of one value
    among given ones, and for parts that depend on more than a million combinations.
    """

    def __init__(self, expression: MutableExpression | float):
        compiler = Compiler()
        merged = compiler.terms(expression)
        self.terms = tuple(Term(labels, costs) for labels, costs in merged.items() if np.any(costs))
        used = {label for term in self.terms for label in term.labels}
        self.values = {label: tuple(values) for label, values in compiler.values.items() if label in used}
        """Values of each label that the cost depends on."""
        self.constant, self._sparse = self._flatten()
        self._cache: dict[tuple, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, weights: Weights) -> Tensor:
        """Expected cost, a scalar on the device of the gates, in their dtype or float32 where that is coarser.

        ``weights`` may hold more labels, and lack values that cost nothing: an operation "none" has no gate. Raises
        InputError where a label is missing or has other values.
        """
        gates = [self._gates(label, weights) for label in self.values]
        if not gates:
            return torch.tensor(self.constant)
        gates = torch.cat(gates)  # (all values of all labels,)
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        total = gates.new_tensor(self.constant)
        for places, costs in self._on(gates):
            products = gates[places[0]]
            for row in places[1:]:
                products = products * gates[row]
            total = total + (costs * products).sum()  # no matrix product: autocast would make it half precision
        return total

    def _gates(self, label: str, weights: Weights) -> Tensor:
        if label not in weights:
            raise InputError(
                f"the profiler's cost depends on a choice {label!r} that the supernet does not have; make the profiler "
                f"from the space that is searched. The supernet's choices: {', '.join(sorted(weights)) or 'none'}"
            )
        values, gates = weights[label]
        if tuple(values) == self.values[label]:
            return gates
        places = {str(value): place for place, value in enumerate(values)}
        known = [str(value) for value in self.values[label]]
        costly = [value for value, cost in zip(known, self._costly[label], strict=True) if cost]
        if not set(costly) <= places.keys() <= set(known):
            raise InputError(
                f"the profiler knows the choice {label!r} with the values {', '.join(known)}, but the supernet has it "
                f"with {', '.join(places)}; make the profiler from the space that is searched"
            )
        return gates[[places.get(value, 0) for value in known]]  # of a value that costs nothing no gate is read

    def _flatten(self) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
        """The constant, and all other terms by their number of labels: gates' places (labels, N) and costs (N,)."""
        starts = dict(zip(self.values, np.cumsum([0, *map(len, self.values.values())]), strict=False))
        constant, by_order = 0.0, {}
        self._costly = {label: np.zeros(len(values), dtype=bool) for label, values in self.values.items()}
        for term in self.terms:
            if not term.labels:
                constant += float(term.costs)
                continue
            found = term.costs.nonzero()
            for label, at in zip(term.labels, found, strict=True):
                self._costly[label][at] = True
            places = np.stack([starts[label] + at for label, at in zip(term.labels, found, strict=True)])
            by_order.setdefault(len(term.labels), []).append((places, term.costs[found]))
        groups = [tuple(np.concatenate(part, -1) for part in zip(*group, strict=True)) for group in by_order.values()]
        return constant, groups

    def _on(self, gates: Tensor) -> list[tuple[Tensor, Tensor]]:
        key = (gates.device, gates.dtype)
        if key not in self._cache:
            self._cache[key] = [
                (torch.as_tensor(places, device=gates.device), torch.as_tensor(costs).to(gates))
                for places, costs in self._sparse
            ]
        return self._cache[key]
