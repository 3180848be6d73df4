"""Requests on the event loop: admission, timers and answers, without a protocol.

    ticket = service.admit(model, nbytes=length, rows=guess, arrived=now, seconds=0.02)
    with ticket:
        ...  # receive and read the request
        await ticket.begin(request)
        answer = await ticket.answer()

All times are of ``time.monotonic``. An answer is sent by a timer, ``reply`` seconds before the
deadline, whatever is computed then; ``reply`` is the server's own measured lag, and the time that a
request and its answer spend in the system's network code on this machine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ..predict.thread_scheduling import schedule_thread
from .batches import Job
from .deadlines import bounded
from .estimates import RunningQuantile
from .models import ServedModel
from .protocol.errors import ProtocolError
from .repository import Entry, Repository, load
from .requests.observer import Observer
from .requests.refused import Refused
from .requests.ticket import Ticket, is_awaited
from .scheduler import Scheduler
from .settings import Settings
from .statistics import Statistics
from .worker import Load, Report, Worker

_log = logging.getLogger(__name__)

LEAST_LAG, MOST_LAG = 0.001, 0.020  # seconds
LAG_QUANTILE = 0.997  # of the newest 256: the largest but one
NETWORK = 0.0007  # seconds from the client to parsed headers and back, without a wire
HEARTBEAT = 0.020  # seconds between two measurements of the lag
STOP_SECONDS = 5.0  # that the running step may take when the server stops
SWITCH_INTERVAL = 0.0005  # seconds that a busy event loop may keep the compute thread waiting
READERS = 2  # threads that decode pictures and convert large inputs
LATE_LOAD = 0.1  # quantile of step times measured under load; what is too low corrects itself


class Service:
    """The models, the compute thread, and the requests in flight. Used by one event loop.

    Args:
        repository: what to serve.
        settings: bounds and defaults.
        observer: told of requests and steps.

    Attributes:
        statistics: what was computed for each model.
        draining: whether no request is accepted any more.
        in_flight: accepted requests that are not released.
        bytes_in_flight: of their bodies.
        observers: told of requests and steps; more may be appended before the start.
    """

    def __init__(
        self,
        repository: Repository,
        settings: Settings | None = None,
        *,
        observer: Observer | None = None,
    ) -> None:
        self.repository, self.settings = repository, settings or Settings()
        self.statistics = Statistics()
        self.observers: list[Observer] = [self.statistics]
        if observer is not None:
            self.observers.append(observer)
        self.draining = False
        self.bytes_in_flight = 0
        self.lag = RunningQuantile(LAG_QUANTILE, LEAST_LAG, MOST_LAG)
        scheduler = Scheduler(
            max_waiting=self.settings.max_waiting, max_held=self.settings.max_held
        )
        self.worker = Worker(scheduler, self._published, self.settings.scheduling)
        self._readers = ThreadPoolExecutor(READERS, "anynest-reader")
        self._reports: deque[Report] = deque()  # of the compute thread, not yet seen to
        self._tickets: dict[Job, Ticket] = {}
        self._clients: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._reloading = asyncio.Lock()
        self._interval: float | None = None  # of the interpreter before ``start``
        self._idle = asyncio.Event()
        self._idle.set()

    # -- life -------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Load and warm up every model, then be ready.

        Raises:
            Exception: of a model that cannot be loaded.
        """
        self._loop = asyncio.get_running_loop()
        for entry in list(self.repository.entries.values()):
            model = await asyncio.to_thread(load, entry, self.settings)
            self.worker.add(model)
            self.repository.put(model)
        self.worker.start()
        self._beat(time.monotonic())
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(min(self._interval, SWITCH_INTERVAL))
        gc.freeze()  # full collections no longer visit what is loaded: pauses of 100 ms and more

    async def stop(self, drain: float | None = None) -> int:
        """Accept nothing more, answer what is accepted, and end the compute thread.

        Args:
            drain: seconds to wait for answers; None: of the settings. What is left gets 503.

        Returns:
            the number of requests that were left.
        """
        left = 0
        self.draining = True
        seconds = self.settings.drain_seconds if drain is None else drain
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            left = len(self._tickets)
            for ticket in list(self._tickets.values()):
                ticket.fail(Refused("the server stops", unavailable=True))
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self.worker.stop()
        await asyncio.to_thread(self.worker.join, STOP_SECONDS)
        self._receive()
        self._readers.shutdown(wait=False)
        for model in self.repository.loaded():
            model.close()
        if self._interval is not None:
            sys.setswitchinterval(self._interval)
            self._interval = None
            gc.unfreeze()
        return left

    async def reload(
        self, name: str | None = None, version: str | None = None
    ) -> list[ServedModel]:
        """Load models again from where they came, and serve them in the place of the old ones.

        Accepted requests finish on the old ones.

        Raises:
            ProtocolError: 404, there is no such model.
            Exception: of a model that cannot be loaded; the old one stays.
        """
        if name is not None:
            self.repository.find(name, version)
        async with self._reloading:
            entries = [
                entry
                for entry in self.repository.entries.values()
                if name in (None, entry.name) and version in (None, "", entry.version)
            ]
            return [await self._replace(entry) for entry in entries]

    async def _replace(self, entry: Entry) -> ServedModel:
        loading = partial(load, entry, self.settings, quantile=LATE_LOAD)
        # a thread that the others need not wait for; its nice value stays as it is made
        loader = ThreadPoolExecutor(1, "anynest-loader", schedule_thread, ("nice",))
        try:
            model = await asyncio.get_running_loop().run_in_executor(loader, loading)
        finally:
            loader.shutdown(wait=False)
        self.worker.add(model)
        before = self.repository.put(model)
        if before is not None:
            self.worker.retire(before)
        return model

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.worker.ready and self.repository.complete and not self.draining

    def load(self) -> Load:
        """How busy the compute thread is."""
        return self.worker.load(time.monotonic())

    @property
    def reply(self) -> float:
        """Seconds before its deadline that an answer is sent."""
        return self.lag.value + NETWORK

    @property
    def in_flight(self) -> int:
        """Accepted requests that are not released."""
        return len(self._tickets)

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """A model.

        Raises:
            ProtocolError: 404, there is none.
            Refused: it is being loaded.
        """
        found = self.repository.find(name, version)
        if found is None:
            raise Refused(f"model {name} is being loaded; try again", unavailable=True)
        return found

    # -- requests ---------------------------------------------------------------------------------
    def admit(
        self,
        model: ServedModel,
        *,
        nbytes: int,
        arrived: float,
        rows: int = 1,
        seconds: float | None = None,
        client: str = "",
    ) -> Ticket:
        """Accept a request when its headers are known; ``Ticket.begin`` is the second admission.

        Args:
            model: of ``model``.
            nbytes: of the body.
            arrived: when the headers were parsed.
            rows: as many as it has at least (``ServedModel.least_rows``).
            seconds: until the deadline, as far as the headers tell; None: they do not.
            client: its address, for ``client_limit``.

        Raises:
            Refused: it cannot be in time, the server is full, draining or loading (503), or the
                client has too many requests in flight (429).
            ProtocolError: its time is over (504).
        """
        model = self.model(model.name, model.version)
        if self.draining:
            raise self.refuse(model, "draining", "the server stops", unavailable=True)
        if not self.worker.ready:
            raise self.refuse(model, "loading", "the server is not ready", unavailable=True)
        limit = self.settings.client_limit
        if limit and client and self._clients[client] >= limit:
            raise self.refuse(
                model, "client", f"a client may have {limit} requests in flight", status=429
            )
        longest = self.settings.max_deadline  # the body may give more than the default
        due = arrived + (longest if seconds is None else bounded(self.settings, seconds))
        job = Job(
            due=due - self.reply,
            lane=model,
            rows=min(rows, self.settings.max_batch),
            ready=False,
            model=model,
        )
        ticket = Ticket(self, job, arrived, due, seconds, client)
        ticket.hold(nbytes)
        self.require_time(ticket, job.due)
        if not self.worker.admit(job, time.monotonic()):
            ticket.let_go()
            raise self.late(job)
        self._tickets[job] = ticket
        self._idle.clear()
        self._clients[client] += 1
        ticket.start_timer()
        self.tell("received", model)
        return ticket

    def require_time(self, ticket: Ticket, due: float) -> None:
        """ProtocolError if a request's time is over."""
        if due <= time.monotonic():
            ticket.let_go()
            self.tell("refused", ticket.job.model, "over")
            seconds = ticket.due - ticket.arrived
            raise ProtocolError(
                504,
                f"the deadline of {1000 * seconds:g} ms after the request's headers is over, or "
                "too near for an answer",
            )

    def late(self, job: Job) -> Refused:
        """The refusal of a job that cannot be in time."""
        wait = max(0.0, self.worker.wait(time.monotonic()))
        return self.refuse(
            job.model,
            "late",
            f"{job.rows} rows cannot be answered in time now; try again, give more time, or send "
            "fewer rows",
            retry_after=wait,
        )

    def refuse(self, model: ServedModel, reason: str, message: str, **options: Any) -> Refused:
        """A refusal, which the observers are told."""
        self.tell("refused", model, reason)
        return Refused(message, **options)

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell the observers."""
        for observer in self.observers:
            getattr(observer, event)(*arguments)

    async def in_reader(self, function: Any, *arguments: Any) -> Any:
        """The result of a function in a thread of its own."""
        assert self._loop is not None
        return await self._loop.run_in_executor(self._readers, function, *arguments)

    # -- results ----------------------------------------------------------------------------------
    def _published(self, report: Report) -> None:
        """Called in the compute thread."""
        assert self._loop is not None
        self._reports.append(report)
        if not any(is_awaited(job) for job in report.jobs):
            return  # waking the event loop interrupts the next step; the heartbeat sees to the rest
        try:
            self._loop.call_soon_threadsafe(self._receive)
        except RuntimeError:  # the loop is closed: nobody waits
            _log.debug("results after the end of the event loop")

    def _receive(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            if report.model is not None:
                self.tell("step", report.model, report.stage, report.rows, report.seconds)
            for job in report.jobs:
                ticket = self._tickets.get(job)
                if ticket is not None and is_awaited(job):
                    ticket.progress()

    def released(self, ticket: Ticket) -> None:
        """Forget a ticket."""
        job = ticket.job
        if self._tickets.pop(job, None) is None:
            return
        self.worker.drop(job)
        self._clients[ticket.client] -= 1
        if not self._clients[ticket.client]:
            del self._clients[ticket.client]
        if not self._tickets:
            self._idle.set()

    def _beat(self, planned: float) -> None:
        """Measure how late the event loop's timers are, and see to the reports that are left."""
        assert self._loop is not None
        now = time.monotonic()
        self.lag.add(now - planned)
        self._receive()
        planned = now + HEARTBEAT
        self._heartbeat = self._loop.call_at(planned, self._beat, planned)
