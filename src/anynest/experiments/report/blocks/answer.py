"""The first screen: does OSGD work? A paragraph and a figure."""

import statistics
from collections.abc import Sequence
from typing import Any

from ...catalog.designs import DESIGNS
from ...catalog.tuned import DESIGN, METHODS, fewest_cells, runs
from ...catalog.variants import title_of
from ...claims.significance import interval
from ...results.gains import MEASURES, Gain, Rates, gain_of, gains_of, pooled
from ...results.tabulate import error_text
from ..formatting import range_text, signed
from ..render.document import Block, Fold, Heading, Picture, Pictures, RowGroup, Table, Text
from ..render.document import text_row as row_of
from ..render.drawing import BLUE, INK, ORANGE, draw
from ..section import Section

SGD, SUM, OSGD = METHODS
RATES: dict[Rates, str] = {
    "own": "its own best learning rate for each method",
    "carried": "the learning rate that is each method's best on the width-nested network",
    "one": "the same learning rate for each method",
}
STYLES = {SUM: (BLUE, "s", -0.12), OSGD: (ORANGE, "o", 0.12)}  # colour, marker, shift in a row


def answer(sections: Sequence[Section]) -> list[Block]:
    """A heading, what the differences say in words, and the figure; empty without results."""
    gains = gains_of([section.evidence for section in sections])
    texts = [
        in_words(group, rates, section.evidence.data if repeated(section, sections) else "")
        for rates in RATES
        for section in sections
        if (group := [g for g in gains if g.rates == rates and g.evidence is section.evidence])
    ]
    texts += [waiting(section) for section in sections]
    found = [Text(text) for text in texts if text]
    if not found:
        return []
    heading = Heading(2, "Does Orthogonalized SGD work?", "answer")
    return [heading, *found, *(figure(gains) if gains else [])]


def repeated(section: Section, sections: Sequence[Section]) -> bool:
    """Whether another section is of the same protocol, on other data."""
    return sum(other.protocol is section.protocol for other in sections) > 1


def in_words(gains: Sequence[Gain], rates: Rates, data: str = "") -> str:
    """The conclusion, and what it rests on: OSGD and the sum of the losses against the paper's SGD,
    and OSGD against the sum. ``gains`` are of one protocol; ``data``: its label, if to be named."""
    names = ", ".join(DESIGNS[gain.design].words for gain in gains)
    where = f"protocol {gains[0].evidence.protocol.name}{data and ', '}{data}"
    pairs = [
        f"{name}: {at_both(gains, method, reference)}."
        for name, method, reference in (
            ("OSGD less the paper's SGD (on the mean of the losses)", OSGD, SGD),
            ("SGD on the sum of the losses less the paper's SGD", SUM, SGD),
            ("OSGD less SGD on the sum", OSGD, SUM),
        )
    ]
    these = "this network" if len(gains) == 1 else "these networks"
    return (
        f"With {RATES[rates]} ({where}; {names}): {conclusion(gains)} In points of test error, "
        f"with 95 % intervals over the seeds of {these}: {' '.join(pairs)}"
    )


def at_both(gains: Sequence[Gain], method: str, reference: str) -> str:
    """A difference at the last stage and on average over the stages."""
    last, mean = (difference_text(pooled(gains, method, reference, m)) for m in MEASURES)
    return f"{last} at the last stage, {mean} on average over the stages"


def conclusion(gains: Sequence[Gain]) -> str:
    """What the intervals allow to say."""
    gained = {
        "lower": "OSGD has a lower error than the paper's SGD at the last stage.",
        "higher": "OSGD has a higher error than the paper's SGD at the last stage.",
        "": "OSGD cannot be told from the paper's SGD at the last stage.",
    }[side(pooled(gains, OSGD, SGD, "last"))]
    effects = {
        "lower": "lowers the error",
        "higher": "raises the error",
        "": "makes no difference that can be told from chance",
    }
    last, mean = (effects[side(pooled(gains, OSGD, SUM, measure))] for measure in MEASURES)
    return (
        f"{gained} Beyond what the plain sum of the losses gives, its projection {last} at the "
        f"last stage and {mean} on average over the stages."
    )


def side(values: Sequence[float]) -> str:
    """``lower`` or ``higher``, where the 95 % interval of the mean does not contain 0.

    >>> side([-1.0, -1.1, -0.9]), side([1.0, 1.1, 0.9]), side([1.0, -1.0])
    ('lower', 'higher', '')
    """
    found = interval(values)
    if found is None or found[0] <= 0 <= found[1]:
        return ""
    return "lower" if found[1] < 0 else "higher"


def difference_text(values: Sequence[float]) -> str:
    """
    >>> difference_text([-1.0, -2.0, -3.0]), difference_text([1.0, 1.0])
    ('−2.0 (−4.5 to +0.5)', '+1.0')
    """
    found = interval(values)
    return signed(statistics.mean(values)) + (f" ({range_text(found, 1)})" if found else "")


def waiting(section: Section) -> str:
    """What is still to be trained before rates are tuned; empty where nothing is."""
    least = fewest_cells(section.protocol, section.cells)
    wanted = [
        run.cell(section.protocol, seed).key
        for run in runs(section.protocol, section.cells)
        for seed in range(run.seeds or 1)
    ]
    done = len({record["key"] for record in section.cells} & {*wanted})
    if done >= least:
        return ""
    name = section.protocol.name
    gain = gain_of(section.evidence, DESIGN)
    if gain is not None and gain.rates == "own":
        return (
            f"With each method's learning rate tuned (protocol {name}) the answer is preliminary: "
            f"{done} of {least} cells."
        )
    return (
        f"With each method's learning rate tuned (protocol {name}) there is no answer yet: {done} "
        f"of at least {least} cells."
    )


def figure(gains: Sequence[Gain]) -> list[Block]:
    """Differences from the paper's SGD by design, at the last stage and on average."""
    labels = dict.fromkeys(f"protocol {g.evidence.protocol.name}, {g.evidence.data}" for g in gains)
    caption = (
        "Test error less that of the paper's SGD (0) in points, left is better; means over seeds, "
        f"bars are 95 % intervals; {' and '.join(labels)}"
    )
    panels = tuple(
        Picture(f"answer-{measure}", title[0].upper() + title[1:], panel(gains, measure))
        for measure, title in MEASURES.items()
    )
    tables = tuple(numbers(gains, measure) for measure in MEASURES)
    return [Pictures(caption, panels), Fold("The figure in numbers", tables)]


def row_title(gain: Gain) -> str:
    """The design, its protocol, and at which rates."""
    rates = {"own": "own rates", "carried": "rates of width", "one": "one rate"}[gain.rates]
    return f"{DESIGNS[gain.design].words}\n{gain.evidence.protocol.name}, {rates}"


def panel(gains: Sequence[Gain], measure: str) -> str:
    """A row per design, with a point and an interval for the sum and for OSGD."""

    def plot(axes: Any) -> None:
        axes.axvline(0, color=INK, lw=1, alpha=0.6)
        for method, (color, marker, shift) in STYLES.items():
            found = [gain.differences(method, SGD, measure) for gain in gains]
            means = [statistics.mean(values) for values in found]
            ends = [
                interval(values) or (mean, mean) for values, mean in zip(found, means, strict=True)
            ]
            bars = [[m - e[0] for m, e in zip(means, ends, strict=True)]]
            bars += [[e[1] - m for m, e in zip(means, ends, strict=True)]]
            axes.errorbar(
                means,
                [number + shift for number in range(len(gains))],
                xerr=bars,
                color=color,
                marker=marker,
                ls="",
                ms=5,
                lw=1.5,
                capsize=2.5,
                label=title_of(method),
            )
        axes.set_yticks(range(len(gains)), [row_title(gain) for gain in gains])
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.set_xlabel("points of test error less SGD's")

    return draw(plot, 4.2, 1.3 + 0.45 * len(gains))


def numbers(gains: Sequence[Gain], measure: str) -> Table:
    """Errors and differences of one measure."""
    rows = []
    for gain in gains:
        errors = []
        for method in METHODS:
            values = gain.values(method, measure)
            errors.append(error_text(statistics.mean(values), statistics.stdev(values)))
        differences = [
            difference_text(gain.differences(OSGD, reference, measure)) for reference in (SGD, SUM)
        ]
        name = row_title(gain).replace("\n", ": ")
        variants = "; ".join(map(title_of, gain.variants.values()))
        rows.append(row_of(name, variants, *errors, *differences, str(len(gain.seeds))))
    head = ("design", "methods", *map(title_of, METHODS), "OSGD less SGD", "OSGD less the sum", "n")
    what = MEASURES[measure]
    caption = (
        f"Test error in %, {what}: mean (standard deviation); differences in points with 95 % "
        "intervals"
    )
    return Table(caption, head, (RowGroup(tuple(rows)),), words=2)
