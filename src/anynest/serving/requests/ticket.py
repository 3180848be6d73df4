"""A request from its headers to its answer: the second admission, the timer, the result."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from ...predict.early_stopping.policies import Confidence
from ..batches import Job, Result
from ..deadlines import bounded, duration
from ..estimates import RunningQuantile
from ..models import ServedModel
from ..protocol.errors import ClientGone, ProtocolError
from ..protocol.inference import InferRequest, chosen_outputs
from ..protocol.tensors import Array
from ..settings import Settings
from ..worker import Worker
from .answer import Answer
from .refused import Refused

LARGE = 1 << 18  # bytes of inputs that are converted in a thread
PRIORITY = 4  # that has the default weight


class Desk(Protocol):
    """What a ticket needs of the service that gave it.

    Attributes:
        settings: bounds and defaults.
        lag: from a timer to the answer that it sends.
        reply: seconds before deadlines that timers are set: the lag and more.
        worker: that computes.
        bytes_in_flight: of the bodies of all accepted requests.
    """

    settings: Settings
    lag: RunningQuantile
    worker: Worker
    bytes_in_flight: int

    @property
    def reply(self) -> float: ...

    def require_time(self, ticket: Ticket, due: float) -> None:
        """ProtocolError if a request's time is over."""

    def late(self, job: Job) -> Refused:
        """The refusal of a job that cannot be in time."""

    def refuse(self, model: ServedModel, reason: str, message: str, **options: Any) -> Refused:
        """A refusal, which the observers are told."""

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell the observers."""

    async def in_reader(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function in a thread of its own."""

    def released(self, ticket: Ticket) -> None:
        """Forget a ticket."""


class Ticket:
    """An accepted request, from its headers to its answer. A context manager that releases it.

    Attributes:
        job: what the compute thread sees.
        arrived: when the request's headers were parsed.
        due: the deadline.
    """

    def __init__(
        self,
        service: Desk,
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
        self._answer_at = 0.0  # when the timer is to fire
        self._timed = False  # whether it did
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
        if not self._told and (error is not None or isinstance(self._error, ClientGone)):
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
        nbytes = max(nbytes, self._nbytes)  # a chunk takes back nothing of what was announced
        most = service.settings.max_bytes_in_flight
        if service.bytes_in_flight - self._nbytes + nbytes > most:
            self.release()
            self._told = True
            raise service.refuse(
                self.model, "full", f"the requests in flight may have {most} bytes; try again"
            )
        service.bytes_in_flight += nbytes - self._nbytes
        self._nbytes = nbytes

    @asynccontextmanager
    async def receiving(self, until: float) -> AsyncIterator[None]:
        """Receive the body; should the request be ended meanwhile, stop with that error.

        Raises:
            TimeoutError: it is later than ``until``.
        """
        try:
            async with asyncio.timeout_at(until) as self._receiving:
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
        known = self._seconds is not None and (seconds is None or seconds >= self._seconds)
        same = known and rows == self.job.rows  # as at the first admission
        if not same:
            self.due = self.arrived + bounded(service.settings, self._seconds, seconds)
            self.start_timer()
        due = self.due - service.reply
        try:
            service.require_time(self, due)
            if not (same or service.worker.readmit(self.job, rows, due, time.monotonic())):
                raise service.late(self.job)
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
        reading = self.service.in_reader(model.read, inputs, most, lambda: self._over)
        try:
            async with asyncio.timeout_at(self.due - self.service.reply):
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
        return self._conclude(self.job.newest)

    async def answers(self) -> AsyncIterator[Answer]:
        """The answer of each stage when it is there, to the last or when time is up.

        The last has a ``stop_reason``; where time is up without a new stage, it repeats the newest.

        Raises:
            ProtocolError: none in time (504), or the model failed (500).
        """
        self.job.streams = True
        sent = 0
        while True:
            # The computing thread goes on meanwhile: first whether it is the end, then what is new.
            ended, newest = self._ended, self.job.newest
            results = self.job.results[sent:]
            if ended and newest is not None:  # the newest is sent last, with its reason
                results = [result for result in results if result.stage != newest.stage]
            for result in results:
                yield self._answer(result, "")
            sent += len(results)
            if ended and not results:
                yield self._conclude(newest)
                return
            if not results:
                await self._changed.wait()
                self._changed.clear()

    def sending(self) -> None:
        """The answer is ready to be sent: what passed since the timer counts as the server's lag.

        A client that receives slowly does not change it.
        """
        if self._timed:
            self.service.lag.add(time.monotonic() - self._answer_at)

    def leave(self) -> None:
        """The client has gone: compute nothing more. Whoever waits for an answer gets ClientGone."""
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
        self.service.released(self)

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
        """Answer by the deadline, less the time that this takes the server."""
        if self._timer is not None:
            self._timer.cancel()
        self._answer_at = self.due - self.service.reply
        self._timer = asyncio.get_running_loop().call_at(self._answer_at, self._time_up)

    def progress(self) -> None:
        """There is a new result."""
        self._changed.set()

    def _time_up(self) -> None:
        self._over = self._timed = True
        self.service.worker.drop(self.job)
        self._changed.set()

    def _conclude(self, newest: Result | None) -> Answer:
        """The last answer."""
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
        self.service.tell(event, *arguments)


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
