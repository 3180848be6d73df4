"""Tables 1 to 3: the designs and methods of each, and the control ``sgd-sum``."""

from .experiment import Experiment, grid

# OSGD sums the projected gradients where the paper's SGD averages the losses, so the comparison
# that isolates the projection is with SGD on the sum
METHODS = ("greedy", "sgd-mean", "osgd", "normsgd", "osgd-norm", "sgd-sum")

TABLE1 = Experiment(
    "table1",
    "CIFAR-10 error of the nested networks under each optimization strategy",
    "Table 1",
    "cifar",
    lambda protocol: grid(("depth", "width", "alternating", "simultaneous"), METHODS),
)
TABLE2 = Experiment(
    "table2",
    "CIFAR-10 error of the earlier anytime networks under each optimization strategy",
    "Table 2",
    "cifar",
    lambda protocol: grid(("eann", "even"), METHODS),
)
TABLE3 = Experiment(
    "table3",
    "ImageNet top-1 and top-5 error under SGD and OSGD",
    "Table 3",
    "imagenet",
    lambda protocol: grid(("imagenet-width", "imagenet-depth"), ("sgd-mean", "osgd", "sgd-sum")),
)
