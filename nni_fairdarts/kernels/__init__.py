"""The arithmetic of a fused supernet in pure torch, with backward passes of its own: no NNI, no modules.

``rows.py``: what an image is here and its matrix products; ``depthwise.py``: convolutions of single channels;
``normalize.py``: batch norm; ``separable.py``: depthwise and pointwise convolution; ``gated.py``: the same with the
batch norm and the gate behind it folded in; ``once.py``: what all their backward passes have in common.
"""
