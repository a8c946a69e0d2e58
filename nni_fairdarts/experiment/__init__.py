"""Search, derivation and retraining as one run."""

from nni_fairdarts.experiment.run import derive, resume, retrain, search, summary

__all__ = ["derive", "resume", "retrain", "search", "summary"]
