"""What the paper leaves open: how the losses are scaled, and what exactly is projected.

The tables hold sgd-sum already; it is listed again so that this table stands by itself.
"""

from .experiment import Experiment, Run, grid
from .protocols import Protocol

DESIGNS = ("width", "depth", "simultaneous")
SCALES = ("sgd-mean", "sgd-sum", "sgd-participants", "osgd", "osgd-mean")
PROJECTIONS = ("osgd+raw", "osgd+tensor")
HEADS = ("sgd-mean+shared-head", "osgd+shared-head")


def runs(protocol: Protocol) -> list[Run]:
    """Scales and projections on every design; shared heads where the stages differ in depth
    alone, and in width alone."""
    return [
        *grid(DESIGNS, (*SCALES, *PROJECTIONS)),
        *grid(("width", "depth"), HEADS),
    ]


ABLATIONS = Experiment(
    "ablations",
    "Scale, projection and heads: what the paper leaves open",
    "not in the paper",
    "cifar",
    runs,
)
