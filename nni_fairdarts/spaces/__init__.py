"""Model spaces: NNI's DARTS space for any number of classes and input channels, and the paper's second space."""

from nni_fairdarts.spaces.darts import DARTS
from nni_fairdarts.spaces.s2 import S2
from nni_fairdarts.spaces.sizes import resized

__all__ = ["DARTS", "S2", "resized"]
