"""Which requests are accepted, and which step runs next: pure code, without a clock or threads.

Stage 1 of every accepted request is mandatory, later stages are optional increments (Yao et al.,
2020, arXiv 2011.01112). A request is accepted only if, by the estimates, stage 1 of all accepted
requests can still be finished in time; a later stage runs only while that stays true. So overload
takes depth first, and requests only beyond what stage 1 alone can carry. There is no batching
window: batches form while a step runs.

Each model has a *lane*: a batch holds requests of one lane. The plan of stage 1 goes by deadline:
each batch takes the lane of the most urgent request. It may pass over more urgent requests of other
lanes to fill its batch; where that would make one late, batches end at the next request of another
lane instead.

Two plans decide on admission. In the first, each batch of stage 1 is as long as its most urgent
request allows: every request that can be in time is accepted. Under sustained overload that ends in
small batches, which waste up to a third of stage 1's capacity (in simulations with a fixed cost of
a third per call). So where stage 1 has taken more than ``OVERLOAD`` of the recent time, batches of
full length must be in time.

An answered request is held for a later stage only while there is time for that: what is left of the
time until it is due when the waiting requests and, at the recent rate, those to come have had
theirs. The others end at once with the answer they have ("load"), and cost nothing more.

Times are seconds on the caller's clock. A call takes O(n log n) for n requests.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from .estimates import Gains, StepTimes, Utilisation

OVERLOAD = 0.85  # of the time within WINDOW
WINDOW = 0.2  # seconds


@dataclass(eq=False)
class Request:
    """A request under the scheduler's care.

    Attributes:
        due: by when an answer must be ready to be sent.
        lane: of its model.
        rows: its rows, which are computed together.
        weight: how much its gain counts against other requests'.
        last_stage: no later stage is computed for it.
        stage: its newest answer's stage; 0 while it waits for its first.
        confidence: that answer's confidence, where it is known.
        gone: answered, satisfied, timed out or disconnected: nothing more is computed for it.
        ready: whether its inputs are there; until then it counts, but is not computed.
    """

    due: float
    lane: Hashable = 0
    rows: int = 1
    weight: float = 1.0
    last_stage: int = 1 << 30
    stage: int = 0
    confidence: float | None = None
    gone: bool = False
    ready: bool = True
    gain: float = 0.0  # of its next stage


@dataclass(eq=False)
class Lane:
    """One model: its estimates, and its answered requests.

    Attributes:
        times: estimated seconds of each step.
        gains: expected gain of each step.
        answered: requests to go on with, by the stage of their newest answer, from 1; those of most
            gain per row first.
    """

    times: StepTimes
    gains: Gains
    answered: list[list[Request]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answered = [[] for _ in range(self.times.num_stages)]


@dataclass(frozen=True, eq=False)
class Step:
    """One stage for some requests of one lane, all of which stand at the stage before."""

    stage: int
    requests: tuple[Request, ...]
    rows: int
    lane: Hashable = 0


class Scheduler:
    """Admission and the choice of steps.

    Args:
        times: of lane 0, where there is only one; see ``add_lane``.
        gains: likewise.
        max_waiting: most rows that may wait for their first answer.
        max_held: most rows with an answer that may wait for a later stage.
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
        times: StepTimes | None = None,
        gains: Gains | None = None,
        *,
        max_waiting: int = 1024,
        max_held: int = 1 << 30,
        first_stage_first: bool = False,
    ) -> None:
        self.lanes: dict[Hashable, Lane] = {}
        if times is not None:
            self.add_lane(0, times, gains)
        self.max_waiting, self.max_held = max_waiting, max_held
        self.first_stage_first = first_stage_first
        self.waiting: list[Request] = []  # by due time
        self.running: Step | None = None
        self.free_at = 0.0  # when the running step is expected to end
        self.mandatory = Utilisation(WINDOW)  # the share of time that stage 1 takes

    def add_lane(self, lane: Hashable, times: StepTimes, gains: Gains | None = None) -> None:
        """Accept requests of another model."""
        self.lanes[lane] = Lane(times, gains or Gains.uniform(times.num_stages))

    def remove_lane(self, lane: Hashable) -> None:
        """Forget a model, none of whose requests is left."""
        del self.lanes[lane]

    def is_empty(self, lane: Hashable) -> bool:
        """Whether none of a model's requests is left; gone ones do not count."""
        running = self.running is not None and self.running.lane == lane
        waiting = any(one.lane == lane and not one.gone for one in self.waiting)
        answered = any(not one.gone for pool in self.lanes[lane].answered for one in pool)
        return not (running or waiting or answered)

    def clear(self) -> list[Request]:
        """Drop all requests, those of the running step as well."""
        found = list(self.running.requests) if self.running is not None else []
        found += self.waiting
        found += [one for lane in self.lanes.values() for pool in lane.answered for one in pool]
        self.running, self.waiting = None, []
        for lane in self.lanes.values():
            for pool in lane.answered:
                pool.clear()
        living = [request for request in found if not request.gone]
        for request in living:
            self.drop(request)
        return living

    # -- requests ---------------------------------------------------------------------------------
    def admit(self, request: Request, now: float) -> bool:
        """Accept a request, or refuse it because it or another could not be answered in time.

        A server with nothing to do that refuses corrects its estimates towards the profile: without
        steps there are no measurements that could.
        """
        self._forget_gone()
        times = self.lanes[request.lane].times
        rows = sum(waiting.rows for waiting in self.waiting) + request.rows
        if request.rows > times.max_batch or rows > self.max_waiting:
            return False
        start = max(now, self.free_at)
        queue = self._possible(start)
        idle = not queue and self.running is None
        insort(queue, request, key=_due)
        if not self._in_time(queue, start, full=self.mandatory(now) > OVERLOAD):
            if idle:
                times.relax(1)
            return False
        insort(self.waiting, request, key=_due)
        return True

    def readmit(self, request: Request, rows: int, due: float, now: float) -> bool:
        """Accept a waiting request again with other rows and due time, or refuse and drop it."""
        self.waiting = [waiting for waiting in self.waiting if waiting is not request]
        request.rows, request.due = rows, due
        if self.admit(request, now):
            return True
        self.drop(request)
        return False

    def drop(self, request: Request) -> None:
        """Compute nothing more for a request: it is answered, or its client has gone."""
        request.gone = True

    def expire(self, now: float) -> list[Request]:
        """Drop the requests whose next stage cannot be in time: their newest answer is their last."""
        late = [
            request
            for lane in self.lanes.values()
            for stage, pool in enumerate(lane.answered[:-1], 2)
            for request in pool
            if not request.gone and now + lane.times(stage, request.rows) > request.due
        ]
        for request in late:
            self.drop(request)
        return late

    def shed(self, now: float) -> list[Request]:
        """Drop held requests of least gain per second: their newest answer is their last.

        Dropped is what ``max_held`` does not admit, and what the time left cannot carry: the later
        stages before its own, by gain, must take no more than what stage 1 leaves of the time until
        its own must begin, if it goes on for ``WINDOW`` as it did.
        """
        self._forget_gone()
        held: list[tuple[float, float, Request]] = []  # gain per second, seconds
        for lane in self.lanes.values():
            for stage, pool in enumerate(lane.answered[:-1], 2):
                row = lane.times(stage, lane.times.max_batch) / lane.times.max_batch
                for request in pool:
                    seconds = row * request.rows  # at the best batch size: few are dropped wrongly
                    held.append((request.gain / seconds, seconds, request))
        if not held:
            return []
        taken = min(1.0, self.mandatory(now))
        start = now + self.wait(now)
        held.sort(key=lambda one: -one[0])
        rows, needed = 0, 0.0
        dropped: list[Request] = []
        for _, seconds, request in held:
            full = rows + request.rows > self.max_held
            left = request.due - start - seconds
            if full or needed > left - taken * min(left, WINDOW):
                self.drop(request)
                dropped.append(request)
            else:
                rows, needed = rows + request.rows, needed + seconds
        return dropped

    @property
    def held(self) -> list[Request]:
        """The requests with an answer that wait for a later stage."""
        return [one for lane in self.lanes.values() for pool in lane.answered for one in pool]

    def wait(self, now: float) -> float:
        """Estimated seconds until stage 1 of all waiting requests is finished."""
        start = max(now, self.free_at)
        ends = (end for _, end in self._chunks(self._possible(start), start))
        return max(ends, default=start) - now

    # -- steps ------------------------------------------------------------------------------------
    def next_step(self, now: float) -> Step | None:
        """The next step, or None if there is nothing to compute; call it when none is running.

        A waiting request that can no longer be answered in time is passed over: its timer ends it.
        """
        self._forget_gone()
        queue = self._possible(now)
        first, best = self._first_step(queue, now), self._best_increment(now)
        if best is not None and not self._in_time(queue, now + self._seconds(best)):
            best = None
        chosen = first or best
        if first is not None and best is not None:
            valuable = self._density(first) >= self._density(best)
            chosen = first if self.first_stage_first or valuable else best
        if chosen is None:
            return None
        self.running = chosen
        seconds = self._seconds(chosen)
        self.free_at = now + seconds
        if chosen.stage == 1:
            self.mandatory.add(seconds, now)
        taken = set(map(id, chosen.requests))
        lane = self.lanes[chosen.lane]
        source = self.waiting if chosen.stage == 1 else lane.answered[chosen.stage - 2]
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
        lane = self.lanes[step.lane]
        if seconds is not None:
            lane.times.observe(step.stage, step.rows, seconds)
        told = confidences or (None,) * len(step.requests)
        for request, confidence in zip(step.requests, told, strict=True):
            request.stage, request.confidence = step.stage, confidence
            if not request.gone and step.stage < min(lane.times.num_stages, request.last_stage):
                self.hold(request)

    def hold(self, request: Request) -> None:
        """Keep an answered request for its next stage."""
        request.gain = self._gain(request.stage + 1, request)
        insort(self.lanes[request.lane].answered[request.stage - 1], request, key=_least_gain)

    def fail(self, step: Step, now: float) -> None:
        """Give up a step whose computation failed, and its requests with it."""
        self.running, self.free_at = None, now
        for request in step.requests:
            self.drop(request)

    # -- parts ------------------------------------------------------------------------------------
    def _forget_gone(self) -> None:
        pools = [pool for lane in self.lanes.values() for pool in lane.answered]
        for pool in (self.waiting, *pools):
            if any(request.gone for request in pool):
                pool[:] = [request for request in pool if not request.gone]

    def _possible(self, start: float) -> list[Request]:
        """The waiting requests that a step from ``start`` on can still answer in time."""
        fastest = {lane: self.lanes[lane].times(1, 1) for lane in self.lanes}
        return [request for request in self.waiting if start + fastest[request.lane] <= request.due]

    def _chunks(
        self, queue: Sequence[Request], start: float, full: bool = False, skip: bool = True
    ) -> Iterator[tuple[list[Request], float]]:
        """The batches in which stage 1 of a queue would run from ``start`` on, and their ends.

        Each is the longest that its most urgent request allows; where ``full``, the longest that
        the engine takes. It holds the next requests of one lane; unless ``skip``, only those before
        the next request of another lane.
        """
        lanes: dict[Hashable, list[Request]] = {}
        for request in queue:
            lanes.setdefault(request.lane, []).append(request)
        heads = dict.fromkeys(lanes, 0)
        while heads:
            lane = min(heads, key=lambda one: lanes[one][heads[one]].due)
            line, times = lanes[lane], self.lanes[lane].times
            position = end = heads.pop(lane)
            rows, soonest = 0, line[position].due
            others = math.inf
            if not skip:
                others = min((lanes[one][at].due for one, at in heads.items()), default=math.inf)
            while end < len(line) and rows + line[end].rows <= times.max_batch:
                more = rows + line[end].rows
                late = not full and start + times(1, more) > soonest
                if end > position and (late or line[end].due > others):
                    break
                rows, end = more, end + 1
            start += times(1, rows)
            if end < len(line):
                heads[lane] = end
            yield line[position:end], start

    def _slack(
        self, queue: Sequence[Request], start: float, full: bool = False, skip: bool = True
    ) -> float:
        """By how much stage 1 of the whole queue would be in time, at its tightest."""
        chunks = self._chunks(queue, start, full, skip)
        return min((batch[0].due - end for batch, end in chunks), default=math.inf)

    def _in_time(self, queue: Sequence[Request], start: float, full: bool = False) -> bool:
        """Whether stage 1 of the whole queue is in time by one of the plans.

        Where batches must be ``full``, they pass over other lanes: the others would be small.
        """
        if self._slack(queue, start, full) >= 0:
            return True
        return len(self.lanes) > 1 and not full and self._slack(queue, start, skip=False) >= 0

    def _first_step(self, queue: Sequence[Request], now: float) -> Step | None:
        """Stage 1 for the most urgent requests of a queue that are ready, by the plan in time."""
        ready = [request for request in queue if request.ready]
        skip = len(self.lanes) == 1 or self._slack(queue, now) >= 0
        skip = skip or self._slack(queue, now, skip=False) < 0
        batch = next(self._chunks(ready, now, skip=skip), None)
        if batch is None:
            return None
        return self._step(1, batch[0])

    def _best_increment(self, now: float) -> Step | None:
        """The later stage of most gain per second that is in time for all its requests."""
        best: tuple[int, list[Request]] | None = None
        highest = 0.0  # gain per second
        for lane in self.lanes.values():
            times = lane.times
            for stage, pool in enumerate(lane.answered[:-1], 2):
                chosen: list[Request] = []
                rows, gain, soonest = 0, 0.0, math.inf
                for request in pool:
                    more = rows + request.rows
                    if more > times.max_batch:
                        continue
                    seconds, due = times(stage, more), min(soonest, request.due)
                    if now + seconds > due:
                        continue
                    chosen.append(request)
                    rows, gain, soonest = more, gain + request.gain, due
                    if gain / seconds > highest:
                        best, highest = (stage, chosen[:]), gain / seconds
        return None if best is None else self._step(*best)

    def _step(self, stage: int, requests: Sequence[Request]) -> Step:
        rows = sum(request.rows for request in requests)
        return Step(stage, tuple(requests), rows, requests[0].lane)

    def _seconds(self, step: Step) -> float:
        return self.lanes[step.lane].times(step.stage, step.rows)

    def _gain(self, stage: int, request: Request) -> float:
        gains = self.lanes[request.lane].gains
        return request.weight * request.rows * gains(stage, request.confidence)

    def _density(self, step: Step) -> float:
        """Gain per second."""
        return sum(self._gain(step.stage, request) for request in step.requests) / self._seconds(
            step
        )


def _due(request: Request) -> float:
    return request.due


def _least_gain(request: Request) -> float:
    return -request.gain / request.rows
