"""Registered architectures: register, list, describe, create."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from .nested.architecture import Architecture
from .nested.growth import as_integer

if TYPE_CHECKING:
    from .nested.network import AnytimeNetwork

Factory = Callable[[], Architecture]
_FACTORIES: dict[str, Factory] = {}


def register(factory: Factory) -> Factory:
    """Register a function that returns an :class:`Architecture`, under the function's name.

    Example:
        >>> from anynest.nets import Architecture, register
        >>> @register
        ... def my_nested_resnet14() -> Architecture:
        ...     return Architecture(blocks=(2, 2, 2), growth=((1, 1), (2, 1)), base_width=8)

    Raises:
        ValueError: the name is taken.
    """
    name = factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"a model named {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory
    return factory


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell-style pattern, sorted."""
    return sorted(name for name in _FACTORIES if fnmatch(name, pattern))


def describe(name: str) -> str:
    """A model's description in one line: its function's docstring."""
    return " ".join((_factory(name).__doc__ or "").split())


def _factory(name: str) -> Factory:
    if name not in _FACTORIES:
        near = difflib.get_close_matches(name, _FACTORIES, n=4, cutoff=0.5)
        hint = f"near matches: {', '.join(near)}" if near else "`anynest models` lists all"
        raise ValueError(
            f"there is no model named {name!r}; {hint}; for a model of your own, import its module "
            "first (--import MODULE on the command line)"
        )
    return _FACTORIES[name]


def create_architecture(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    independent: int | None = None,
    **options: Any,
) -> Architecture:
    """The architecture that :func:`create_model` builds with the same arguments; needs no torch.

    Example:
        >>> from anynest.nets.nested.cost import stage_costs
        >>> from anynest.nets.nested.wiring import build_plan
        >>> architecture = create_architecture("width_nested_resnet10", num_classes=5)
        >>> [row.parameters for row in stage_costs(build_plan(architecture), (32, 32))]
        [5433, 16002, 57359]

    Raises:
        ValueError: an unknown name or a value out of range.
        TypeError: an unknown option.
    """
    architecture = _factory(name)()
    if not isinstance(architecture, Architecture):
        raise TypeError(
            f"{name} must return an Architecture, found {type(architecture).__name__}; see register"
        )
    known = {field.name for field in fields(Architecture)}
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"options are {', '.join(sorted(known))}"
            )
            raise TypeError(f"create_model has no option {key!r}; {hint}")
    changes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in options.items()
        if value is not None
    }
    changes |= {"num_classes": num_classes, "in_channels": in_channels}
    architecture = replace(architecture, **changes)
    return architecture if independent is None else architecture.plain(independent)


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    growth: Sequence[Sequence[int]] | None = None,
    base_width: int | None = None,
    stem: str | None = None,
    independent: int | None = None,
    subnetwork: int | None = None,
    **options: Any,
) -> AnytimeNetwork:
    """Build a registered network.

    Args:
        name: one of :func:`list_models`.
        num_classes: logits of each output.
        in_channels: channels of the images.
        growth: (width, depth) of each stage; default: the registered one.
        base_width: channels of the first group at width 1; default: the registered number.
        stem: ``"cifar"`` or ``"imagenet"``.
        independent: s: the plain, un-nested network of stage s's size (the Oracle's member,
            section 5.3).
        subnetwork: s: stage s of the nested network alone, as ``model.subnetwork(s)``. Such a model
            loads the part of the whole network's weights that it has names for.
        options: any other field of :class:`Architecture`, such as ``exit="linear"`` for a cascade.

    Raises:
        ValueError: an unknown name or a value out of range.
        TypeError: an unknown option.
    """
    arguments = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "growth": growth,
        "base_width": base_width,
        "stem": stem,
        **options,
        "independent": independent,
    }
    architecture = create_architecture(name, **arguments)
    from .nested.network import AnytimeNetwork  # imports torch; errors above need none

    arguments = {key: _as_json(value) for key, value in arguments.items() if value is not None}
    model = AnytimeNetwork(architecture, name, arguments)
    return model if subnetwork is None else model.subnetwork(subnetwork)


def _as_json(value: Any) -> Any:
    """A value as ``json`` reads it back: lists for tuples, ``int`` for integers of other types."""
    if isinstance(value, (tuple, list)):
        return [_as_json(item) for item in value]
    number = as_integer(value)
    return value if number is None else number
