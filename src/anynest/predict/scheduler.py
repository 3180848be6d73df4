"""The thread that computes: it takes requests from a queue and advances the most urgent one.

Requests without a result first, then earliest deadline, then arrival; chosen anew before each
step of the engine. Late and cancelled requests are dropped there, so they waste one step at most.

The thread holds no reference to the predictor, so it ends when the predictor is collected. The
queue is a ``SimpleQueue``: its ``put`` is reentrant, hence safe from a finalizer.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from queue import SimpleQueue

from ..engines.session import Session
from .in_flight import CLOSED, InFlight
from .thread_scheduling import schedule_thread

EXIT_TIMEOUT = 5.0  # seconds that interpreter exit waits for running steps, all together
MAX_EVALUATIONS = 16  # open at a time; each holds the buffers of one batch

Inbox = SimpleQueue["InFlight | None"]


class Scheduler:
    """One daemon thread on one session.

    Args:
        session: the engine.
        scheduling: how the operating system schedules the thread (predict/thread_scheduling.py).
    """

    def __init__(self, session: Session, scheduling: str = "auto") -> None:
        self._inbox: Inbox = SimpleQueue()
        self._requests: list[InFlight] = []  # changed by the thread alone
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=_run,
            args=(session, self._inbox, self._requests, scheduling),
            name="anynest-predictor",
            daemon=True,
        )
        self._thread.start()
        _schedulers.add(self)

    def submit(self, request: InFlight) -> None:
        """Queue a request.

        Raises:
            RuntimeError: the scheduler is closed, or this process is a fork of its own.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        if os.getpid() != self._process:
            raise RuntimeError(
                "a predictor does not survive os.fork: its thread exists in the parent only; open "
                "one in the child"
            )
        self._inbox.put(request)
        if self._closed:  # meanwhile: the thread may have ended without reading it
            raise RuntimeError(CLOSED)

    def stop(self) -> None:
        """End the thread after the running step. Does not block; safe from a finalizer."""
        self._closed = True
        self._inbox.put(None)
        for request in tuple(self._requests):
            request.abort(RuntimeError(CLOSED))

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end. Returns whether it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()


def _run(session: Session, inbox: Inbox, requests: list[InFlight], scheduling: str) -> None:
    schedule_thread(scheduling)
    while True:
        while not requests or not inbox.empty():
            request = inbox.get()
            if request is None:
                _refuse(requests, inbox)
                return
            requests.append(request)
            del request
        chosen = requests[0] if len(requests) == 1 else most_urgent(requests)
        if not chosen.advance(session):
            requests.remove(chosen)
        del chosen


def most_urgent(requests: list[InFlight]) -> InFlight:
    """The request to advance; a new one only while fewer than ``MAX_EVALUATIONS`` are open."""
    if sum(request.started for request in requests) >= MAX_EVALUATIONS:
        requests = [request for request in requests if request.started or request.cancelled]
    return min(requests, key=lambda request: request.urgency)


def _refuse(requests: list[InFlight], inbox: Inbox) -> None:
    """Fail the requests of a closed scheduler, and those still in its queue."""
    for request in requests:
        request.fail(RuntimeError(CLOSED))
    while not inbox.empty():
        queued = inbox.get()
        if queued is not None:
            queued.fail(RuntimeError(CLOSED))


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop the threads before interpreter teardown."""
    schedulers = [each for each in _schedulers if each._process == os.getpid()]
    for scheduler in schedulers:
        scheduler.stop()
    until = time.monotonic() + EXIT_TIMEOUT
    for scheduler in schedulers:
        scheduler.join(max(0.0, until - time.monotonic()))
