"""Processes that work beside a command."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from ..store.hardware import usable_cores


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of one process a core, at most ``jobs``; an exception cancels what has not begun."""
    context = multiprocessing.get_context("spawn")
    with (
        safe_path(),
        ProcessPoolExecutor(min(jobs, usable_cores()), mp_context=context) as pool,
    ):
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def safe_path() -> Iterator[None]:
    """Interpreters started within import no modules of the current folder, such as a json.py."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
