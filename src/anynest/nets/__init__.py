"""Nested networks: growth (data) -> plan (graph) -> network. Independent of losses and data sets.

Names, plans and costs need no torch; names whose modules import torch are loaded on first use.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
from .nested.architecture import Architecture
from .nested.cost import StageCost
from .nested.growth import Growth, Stage, parse_growth
from .pretrained import list_pretrained
from .registry import create_architecture, create_model, describe, list_models, register
from .staged import Staged, require_staged
from .zoo import cascade, ensemble, resnet, sparse_resnet, vit  # each registers its models

if TYPE_CHECKING:
    from .exits.add import add_exits
    from .exits.heads import Exit
    from .exits.network import ExitNetwork
    from .nested.network import AnytimeNetwork
    from .nested.sync import SyncBatchNorm, sync_batch_norm

__all__ = [
    "AnytimeNetwork",
    "Architecture",
    "Exit",
    "ExitNetwork",
    "Growth",
    "Stage",
    "StageCost",
    "Staged",
    "SyncBatchNorm",
    "add_exits",
    "cascade",
    "create_architecture",
    "create_model",
    "describe",
    "ensemble",
    "list_models",
    "list_pretrained",
    "parse_growth",
    "register",
    "require_staged",
    "resnet",
    "sparse_resnet",
    "sync_batch_norm",
    "vit",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        ".exits.add": ("add_exits",),
        ".exits.heads": ("Exit",),
        ".exits.network": ("ExitNetwork",),
        ".nested.network": ("AnytimeNetwork",),
        ".nested.sync": ("SyncBatchNorm", "sync_batch_norm"),
    },
)
