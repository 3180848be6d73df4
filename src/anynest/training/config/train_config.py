"""One run is one config: written into the run folder and read back exactly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunFolderError
from .config_io import from_json, to_json
from .data_config import DataConfig
from .environment import RunConfig
from .method import GREEDY, MethodConfig
from .model import ModelConfig
from .optimizer import OptimizerConfig
from .schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. Each section stands beside its owner.

    >>> config = TrainConfig(schedule=ScheduleConfig(epochs=3))
    >>> TrainConfig.from_json(config.to_json()) == config
    True
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def greedy(self) -> bool:
        """Whether the stages are trained one after another (Algorithm 1)."""
        return self.method.name == GREEDY

    def to_json(self) -> dict[str, Any]:
        """Nested dicts for ``json.dumps``."""
        result: dict[str, Any] = to_json(self)
        return result

    @classmethod
    def from_json(cls, data: Any, where: str = "") -> "TrainConfig":
        """The config that ``data`` describes; ConfigError names a wrong key or value."""
        return from_json(cls, data, where)

    def dumps(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RunFolderError, one line, where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} must hold JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunFolderError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data


def read_config(path: Path) -> TrainConfig:
    """The config in a file."""
    data = read_object(path)
    try:
        return TrainConfig.from_json(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
