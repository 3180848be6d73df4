"""Registered networks: register, list, describe, create."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .nested.architecture import Architecture
from .nested.cost import StageCost
from .nested.growth import as_integer
from .pretrained import load_into, pretrained_file
from .staged import require_staged

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., Any]
Costs = Callable[..., Sequence[StageCost]]
F = TypeVar("F", bound=Factory)

_FACTORIES: dict[str, Factory] = {}
_COSTS: dict[str, Costs] = {}
NESTED_OPTIONS = ("growth", "base_width", "stem", "independent", "subnetwork")
DATA_OPTIONS = ("num_classes", "in_channels")


@overload
def register(factory: F) -> F: ...
@overload
def register(*, costs: Costs) -> Callable[[F], F]: ...
def register(factory: F | None = None, *, costs: Costs | None = None) -> F | Callable[[F], F]:
    """Register a function that makes a network, under the function's name.

    The function takes no arguments and returns an :class:`Architecture`, or returns any
    ``torch.nn.Module`` that satisfies :class:`Staged`. Then its parameters are the options of
    ``create_model(name, ...)``, passed by keyword. A training run takes the values of
    ``num_classes``, ``in_channels`` and ``image_size`` from the data, where it has such parameters.

    Args:
        factory: the function; its docstring describes the network in one line.
        costs: takes the same options, and returns the ``StageCost`` of every stage, if possible
            without importing torch: ``anynest models`` shows them.

    Example:
        >>> from anynest.nets import Architecture, register
        >>> @register
        ... def my_nested_resnet14() -> Architecture:
        ...     return Architecture(blocks=(2, 2, 2), growth=((1, 1), (2, 1)), base_width=8)

    Raises:
        ValueError: the name is taken.
    """
    if factory is None:
        return lambda made: _register(made, costs)
    return _register(factory, costs)


def _register(factory: F, costs: Costs | None) -> F:
    name = factory.__name__
    if name in _FACTORIES:
        raise ValueError(f"a model named {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory
    if costs is not None:
        _COSTS[name] = costs
    return factory


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell-style pattern, sorted."""
    return sorted(name for name in _FACTORIES if fnmatch(name, pattern))


def describe(name: str) -> str:
    """A model's description in one line: its function's docstring."""
    return " ".join((_factory(name).__doc__ or "").split())


def is_nested(name: str) -> bool:
    """Whether the model is defined by an :class:`Architecture`, which ``growth`` and so on change.

    Raises:
        ValueError: an unknown name.
    """
    factory = _factory(name)
    return not inspect.signature(factory).parameters and isinstance(factory(), Architecture)


def option_defaults(name: str) -> dict[str, Any]:
    """The options of a network without an ``Architecture`` that have a default, with it."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def registered_costs(name: str, **options: Any) -> tuple[StageCost, ...] | None:
    """The costs that were registered beside a factory; None without.

    Args:
        name: one of :func:`list_models`.
        options: those that the function of the costs has no parameter for are left out.
    """
    if name not in _COSTS:
        return None
    names, takes_all = _parameters(_COSTS[name])
    given = {key: value for key, value in options.items() if takes_all or key in names}
    return tuple(_COSTS[name](**given))


@dataclass(frozen=True)
class ModelOrigin:
    """How a network was made: ``create_model(name, **arguments)``.

    Attributes:
        name: the registered name.
        arguments: the options, plain data.
        module: the Python module that registers the name; empty for those of this package.
    """

    name: str
    arguments: dict[str, Any]
    module: str = ""


def origin_of(model: nn.Module) -> ModelOrigin | None:
    """How ``create_model`` made the network; None where it did not."""
    found = getattr(model, "_anynest_origin", None)
    if isinstance(found, ModelOrigin):
        return found
    name = getattr(model, "name", None)
    if isinstance(name, str) and name in _FACTORIES and hasattr(model, "architecture"):
        return ModelOrigin(name, dict(getattr(model, "arguments", {})), _module_of(name))
    return None


def name_of(model: nn.Module) -> str:
    """The registered name of the network, or that of its class."""
    origin = origin_of(model)
    return type(model).__name__ if origin is None else origin.name


def _module_of(name: str) -> str:
    module = _FACTORIES[name].__module__
    return "" if module.startswith(__name__.partition(".")[0] + ".") else module


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
        TypeError: an unknown option, or a network that no architecture defines.
    """
    factory = _factory(name)
    architecture = None if inspect.signature(factory).parameters else factory()
    if not isinstance(architecture, Architecture):
        raise TypeError(
            f"{name} has no Architecture: its function returns a network, which create_model builds"
        )
    given = {"num_classes": num_classes, "in_channels": in_channels, "independent": independent}
    return _configured(architecture, {**options, **given})


def _configured(architecture: Architecture, options: Mapping[str, Any]) -> Architecture:
    """The architecture with the options that are not None."""
    changes = dict(options)
    independent = changes.pop("independent", None)
    known = {field.name for field in fields(Architecture)}
    for key in changes:
        if key not in known:
            raise TypeError(f"create_model has no option {key!r}; {_near(key, known)}")
    changes = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in changes.items()
        if value is not None
    }
    architecture = replace(architecture, **changes)
    return architecture if independent is None else architecture.plain(independent)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    growth: Sequence[Sequence[int]] | None = None,
    base_width: int | None = None,
    stem: str | None = None,
    independent: int | None = None,
    subnetwork: int | None = None,
    pretrained: str | None = None,
    **options: Any,
) -> Any:
    """Build a registered network.

    Args:
        name: one of :func:`list_models`.
        num_classes: logits of each output; default: 10, or the factory's.
        in_channels: channels of the images; default: 3, or the factory's.
        growth: (width, depth) of each stage; default: the registered one.
        base_width: channels of the first group at width 1; default: the registered number.
        stem: ``"cifar"`` or ``"imagenet"``.
        independent: s: the plain, un-nested network of stage s's size (the Oracle's member,
            section 5.3).
        subnetwork: s: stage s of the nested network alone, as ``model.subnetwork(s)``. Such a model
            loads the part of the whole network's weights that it has names for.
        pretrained: one of :func:`list_pretrained`: trained weights that come with the package and
            fit this network. Like any new network it is in training mode.
        options: any other field of :class:`Architecture`, such as ``exit="linear"`` for a cascade;
            of another network, the parameters of its factory, all of them plain data.

    Returns:
        An :class:`AnytimeNetwork`, or the module that the registered function returns.

    Raises:
        ValueError: an unknown name or a value out of range; weights that do not fit.
        TypeError: an unknown option, or one that the network ignores; a registered function that
            returns no :class:`Staged` module.

    Example:
        >>> model = create_model("width_nested_resnet10", pretrained="cifar10-jpeg75-16px")
    """
    given = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "growth": growth,
        "base_width": base_width,
        "stem": stem,
        **options,
        "independent": independent,
        "subnetwork": subnetwork,
    }
    if pretrained is None:
        return _create(name, given, must_take=DATA_OPTIONS)
    pretrained_file(pretrained)  # a wrong name costs no network
    model = _create(name, {**given, "subnetwork": None}, must_take=DATA_OPTIONS)
    load_into(model, pretrained)
    return model if subnetwork is None else model.subnetwork(subnetwork)


def create_for_data(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    data_size: int | None = None,
    **options: Any,
) -> Any:
    """As :func:`create_model`, but a network may have classes and channels of its own.

    A factory without such parameters is not given them. Where the network tells another number
    (``model.num_classes``, ``model.in_channels``), TypeError. ``data_size``, pixels a side,
    is the default of a factory's parameter ``image_size``.
    """
    if data_size is not None and "image_size" in _parameters(_factory(name))[0]:
        options = {"image_size": data_size, **options}
    given = {"num_classes": num_classes, "in_channels": in_channels, **options}
    return _create(name, given, must_take=())


def _create(name: str, given: Mapping[str, Any], must_take: Iterable[str]) -> Any:
    factory = _factory(name)
    given = {key: value for key, value in given.items() if value is not None}
    made = None if inspect.signature(factory).parameters else factory()
    if isinstance(made, Architecture):
        return _nested(name, made, {"num_classes": 10, "in_channels": 3, **given})
    check_options(name, given)
    names, takes_all = _parameters(factory)
    passed = {key: value for key, value in given.items() if takes_all or key in names}
    arguments = _plain_data(name, passed)
    model = factory(**passed) if made is None else made
    _require_network(name, model)
    for key in DATA_OPTIONS:
        if key in given:
            takes_it = key in passed
            _check_number(name, key, given[key], model, takes_it, key in must_take)
    model._anynest_origin = ModelOrigin(name, arguments, _module_of(name))
    return model


def _nested(name: str, architecture: Architecture, given: Mapping[str, Any]) -> Any:
    """The nested network of an architecture with these options."""
    arguments = dict(given)
    subnetwork = arguments.pop("subnetwork", None)
    architecture = _configured(architecture, arguments)
    from .nested.network import AnytimeNetwork  # imports torch; errors above need none

    arguments = {key: _as_json(value) for key, value in arguments.items()}
    model = AnytimeNetwork(architecture, name, arguments)
    return model if subnetwork is None else model.subnetwork(subnetwork)


def check_options(name: str, given: Mapping[str, Any]) -> None:
    """Check options of a factory that returns a network, without calling it.

    Raises:
        TypeError: an option that it does not have, or one that is missing.
    """
    factory = _factory(name)
    names, takes_all = _parameters(factory)
    for key in given:
        if key in names or key in DATA_OPTIONS or takes_all:
            continue
        hint = _near(key, names) if names else "it has none"
        if key in NESTED_OPTIONS:
            hint = f"networks with an Architecture have it; {hint}"
        raise TypeError(f"{name} has no option {key!r}; {hint}")
    for key, is_needed in names.items():
        if is_needed and key not in given:
            raise TypeError(
                f"{name} needs the option {key!r}: give it (--model-option {key}=VALUE on the "
                "command line), or give the parameter a default"
            )


def _parameters(function: Factory) -> tuple[dict[str, bool], bool]:
    """A function's keyword parameters, with whether each is needed; and whether it takes any."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {p.name: p.default is p.empty for p in parameters if p.kind in named}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _require_network(name: str, model: object) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        found = type(model).__name__
        remedy = "; one with parameters returns a network" if found == "Architecture" else ""
        raise TypeError(
            f"{name} must return an Architecture, or a torch.nn.Module with num_stages, forward "
            f"and stages, found {found}{remedy}"
        )
    require_staged(model, name)


def _check_number(
    name: str, key: str, wanted: Any, model: nn.Module, takes_it: bool, must_take: bool
) -> None:
    """TypeError where the network has another number, or cannot be asked and took none."""
    found = as_integer(getattr(model, key, None))
    if found == wanted or (found is None and (takes_it or not must_take)):
        return
    has = "" if found is None else f", whose network has {found}"
    if takes_it:
        raise TypeError(
            f"{name} must heed {key}={wanted}, found {found}: pass it on to the network"
        )
    raise TypeError(f"{name} takes no {key}={wanted}{has}: give its function the parameter {key}")


def _plain_data(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as ``json`` reads them back; TypeError for what a weights file cannot hold."""
    result = {key: _as_json(value) for key, value in options.items()}
    for key, value in result.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise TypeError(
                f"option {key!r} of {name} must be plain data, which a weights file can hold "
                f"(numbers, strings, lists, dicts), found {type(value).__name__}"
            ) from None
    return result


def _near(key: str, known: Iterable[str]) -> str:
    """What an unknown option may have meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"options are {', '.join(sorted(known))}"


def _as_json(value: Any) -> Any:
    """A value as ``json`` reads it back: lists for tuples, ``int`` for integers of other types."""
    if isinstance(value, (tuple, list)):
        return [_as_json(item) for item in value]
    number = as_integer(value)
    return value if number is None else number
