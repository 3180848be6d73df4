"""Frozen, typed configuration sections and their JSON form, checked on the way in.

A section is a dataclass whose fields are declared by :func:`option`. Values are checked against the
annotations and converted once, when a section is made, whether they come from JSON, from flags or
from Python: what a section holds is always plain Python (a NumPy scalar becomes its number).

Types known: bool, int, float, str, None, Literal, unions, tuple[X, ...], tuple[X, Y],
dict[str, X], and sections.
"""

import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError, near_matches

T = TypeVar("T")


def about(
    flag: str,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    form: str | None = None,
) -> dict[str, Any]:
    """The metadata of a section's field: its flag on the command line, and its bounds.

    Args:
        flag: the flag on the command line.
        help: the flag's help.
        at_least: lowest number allowed.
        at_most: highest number allowed.
        above: a number that must be exceeded.
        form: how the flag's value is written, where the type's name would mislead.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above}
    return {"flag": flag, "help": help, "form": form, **bounds}


def option(default: Any, flag: str, help: str, **more: Any) -> Any:
    """A section's field with a default value; the other arguments are those of :func:`about`."""
    return field(default=default, metadata=about(flag, help, **more))


@dataclass(frozen=True)
class Section:
    """Base class of configuration sections: checks and converts every field."""

    SECTION = ""

    def __post_init__(self) -> None:
        for name, kind in _hints(type(self)).items():
            where = f"{self.SECTION}.{name}" if self.SECTION else name
            object.__setattr__(self, name, coerce(kind, getattr(self, name), where))
        for item in fields(self):
            require_bounds(item.metadata, getattr(self, item.name), f"{self.SECTION}.{item.name}")

    def to_json(self) -> dict[str, Any]:
        """Nested dicts for ``json.dumps``."""
        result: dict[str, Any] = _to_json(self)
        return result


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def require_bounds(bounds: Any, value: Any, where: str) -> None:
    """ConfigError where a number breaks the bounds given to :func:`option`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high, above = (bounds.get(name) for name in ("at_least", "at_most", "above"))
    if low is not None and value < low:
        raise ConfigError(f"{where} must be at least {low}, found {value}")
    if high is not None and value > high:
        raise ConfigError(f"{where} must be at most {high}, found {value}")
    if above is not None and value <= above:
        raise ConfigError(f"{where} must be above {above}, found {value}")


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """The section ``cls`` that ``data`` describes; a missing key takes its default.

    Raises:
        ConfigError: an unknown key (with near matches) or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'a config'} must be an object, found {_show(data)}")
    for key in data:
        if key not in _hints(cls):
            known = near_matches(str(key), _hints(cls))
            raise ConfigError(f"{where or 'the config'} has no key {key!r}{known}")
    return cls(**data)


def coerce(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``kind``; ConfigError where it is not one."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or torch
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where} must fit in 64 bits, found {_show(value)}: take a smaller one")
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_json(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _coerce_union(kind, arguments, value, where)
    if origin is Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
        extra = near_matches(str(value), [str(choice) for choice in arguments])
        raise ConfigError(f"{where} must be {describe(kind)}, found {_show(value)}{extra}")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(coerce(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(coerce(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(pairs))
    if origin is dict and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: coerce(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (bool, int, str, NoneType) and type(value) is kind:
        return value
    raise ConfigError(f"{where} must be {describe(kind)}, found {_show(value)}")


def _coerce_union(kind: Any, members: tuple[Any, ...], value: Any, where: str) -> Any:
    rejected: list[tuple[Any, ConfigError]] = []
    for member in members:
        try:
            return coerce(member, value, where)
        except ConfigError as error:
            rejected.append((member, error))
    real = [error for member, error in rejected if member is not NoneType]
    if len(real) == 1 and get_origin(members[0]) in (tuple, dict, Literal):
        raise real[0]  # the message of the inner place says more than the union's
    raise ConfigError(f"{where} must be {describe(kind)}, found {_show(value)}")


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    NoneType: "null",
}


def describe(kind: Any) -> str:
    """A type in words, for messages and help.

    >>> describe(tuple[int, ...] | None)
    'a list, each a whole number, or null'
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe(member) for member in arguments).replace(
            "number or null", "number, or null"
        )
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin is dict:
        return "an object"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) where two JSON objects differ, in order; None for a missing value.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    [('a.c', 2, 3)]
    """
    if isinstance(old, dict) and isinstance(new, dict) and where.count(".") < 2:
        keys = dict.fromkeys([*old, *new])
        dot = f"{where}." if where else ""
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{dot}{key}")]
    return [] if old == new else [(where, old, new)]


def _show(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):  # ValueError: NaN is fine, an integer of 5000 digits is not
        text = f"{value.bit_length()} bits" if isinstance(value, int) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
