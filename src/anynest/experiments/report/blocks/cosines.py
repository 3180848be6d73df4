"""The cosines between the tasks' gradients through training, by design and method."""

import statistics
from collections.abc import Sequence

from ...catalog.designs import DESIGNS
from ...catalog.variants import title_of
from ...results.records import Line
from ..formatting import network_title, signed
from ..render.document import Block, Cell, Fold, Group, Picture, Pictures, Table, Text
from ..render.drawing import GREY, INK, ORANGE, legend, new_axes, styled, svg_of
from ..section import Section

METHODS = {"sgd-mean": GREY, "osgd": ORANGE}
Curves = dict[tuple[int, int], dict[int, float]]  # pair of stages (from 1) -> epoch -> cosine


def curves_of(lines: Sequence[Line]) -> Curves:
    """Each pair's mean over the seeds, at the epochs that all of them tell."""
    told = [
        {entry["epoch"]: entry["cosines"] for entry in line.get("cosines", [])} for line in lines
    ]
    told = [epochs for epochs in told if epochs]
    if not told:
        return {}
    epochs = sorted(set.intersection(*(set(one) for one in told)))
    found: Curves = {}
    for epoch in epochs:
        for later, row in enumerate(told[0][epoch], start=2):
            for earlier in range(1, len(row) + 1):
                values = [one[epoch][later - 2][earlier - 1] for one in told]
                found.setdefault((earlier, later), {})[epoch] = statistics.mean(values)
    return found


def runs_of(section: Section) -> dict[str, dict[str, list[Line]]]:
    """Design -> method -> lines of anytime networks that tell cosines."""
    found: dict[str, dict[str, list[Line]]] = {}
    for design in DESIGNS:
        for method in METHODS:
            lines = [
                line
                for line in section.cells
                if (line["design"], line["variant"], line["independent"]) == (design, method, None)
                and line.get("cosines")
            ]
            if lines:
                found.setdefault(design, {})[method] = lines
    return found


def cosine_blocks(section: Section) -> list[Block]:
    """A panel a design; nothing where no run told any."""
    runs = runs_of(section)
    if not runs:
        return []
    panels, groups = [], []
    for design, by_method in runs.items():
        curves = {method: curves_of(lines) for method, lines in by_method.items()}
        panels.append(draw(design, curves, section))
        rows = []
        for pair in sorted({pair for found in curves.values() for pair in found}):
            ends = [last(curves.get(method, {}).get(pair)) for method in METHODS]
            rows.append((Cell(f"stages {pair[0]} and {pair[1]}"), *map(Cell, ends)))
        seeds = ", ".join(f"{title_of(m)} n = {len(lines)}" for m, lines in by_method.items())
        groups.append(Group(tuple(rows), network_title(section.protocol, design)[0], seeds))
    caption = (
        "Cosines between the gradients of two stages' losses, per epoch, means over seeds: thin, "
        f"each pair of stages; thick, the mean of all pairs; {section.label}"
    )
    told = (
        "Above 0 two tasks pull the same way; below 0 a step for one is a step against the other."
    )
    table = Table(
        f"Cosines of the last epoch told, means over seeds; {section.label}",
        ("pair", *map(title_of, METHODS)),
        tuple(groups),
    )
    return [Text(told), Pictures(caption, tuple(panels)), Fold("Cosines in numbers", (table,))]


def last(curve: dict[int, float] | None) -> str:
    """The value at its last epoch."""
    return signed(curve[max(curve)], 2) if curve else "-"


def draw(design: str, curves: dict[str, Curves], section: Section) -> Picture:
    """Both methods in one panel."""
    with styled():
        figure, axes = new_axes(3.7, 2.8)
        axes.axhline(0, color=INK, lw=0.8, alpha=0.5)
        for method, pairs in curves.items():
            color, marker = METHODS[method], "o" if method == "osgd" else "s"
            for curve in pairs.values():
                axes.plot(list(curve), list(curve.values()), color=color, lw=0.8, alpha=0.55)
            epochs = sorted(next(iter(pairs.values()), {}))
            mean = [statistics.mean(curve[e] for curve in pairs.values()) for e in epochs]
            axes.plot(
                epochs, mean, color=color, lw=2.4, marker=marker, ms=4, label=title_of(method)
            )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("cosine")
        legend(axes)
        title = network_title(section.protocol, design)[0]
        return Picture(f"{section.anchor}-cosines-{design}", title, svg_of(figure))
