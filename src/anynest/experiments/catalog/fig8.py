"""Figure 8: OSGD under four priority orders in one network, and SGD.

The paper does not name the network. Ours is the alternating one, whose five outputs leave room for
intermediate priorities.
"""

from .experiment import Experiment, Run
from .protocols import Protocol

DESIGN = "alternating"


def orders(stages: int) -> tuple[tuple[int, ...], ...]:
    """The priority orders, as loss indices from 0, highest priority first: early to late (the
    standard), late to early, second output first, last but one first (of three stages: the second
    first, then the third).

    >>> orders(3)
    ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0))
    >>> orders(5)[2:]
    ((1, 0, 2, 3, 4), (3, 0, 1, 2, 4))
    """
    standard = tuple(range(stages))

    def first(index: int) -> tuple[int, ...]:
        return (index, *(other for other in standard if other != index))

    last = first(stages - 2) if stages > 3 else (1, 2, 0)
    return standard, standard[::-1], first(1), last


def priority_variant(order: tuple[int, ...]) -> str:
    """
    >>> priority_variant((0, 1)), priority_variant((1, 0))
    ('osgd', 'osgd+priority=1,0')
    """
    if order == tuple(range(len(order))):
        return "osgd"
    return "osgd+priority=" + ",".join(map(str, order))


def runs(protocol: Protocol) -> list[Run]:
    """The priority orders and SGD."""
    variants = map(priority_variant, orders(len(protocol.growth(DESIGN))))
    return [Run(DESIGN, variant) for variant in (*variants, "sgd-mean")]


FIG8 = Experiment("fig8", "OSGD under four orders of priority, and SGD", "Figure 8", "cifar", runs)
