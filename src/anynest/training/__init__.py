"""Training: from one config to weights, curves and a summary, resumable after any interruption.

The config and the errors need no torch; names whose modules import it are loaded on first use.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
from .config.data_config import DataConfig
from .config.method import MethodConfig
from .config.model import ModelConfig
from .config.optimizer import OptimizerConfig
from .config.recipes import RECIPES, recipe
from .config.run_config import RunConfig
from .config.schedule import ScheduleConfig
from .config.train_config import TrainConfig, read_config
from .errors import ConfigError, DivergedError, Interrupted, RunError, RunFolderError

if TYPE_CHECKING:
    from ..store import WeightsInfo, load, read_info, save_weights
    from .evaluation import Evaluation, evaluate
    from .output.summary import TrainResult
    from .run import train

__all__ = [
    "RECIPES",
    "ConfigError",
    "DataConfig",
    "DivergedError",
    "Evaluation",
    "Interrupted",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "RunError",
    "RunFolderError",
    "ScheduleConfig",
    "TrainConfig",
    "TrainResult",
    "WeightsInfo",
    "evaluate",
    "load",
    "read_config",
    "read_info",
    "recipe",
    "save_weights",
    "train",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "..store": ("WeightsInfo", "load", "read_info", "save_weights"),
        ".evaluation": ("Evaluation", "evaluate"),
        ".output.summary": ("TrainResult",),
        ".run": ("train",),
    },
)
