"""The EANN cascade: a trunk with exits after 1/8, 1/4, 1/2 and all of it.

Paper, Figure 2; Hu et al. 2019.
"""

from ..nested.architecture import Architecture
from ..nested.growth import Stage
from ..registry import register


@register
def cascade_sparse_resnet98() -> Architecture:
    """Sparse ResNet-98 for CIFAR as a cascade with exits after 6, 12, 24, 48 blocks (Table 2)."""
    return Architecture(
        blocks=(2, 2, 2),
        growth=(Stage(1, 1), Stage(1, 2), Stage(1, 4), Stage(1, 8)),
        base_width=16,
        skips="sparse",
        order="prefix",
    )


@register
def cascade_sparse_resnet26() -> Architecture:
    """A small cascade with exits after 3, 6 and 12 blocks, for laptops and tests."""
    return Architecture(
        blocks=(1, 1, 1),
        growth=(Stage(1, 1), Stage(1, 2), Stage(1, 4)),
        base_width=4,
        skips="sparse",
        order="prefix",
    )
