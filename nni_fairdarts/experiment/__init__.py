"""Search, derivation and retraining as one run."""

from nni_fairdarts.experiment.run import derive, resume, retrain, run, search, summary

__all__ = ["derive", "resume", "retrain", "run", "search", "summary"]
