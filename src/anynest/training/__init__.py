"""Training: from one config to weights, curves and a summary, through any interruption."""

from ..store import WeightsInfo, load, read_info, save_weights
from .config.data_config import DataConfig
from .config.environment import RunConfig
from .config.method import MethodConfig
from .config.model import ModelConfig
from .config.optimizer import OptimizerConfig
from .config.recipes import RECIPES, recipe
from .config.schedule import ScheduleConfig
from .config.train_config import TrainConfig, read_config
from .errors import ConfigError, Interrupted, RunError, RunFolderError
from .evaluate import Evaluation, evaluate
from .output.summary import TrainResult
from .train import train

__all__ = [
    "RECIPES",
    "ConfigError",
    "DataConfig",
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
