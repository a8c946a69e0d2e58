"""NNI's experiment manager: what is sent into it and what comes out of it."""

from nni_fairdarts.manager.environment import guard
from nni_fairdarts.manager.launching import launch, resume, view

__all__ = ["guard", "launch", "resume", "view"]
