"""Learning rates tuned per method on the width-nested network: OSGD's gain beyond step length.

OSGD's combined gradient is longer than the mean of the losses' gradients, so a comparison at one
common rate also compares step lengths. Each method is trained with seed 0 at every rate and with
``SEEDS`` at its best rate. The best rate has the lowest error on the held-out images (never on the
test split), averaged over the stages, since the network may be stopped at any of them. If the best
rate is the lowest or highest one tried, the next rate beyond it is tried. Methods are compared on
the other seeds: a rate may suit the run that it was chosen by.

``TUNED_DESIGNS`` then trains other designs at these rates, which are not tuned again.

A protocol that holds out fewer than ``HELD_OUT`` images has no cells: rates cannot be chosen.
"""

import statistics
from collections.abc import Sequence

from ..results.records import Record
from .experiment import Experiment, Run
from .protocols import Protocol

DESIGN = "width"
METHODS = ("sgd-mean", "sgd-sum", "osgd")
RATES = (0.1, 0.2, 0.05, 0.4)  # in the order in which they are trained
STEP = 2  # from a rate to the next one
LOWEST, HIGHEST = 0.0125, 1.6
CHOOSING_SEED = 0
SEEDS = 5  # at the best rate, the choosing one among them
OTHER_DESIGNS = ("depth", "alternating")
DESIGN_SEEDS = 3
HELD_OUT = 1000  # images: an error of 30 % is then known to 1.4 points


def rate_variant(method: str, rate: float, protocol: Protocol) -> str:
    """A method at a rate; at the protocol's own rate the plain method, which the tables share.

    >>> from .protocols import MINI
    >>> rate_variant("osgd", 0.1, MINI), rate_variant("osgd", 0.2, MINI)
    ('osgd', 'osgd+lr=0.2')
    """
    own = protocol.families["cifar"]["optimizer"]["lr"]
    return method if rate == own else f"{method}+lr={rate:g}"


def runs(protocol: Protocol, records: Sequence[Record] = ()) -> list[Run]:
    """Each method at each rate to be tried, all methods at a rate before the next rate; the best
    rate, once known, with all its seeds."""
    if protocol.families["cifar"]["data"].get("holdout", 0) < HELD_OUT:
        return []
    tried = {method: rates_of(method, protocol, records) for method in METHODS}
    every = sorted({rate for rates, _ in tried.values() for rate in rates} - {*RATES})
    return [
        Run(DESIGN, rate_variant(method, rate, protocol), seeds=SEEDS if rate == best else 1)
        for rate in (*RATES, *every)
        for method, (rates, best) in tried.items()
        if rate in rates
    ]


def rates_of(
    method: str, protocol: Protocol, records: Sequence[Record]
) -> tuple[list[float], float | None]:
    """The rates to be tried, ascending, and the best of them once all have results."""
    held_out = {
        record["key"]: statistics.mean(record["validation_error"])
        for record in records
        if "validation_error" in record
    }

    def error(rate: float) -> float | None:
        cell = Run(DESIGN, rate_variant(method, rate, protocol)).cell(protocol, CHOOSING_SEED)
        return held_out.get(cell.key)

    rates = sorted(RATES)
    while True:
        known = {rate: found for rate in rates if (found := error(rate)) is not None}
        if len(known) < len(rates):
            return rates, None
        best = min(rates, key=known.__getitem__)  # ties: the lowest rate
        if best == rates[0] and best / STEP >= LOWEST:
            rates.insert(0, best / STEP)
        elif best == rates[-1] and best * STEP <= HIGHEST:
            rates.append(best * STEP)
        else:
            return rates, best


def best_variant(method: str, protocol: Protocol, records: Sequence[Record]) -> str | None:
    """A method at its best rate; None while that is not known."""
    if not runs(protocol):
        return None
    _, best = rates_of(method, protocol, records)
    return None if best is None else rate_variant(method, best, protocol)


def fewest_cells(protocol: Protocol, records: Sequence[Record]) -> int:
    """The number of cells that ``tuned`` needs at least: more where a best rate is at an end.

    >>> from .protocols import MICRO, MINI
    >>> fewest_cells(MINI, []), fewest_cells(MICRO, [])
    (24, 0)
    """
    known = runs(protocol, records)
    if not known:
        return 0
    waiting = sum(rates_of(method, protocol, records)[1] is None for method in METHODS)
    return sum(run.seeds or 1 for run in known) + waiting * (SEEDS - 1)


def runs_on_designs(protocol: Protocol, records: Sequence[Record] = ()) -> list[Run]:
    """Each method at the rate that is its best on ``DESIGN``, on other designs; none before all
    rates are known."""
    best = [best_variant(method, protocol, records) for method in METHODS]
    variants = [variant for variant in best if variant is not None]
    if len(variants) < len(METHODS):
        return []
    return [Run(d, variant, seeds=DESIGN_SEEDS) for d in OTHER_DESIGNS for variant in variants]


TUNED = Experiment(
    "tuned",
    "Each method at its own learning rate",
    "not in the paper",
    "cifar",
    runs,
    next_runs=runs,
)
TUNED_DESIGNS = Experiment(
    "tuned-designs",
    "Each method at the learning rate that is its best on the width-nested network",
    "not in the paper",
    "cifar",
    runs_on_designs,
    next_runs=runs_on_designs,
    next_designs=OTHER_DESIGNS,
    waits_for="tuned",
)
