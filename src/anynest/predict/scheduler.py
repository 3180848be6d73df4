"""The thread that computes, and nothing else: it takes jobs from a queue and steps through them.

Between any two steps it turns to the most urgent job: one without an answer before one that has some,
then the nearer deadline. A prediction that is late or cancelled is dropped there: it wastes one step at most.

Nothing here refers to the predictor: when that is gone, its thread ends. The queue is a ``SimpleQueue``,
whose ``put`` is safe even from a finalizer that interrupts this very thread.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from queue import SimpleQueue

from ..engines.session import Session
from .in_flight import CLOSED, Job

EXIT_TIMEOUT = (
    1.0  # seconds that the interpreter's exit waits for the steps under way, all together
)

Inbox = SimpleQueue["Job | None"]


class Worker:
    """One daemon thread on one session."""

    def __init__(self, session: Session) -> None:
        self._inbox: Inbox = SimpleQueue()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=_work, args=(session, self._inbox), name="anynest-predictor", daemon=True
        )
        self._thread.start()
        _workers.add(self)

    def submit(self, job: Job) -> None:
        """Have a job done.

        Raises:
            RuntimeError: the worker is closed, or belongs to the process that this one forked from.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        if os.getpid() != self._process:
            raise RuntimeError(
                "a predictor does not outlive os.fork: its thread stayed in the parent; open one in "
                "the child"
            )
        self._inbox.put(job)
        if self._closed:  # meanwhile: the thread may have ended without a look at it
            raise RuntimeError(CLOSED)

    def stop(self) -> None:
        """End the thread after the step under way. Does not wait; may be called by a finalizer."""
        self._closed = True
        self._inbox.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it has come."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()


def _work(session: Session, inbox: Inbox) -> None:
    jobs: list[Job] = []
    while True:
        while not jobs or not inbox.empty():
            job = inbox.get()
            if job is None:
                for left in jobs:
                    left.fail(RuntimeError(CLOSED))
                _refuse(inbox)
                return
            jobs.append(job)
            del job
        most_urgent = jobs[0] if len(jobs) == 1 else min(jobs, key=lambda job: job.urgency)
        if not most_urgent.advance(session):
            jobs.remove(most_urgent)
        del most_urgent


def _refuse(inbox: Inbox) -> None:
    """Fail what still waits in the queue of a closed worker."""
    while not inbox.empty():
        job = inbox.get()
        if job is not None:
            job.fail(RuntimeError(CLOSED))


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """At the interpreter's exit: a thread in the middle of a kernel must not meet its ruins."""
    workers = [worker for worker in _workers if worker._process == os.getpid()]
    for worker in workers:
        worker.stop()
    until = time.monotonic() + EXIT_TIMEOUT
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
