"""Search, derivation and retraining as one run."""

from nni_fairdarts.experiment.deriving import derive
from nni_fairdarts.experiment.retraining import architecture_of, resume_retraining, retrain
from nni_fairdarts.experiment.run import go_on, run, summary
from nni_fairdarts.experiment.searching import resume, search

__all__ = ["architecture_of", "derive", "go_on", "resume", "resume_retraining", "retrain", "run", "search", "summary"]
