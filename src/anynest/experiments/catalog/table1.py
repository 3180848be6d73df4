"""Table 1: four nested designs, five methods; beside them the control sgd-sum."""

from .experiment import Experiment, grid

DESIGNS = ("depth", "width", "alternating", "simultaneous")
# sgd-sum: OSGD sums what it keeps where the paper's SGD averages the losses, so the comparison
# that isolates the projection is with the sum
METHODS = ("greedy", "sgd-mean", "osgd", "normsgd", "osgd-norm", "sgd-sum")

TABLE1 = Experiment(
    "table1",
    "CIFAR-10 error of the nested networks under each optimization strategy",
    "Table 1",
    "cifar",
    lambda protocol: grid(DESIGNS, METHODS),
)
