"""Nested networks: growth (data) -> plan (graph) -> one engine. Knows nothing of losses or data."""

from .nested.architecture import Architecture
from .nested.cost import StageCost
from .nested.growth import Growth, Stage, parse_growth
from .nested.network import AnytimeNetwork
from .nested.sync import SyncBatchNorm, sync_batch_norm
from .registry import create_model, describe, list_models, register
from .zoo import cascade, ensemble, resnet, sparse_resnet  # each registers its models

__all__ = [
    "cascade",
    "ensemble",
    "resnet",
    "sparse_resnet",
    "AnytimeNetwork",
    "Architecture",
    "Growth",
    "Stage",
    "StageCost",
    "SyncBatchNorm",
    "create_model",
    "describe",
    "list_models",
    "parse_growth",
    "register",
    "sync_batch_norm",
]
