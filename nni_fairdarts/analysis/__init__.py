"""Numbers about a search: its gates, its skip connections, what several seeds agree on, how sharp the loss is in α.

``gates.py`` reads records, ``agreement.py`` compares architectures, ``curvature.py`` needs the supernet. The
discretisation gap is measured as searches measure it, by ``nni_fairdarts.gap``. ``nni_fairdarts.experiment.analyse``
computes them for the folder of a run.
"""

from nni_fairdarts.analysis.agreement import between_pairs, choice_agreement, edge_agreement
from nni_fairdarts.analysis.curvature import Curvature, largest_eigenvalue, loss_curvature
from nni_fairdarts.analysis.gates import dominant_by_epoch, entropy_by_epoch, sigmoid_entropy, softmax_entropy
from nni_fairdarts.counts import dominant_skips
from nni_fairdarts.gap import DiscretizationGap

__all__ = [
    "Curvature",
    "DiscretizationGap",
    "between_pairs",
    "choice_agreement",
    "dominant_by_epoch",
    "dominant_skips",
    "edge_agreement",
    "entropy_by_epoch",
    "largest_eigenvalue",
    "loss_curvature",
    "sigmoid_entropy",
    "softmax_entropy",
]
