"""Wrappers that reduce gradients on their own, found before they are in each other's way."""

import gc
import sys
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .dtensor import REMEDY, is_sharded


def check_wrappers(leaves: Sequence[Tensor]) -> None:
    """ValueError where a wrapper that cannot see a combiner's passes holds one of the parameters.

    Nothing on a parameter tells of its wrapper, so this looks through all objects alive: some
    milliseconds, once for a list of parameters.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    older = _loaded(
        "torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"
    )
    newer = _loaded("torch.distributed.fsdp", "FSDPModule")
    wrappers = _with_subclasses(DistributedDataParallel, *older)
    lenders = _with_subclasses(*newer)
    wanted = {id(leaf) for leaf in leaves if not is_sharded(leaf)}
    for thing in gc.get_objects():
        if type(thing) not in wrappers and type(thing) not in lenders:
            continue
        if not any(id(parameter) in wanted for parameter in thing.parameters()):
            continue
        if type(thing) in lenders:
            raise ValueError(f"parameters of a fully sharded network must be its shards: {REMEDY}")
        name = type(thing).__name__
        instead = "the plain network" if name.startswith("Dist") else "fully_shard"
        raise ValueError(
            f"the network must not be wrapped in {name}, which does not see a combiner's passes:"
            f" use {instead} with group=torch.distributed.group.WORLD for the combiner"
        )


def _loaded(module: str, name: str) -> list[type]:
    """A class of a module, if that has been imported."""
    found = getattr(sys.modules.get(module), name, None)
    return [found] if isinstance(found, type) else []


def _with_subclasses(*kinds: type) -> set[type]:
    found: set[type] = set()
    for kind in kinds:
        found |= {kind, *_with_subclasses(*kind.__subclasses__())}
    return found
