"""What the paper leaves open: how the losses are scaled, and what exactly is projected.

The tables hold sgd-sum already; it is listed again so that this table stands by itself.
"""

from .experiment import Experiment, Run, grid
from .protocols import Protocol

DESIGNS = ("width", "depth", "simultaneous")
SCALES = ("sgd-mean", "sgd-sum", "sgd-participants", "osgd", "osgd-mean")
PROJECTIONS = ("osgd+raw", "osgd+tensor")
CONSTANTS = ("normsgd", "normsgd+C=0.5", "osgd-norm", "osgd-norm+C=0.5")


def runs(protocol: Protocol) -> list[Run]:
    """Scales and projections on every design, the normalizing methods' constant on one."""
    return [
        *grid(DESIGNS, (*SCALES, *PROJECTIONS)),
        *grid(("width",), CONSTANTS),
    ]


ABLATIONS = Experiment(
    "ablations",
    "Scale, projection and constant: what the paper leaves open",
    "not in the paper",
    "cifar",
    runs,
)
