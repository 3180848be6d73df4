"""The command that starts a run again, from the config in its folder."""

from __future__ import annotations

import json
import shlex
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from ..data.locate import SOURCES
from ..training import TrainConfig

FOLDER = "FOLDER"  # stands for a folder on the machine of the run


def train_command(config: TrainConfig, module: str = "") -> str:
    """``anynest train`` with a flag for every setting that is not the default.

    Folders are private to a machine: one that the data came from is named ``FOLDER``.

    Args:
        config: the run's.
        module: the Python module that registers the network, if it is not one of this package.

    >>> train_command(TrainConfig.from_json({"schedule": {"epochs": 3}, "run": {"seed": 1}}))
    'anynest train --epochs 3 --seed 1'
    """
    words = ["anynest", "train"]
    if module:
        words += ["--import", module]
    for section in fields(config):
        settings = getattr(config, section.name)
        for item in fields(settings):
            value = getattr(settings, item.name)
            if value != _default(item):
                words += _flag(item.metadata["flag"], value)
    return shlex.join(words)


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, dict):
        return [word for key in value for word in (flag, f"{key}={_json(value[key])}")]
    if isinstance(value, tuple):
        return [flag, ",".join(_item(part) for part in value)]
    if flag == "--data" and value not in SOURCES and not value.startswith("hub:"):
        return [flag, FOLDER if Path(value).suffix == "" else f"{FOLDER}/{Path(value).name}"]
    return [flag, str(value)]


def _item(part: Any) -> str:
    return "x".join(map(str, part)) if isinstance(part, tuple) else str(part)


def _json(value: Any) -> str:
    """A value as ``KEY=VALUE`` reads it back: a text that is JSON itself is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value.lower() if value in ("True", "False") else value)
    except (ValueError, RecursionError):
        return value
    return json.dumps(value)
