"""Search, derivation and retraining as one run, and numbers about a search."""

from nni_fairdarts.experiment.analysing import analyse, analysis_table, supernet_of
from nni_fairdarts.experiment.deriving import derive
from nni_fairdarts.experiment.retraining import architecture_of, resume_retraining, retrain
from nni_fairdarts.experiment.run import go_on, run, summary
from nni_fairdarts.experiment.searching import resume, search

__all__ = [
    "analyse",
    "analysis_table",
    "architecture_of",
    "derive",
    "go_on",
    "resume",
    "resume_retraining",
    "retrain",
    "run",
    "search",
    "summary",
    "supernet_of",
]
