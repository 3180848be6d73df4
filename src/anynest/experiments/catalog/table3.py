"""Table 3: ImageNet, SGD and OSGD; beside them the control sgd-sum."""

from .experiment import Experiment, grid

DESIGNS = ("imagenet-width", "imagenet-depth")
METHODS = ("sgd-mean", "osgd", "sgd-sum")

TABLE3 = Experiment(
    "table3",
    "ImageNet top-1 and top-5 error under SGD and OSGD",
    "Table 3",
    "imagenet",
    lambda protocol: grid(DESIGNS, METHODS),
)
