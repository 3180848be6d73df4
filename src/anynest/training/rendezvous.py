"""Rendezvous of the processes of one start of a run, apart from those of earlier starts.

torchrun keeps one store for all restarts of a run (torch 2.13: the agent's TCPStore), so a
restarted process may read the address of a dead one there, and wait for it in vain. The ranks
therefore first agree on a new prefix, and use the store under it.
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(minutes=30)  # the default of torch.distributed
PAUSE = 0.01  # seconds between two looks of rank 0


def join_store() -> tuple[Any, int, int]:
    """A store that only this start of the run uses, this process's rank, and the number of ranks.

    Reads MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, as torch's ``env://`` does.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    return PrefixStore(new_prefix(store, rank, size), store), rank, size


def new_prefix(store: Any, rank: int, size: int) -> str:
    """A prefix chosen by rank 0 that all ranks of this start know, whatever the store holds.

    Every rank announces itself under a unique name. Rank 0 answers each announcement that it finds,
    including old ones, under that name, until all ranks have confirmed the prefix.
    """
    mine = f"{os.getpid()}-{uuid.uuid4().hex}"
    if rank > 0:
        store.set(f"anynest/greeting/{rank}", mine)
        prefix: str = store.get(f"anynest/answer/{mine}").decode()
        store.set(f"anynest/known/{prefix}/{rank}", b"")
        return prefix
    missing = set(range(1, size))
    end = time.monotonic() + PATIENCE.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"anynest/known/{mine}/{other}"]):
                missing.discard(other)
            elif store.check([f"anynest/greeting/{other}"]):
                name = store.get(f"anynest/greeting/{other}").decode()
                store.set(f"anynest/answer/{name}", mine)
        if time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted(missing)} of {size} have not come within {PATIENCE}")
        time.sleep(PAUSE)
    return mine
