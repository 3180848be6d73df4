"""How the processes of one life of a run find one another, and none of an earlier life.

torchrun keeps one store for all lives of a run (torch 2.13: the agent's TCPStore), so that after a
restart a process may read there the address of one that is dead, and wait for it in vain. So the ranks
first agree upon a word that is new, and meet under it.
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(minutes=30)  # as torch.distributed itself
PAUSE = 0.01  # seconds between two looks of rank 0


def meet() -> tuple[Any, int, int]:
    """A store that this life alone uses, this process's rank, and the number of ranks.

    Reads MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, as torch's ``env://`` does.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    return PrefixStore(new_word(store, rank, size), store), rank, size


def new_word(store: Any, rank: int, size: int) -> str:
    """A word of rank 0's that all ranks of this life know, whatever older ones left in the store.

    Every rank greets with a name that nobody had before. Rank 0 answers each greeting that it finds,
    an old one too, under the very name, until all ranks have said that they know the word.
    """
    mine = f"{os.getpid()}-{uuid.uuid4().hex}"
    if rank > 0:
        store.set(f"anynest/greeting/{rank}", mine)
        word: str = store.get(f"anynest/answer/{mine}").decode()
        store.set(f"anynest/known/{word}/{rank}", b"")
        return word
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
