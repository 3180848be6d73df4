"""Many losses, one gradient: SGD, NormSGD and Orthogonalized SGD (Wan et al., ICML 2020, section 4).

For any list of scalar losses and any parameters, nested network or not::

    combiner = OSGD()
    losses = [criterion(logits, y) for logits in model(x)]
    stats = combiner.backward(losses, model.parameters())  # accumulates into .grad
    optimizer.step()  # any torch optimizer
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import list_methods, make_combiner, register_method

if TYPE_CHECKING:
    from .checks import NonFiniteLossError
    from .combiner import Combiner
    from .compiling import compile_for_tasks
    from .gradient_statistics import gradient_stats
    from .gradients.backward import accumulate, task_gradients
    from .gradients.step import Combination
    from .gradients.task_gradients import TaskGradients
    from .methods.normsgd import NormSGD
    from .methods.osgd import OSGD
    from .methods.rules import gram_matrix, normalize, orthogonalize, weighted_sum
    from .methods.weighted import WeightedSGD
    from .stats import Stats

__all__ = [
    "Combination",
    "Combiner",
    "NonFiniteLossError",
    "NormSGD",
    "OSGD",
    "Stats",
    "TaskGradients",
    "WeightedSGD",
    "accumulate",
    "compile_for_tasks",
    "gradient_stats",
    "gram_matrix",
    "list_methods",
    "make_combiner",
    "normalize",
    "orthogonalize",
    "register_method",
    "task_gradients",
    "weighted_sum",
]

# names whose modules import torch, loaded on first use (PEP 562)
_LAZY = {
    "NonFiniteLossError": ".checks",
    "Combiner": ".combiner",
    "compile_for_tasks": ".compiling",
    "gradient_stats": ".gradient_statistics",
    "accumulate": ".gradients.backward",
    "task_gradients": ".gradients.backward",
    "Combination": ".gradients.step",
    "TaskGradients": ".gradients.task_gradients",
    "NormSGD": ".methods.normsgd",
    "OSGD": ".methods.osgd",
    "gram_matrix": ".methods.rules",
    "normalize": ".methods.rules",
    "orthogonalize": ".methods.rules",
    "weighted_sum": ".methods.rules",
    "WeightedSGD": ".methods.weighted",
    "Stats": ".stats",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name], __name__), name)
    return value
