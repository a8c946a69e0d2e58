"""A space of NNI's hub once more, with other sizes."""

import inspect

from nni.nas.hub.pytorch.nasnet import NDS

from nni_fairdarts.errors import InputError

ATTRIBUTES = {"num_classes": "num_labels", "operations": "op_candidates"}
"""{argument of a space's constructor: the attribute that it is kept in}, where these differ."""


def resized(space: NDS, **sizes: int) -> NDS:
    """A space like ``space``, made anew with other ``num_cells`` or ``width``; of its dtype and on its device.

    What was changed in ``space`` after it was made is not in it. Raises InputError for spaces that are not of the hub's
    DARTS family, and for those that do not keep what they were made with.
    """
    kind = type(space).__name__
    if not isinstance(space, NDS):
        raise InputError(f"cells and width of a stage are of NNI's hub spaces (DARTS and its kin), not of {kind}")
    arguments = {}
    for name, parameter in _constructor_of(type(space)).parameters.items():
        if name == "self" or name in sizes:
            continue
        attribute = ATTRIBUTES.get(name, name)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(space, attribute):
            raise InputError(
                f"a stage with other cells or width makes {kind} anew, but its argument {name!r} is not to be found in "
                f"it; give {kind} plain arguments, and attributes of the same names"
            )
        arguments[name] = getattr(space, attribute)
    return type(space)(**arguments, **sizes).to(next(space.parameters()))


def _constructor_of(kind: type) -> inspect.Signature:
    """Of the constructor that was written; NNI wraps those of spaces, each subclass's anew, and keeps them inside."""
    written = (vars(one).get("_init_wrapped") for one in kind.__mro__)
    wrapper = "model_space_init_wrapper"
    return inspect.signature(next(init for init in written if init and not init.__qualname__.startswith(wrapper)))
