"""Figure 9: error against multiply-adds of nested networks, earlier designs and the Oracle.

The Oracle is a set of plain networks, one of each stage's size, trained alone. As in the paper each
network is trained by its best strategy: OSGD for anytime networks, SGD for independent ones, and
for the largest Sparse ResNet the better of SGD and NormSGD.
"""

from dataclasses import dataclass

from .designs import DESIGNS
from .experiment import Experiment, Run
from .protocols import Protocol


@dataclass(frozen=True)
class Panel:
    """One panel of Figures 9 and 10. oracle: the design whose stage sizes the Oracle has."""

    name: str
    title: str
    nested: tuple[str, ...]
    baseline: str | None
    oracle: str


PANELS = (
    Panel("a", "ResNet-42, nested in width", ("width",), "even", "width"),
    Panel("b", "Sparse ResNet-98, nested in depth", ("depth",), "eann", "depth"),
    Panel(
        "c",
        "Sparse ResNet-98, nested in width and depth",
        ("alternating", "simultaneous"),
        "eann",
        "alternating",
    ),
)
ANYTIME, ALONE, LARGEST = "osgd", "sgd-mean", "normsgd"
KINDS = ("base", "nest", "oracle-all", "oracle-each")  # of schemes, in Figure 10's order


def sharing(panel: Panel) -> str:
    """The panels that share runs with one. Those with one baseline have Oracles of one kind, too,
    whose members are in part the same networks.

    >>> sharing(PANELS[0]), sharing(PANELS[2])
    ('panel (a)', 'panels (b) and (c)')
    """
    names = [f"({other.name})" for other in PANELS if other.baseline == panel.baseline]
    return f"panel{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def schemes(panel: Panel, kind: str) -> list[str]:
    """The names of a panel's schemes of one kind, as Figure 10 names them.

    >>> schemes(PANELS[2], "nest"), schemes(PANELS[2], "oracle-all")
    (['nest: alternating', 'nest: simultaneous'], ['oracle-all'])
    """
    if kind == "nest":
        return [f"nest: {design}" for design in panel.nested]
    if kind == "base":
        return [f"base: {panel.baseline}"] if panel.baseline else []
    return [kind]


def scheme_words(scheme: str) -> str:
    """A scheme as the report names it.

    >>> scheme_words("nest: width"), scheme_words("base: eann")
    ('width', 'EANN cascade')
    >>> scheme_words("oracle-each")
    'the best network for each input'
    """
    kind, _, design = scheme.partition(": ")
    if design:
        return DESIGNS[design].words
    return f"the best network for {'each input' if kind == 'oracle-each' else 'all inputs'}"


def oracle_runs(panel: Panel, protocol: Protocol) -> list[Run]:
    """The Oracle's members; the largest Sparse ResNet with both strategies."""
    count = len(protocol.growth(panel.oracle))
    members = [Run(panel.oracle, ALONE, stage) for stage in range(1, count + 1)]
    if panel.oracle != "width":
        members.append(Run(panel.oracle, LARGEST, count))
    return members


def runs(protocol: Protocol) -> list[Run]:
    """Each panel's anytime networks, then its Oracle; each run once."""
    found: dict[Run, None] = {}
    for panel in PANELS:
        anytime = (*panel.nested, *((panel.baseline,) if panel.baseline else ()))
        for run in [*(Run(name, ANYTIME) for name in anytime), *oracle_runs(panel, protocol)]:
            found[run] = None
    return list(found)


FIG9 = Experiment("fig9", "Error against multiply-adds", "Figure 9", "cifar", runs)
