"""Answers as they come: one prediction a stage, for loops of either kind."""

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

from .in_flight import Job
from .prediction import Answer, Prediction

Present = Callable[[Answer], Prediction]
Tell = Callable[[Answer | None], None]


class Stream(Iterator[Prediction]):
    """The stages' predictions, each as soon as it is there; made by ``AnytimePredictor.stream``.

    The network runs ahead of a slow reader. Closing the stream, or dropping it, cancels what is
    left; so does the end of a ``with`` block.
    """

    def __init__(self, start: Callable[[Tell], Job], present: Present) -> None:
        self._answers: SimpleQueue[Answer | None] = SimpleQueue()
        self._present = present
        self._open = True
        self._job = start(self._answers.put)

    def __next__(self) -> Prediction:
        if not self._open:
            raise StopIteration
        due = self._job.terms.due
        try:
            answer = self._answers.get(timeout=_left(due))
        except Empty:
            answer = None
        if answer is None:
            self.close()
            if self._job.error is not None:
                raise self._job.error
            raise StopIteration
        return self._present(answer)

    def close(self) -> None:
        """Want no more: at most the step that is running is still computed."""
        self._open = False
        self._job.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_job"):
            self._job.leave()


class AsyncStream(AsyncIterator[Prediction]):
    """The same for ``async for``; computing begins when it is first awaited."""

    def __init__(self, start: Callable[[Tell], Awaitable[Job]], present: Present) -> None:
        self._start = start
        self._present = present
        self._open = True
        self._job: Job | None = None
        self._answers: deque[Answer | None] = deque()
        self._news = asyncio.Event()

    async def __anext__(self) -> Prediction:
        if not self._open:
            raise StopAsyncIteration
        try:
            answer = await self._next()
        except BaseException:
            await self.aclose()
            raise
        assert self._job is not None
        if answer is None:
            await self.aclose()
            if self._job.error is not None:
                raise self._job.error
            raise StopAsyncIteration
        return self._present(answer)

    async def _next(self) -> Answer | None:
        answers, news = self._answers, self._news
        if self._job is None:
            wake = threadsafe(lambda _: news.set())

            def tell(answer: Answer | None) -> None:
                answers.append(answer)  # at once: at the deadline the loop may be busy elsewhere
                wake(answer)

            self._job = await self._start(tell)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_left(self._job.terms.due)):
                while not answers:
                    news.clear()
                    await news.wait()
        return answers.popleft() if answers else None

    async def aclose(self) -> None:
        """Want no more: at most the step that is running is still computed."""
        self._open = False
        if self._job is not None:
            self._job.leave()

    def __del__(self) -> None:
        if self._job is not None:
            self._job.leave()


def threadsafe(tell: Tell) -> Tell:
    """``tell``, called in the running event loop from another thread; not at all once that has ended."""
    loop = asyncio.get_running_loop()

    def pass_on(answer: Answer | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, answer)

    return pass_on


def _left(due: float) -> float | None:
    """Seconds until then, as many as can be slept; None for ever."""
    if math.isinf(due):
        return None
    return min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
