"""The cosines between the tasks' gradients during training, by design and method.

Methods are shown side by side only where their cosines are means over the same batches. Records of
older versions do not say over which: OSGD's are then of all batches of an epoch, SGD's of its first
one alone, and SGD's are left out.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from ...catalog.designs import DESIGNS
from ...catalog.variants import title_of
from ...results.records import Record
from ..formatting import network_title, signed
from ..render.document import Block, Fold, Picture, Pictures, RowGroup, Table, Text, text_row
from ..render.drawing import GREY, INK, ORANGE, draw
from ..section import Section

METHODS = {"sgd-mean": (GREY, "s"), "osgd": (ORANGE, "o")}  # colour, marker
Curves = dict[tuple[int, int], dict[int, float]]  # pair of stages (from 1) -> epoch -> cosine


def curves_of(records: Sequence[Record]) -> Curves:
    """Each pair's mean over the seeds, at the epochs that all seeds have."""
    by_seed = [
        {entry["epoch"]: entry["cosines"] for entry in record["cosines"]} for record in records
    ]
    found: Curves = {}
    for epoch in sorted(set.intersection(*map(set, by_seed))):
        for later, row in enumerate(by_seed[0][epoch], start=2):
            for earlier in range(1, len(row) + 1):
                values = [one[epoch][later - 2][earlier - 1] for one in by_seed]
                found.setdefault((earlier, later), {})[epoch] = statistics.mean(values)
    return found


def is_sampled(record: Record) -> bool:
    """Whether a record's cosines are means over the batches that are the same for every method."""
    return all(entry.get("batches") for entry in record["cosines"])


def comparable(by_method: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The records of a design that are measured alike: those over the same batches where there are
    any, else OSGD's alone."""
    sampled = {m: [r for r in records if is_sampled(r)] for m, records in by_method.items()}
    sampled = {method: records for method, records in sampled.items() if records}
    if sampled:
        return sampled
    return {method: records for method, records in by_method.items() if method == "osgd"}


def runs_of(section: Section) -> dict[str, dict[str, list[Record]]]:
    """Design -> method -> records of anytime networks with cosines that can be compared."""
    found: dict[str, dict[str, list[Record]]] = {}
    for design in DESIGNS:
        for method in METHODS:
            records = [
                r
                for r in section.cells
                if (r["design"], r["variant"], r["independent"]) == (design, method, None)
                and r.get("cosines")
            ]
            if records:
                found.setdefault(design, {})[method] = records
    kept = {design: comparable(by_method) for design, by_method in found.items()}
    return {design: by_method for design, by_method in kept.items() if by_method}


def cosine_blocks(section: Section) -> list[Block]:
    """A panel per design; empty without cosines."""
    panels, groups = [], []
    found = runs_of(section)
    for design, by_method in found.items():
        curves = {method: curves_of(records) for method, records in by_method.items()}
        panels.append(draw_cosines(design, curves, section))
        rows = []
        for pair in sorted({pair for pairs in curves.values() for pair in pairs}):
            ends = [last(curves.get(method, {}).get(pair)) for method in METHODS]
            rows.append(text_row(f"stages {pair[0]} and {pair[1]}", *ends))
        seeds = ", ".join(f"{title_of(m)} n = {len(records)}" for m, records in by_method.items())
        groups.append(RowGroup(tuple(rows), network_title(section.protocol, design)[0], seeds))
    if not panels:
        return []
    caption = (
        "Cosines between the gradients of two stages' losses, per epoch, means over seeds: thin, "
        "each pair of stages; thick, the mean of all pairs"
    )
    meaning = (
        "Above 0 two tasks pull the same way; below 0 a step for one is a step against the other. "
        + how_measured([r for by_method in found.values() for rs in by_method.values() for r in rs])
    )
    table = Table(
        "Cosines of the last recorded epoch, means over seeds",
        ("pair", *map(title_of, METHODS)),
        tuple(groups),
    )
    return [Text(meaning), Pictures(caption, tuple(panels)), Fold("Cosines in numbers", (table,))]


def how_measured(records: Sequence[Record]) -> str:
    """Over which batches the cosines that are shown are means."""
    kinds = {is_sampled(record) for record in records}
    texts = []
    if True in kinds:
        texts.append(
            "Each is the mean over a few batches spread over the epoch, the same for every method."
        )
    if False in kinds:
        where = "In the other designs" if texts else "Here"
        texts.append(
            f"{where} OSGD's are means over all batches of an epoch; SGD's, which these records "
            "have of the first batch alone, are left out."
        )
    return " ".join(texts)


def last(curve: dict[int, float] | None) -> str:
    """The value at the last epoch."""
    return signed(curve[max(curve)], 2) if curve else "-"


def draw_cosines(design: str, curves: dict[str, Curves], section: Section) -> Picture:
    """Both methods in one panel."""

    def plot(axes: Any) -> None:
        axes.axhline(0, color=INK, lw=0.8, alpha=0.5)
        for method, pairs in curves.items():
            color, marker = METHODS[method]
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

    title = network_title(section.protocol, design)[0]
    return Picture(f"{section.anchor}-cosines-{design}", title, draw(plot, 3.7, 2.8))
