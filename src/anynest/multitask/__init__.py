"""Many losses, one gradient: SGD, NormSGD and Orthogonalized SGD (Wan et al., ICML 2020, section 4).

For any list of scalar losses and any parameters, nested network or not::

    combiner = OSGD()
    losses = [criterion(logits, y) for logits in model(x)]
    stats = combiner.backward(losses, model.parameters())  # accumulates into .grad
    optimizer.step()  # any torch optimizer
"""

from .checks import NonFiniteLossError
from .combination import Combination
from .combiner import Combiner
from .compiling import compile_for_tasks
from .gradients import accumulate, task_rows
from .measure import gradient_stats
from .normsgd import NormSGD
from .osgd import OSGD
from .registry import list_methods, make_combiner, register_method
from .rows import Rows
from .rules import gram_matrix, normalize, orthogonalize, weighted_sum
from .stats import Stats
from .weighted import WeightedSGD

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
