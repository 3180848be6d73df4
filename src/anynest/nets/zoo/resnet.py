"""Width-nested and even-width ResNets (paper, section 3.3.2; Lee & Shin 2018).

ResNet-42 is not of the form 6n+2: three groups of 7, 7 and 6 basic blocks (2 * 20 + 2 = 42), with
8, 16 and 32 channels at width 1 (docs/networks.md compares the alternatives).
"""

from ..nested.architecture import Architecture
from ..nested.growth import Stage
from ..registry import register

POWERS_OF_TWO = (Stage(1, 1), Stage(2, 1), Stage(4, 1))
EVEN = (Stage(1, 1), Stage(2, 1), Stage(3, 1), Stage(4, 1))


@register
def width_nested_resnet42() -> Architecture:
    """ResNet-42 for CIFAR, nested in width 1, 2, 4 (Figure 5, Table 1)."""
    return Architecture(blocks=(7, 7, 6), growth=POWERS_OF_TWO, base_width=8)


@register
def even_width_resnet42() -> Architecture:
    """ResNet-42 for CIFAR in four stripes of equal width (Figure 4, Table 2)."""
    return Architecture(blocks=(7, 7, 6), growth=EVEN, base_width=8)


@register
def width_nested_resnet10() -> Architecture:
    """A small width-nested ResNet for laptops and tests."""
    return Architecture(blocks=(2, 1, 1), growth=POWERS_OF_TWO, base_width=4)


@register
def even_width_resnet10() -> Architecture:
    """A small ResNet in four stripes of equal width, for laptops and tests."""
    return Architecture(blocks=(2, 1, 1), growth=EVEN, base_width=4)


@register
def width_nested_resnet50() -> Architecture:
    """ResNet-50 for ImageNet, nested in width 1, 2, 4 (Table 3)."""
    return Architecture(
        blocks=(3, 4, 6, 3),
        growth=POWERS_OF_TWO,
        base_width=16,
        block="bottleneck",
        stem="imagenet",
    )


@register
def width_nested_resnet14() -> Architecture:
    """A small bottleneck ResNet with ImageNet's stem, nested in width, for laptops and tests."""
    return Architecture(
        blocks=(1, 1, 1, 1),
        growth=POWERS_OF_TWO,
        base_width=4,
        block="bottleneck",
        stem="imagenet",
    )
