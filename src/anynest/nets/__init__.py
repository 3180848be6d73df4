"""Nested networks: growth (data) -> plan (graph) -> one engine. Knows nothing of losses or data."""

from . import cascade, ensemble, resnet, sparse_resnet  # each registers its models
from .architecture import Architecture
from .cost import StageCost
from .growth import Growth, Stage, parse_growth
from .network import AnytimeNetwork
from .registry import create_model, describe, list_models, register
from .sync import SyncBatchNorm, sync_batch_norm

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
