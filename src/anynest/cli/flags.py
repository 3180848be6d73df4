"""Flags that several commands share, and the flags of ``train``, derived from its config's fields."""

import argparse
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from operator import or_
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..data.limits import MAX_WORKERS
from ..training.config.config_io import coerce, describe, require_bounds
from ..training.config.run_config import MAX_THREADS
from ..training.config.train_config import TrainConfig
from ..training.errors import ConfigError
from .parser import Parser, integer, shorten

SPLITS = ("train", "validation", "test")
BACKENDS = ("onnxruntime", "torch")
MAX_SIDE = 1 << 16  # pixels of a network's images, as in store.weights, which imports torch


def add_threads_flag(parser: Any, default: int | None = 1) -> None:
    """``--threads``; the help shows 1, the default, also where None tells whether it was typed."""
    parser.add_argument(
        "--threads",
        type=integer(1, MAX_THREADS),
        default=default,
        help="threads per operator (default: 1)",
    )


def add_device_flag(parser: Parser, default: str = "auto") -> None:
    """``--device``."""
    parser.add_argument(
        "--device", default=default, help="auto, cpu, cuda, cuda:1 or mps; used by torch"
    )


def add_image_size_flag(parser: Parser, default: str) -> None:
    """``--image-size``; ``default`` says what no value means."""
    parser.add_argument(
        "--image-size",
        type=integer(1, MAX_SIDE),
        metavar="PIXELS",
        help=f"height and width (default: {default})",
    )


def add_workers_flag(parser: Any, default: int | None = 0) -> None:
    """``--workers``; the help shows 0, as for ``--threads``."""
    parser.add_argument(
        "--workers",
        type=integer(0, MAX_WORKERS),
        default=default,
        help="processes that decode the images of a folder (default: 0)",
    )


def add_policy_flag(parser: Any, text: str, default: str | None = "none") -> None:
    """``--policy``, of commands that stop early."""
    parser.add_argument("--policy", default=default, metavar="FILE", help=text)


def add_json_flag(parser: Parser, text: str = "print JSON") -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help=text)


def add_import_flag(parser: Parser) -> None:
    """``--import``, for networks that are registered outside the package."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a Python module that registers networks, also from the current folder; "
        "may be repeated",
    )


def import_modules(names: list[str]) -> None:
    """Import the modules named by ``--import``.

    Raises:
        ConfigError: a module cannot be imported.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # first, as for `python -m`
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module may raise anything
            raise ConfigError(
                f"--import {name} failed: {type(error).__name__}: {error}; give the name of a "
                "module, without .py, that Python finds here"
            ) from error


def config_fields() -> list[tuple[str, Field[Any], Any]]:
    """(section, field, type) of every field of a run's config."""
    sections = get_type_hints(TrainConfig)
    return [
        (section, field, get_type_hints(kind)[field.name])
        for section, kind in sections.items()
        for field in fields(kind)
    ]


def add_config_flags(parser: Parser) -> None:
    """Add one flag per config field. Flags that were not typed are absent from the namespace."""
    groups: dict[str, Any] = {}
    for section, field, kind in config_fields():
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        flag = field.metadata["flag"]
        options: dict[str, Any] = {
            "dest": f"{section}.{field.name}",
            "default": argparse.SUPPRESS,
            "help": (field.metadata["help"] + default_text(field)).replace("%", "%%"),
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is dict:
            options |= {"action": "append", "metavar": "KEY=VALUE", "type": key_value}
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options |= {
                "metavar": field.name.upper(),
                "type": config_value(kind, field.metadata),
            }
        groups[section].add_argument(flag, **options)


def default_text(field: Field[Any]) -> str:
    """The default of a config field for its help; nothing where the help says it."""
    if field.default in (None, MISSING) or "default" in field.metadata["help"]:
        return ""
    if isinstance(field.default, bool):
        shown = "on" if field.default else "off"
    elif isinstance(field.default, tuple):
        shown = ",".join(map(str, field.default))
    else:
        shown = str(field.default)
    return f" (default: {shown})"


def typed_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The typed flags in the config's shape: ``{section: {field: value}}``."""
    result: dict[str, dict[str, Any]] = {}
    for section, field, kind in config_fields():
        value = getattr(arguments, f"{section}.{field.name}", None)
        if value is not None:
            value = dict(value) if get_origin(kind) is dict else value
            result.setdefault(section, {})[field.name] = value
    return result


def config_value(kind: Any, metadata: Mapping[str, Any]) -> Callable[[str], Any]:
    """The type of a flag whose config field has type ``kind`` and this metadata.

    >>> config_value(tuple[tuple[int, int], ...] | None, {"flag": "--growth"})("1x1,2x1")
    [[1, 1], [2, 1]]
    >>> config_value(int | float | None, {"flag": "--holdout"})("0.1")
    0.1
    """
    flag, form = metadata["flag"], metadata.get("form")
    if get_origin(kind) in (Union, UnionType):
        kind = functools.reduce(or_, (part for part in get_args(kind) if part is not NoneType))

    def read(text: str) -> Any:
        try:
            value = guess(kind, text, flag)
            coerce(kind, value, flag)
            require_bounds(metadata, value, flag)
        except ConfigError as error:
            message = f"must be {form}, found {shorten(text)}" if form else str(error)
            raise argparse.ArgumentTypeError(message) from error
        return value

    return read


def guess(kind: Any, text: str, flag: str) -> Any:
    """The JSON value that ``text`` stands for where type ``kind`` is expected."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for member in members:
        if get_origin(member) is tuple:
            inner = get_args(member)
            separator = "," if inner[-1] is Ellipsis else "x"
            parts = [part.strip() for part in text.split(separator)]
            return [guess(inner[0], part, flag) for part in parts if part]
        if member in (int, float):
            try:
                return member(text)
            except ValueError:
                continue
        return text
    raise ConfigError(f"{flag} must be {describe(kind)}, found {shorten(text)}")


def key_value(text: str) -> tuple[str, Any]:
    """The type of a flag that takes KEY=VALUE; a value that is JSON is parsed.

    >>> key_value("exit=linear"), key_value("n=3"), key_value("nesterov=True")
    (('exit', 'linear'), ('n', 3), ('nesterov', True))
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, found {shorten(text)}")
    try:
        return key, json.loads(value.lower() if value in ("True", "False") else value)
    except (ValueError, RecursionError):
        return key, value
