"""Flags derived from the fields of a config, so that the two cannot drift apart."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from ..training import ConfigError, TrainConfig
from ..training.config.config_io import coerce, describe

# what a command declares itself to
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def config_fields() -> list[tuple[str, Field[Any], Any]]:
    """(section, field, type) of everything that a run's config holds."""
    sections = get_type_hints(TrainConfig)
    return [
        (section, field, get_type_hints(kind)[field.name])
        for section, kind in sections.items()
        for field in fields(kind)
    ]


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a field. Only what was typed appears in the parsed arguments."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for section, field, kind in config_fields():
        group = groups.get(section) or groups.setdefault(
            section, parser.add_argument_group(section)
        )
        flag, text = field.metadata["flag"], field.metadata["help"]
        common: dict[str, Any] = {
            "dest": f"{section}.{field.name}",
            "default": argparse.SUPPRESS,
            "help": text.replace("%", "%%"),
        }
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) is dict:
            group.add_argument(flag, action="append", metavar="KEY=VALUE", **common)
        elif get_origin(kind) is Literal:
            group.add_argument(flag, choices=get_args(kind), **common)
        else:
            group.add_argument(flag, metavar=field.name.upper(), **common)


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """``--import``, for networks that are registered outside the package."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module that registers networks of your own, also from the current folder; "
        "may be repeated",
    )


def import_modules(arguments: argparse.Namespace) -> None:
    """Import what ``--import`` names; ConfigError, one line, where a module cannot be."""
    if arguments.modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # first, as `python -m` has it
    for name in arguments.modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module may raise anything
            raise ConfigError(
                f"--import {name} failed: {type(error).__name__}: {error}; give the name of a "
                "module, without .py, that Python finds here"
            ) from error


def typed_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What was typed, in the config's shape: {section: {field: value}}.

    Errors: ConfigError names the flag, what it takes and what was found.
    """
    result: dict[str, dict[str, Any]] = {}
    for section, field, kind in config_fields():
        found = getattr(arguments, f"{section}.{field.name}", None)
        if found is not None:
            flag, form = field.metadata["flag"], field.metadata.get("form")
            try:
                value = from_text(kind, found, flag)
            except ConfigError as error:
                if form is None:
                    raise
                raise ConfigError(f"{flag} must be {form}, found {found!r}") from error
            result.setdefault(section, {})[field.name] = value
    return result


def from_text(kind: Any, text: Any, flag: str) -> Any:
    """The typed text as JSON would give it, checked against the type ``kind``.

    >>> from_text(tuple[tuple[int, int], ...] | None, "1x1,2x1", "--growth")
    [[1, 1], [2, 1]]
    >>> from_text(int | float | None, "0.1", "--holdout")
    0.1
    """
    value = _guess(kind, text, flag)
    coerce(kind, value, flag)
    return value


def _guess(kind: Any, text: Any, flag: str) -> Any:
    if get_origin(kind) is dict:
        return key_values(text, flag)
    if not isinstance(text, str):
        return text
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for member in members:
        if get_origin(member) is tuple:
            inner = get_args(member)[0]
            return [_guess(inner, part, flag) for part in _split(member, text)]
        if member in (int, float):
            try:
                return member(text)
            except ValueError:
                continue
        if member is not NoneType:
            return text
    wanted = " or ".join(describe(member) for member in members if member is not NoneType)
    raise ConfigError(f"{flag} must be {wanted}, found {text!r}")


def key_values(items: Sequence[str], flag: str) -> dict[str, Any]:
    """What ``KEY=VALUE`` texts say; values are JSON where they can be.

    >>> key_values(["exit=linear", "n=3"], "--model-option")
    {'exit': 'linear', 'n': 3}
    """
    return dict(_key_value(item, flag) for item in items)


def _split(kind: Any, text: str) -> list[str]:
    separator = "," if get_args(kind)[-1] is Ellipsis else "x"
    return [part.strip() for part in text.split(separator) if part.strip()]


def _key_value(item: str, flag: str) -> tuple[str, Any]:
    key, separator, text = item.partition("=")
    if not separator or not key:
        raise ConfigError(f"{flag} must be KEY=VALUE, found {item!r}")
    try:
        return key, json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return key, text
