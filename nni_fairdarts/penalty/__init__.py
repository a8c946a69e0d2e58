"""A resource penalty that reaches α: the expected cost of the network as a differentiable function of the gates.

``profiler.py`` makes NNI's profilers, with ``formulas.py`` for the cell spaces too; ``terms.py`` reads what a profiler
holds, ``expected.py`` weighs it with gates; ``resource.py`` adds it to the loss, with the formulas and names of NNI's
``ProfilerPenalty``.
"""

from nni_fairdarts.penalty.expected import ExpectedCost, Term
from nni_fairdarts.penalty.profiler import profiler
from nni_fairdarts.penalty.resource import ResourcePenalty

__all__ = ["ExpectedCost", "ResourcePenalty", "Term", "profiler"]
