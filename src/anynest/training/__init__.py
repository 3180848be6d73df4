"""Training: from one config to weights, curves and a summary, through any interruption."""

from anynest.training.config import TrainConfig, read_config
from anynest.training.datasets import DataConfig
from anynest.training.environment import RunConfig
from anynest.training.errors import ConfigError, Interrupted, RunError, RunFolderError
from anynest.training.evaluate import Evaluation, evaluate
from anynest.training.method import MethodConfig
from anynest.training.model import ModelConfig
from anynest.training.optimizer import OptimizerConfig
from anynest.training.recipes import RECIPES, recipe
from anynest.training.schedule import ScheduleConfig
from anynest.training.summary import TrainResult
from anynest.training.train import train
from anynest.training.weights import WeightsInfo, load, read_info, save_weights

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
