"""The paper's tables by themselves, where ours are of other networks or other data."""

from ...catalog.designs import DESIGNS
from ...catalog.experiment import Experiment
from ...catalog.paper import ERRORS, METHODS, TOP5_ERRORS, Key, Printed
from ...catalog.variants import title_of
from ...results.tabulate import error_text
from ..render.document import Cell, Fold, Group, Table, Text
from ..section import Section

ORIENTATION = (
    "The paper's, for orientation; another network or other data, not to be compared number by "
    "number."
)


def papers_table(section: Section, experiment: Experiment) -> Fold | None:
    """Those designs of the table that ours cannot be compared with; none where all can."""
    found = dict.fromkeys(run.design for run in experiment.runs(section.protocol))
    designs = [
        design
        for design in found
        if not section.comparable(design) and any(key[0] == design for key in ERRORS)
    ]
    if not designs:
        return None
    metrics: list[tuple[str, dict[Key, Printed]]] = [("", ERRORS)]
    if experiment.family == "imagenet":
        metrics = [(", top-1", ERRORS), (", top-5", TOP5_ERRORS)]
    methods = [method for method in METHODS if (designs[0], method, 1) in ERRORS]
    columns = [(method, name, table) for method in methods for name, table in metrics]
    groups = []
    for design in designs:
        rows = []
        for stage, name in enumerate(DESIGNS[design].subscripts(), start=1):
            printed = [table[design, method, stage] for method, _, table in columns]
            best = {
                metric: min(table[design, method, stage].mean for method in methods)
                for metric, table in metrics
            }
            numbers = [
                Cell(error_text(one.mean, one.deviation), strong=one.mean == best[metric])
                for one, (_, metric, _) in zip(printed, columns, strict=True)
            ]
            rows.append((Cell(f"{stage} {name}"), *numbers))
        groups.append(Group(tuple(rows), DESIGNS[design].title))
    data = "ImageNet" if experiment.family == "imagenet" else "CIFAR-10"
    caption = f"{experiment.source} as the paper prints it: test error in %, {data}"
    head = ("stage", *(title_of(method) + metric for method, metric, _ in columns))
    title = f"{experiment.source} as the paper prints it"
    return Fold(
        title, (Text(ORIENTATION), Table(caption, head, tuple(groups))), note="for orientation"
    )
