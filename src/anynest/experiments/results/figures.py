"""The paper's figures as series of numbers. Errors in %: mean, standard deviation, n over seeds."""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..catalog import fig8
from ..catalog.designs import DESIGNS
from ..catalog.fig9 import ANYTIME, PANELS
from ..catalog.variants import title_of
from .deadline_errors import SHARES
from .evidence import Evidence
from .tradeoff import Point, anytime_curve, oracle_curve


@dataclass(frozen=True)
class Spot:
    """One point of a series.

    Args:
        x: Number of a stage, multiply-adds, or share of the longest latency (None: no deadline).
        name: Its name.
        mean: Mean error over the seeds.
        deviation: Standard deviation; None with one seed.
        n: Number of seeds.
    """

    x: float | None
    name: str
    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Series:
    """A line or group of bars. role: ``nested``, ``baseline``, ``oracle``, ``sgd`` or ``osgd``."""

    name: str
    role: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Figure:
    """One panel. x: label of the horizontal axis."""

    name: str
    title: str
    x: str
    series: tuple[Series, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def spot(x: float | None, name: str, errors: Iterable[float]) -> Spot:
    """From the error of each seed."""
    values = list(errors)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spot(x, name, statistics.mean(values), deviation, len(values))


def figure8(evidence: Evidence) -> list[Figure]:
    """Error per stage under each priority order, and under SGD; empty without results."""
    growth = evidence.protocol.growth(fig8.DESIGN)
    names = DESIGNS[fig8.DESIGN].subscripts(growth)
    series = []
    for run in fig8.runs(evidence.protocol):
        errors = evidence.errors(run.design, run.variant)
        if errors:
            spots = [
                spot(stage, name, (row[stage - 1] for row in errors.values()))
                for stage, name in enumerate(names, start=1)
            ]
            role = "sgd" if run.variant.startswith("sgd") else "osgd"
            series.append(Series(title_of(run.variant), role, tuple(spots)))
    title = f"{DESIGNS[fig8.DESIGN].title}: orders of priority"
    return [Figure("fig8", title, "stage", tuple(series))] if series else []


def figure9(evidence: Evidence) -> list[Figure]:
    """Error against multiply-adds per panel; networks without results are left out."""
    figures = []
    for panel in PANELS:
        roles = [(design, "nested") for design in panel.nested]
        if panel.baseline:
            roles.append((panel.baseline, "baseline"))
        series = [
            Series(DESIGNS[design].title, role, spots_of(anytime_curve(evidence, design, ANYTIME)))
            for design, role in roles
        ]
        series.append(Series("Oracle", "oracle", spots_of(oracle_curve(evidence, panel))))
        found = tuple(one for one in series if one.spots)
        if found:
            name, x = f"fig9{panel.name}", "multiply-adds an image"
            figures.append(Figure(name, panel.title, x, found))
    return figures


def spots_of(points: Iterable[Point]) -> tuple[Spot, ...]:
    """The points of a curve."""
    return tuple(spot(point.work, point.name, point.errors.values()) for point in points)


def figure10(evidence: Evidence) -> list[Figure]:
    """Error at seven deadlines and without one, per panel."""
    figures = []
    for panel in PANELS:
        records = [record for record in evidence.deadlines if record["panel"] == panel.name]
        if not records:
            continue
        series = []
        for scheme in records[0]["error"]:
            spots = [
                spot(
                    share,
                    "no deadline" if share is None else f"{share:.2f}x",
                    (100 * record["error"][scheme][index] for record in records),
                )
                for index, share in enumerate([*SHARES, None])
            ]
            series.append(Series(scheme, role_of(scheme), tuple(spots)))
        x = "deadline, as a share of the mean latency of the biggest network"
        figures.append(Figure(f"fig10{panel.name}", panel.title, x, tuple(series)))
    return figures


def role_of(scheme: str) -> str:
    """
    >>> role_of("nest: depth"), role_of("base: eann"), role_of("oracle-all")
    ('nested', 'baseline', 'oracle')
    """
    return {"nest": "nested", "base": "baseline"}.get(scheme.partition(":")[0], "oracle")


FIGURES = {"fig8": figure8, "fig9": figure9, "fig10": figure10}
