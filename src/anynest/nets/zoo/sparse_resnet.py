"""Sparse ResNets nested in depth, and in width and depth.

Paper, sections 3.3.1 and 3.3.3; Zhu et al. 2018. Sparse ResNet-98 is 6 * 16 + 2: three groups of 16
basic blocks at 16, 32 and 64 channels; Sparse ResNet-66 is 8 * 8 + 2: four groups of 8 at 64 to 512
channels (docs/networks.md).
"""

from ..nested.architecture import Architecture
from ..nested.growth import Stage
from ..registry import register

DEPTH = (Stage(1, 1), Stage(1, 2), Stage(1, 4), Stage(1, 8))
ALTERNATING = (Stage(1, 1), Stage(2, 1), Stage(2, 2), Stage(4, 2), Stage(4, 4))
SIMULTANEOUS = (Stage(1, 1), Stage(2, 2), Stage(4, 4))


@register
def depth_nested_sparse_resnet98() -> Architecture:
    """Sparse ResNet-98 for CIFAR, interlaced in depth 1, 2, 4, 8 (Figure 3, Table 1)."""
    return Architecture(blocks=(2, 2, 2), growth=DEPTH, base_width=16, skips="sparse")


@register
def alternating_nested_sparse_resnet98() -> Architecture:
    """Sparse ResNet-98 for CIFAR, growing in width and depth alternately (Figure 6, Table 1)."""
    return Architecture(blocks=(4, 4, 4), growth=ALTERNATING, base_width=4, skips="sparse")


@register
def simultaneous_nested_sparse_resnet98() -> Architecture:
    """Sparse ResNet-98 for CIFAR, growing in width and depth at once (Figure 7, Table 1)."""
    return Architecture(blocks=(4, 4, 4), growth=SIMULTANEOUS, base_width=4, skips="sparse")


@register
def depth_nested_sparse_resnet14() -> Architecture:
    """A small depth-nested Sparse ResNet for laptops and tests."""
    return Architecture(
        blocks=(1, 1, 1), growth=(Stage(1, 1), Stage(1, 2)), base_width=8, skips="sparse"
    )


@register
def alternating_nested_sparse_resnet14() -> Architecture:
    """A small Sparse ResNet that grows in width and depth alternately, for laptops and tests."""
    return Architecture(blocks=(1, 1, 1), growth=ALTERNATING[:4], base_width=4, skips="sparse")


@register
def simultaneous_nested_sparse_resnet26() -> Architecture:
    """A small Sparse ResNet that grows in width and depth at once, for laptops and tests."""
    return Architecture(blocks=(1, 1, 1), growth=SIMULTANEOUS, base_width=2, skips="sparse")


@register
def depth_nested_sparse_resnet66() -> Architecture:
    """Sparse ResNet-66 for ImageNet, interlaced in depth 1, 2, 4 (Table 3)."""
    return Architecture(
        blocks=(2, 2, 2, 2),
        growth=(Stage(1, 1), Stage(1, 2), Stage(1, 4)),
        base_width=64,
        skips="sparse",
        stem="imagenet",
    )


@register
def depth_nested_sparse_resnet18() -> Architecture:
    """A small Sparse ResNet with ImageNet's stem, interlaced in depth, for laptops and tests."""
    return Architecture(
        blocks=(1, 1, 1, 1),
        growth=(Stage(1, 1), Stage(1, 2)),
        base_width=16,
        skips="sparse",
        stem="imagenet",
    )
