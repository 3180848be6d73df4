"""Width-nested, each method at its own learning rate: what is OSGD's gain beyond its step's length?

OSGD's combined gradient is longer than the mean of the losses' gradients, so that a comparison at
one common rate compares steps too. Here each method has one seed at every rate, and ``SEEDS`` at
its best one. The best is the rate with the lowest error on the images held out, never on the test
split, averaged over the stages: the network may be stopped at any of them. Where the best is the
lowest or the highest rate tried, the next one beyond it is tried.

A protocol that holds out fewer than ``HELD_OUT`` images has no cells here: it cannot choose.
"""

import statistics
from collections.abc import Sequence

from ..results.records import Line
from .experiment import Experiment, Run
from .protocols import Protocol

DESIGN = "width"
METHODS = ("sgd-mean", "sgd-sum", "osgd")
RATES = (0.1, 0.2, 0.05, 0.4)  # in the order in which they are trained
STEP = 2  # from a rate to the next one
LOWEST, HIGHEST = 0.0125, 1.6
SEEDS = 4
HELD_OUT = 1000  # images: an error of 30 % is then known to 1.4 points


def rate_variant(method: str, rate: float, protocol: Protocol) -> str:
    """A method at a rate; at the protocol's own rate it is the plain method, one cell with the
    tables'.

    >>> from .protocols import MINI
    >>> rate_variant("osgd", 0.1, MINI), rate_variant("osgd", 0.2, MINI)
    ('osgd', 'osgd+lr=0.2')
    """
    own = protocol.families["cifar"]["optimizer"]["lr"]
    return method if rate == own else f"{method}+lr={rate:g}"


def runs(protocol: Protocol, lines: Sequence[Line] = ()) -> list[Run]:
    """Every method at every rate that is to be tried, a rate of all methods before the next; the
    best rate, once it is known, with all its seeds."""
    if protocol.families["cifar"]["data"].get("holdout", 0) < HELD_OUT:
        return []
    tried = {method: rates_of(method, protocol, lines) for method in METHODS}
    every = sorted({rate for rates, _ in tried.values() for rate in rates} - {*RATES})
    return [
        Run(DESIGN, rate_variant(method, rate, protocol), seeds=SEEDS if rate == best else 1)
        for rate in (*RATES, *every)
        for method, (rates, best) in tried.items()
        if rate in rates
    ]


def rates_of(
    method: str, protocol: Protocol, lines: Sequence[Line]
) -> tuple[list[float], float | None]:
    """The rates to be tried, from the lowest, and the best of them once all have results."""
    held_out = {
        line["key"]: statistics.mean(line["validation_error"])
        for line in lines
        if "validation_error" in line
    }

    def error(rate: float) -> float | None:
        cell = Run(DESIGN, rate_variant(method, rate, protocol)).cell(protocol, 0)
        return held_out.get(cell.key)

    rates = sorted(RATES)
    while True:
        known = {rate: found for rate in rates if (found := error(rate)) is not None}
        if len(known) < len(rates):
            return rates, None
        best = min(rates, key=known.__getitem__)  # of equal ones the lowest
        if best == rates[0] and best / STEP >= LOWEST:
            rates.insert(0, best / STEP)
        elif best == rates[-1] and best * STEP <= HIGHEST:
            rates.append(best * STEP)
        else:
            return rates, best


TUNED = Experiment(
    "tuned",
    "Each method at its own learning rate",
    "not in the paper",
    "cifar",
    runs,
    given=runs,
)
