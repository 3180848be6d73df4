"""One run is one config: written into the run folder and read back exactly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunFolderError
from .config_io import Section, from_json
from .data_config import DataConfig
from .method import GREEDY, MethodConfig
from .model import ModelConfig
from .optimizer import OptimizerConfig
from .run_config import RunConfig
from .schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainConfig(Section):
    """A whole run, one section for each part of it.

    Sections check themselves without importing torch; once all are sound, torch is asked whether
    the method and the optimizer take their options.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method.check()
        self.optimizer.check()

    @property
    def greedy(self) -> bool:
        """Whether the stages are trained one after another (Algorithm 1)."""
        return self.method.name == GREEDY

    @classmethod
    def from_json(cls, data: Any) -> "TrainConfig":
        """The config that ``data`` describes; ConfigError names a wrong key or value."""
        return from_json(cls, data)

    def dumps(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RunFolderError, one line, for anything else."""
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
