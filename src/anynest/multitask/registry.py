"""Names for the paper's methods, as the command line and the tests use them.

The names are known without importing torch; the classes are imported when one is built.
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .combiner import Combiner


def _weighted() -> "Callable[..., Combiner]":
    from .methods.weighted import WeightedSGD

    return WeightedSGD


def _normsgd() -> "Callable[..., Combiner]":
    from .methods.normsgd import NormSGD

    return NormSGD


def _osgd() -> "Callable[..., Combiner]":
    from .methods.osgd import OSGD

    return OSGD


# name -> (function that imports the factory, options that the name determines)
_METHODS: dict[str, tuple[Callable[[], "Callable[..., Combiner]"], dict[str, Any]]] = {
    "sgd-mean": (_weighted, {"reduction": "mean"}),
    "sgd-sum": (_weighted, {"reduction": "sum"}),
    "sgd-participants": (_weighted, {"reduction": "participants"}),
    "normsgd": (_normsgd, {}),
    "osgd": (_osgd, {"normalize": False, "reduction": "sum"}),
    "osgd-mean": (_osgd, {"normalize": False, "reduction": "mean"}),
    "osgd-norm": (_osgd, {"normalize": True, "reduction": "sum"}),
}
_ALIASES = {"sgd": "sgd-mean"}


def register_method(name: str, factory: "Callable[..., Combiner]", **preset: Any) -> None:
    """Let ``make_combiner(name)`` call ``factory(**preset, ...)``.

    Raises:
        ValueError: if the name is registered already.
    """
    if name in _METHODS or name in _ALIASES:
        raise ValueError(f"method {name!r} is registered already: choose another name")
    _METHODS[name] = (lambda: factory, preset)


def list_methods() -> list[str]:
    """The names that ``make_combiner`` knows, without aliases."""
    return sorted(_METHODS)


def make_combiner(method: str, **options: Any) -> "Combiner":
    """A combiner by name.

    ========================  ==============================================================
    sgd-mean (alias sgd)      equation 1: the average of the losses
    sgd-sum                   their sum
    sgd-participants          their average over the losses that touch a parameter
    normsgd                   equation 2
    osgd, osgd-mean           Algorithm 2; its sum divided by the number of losses
    osgd-norm                 Algorithm 2 with normalizing
    ========================  ==============================================================

    Args:
        method: one of these names.
        options: arguments of the class, except those that the name determines.

    Raises:
        ValueError: for an unknown name, with near matches, or an unknown option.

    >>> make_combiner("osgd", priority=[1, 0]).priority
    (1, 0)
    """
    name = _ALIASES.get(method, method)
    if name not in _METHODS:
        near = get_close_matches(method, [*_METHODS, *_ALIASES], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see list_methods()"
        raise ValueError(
            f"method must be one of {', '.join(list_methods())}, found {method!r}: {hint}"
        )
    load, preset = _METHODS[name]
    factory = load()
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = [option for option in parameters if option not in preset]
    for option in options:
        if option not in allowed and not takes_any:
            raise ValueError(
                f"method {method!r} takes no option {option!r}: it takes {', '.join(allowed)}"
            )
    return factory(**preset, **options)
