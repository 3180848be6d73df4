"""Argument checks that all engines share."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

MAX_THREADS = 1024  # per step; the system refuses many more


def check_threads(threads: int | None) -> int | None:
    """``threads`` as a plain int; ValueError if it is not from 1 to 1024 (or None)."""
    if threads is None:
        return None
    try:
        count = -1 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = -1
    if count < 1:
        raise ValueError(f"threads must be a positive integer or None, found {threads!r}")
    if count > MAX_THREADS:
        raise ValueError(f"threads must be at most {MAX_THREADS}, found {count}")
    return count


def check_indices(indices: Tensor, batch: int) -> Tensor:
    """Indices of samples to keep, on the CPU; ValueError if they are invalid for ``batch``."""
    if indices.dim() != 1 or indices.dtype != torch.int64 or not len(indices):
        raise ValueError(
            "indices must be a vector of at least one int64 index, found "
            f"{list(indices.shape)} {indices.dtype}"
        )
    indices = indices.detach().cpu()
    if int(indices.min()) < 0 or int(indices.max()) >= batch or len(indices) > batch:
        raise ValueError(
            f"indices must be at most {batch} numbers from 0 to {batch - 1}, found "
            f"{indices.tolist()}"
        )
    return indices
