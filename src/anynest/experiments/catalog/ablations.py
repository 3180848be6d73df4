"""What the paper leaves open: how the losses are scaled, what exactly is projected, what stages share.

The tables hold sgd-sum already; it is listed again so that this table stands by itself.
"""

from .experiment import Experiment, Run, grid
from .protocols import Protocol

DESIGNS = ("width", "depth", "simultaneous")
SCALES = ("sgd-mean", "sgd-sum", "sgd-participants", "osgd", "osgd-mean")
PROJECTIONS = ("osgd+raw", "osgd+tensor")
HEADS = ("osgd+shared-head", "sgd-mean+shared-head")
NORMS = ("osgd+shared-norm", "sgd-mean+shared-norm")
DEEPENING = ("depth", "simultaneous")  # where a group's transition has versions
CONSTANTS = ("normsgd", "normsgd+C=0.5", "osgd-norm", "osgd-norm+C=0.5")


def runs(protocol: Protocol) -> list[Run]:
    """Scales, projections and heads on every design, norms where there is something to share, the
    normalizing methods' constant on one design."""
    return [
        *grid(DESIGNS, (*SCALES, *PROJECTIONS)),
        *grid(("width",), CONSTANTS),
        *grid(DESIGNS, HEADS),
        *grid(DEEPENING, NORMS),
    ]


ABLATIONS = Experiment(
    "ablations",
    "Scale, projection, constant, shared heads and norms: what the paper leaves open",
    "not in the paper",
    "cifar",
    runs,
)
