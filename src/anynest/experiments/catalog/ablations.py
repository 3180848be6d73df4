"""Ablations of choices that the paper leaves open: scale of the losses, scope of the projection,
the normalizing methods' constant, shared heads and norms.

The tables contain sgd-sum as well; it is repeated so that this table is complete by itself.
"""

from .experiment import Experiment, Run, grid
from .protocols import Protocol

DESIGNS = ("width", "depth", "simultaneous")
SCALES = ("sgd-mean", "sgd-sum", "sgd-participants", "osgd", "osgd-mean")
PROJECTIONS = ("osgd+raw", "osgd+tensor")
CONSTANTS = ("normsgd", "normsgd+C=0.5", "osgd-norm", "osgd-norm+C=0.5")
HEADS = ("osgd+shared-head", "sgd-mean+shared-head")
NORMS = ("osgd+shared-norm", "sgd-mean+shared-norm")
DEEPENING = ("depth", "simultaneous")  # designs in which a group's transition has versions


def runs(protocol: Protocol) -> list[Run]:
    """Scales, projections and heads on each design, constants on one, norms where one can be
    shared."""
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
