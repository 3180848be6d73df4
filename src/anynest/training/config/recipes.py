"""The training settings of the paper, in the form of a config.

CIFAR (section 5.1): 200 epochs from 0.1 to 0.0008 are established; 0.0008 = 0.1 * 0.2^3 gives the
Wide-ResNet recipe for all else. ImageNet (section 5.5): 90 epochs from 0.1 to 0.0001 are
established; the steps at 30/60/80, the batch and the weight decay are the usual ones of ResNets.
"""

import copy
from typing import Any

from ..errors import ConfigError, near_matches

SGD = {"name": "sgd", "lr": 0.1, "options": {"momentum": 0.9, "nesterov": True}}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper-cifar": {
        "data": {"augment": "cifar", "batch_size": 128, "holdout": 0},
        "optimizer": {**SGD, "weight_decay": 5e-4},
        "schedule": {
            "epochs": 200,
            "shape": "steps",
            "milestones": [60 / 200, 120 / 200, 160 / 200],
            "factor": 0.2,
        },
    },
    "paper-imagenet": {
        "data": {"augment": "imagenet", "batch_size": 256, "holdout": 0, "image_size": 224},
        "model": {"stem": "imagenet"},
        "optimizer": {**SGD, "weight_decay": 1e-4},
        "schedule": {
            "epochs": 90,
            "shape": "steps",
            "milestones": [30 / 90, 60 / 90, 80 / 90],
            "factor": 0.1,
        },
    },
}


def recipe(name: str) -> dict[str, dict[str, Any]]:
    """The sections that a recipe sets; ConfigError lists near matches."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{near_matches(name, RECIPES)}")
    return copy.deepcopy(RECIPES[name])
