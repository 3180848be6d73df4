"""Frozen dataclasses to JSON and back, strictly: a config is read back exactly or not at all.

Types known: bool, int, float, str, None, Literal, unions, tuple[X, ...], tuple[X, Y],
dict[str, X], and dataclasses of these.
"""

import json
import math
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError, near_matches

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A config as dicts, lists, numbers, texts and None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """The dataclass ``cls`` that ``data`` describes; a missing key takes its default.

    Errors: ConfigError for an unknown key (with near matches) or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'a config'} must be an object, found {_show(data)}")
    hints = get_type_hints(cls)
    for key in data:
        if key not in hints:
            place = where or "the config"
            raise ConfigError(f"{place} has no key {key!r}{near_matches(str(key), hints)}")
    dot = f"{where}." if where else ""
    return cls(**{key: coerce(hints[key], value, f"{dot}{key}") for key, value in data.items()})


def coerce(kind: Any, value: Any, where: str) -> Any:
    """``value`` (from JSON) as the annotated type ``kind``; ConfigError where it is not one."""
    if is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value, where)
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
        raise real[0]  # the inner place says more than the union does
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


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The dotted keys at which two JSON objects differ, in order.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c']
    """
    if isinstance(old, dict) and isinstance(new, dict) and where.count(".") < 2:
        keys = list(dict.fromkeys([*old, *new]))
        missing = object()
        found = []
        for key in keys:
            place = f"{where}.{key}" if where else key
            found += differences(old.get(key, missing), new.get(key, missing), place)
        return found
    return [] if old == new else [where]


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool | str | list | dict):
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = repr(value)
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
