"""Many losses, one gradient: SGD, NormSGD and Orthogonalized SGD (Wan et al., ICML 2020, section 4).

For scalar losses in a list or by name, and any parameters, nested network or not::

    combiner = OSGD(priority=["depth", "seg"])
    losses = {"seg": seg_loss, "depth": depth_loss}
    stats = combiner.backward(losses)  # accumulates into .grad, as loss.backward() does
    optimizer.step()  # any torch optimizer
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
from .registry import list_methods, make_combiner, register_method

if TYPE_CHECKING:
    from .checks import NonFiniteLossError
    from .combiner import Combiner, accumulate
    from .compiling import compile_for_tasks
    from .gradients.backward import task_gradients
    from .gradients.task_gradients import TaskGradients
    from .methods.normsgd import NormSGD
    from .methods.osgd import OSGD, gradient_stats
    from .methods.rules import gram_matrix, normalize, orthogonalize, weighted_sum
    from .methods.torchjd import from_torchjd
    from .methods.weighted import WeightedSGD
    from .stats import Combination, Stats, TaskStats

__all__ = [
    "Combination",
    "Combiner",
    "NonFiniteLossError",
    "NormSGD",
    "OSGD",
    "Stats",
    "TaskGradients",
    "TaskStats",
    "WeightedSGD",
    "accumulate",
    "compile_for_tasks",
    "from_torchjd",
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
        ".combiner": ("Combiner", "accumulate"),
        ".compiling": ("compile_for_tasks",),
        ".gradients.backward": ("task_gradients",),
        ".gradients.task_gradients": ("TaskGradients",),
        ".methods.normsgd": ("NormSGD",),
        ".methods.osgd": ("OSGD", "gradient_stats"),
        ".methods.rules": ("gram_matrix", "normalize", "orthogonalize", "weighted_sum"),
        ".methods.torchjd": ("from_torchjd",),
        ".methods.weighted": ("WeightedSGD",),
        ".stats": ("Combination", "Stats", "TaskStats"),
    },
)
