"""Requests on the event loop: admission, timers and answers, without a protocol.

    ticket = service.admit(model, nbytes=length, rows=guess, arrived=now, seconds=0.02)
    with ticket:
        ...  # receive and read the request
        await ticket.begin(request)
        answer = await ticket.answer()

All times are of ``time.monotonic``. An answer is sent by a timer, ``reply`` seconds before the
deadline, whatever is computed then; ``reply`` is the server's own measured lag.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from ..predict.early_stopping.policies import Confidence
from ..predict.thread_scheduling import schedule_thread
from .batches import Job, Result, Timing
from .deadlines import bounded, duration
from .estimates import RunningQuantile
from .models import ServedModel
from .protocol.errors import ClientGone, ProtocolError
from .protocol.inference import InferRequest, chosen_outputs
from .protocol.tensors import Array
from .repository import Entry, Repository, load
from .scheduler import Scheduler
from .settings import Settings
from .statistics import Statistics
from .worker import Load, Report, Worker

_log = logging.getLogger(__name__)

LEAST_REPLY, MOST_REPLY = 0.001, 0.020  # seconds
LAG_QUANTILE = 0.99
LAG_WINDOW = 64  # measurements: what a burst did is forgotten in a second
HEARTBEAT = 0.020  # seconds between two measurements of the lag
STOP_SECONDS = 5.0  # that the running step may take when the server stops
LARGE = 1 << 18  # bytes of inputs that are converted in a thread
SWITCH_INTERVAL = 0.0005  # seconds that a busy event loop may keep the compute thread waiting
READERS = 2  # threads that decode pictures and convert large inputs
LATE_LOAD = 0.1  # quantile of step times measured under load; what is too low corrects itself
PRIORITY = 4  # that has the default weight


class Refused(ProtocolError):
    """A request that is not accepted now.

    Attributes:
        retry_after: seconds after which it may be.
        unavailable: the server is draining or loading, rather than full.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float = 1.0,
        status: int = 503,
        unavailable: bool = False,
    ) -> None:
        super().__init__(status, message)
        self.retry_after, self.unavailable = retry_after, unavailable


class Observer(Protocol):
    """What is told of every request and step. All calls are made on the event loop."""

    def received(self, model: ServedModel) -> None:
        """A request was accepted."""

    def refused(self, model: ServedModel, reason: str) -> None:
        """A request was not: ``late``, ``full``, ``draining``, ``loading``, ``client``, ``over``."""

    def answered(self, model: ServedModel, answer: Answer, rows: int) -> None:
        """A request got its last answer."""

    def failed(self, model: ServedModel, status: int) -> None:
        """An accepted request got none, but this HTTP status."""

    def left(self, model: ServedModel) -> None:
        """The client of an accepted request has gone."""

    def step(self, model: ServedModel, stage: int, rows: int, seconds: float) -> None:
        """A step was computed."""


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer, or with ``answers`` one of several.

    Attributes:
        model: that gave it.
        stage: of the output, from 1.
        output: of the session.
        elapsed: seconds since the request arrived.
        deadline: likewise, until it must be answered.
        deadline_met: whether it is sent before the deadline.
        stop_reason: ``complete``, ``deadline``, ``confident``, ``requested`` (the request's
            ``stages``), ``load`` (too many rows wait for later stages) or ``failure``; an empty
            string where later stages may follow.
        timings: of the steps that computed it, in seconds since the request arrived.
    """

    model: ServedModel
    stage: int
    output: Tensor
    elapsed: float
    deadline: float
    deadline_met: bool
    stop_reason: str
    timings: tuple[Timing, ...]

    @property
    def stages(self) -> int:
        """S."""
        return self.model.num_stages

    def outputs(self, request: InferRequest) -> dict[str, Array]:
        """The protocol's tensors that a request asks for."""
        wanted = chosen_outputs(request, self.model.output_names)
        return self.model.outputs(self.output, self.stage, wanted)

    def parameters(self) -> dict[str, Any]:
        """The parameters of the response."""
        return {
            "stage": self.stage,
            "stages": self.stages,
            "deadline_met": self.deadline_met,
            "elapsed_us": round(self.elapsed * 1e6),
            "stop_reason": self.stop_reason,
        }


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
        self.lag = RunningQuantile(LAG_QUANTILE, LEAST_REPLY, MOST_REPLY, LAG_WINDOW)
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
        priority: int = 0,
        client: str = "",
    ) -> Ticket:
        """Accept a request when its headers are known; ``Ticket.begin`` is the second admission.

        Args:
            model: of ``model``.
            nbytes: of the body.
            arrived: when the headers were parsed.
            rows: as many as it has at least (``ServedModel.least_rows``).
            seconds: until the deadline, as far as the headers tell; None: they do not.
            priority: 1 is the highest, 0 the default, as ``PRIORITY``.
            client: its address, for ``client_limit``.

        Raises:
            Refused: it cannot be in time, the server is full, draining or loading (503), or the
                client has too many requests in flight (429).
            ProtocolError: its time is over (504).
        """
        model = self.model(model.name, model.version)
        if self.draining:
            raise self._refuse(model, "draining", "the server stops", unavailable=True)
        if not self.worker.ready:
            raise self._refuse(model, "loading", "the server is not ready", unavailable=True)
        limit = self.settings.client_limit
        if limit and client and self._clients[client] >= limit:
            raise self._refuse(
                model, "client", f"a client may have {limit} requests in flight", status=429
            )
        longest = self.settings.max_deadline  # the body may give more than the default
        due = arrived + (longest if seconds is None else bounded(self.settings, seconds))
        job = Job(
            due=due - self.lag.value,
            lane=model,
            rows=min(rows, self.settings.max_batch),
            weight=weight_of(priority),
            ready=False,
            model=model,
        )
        ticket = Ticket(self, job, arrived, due, seconds, client)
        ticket.hold(nbytes)
        self._require_time(ticket, job.due)
        if not self.worker.admit(job, time.monotonic()):
            ticket.let_go()
            raise self._late(job)
        self._tickets[job] = ticket
        self._idle.clear()
        self._clients[client] += 1
        ticket.start_timer()
        self._tell("received", model)
        return ticket

    def _require_time(self, ticket: Ticket, due: float) -> None:
        """ProtocolError if a request's time is over."""
        if due <= time.monotonic():
            ticket.let_go()
            self._tell("refused", ticket.job.model, "over")
            seconds = ticket.due - ticket.arrived
            raise ProtocolError(
                504,
                f"the deadline of {1000 * seconds:g} ms after the request's headers is over, or "
                "too near for an answer",
            )

    def _late(self, job: Job) -> Refused:
        wait = max(0.0, self.worker.wait(time.monotonic()))
        return self._refuse(
            job.model,
            "late",
            f"{job.rows} rows cannot be answered in time now; try again, give more time, or send "
            "fewer rows",
            retry_after=wait,
        )

    def _refuse(self, model: ServedModel, reason: str, message: str, **options: Any) -> Refused:
        self._tell("refused", model, reason)
        return Refused(message, **options)

    def _tell(self, event: str, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, event)(*arguments)

    async def _in_reader(self, function: Any, *arguments: Any) -> Any:
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
                self._tell("step", report.model, report.stage, report.rows, report.seconds)
            for job in report.jobs:
                ticket = self._tickets.get(job)
                if ticket is not None and is_awaited(job):
                    ticket.progress()

    def _released(self, ticket: Ticket) -> None:
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


class Ticket:
    """An accepted request, from its headers to its answer. A context manager that releases it.

    Attributes:
        job: what the compute thread sees.
        arrived: when the request's headers were parsed.
        due: the deadline.
    """

    def __init__(
        self,
        service: Service,
        job: Job,
        arrived: float,
        due: float,
        seconds: float | None,
        client: str,
    ) -> None:
        self.service, self.job, self.client = service, job, client
        self.arrived, self.due, self._seconds = arrived, due, seconds
        self._nbytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._error: ProtocolError | None = None
        self._over = False  # the timer has fired
        self._changed = asyncio.Event()
        self._receiving: asyncio.Timeout | None = None
        self._told = False

    @property
    def model(self) -> ServedModel:
        """That the request asks for."""
        return self.job.model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self._told:
            if isinstance(error, ProtocolError) and not isinstance(error, ClientGone):
                self._tell("failed", self.model, error.status)
            else:
                self._tell("left", self.model)
        self.release()

    # -- before computing -------------------------------------------------------------------------
    def hold(self, nbytes: int) -> None:
        """Count the bytes of the body, which may grow while it is received.

        Raises:
            Refused: too many bytes are in flight.
        """
        service = self.service
        most = service.settings.max_bytes_in_flight
        if service.bytes_in_flight - self._nbytes + nbytes > most:
            self.release()
            self._told = True
            raise service._refuse(
                self.model, "full", f"the requests in flight may have {most} bytes; try again"
            )
        service.bytes_in_flight += nbytes - self._nbytes
        self._nbytes = nbytes

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Receive the body; should the request be ended meanwhile, stop with that error."""
        try:
            async with asyncio.timeout(None) as self._receiving:
                yield
        except TimeoutError:
            if self._error is None:
                raise
            raise self._error from None
        finally:
            self._receiving = None

    async def begin(self, request: InferRequest) -> None:
        """Admit a request again, now that it is read, and let it be computed.

        Its parameters are ``timeout`` (microseconds), ``priority``, ``stages`` (the last stage to
        compute, from 1) and ``confidence`` (that every row must reach to stop before; a number, or a
        number as text), which takes the place of the model's policy.

        Raises:
            Refused: it cannot be in time.
            ProtocolError: it is malformed (400), or its time is over (504).
        """
        given = request.parameters
        chosen_outputs(request, self.model.output_names)
        rows = self.model.rows(request.inputs)
        stages = _integer(given, "stages", 1, self.model.num_stages)
        priority = _integer(given, "priority", 0, 1 << 31)
        confidence = _fraction(given, "confidence")
        if confidence is not None and self.model.num_classes is None:
            raise ProtocolError(400, "confidence needs a model of class logits")
        if priority is not None:
            self.job.weight = weight_of(priority)
        self.resize(rows, duration(timeout_us=given.get("timeout")))
        policy = self.model.policy if confidence is None else Confidence(confidence)
        self.submit(await self.read(request.inputs), stages=stages, policy=policy)

    def resize(self, rows: int, seconds: float | None = None) -> None:
        """The second admission, with the true rows and the deadline in the request, if it has one.

        Raises:
            Refused: it cannot be in time.
            ProtocolError: too many rows (400), or its time is over (504).
        """
        service = self.service
        if rows > service.settings.max_batch:
            raise ProtocolError(
                400, f"a request may have {service.settings.max_batch} rows, found {rows}; split it"
            )
        self.due = self.arrived + bounded(service.settings, self._seconds, seconds)
        due = self.due - service.lag.value
        self.start_timer()
        try:
            service._require_time(self, due)
            if not service.worker.readmit(self.job, rows, due, time.monotonic()):
                raise service._late(self.job)
        except ProtocolError:
            self._told = True  # as refused
            raise

    async def read(self, inputs: Mapping[str, Array]) -> dict[str, Tensor]:
        """The session's inputs; pictures are decoded, and large inputs converted, in a thread.

        Raises:
            ProtocolError: inputs that do not fit, or the time is over before they are read (504).
        """
        model, most = self.model, self.service.settings.max_pixels
        large = sum(array.nbytes for array in inputs.values()) > LARGE
        if not large and not model.is_encoded(inputs):
            return model.read(inputs, most)
        reading = self.service._in_reader(model.read, inputs, most, lambda: self._over)
        try:
            async with asyncio.timeout_at(self.due - self.service.lag.value):
                found: dict[str, Tensor] = await reading
        except TimeoutError:
            self._over = True
            raise self._too_late() from None
        return found

    def submit(
        self,
        inputs: dict[str, Tensor],
        *,
        stages: int | None = None,
        policy: Confidence | None = None,
    ) -> None:
        """Let the request be computed."""
        job = self.job
        job.inputs, job.policy = inputs, policy
        if stages is not None:
            job.last_stage = stages
        self.service.worker.submit(job)

    # -- answers ----------------------------------------------------------------------------------
    async def answer(self) -> Answer:
        """The last stage's answer, or the newest when time is up.

        Raises:
            ProtocolError: none in time (504), or the model failed (500).
        """
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
        return self._conclude()

    async def answers(self) -> AsyncIterator[Answer]:
        """The answer of each stage when it is there, to the last or when time is up.

        The last has a ``stop_reason``; where time is up without a new stage, it repeats the newest.

        Raises:
            ProtocolError: none in time (504), or the model failed (500).
        """
        self.job.streams = True
        results, sent, ended = self.job.results, 0, False
        while not ended:
            ended = self._ended
            count = len(results) - ended  # at the end, the newest is sent with its reason
            for result in results[sent:count]:
                yield self._answer(result, "")
            sent = max(sent, count)
            if not ended and sent == len(results):
                await self._changed.wait()
                self._changed.clear()
        yield self._conclude()

    def leave(self) -> None:
        """The client has gone: compute nothing more. Whoever waits for an answer gets ClientGone."""
        if not self._told:
            self._tell("left", self.model)
        self.fail(ClientGone())
        self.release()

    def fail(self, error: ProtocolError) -> None:
        """End the request with an error."""
        self._error = self._error or error
        self._changed.set()
        if self._receiving is not None:
            self._receiving.reschedule(0.0)

    def release(self) -> None:
        """Forget the request; a second call has no effect."""
        self._over = True
        self.let_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.service._released(self)

    def let_go(self) -> None:
        """Count its bytes no more."""
        self.service.bytes_in_flight -= self._nbytes
        self._nbytes = 0

    # -- parts ------------------------------------------------------------------------------------
    @property
    def _ended(self) -> bool:
        newest = self.job.newest
        return self._over or self._error is not None or bool(newest and newest.stop_reason)

    def start_timer(self) -> None:
        """Answer by the deadline, less the lag that the server has."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self.due - self.service.lag.value, self._time_up)

    def progress(self) -> None:
        """There is a new result."""
        self._changed.set()

    def _time_up(self) -> None:
        self._over = True
        self.service.worker.drop(self.job)
        self._changed.set()

    def _conclude(self) -> Answer:
        """The last answer."""
        newest = self.job.newest
        error = self._error
        if isinstance(error, ClientGone):
            raise error
        if newest is None or newest.output is None:
            if error is None and newest is not None:
                error = ProtocolError(500, f"the model failed: {newest.error}")
            raise error or self._too_late()
        answer = self._answer(newest, newest.stop_reason or "deadline")
        self._told = True
        self._tell("answered", self.model, answer, self.job.rows)
        return answer

    def _answer(self, result: Result, reason: str) -> Answer:
        now = time.monotonic()
        assert result.output is not None
        return Answer(
            self.model,
            result.stage,
            result.output,
            elapsed=now - self.arrived,
            deadline=self.due - self.arrived,
            deadline_met=now <= self.due,
            stop_reason=reason,
            timings=tuple(
                timing._replace(end=timing.end - self.arrived)
                for timing in list(self.job.timings)
                if timing.stage <= result.stage
            ),
        )

    def _too_late(self) -> ProtocolError:
        milliseconds = 1000 * (self.due - self.arrived)
        return ProtocolError(
            504, f"no stage was finished within {milliseconds:g} ms of the request"
        )

    def _tell(self, event: str, *arguments: Any) -> None:
        self._told = True
        self.service._tell(event, *arguments)


def is_awaited(job: Job) -> bool:
    """Whether a job's newest result is to be sent: it is the last, or each is."""
    return job.streams or job.newest is None or bool(job.newest.stop_reason)


def weight_of(priority: int) -> float:
    """How much a request of a priority counts: 1 is the highest, 0 stands for ``PRIORITY``.

    >>> weight_of(1), weight_of(0), weight_of(8)
    (4.0, 1.0, 0.5)
    """
    return PRIORITY / (priority or PRIORITY)


def _integer(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(
            400, f"{name} must be an integer from {least} to {most}, found {value!r:.40}"
        )
    return value


def _fraction(given: Mapping[str, Any], name: str) -> float | None:
    """A number above 0, or its text: clients over gRPC need not know parameters that are floats."""
    value = given.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 1:
        raise ProtocolError(400, f"{name} must be above 0 and at most 1, found {value!r:.40}")
    return number
