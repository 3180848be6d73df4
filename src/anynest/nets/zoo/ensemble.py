"""Ensembles of independent networks, one per stage, with the same interface (Figure 1).

Output s is that of network s; with ``average=True`` it is the mean of the logits 1..s.
"""

from dataclasses import replace

from ..nested.architecture import Architecture
from ..registry import register
from .resnet import width_nested_resnet10, width_nested_resnet42
from .sparse_resnet import depth_nested_sparse_resnet14, depth_nested_sparse_resnet98


@register
def ensemble_resnet42() -> Architecture:
    """Three plain ResNet-42 of width 1, 2, 4: the Oracle's members of the width-nested one."""
    return replace(width_nested_resnet42(), isolated=True)


@register
def ensemble_sparse_resnet98() -> Architecture:
    """Plain Sparse ResNets of depth 14, 26, 50, 98: Oracle members of the depth-nested one."""
    return replace(depth_nested_sparse_resnet98(), isolated=True)


@register
def ensemble_resnet10() -> Architecture:
    """Three small plain ResNets of width 1, 2, 4, for laptops and tests."""
    return replace(width_nested_resnet10(), isolated=True)


@register
def ensemble_sparse_resnet14() -> Architecture:
    """Two small plain Sparse ResNets of depth 8 and 14, for laptops and tests."""
    return replace(depth_nested_sparse_resnet14(), isolated=True)
