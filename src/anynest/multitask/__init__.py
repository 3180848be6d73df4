"""Many losses, one gradient: SGD, NormSGD and Orthogonalized SGD (Wan et al., ICML 2020, section 4).

For any list of scalar losses and any parameters, nested network or not::

    combiner = OSGD()
    losses = [criterion(logits, y) for logits in model(x)]
    stats = combiner.backward(losses, model.parameters())  # accumulates into .grad
    optimizer.step()  # any torch optimizer
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
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

__getattr__ = lazy_attributes(
    __name__,
    {
        ".checks": ("NonFiniteLossError",),
        ".combiner": ("Combiner",),
        ".compiling": ("compile_for_tasks",),
        ".gradient_statistics": ("gradient_stats",),
        ".gradients.backward": ("accumulate", "task_gradients"),
        ".gradients.step": ("Combination",),
        ".gradients.task_gradients": ("TaskGradients",),
        ".methods.normsgd": ("NormSGD",),
        ".methods.osgd": ("OSGD",),
        ".methods.rules": ("gram_matrix", "normalize", "orthogonalize", "weighted_sum"),
        ".methods.weighted": ("WeightedSGD",),
        ".stats": ("Stats",),
    },
)
