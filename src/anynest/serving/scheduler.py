"""Which requests are accepted, and which step runs next: pure code, without a clock or threads.

Stage 1 of every accepted request is mandatory, later stages are optional increments (Yao et al.,
2020, arXiv 2011.01112). A request is accepted only if, by the estimates, stage 1 of all accepted
requests can still be finished in time; a later stage runs only while that stays true. So overload
takes depth first, and requests only beyond what stage 1 alone can carry. There is no batching
window: batches form while a step runs.

Two plans decide on admission. In the first, each batch of stage 1 is as long as its most urgent
request allows: every request that can be in time is accepted. Under sustained overload that ends in
small batches, which waste up to a third of stage 1's capacity (in simulations with a fixed cost of
a third per call). So where stage 1 has taken more than ``OVERLOAD`` of the recent time, batches of
full length must be in time.

Times are seconds on the caller's clock. A call takes O(n log n) for n requests.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .estimates import Gains, StepTimes, Utilisation

OVERLOAD = 0.85  # of the time within WINDOW
WINDOW = 0.2  # seconds


@dataclass(eq=False)
class Request:
    """A request under the scheduler's care.

    Attributes:
        due: by when an answer must be ready to be sent.
        rows: its rows, which are computed together.
        weight: how much its gain counts against other requests'.
        last_stage: no later stage is computed for it.
        stage: its newest answer's stage; 0 while it waits for its first.
        confidence: that answer's confidence, where it is known.
        gone: answered, satisfied, timed out or disconnected: nothing more is computed for it.
    """

    due: float
    rows: int = 1
    weight: float = 1.0
    last_stage: int = 1 << 30
    stage: int = 0
    confidence: float | None = None
    gone: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One stage for some requests, all of which stand at the stage before."""

    stage: int
    requests: tuple[Request, ...]
    rows: int


class Scheduler:
    """Admission and the choice of steps.

    Args:
        times: estimated seconds of each step.
        gains: expected gain of each step.
        max_waiting: most rows that may wait for their first answer.
        first_stage_first: run stage 1 whenever a request waits (the reference policy, which never
            deepens one answer while another request has none).

    Example:
        >>> scheduler = Scheduler(StepTimes([[0.002], [0.004]], batches=[1]))
        >>> early, late = Request(due=0.010), Request(due=0.0021)
        >>> scheduler.admit(early, now=0.0), scheduler.admit(late, now=0.0)
        (True, True)
        >>> scheduler.admit(Request(due=0.003), now=0.0)  # cannot be in time as well
        False
        >>> step = scheduler.next_step(now=0.0)
        >>> step.stage, step.requests == (late,)
        (1, True)
        >>> scheduler.finish(step, now=0.002)
        >>> late.stage, early.stage
        (1, 0)
    """

    def __init__(
        self,
        times: StepTimes,
        gains: Gains | None = None,
        *,
        max_waiting: int = 1024,
        first_stage_first: bool = False,
    ) -> None:
        self.times = times
        self.gains = gains or Gains.uniform(times.num_stages)
        self.max_waiting, self.first_stage_first = max_waiting, first_stage_first
        self.waiting: list[Request] = []  # by due time
        self.answered: list[list[Request]] = [[] for _ in range(times.num_stages)]  # by stage - 1
        self.running: Step | None = None
        self.free_at = 0.0  # when the running step is expected to end
        self.mandatory = Utilisation(WINDOW)  # the share of time that stage 1 takes

    # -- requests ---------------------------------------------------------------------------------
    def admit(self, request: Request, now: float) -> bool:
        """Accept a request, or refuse it because it or another could not be answered in time."""
        self._forget_gone()
        rows = sum(waiting.rows for waiting in self.waiting) + request.rows
        if request.rows > self.times.max_batch or rows > self.max_waiting:
            return False
        start = max(now, self.free_at)
        queue = self._possible(start)
        insort(queue, request, key=_due)
        overloaded = self.mandatory(now) > OVERLOAD
        if self._slack(queue, start, full=overloaded) < 0:
            return False
        insort(self.waiting, request, key=_due)
        return True

    def drop(self, request: Request) -> None:
        """Compute nothing more for a request: it is answered, or its client has gone."""
        request.gone = True

    # -- steps ------------------------------------------------------------------------------------
    def next_step(self, now: float) -> Step | None:
        """The next step, or None if there is nothing to compute; call it when none is running.

        A waiting request that can no longer be answered in time is passed over: its timer ends it.
        """
        self._forget_gone()
        queue = self._possible(now)
        first, best = self._first_step(queue, now), self._best_increment(now)
        chosen = best
        if first is not None:
            seconds = 0.0 if best is None else self.times(best.stage, best.rows)
            must = best is None or self._slack(queue, now + seconds) < 0
            if must or self.first_stage_first or self._density(first) >= self._density(best):
                chosen = first
        if chosen is None:
            return None
        self.running = chosen
        seconds = self.times(chosen.stage, chosen.rows)
        self.free_at = now + seconds
        if chosen.stage == 1:
            self.mandatory.add(seconds, now)
        taken = set(map(id, chosen.requests))
        source = self.waiting if chosen.stage == 1 else self.answered[chosen.stage - 2]
        source[:] = [request for request in source if id(request) not in taken]
        return chosen

    def finish(
        self,
        step: Step,
        now: float,
        confidences: Sequence[float | None] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Record a finished step.

        Args:
            step: what ``next_step`` returned.
            now: the time.
            confidences: of the new answers, one for each request.
            seconds: how long the step took, to correct the estimates; None leaves them.
        """
        self.running, self.free_at = None, now
        if seconds is not None:
            self.times.observe(step.stage, step.rows, seconds)
        told = confidences or (None,) * len(step.requests)
        for request, confidence in zip(step.requests, told, strict=True):
            request.stage, request.confidence = step.stage, confidence
            if not request.gone and step.stage < min(self.times.num_stages, request.last_stage):
                self.answered[step.stage - 1].append(request)

    def fail(self, step: Step, now: float) -> None:
        """Give up a step whose computation failed, and its requests with it."""
        self.running, self.free_at = None, now
        for request in step.requests:
            self.drop(request)

    # -- parts ------------------------------------------------------------------------------------
    def _forget_gone(self) -> None:
        for pool in (self.waiting, *self.answered):
            if any(request.gone for request in pool):
                pool[:] = [request for request in pool if not request.gone]

    def _possible(self, start: float) -> list[Request]:
        """The waiting requests that a step from ``start`` on can still answer in time."""
        fastest = self.times(1, 1)
        return [request for request in self.waiting if start + fastest <= request.due]

    def _chunks(
        self, queue: Sequence[Request], start: float, full: bool = False
    ) -> Iterator[tuple[int, int, float]]:
        """The batches in which stage 1 of a queue would run from ``start`` on: (from, to, end).

        Each is the longest prefix that its most urgent request allows; where ``full``, the longest
        that the engine takes.
        """
        position = 0
        while position < len(queue):
            end, rows, soonest = position, 0, queue[position].due
            while end < len(queue) and rows + queue[end].rows <= self.times.max_batch:
                more = rows + queue[end].rows
                if end > position and not full and start + self.times(1, more) > soonest:
                    break
                rows, end = more, end + 1
            start += self.times(1, rows)
            yield position, end, start
            position = end

    def _slack(self, queue: Sequence[Request], start: float, full: bool = False) -> float:
        """By how much stage 1 of the whole queue would be in time, at its tightest."""
        ends = self._chunks(queue, start, full)
        return min((queue[first].due - end for first, _, end in ends), default=float("inf"))

    def _first_step(self, queue: Sequence[Request], now: float) -> Step | None:
        """Stage 1 for the most urgent requests of a queue."""
        longest = next(self._chunks(queue, now), None)
        if longest is None:
            return None
        chosen = queue[: longest[1]]
        return Step(1, tuple(chosen), sum(request.rows for request in chosen))

    def _best_increment(self, now: float) -> Step | None:
        """The later stage of most gain per second that is in time for all its requests."""
        best: Step | None = None
        highest = 0.0  # gain per second
        for stage, pool in enumerate(self.answered[:-1], 2):
            ranked = sorted(pool, key=lambda one: -self._gain(stage, one) / one.rows)
            chosen: list[Request] = []
            rows, gain, soonest = 0, 0.0, float("inf")
            for request in ranked:
                more = rows + request.rows
                if more > self.times.max_batch:
                    continue
                if now + self.times(stage, more) > min(soonest, request.due):
                    continue
                chosen.append(request)
                rows, gain = more, gain + self._gain(stage, request)
                soonest = min(soonest, request.due)
                density = gain / self.times(stage, rows)
                if density > highest:
                    best, highest = Step(stage, tuple(chosen), rows), density
        return best

    def _gain(self, stage: int, request: Request) -> float:
        return request.weight * request.rows * self.gains(stage, request.confidence)

    def _density(self, step: Step | None) -> float:
        """Gain per second."""
        if step is None:
            return 0.0
        gain = sum(self._gain(step.stage, request) for request in step.requests)
        return gain / self.times(step.stage, step.rows)


def _due(request: Request) -> float:
    return request.due
