"""What users name as ``module:name``: functions and classes of their own."""

import importlib
from collections.abc import Callable

from nni_fairdarts.errors import InputError
from nni_fairdarts.failures import DEBUG


def imported(name: str, what: str) -> Callable:
    """The function or class behind ``module:name``; ``what`` says in errors what it is for.

    Raises InputError where it cannot be imported, and where it cannot be called.
    """
    module, _, attribute = name.partition(":")
    kind = "Class" if what == "model space" else "function"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which can raise anything
        raise InputError(
            f"cannot import the {what} {name!r}: {type(error).__name__}: {error}; expected module:{kind}, "
            "with the module installed or in a folder on PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"the {what} {name!r} must be a {kind.lower()}, got {type(found).__name__}")
    return found


def called(name: str, what: str, *args, **kwargs):
    """What the function or class behind ``module:name`` returns. Raises InputError where it cannot be had."""
    function = imported(name, what)
    try:
        return function(*args, **kwargs)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the {what} {name!r} raised {type(error).__name__}: {error}; mend it ({DEBUG}=1 shows where)"
        ) from error
