"""Width-nested, each method at its own learning rate: does the projection help beyond its step?

OSGD's combined gradient is longer than the mean of the losses' gradients, so at one common rate a
comparison is of step lengths too.
"""

from .experiment import Experiment, Run
from .protocols import Protocol

DESIGN = "width"
METHODS = ("sgd-mean", "sgd-sum", "osgd")
RATES = (0.1, 0.2, 0.05, 0.4)  # every prefix is worth reading


def rate_variant(method: str, rate: float, protocol: Protocol) -> str:
    """A method at a rate; at the protocol's own rate it is the plain method, one cell with the
    tables'.

    >>> from .protocols import MINI
    >>> rate_variant("osgd", 0.1, MINI), rate_variant("osgd", 0.2, MINI)
    ('osgd', 'osgd+lr=0.2')
    """
    own = protocol.families["cifar"]["optimizer"]["lr"]
    return method if rate == own else f"{method}+lr={rate:g}"


def runs(protocol: Protocol) -> list[Run]:
    """Every method at every rate."""
    return [
        Run(DESIGN, rate_variant(method, rate, protocol)) for rate in RATES for method in METHODS
    ]


TUNED = Experiment(
    "tuned",
    "Each method at its own learning rate",
    "not in the paper",
    "cifar",
    runs,
)
