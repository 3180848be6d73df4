"""Table 2: the two earlier anytime designs, the same methods."""

from .experiment import Experiment, grid
from .table1 import METHODS

DESIGNS = ("eann", "even")

TABLE2 = Experiment(
    "table2",
    "CIFAR-10 error of the earlier anytime networks under each optimization strategy",
    "Table 2",
    "cifar",
    lambda protocol: grid(DESIGNS, METHODS),
)
