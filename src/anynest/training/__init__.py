"""Training: from one config to weights, curves and a summary, through any interruption."""

from ..store import WeightsInfo, load, read_info, save_weights
from .config import TrainConfig, read_config
from .datasets import DataConfig
from .environment import RunConfig
from .errors import ConfigError, Interrupted, RunError, RunFolderError
from .evaluate import Evaluation, evaluate
from .method import MethodConfig
from .model import ModelConfig
from .optimizer import OptimizerConfig
from .recipes import RECIPES, recipe
from .schedule import ScheduleConfig
from .summary import TrainResult
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
