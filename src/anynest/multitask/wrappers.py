"""Wrappers that reduce gradients on their own, found before they are in each other's way."""

import gc
import sys
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def check_wrappers(leaves: Sequence[Tensor]) -> None:
    """ValueError where a wrapper that cannot see a combiner's passes holds one of the parameters.

    Nothing on a parameter tells of its wrapper, so this looks through all objects alive: some
    milliseconds, once for a list of parameters.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    kinds: tuple[type, ...] = (DistributedDataParallel,)
    older = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if older is not None:
        kinds += (older.FullyShardedDataParallel,)
    found = {subclass for kind in kinds for subclass in _with_subclasses(kind)}
    wanted = {id(leaf) for leaf in leaves}
    for thing in gc.get_objects():
        if type(thing) in found:
            if not any(id(parameter) in wanted for parameter in thing.parameters()):
                continue
            name = type(thing).__name__
            instead = "the plain network" if name.startswith("Dist") else "fully_shard"
            raise ValueError(
                f"the network must not be wrapped in {name}, which does not see a combiner's"
                f" passes: use {instead} with group=torch.distributed.group.WORLD for the combiner"
            )


def _with_subclasses(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(below for child in children for below in _with_subclasses(child))]
