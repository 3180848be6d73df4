"""Predictions as the stages finish, for ``for`` and ``async for``."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Self

from .in_flight import InFlight, OnResult
from .prediction import Prediction
from .stage_results import StageResult

ToPrediction = Callable[[StageResult], Prediction]


class Stream(Iterator[Prediction]):
    """Each stage's prediction when the stage is finished; made by ``AnytimePredictor.stream``.

    The network does not wait for a slow reader. Closing the stream, dropping it or leaving its
    ``with`` block cancels the remaining stages.
    """

    def __init__(self, start: Callable[[OnResult], InFlight], to_prediction: ToPrediction) -> None:
        self._results: SimpleQueue[StageResult | None] = SimpleQueue()
        self._to_prediction = to_prediction
        self._open = True
        self._request = start(self._results.put)

    def __next__(self) -> Prediction:
        if not self._open:
            raise StopIteration
        try:
            result = self._results.get(timeout=_seconds_left(self._request.options.due))
        except Empty:
            result = self._results.get() if self._request.must_wait else None
        if result is None:
            self.close()
            if self._request.error is not None:
                raise self._request.error
            raise StopIteration
        return self._to_prediction(result)

    def close(self) -> None:
        """Cancel the remaining stages."""
        self._open = False
        self._request.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self._request.cancel()


class AsyncStream(AsyncIterator[Prediction]):
    """The same for ``async for``; computing starts with the first ``anext``."""

    def __init__(
        self, start: Callable[[OnResult], Awaitable[InFlight]], to_prediction: ToPrediction
    ) -> None:
        self._start = start
        self._to_prediction = to_prediction
        self._open = True
        self._request: InFlight | None = None
        self._results: deque[StageResult | None] = deque()
        self._changed = asyncio.Event()

    async def __anext__(self) -> Prediction:
        if not self._open:
            raise StopAsyncIteration
        try:
            result = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if result is None:
            await self.aclose()
            if self._request is not None and self._request.error is not None:
                raise self._request.error
            raise StopAsyncIteration
        return self._to_prediction(result)

    async def _next(self) -> StageResult | None:
        if self._request is None:
            self._request = await self._start(self._collector())
        try:
            async with asyncio.timeout(_seconds_left(self._request.options.due)):
                await self._wait()
        except TimeoutError:
            if self._request.must_wait:
                await self._wait()
        return self._results.popleft() if self._results else None

    async def _wait(self) -> None:
        while not self._results:
            self._changed.clear()
            await self._changed.wait()

    def _collector(self) -> OnResult:
        """Collects results without a reference to this stream, which may be dropped."""
        results = self._results
        wake = call_in_loop(self._changed.set)

        def collect(result: StageResult | None) -> None:
            results.append(result)  # at once: the loop may be blocked at the deadline
            wake()

        return collect

    async def aclose(self) -> None:
        """Cancel the remaining stages."""
        self._open = False
        if self._request is not None:
            self._request.cancel()

    def __del__(self) -> None:
        if self._request is not None:
            self._request.cancel()


def call_in_loop(callback: Callable[[], object]) -> Callable[[], None]:
    """``callback`` in the running event loop, to be called from any thread.

    Does nothing after the loop is closed.
    """
    loop = asyncio.get_running_loop()

    def call() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback)

    return call


def _seconds_left(due: float) -> float | None:
    """Seconds until ``due``, at most what can be slept; None for inf."""
    if math.isinf(due) and due > 0:
        return None
    return min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
