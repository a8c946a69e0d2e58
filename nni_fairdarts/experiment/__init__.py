"""Search, derivation and retraining as one run."""

from nni_fairdarts.experiment.deriving import derive
from nni_fairdarts.experiment.retraining import retrain
from nni_fairdarts.experiment.run import run, summary
from nni_fairdarts.experiment.searching import resume, search

__all__ = ["derive", "resume", "retrain", "run", "search", "summary"]
