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
    from .gradient_stats import gradient_stats
    from .gradients.backward import accumulate, task_rows
    from .gradients.combination import Combination
    from .gradients.task_gradients import Rows
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
    "Rows",
    "Stats",
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
    "task_rows",
    "weighted_sum",
]

# names whose modules import torch, loaded on first use (PEP 562)
_LAZY = {
    "NonFiniteLossError": ".checks",
    "Combiner": ".combiner",
    "compile_for_tasks": ".compiling",
    "gradient_stats": ".gradient_stats",
    "accumulate": ".gradients.backward",
    "task_rows": ".gradients.backward",
    "Combination": ".gradients.combination",
    "Rows": ".gradients.task_gradients",
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
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value  # in place of the submodule `gradient_stats`, bound by its import
    return value
