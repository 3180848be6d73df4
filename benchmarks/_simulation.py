"""A server in virtual time: the real scheduler, requests that arrive, and steps that take time.

The replicas stand behind a front that sends each request to one of them: in turn (round robin) or
to the one with the fewest rows in its care (least loaded).

A server's event loop and its compute thread share one core. What the loop does for a request goes
before the running step, and makes it longer (``Overheads``).
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from anynest.serving.estimates import StepTimes
from anynest.serving.scheduler import Request, Scheduler, Step

STEP_END, TIMER, ARRIVAL, ADMISSION, LEAVE = range(5)  # the order of events at one moment


@dataclass(frozen=True)
class Arrival:
    """A request: when it arrives, how long it may take, when its client gives up, its model."""

    at: float
    deadline: float
    rows: int = 1
    leaves: float | None = None  # seconds after it arrives; None: never
    lane: int = 0


@dataclass(eq=False)
class Outcome:
    """What became of a request.

    Attributes:
        arrival: the request.
        number: of the request, from 0.
        accepted: whether it was admitted.
        stage: of its answer; 0 for none.
        answered: when the answer was sent.
        left: whether its client gave up before.
    """

    arrival: Arrival
    number: int = 0
    accepted: bool = False
    stage: int = 0
    answered: float = float("nan")
    left: bool = False

    @property
    def in_time(self) -> bool:
        return self.stage > 0 and self.answered <= self.arrival.at + self.arrival.deadline + 1e-9


@dataclass(frozen=True)
class Overheads:
    """Seconds beside the steps.

    Attributes:
        transit: between client and server, one way.
        receive: of the server's core for each request, until it is admitted or refused.
        answer: of the server's core for each answer.
        step: likewise for each step, before its results are there.
    """

    transit: float = 0.0
    receive: float = 0.0
    answer: float = 0.0
    step: float = 0.0


@dataclass(eq=False)
class Replica:
    """One server: a scheduler and the step that runs.

    Attributes:
        scheduler: decides.
        number: of the server.
        care: the requests that it must answer.
        steps: start, step, and seconds without overheads.
        busy: seconds of all steps.
        loop_free: when the event loop has done all that it has to do.
        step_end: when the running step ends.
    """

    scheduler: Scheduler
    number: int = 0
    care: dict[Request, Outcome] = field(default_factory=dict)
    steps: list[tuple[float, Step, float]] = field(default_factory=list)  # start, step, seconds
    busy: float = 0.0
    loop_free: float = 0.0
    step_end: float = 0.0

    def work(self, now: float, seconds: float) -> float:
        """The event loop works for some seconds; returns when that is done."""
        self.loop_free = max(self.loop_free, now) + seconds
        self.step_end += seconds
        return self.loop_free


def simulate(
    arrivals: Iterable[Arrival],
    make_scheduler: Callable[[], Scheduler],
    *,
    replicas: int = 1,
    front: str = "round-robin",
    reply: float = 0.001,
    noise: float = 0.0,
    adapt: bool = False,
    real: StepTimes | None = None,
    overheads: Overheads | None = None,
    confidences: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
    watch: Callable[[Replica, Step, float], None] | None = None,
) -> tuple[list[Outcome], list[Replica]]:
    """Run all arrivals to their end.

    Args:
        arrivals: in any order.
        make_scheduler: one for each replica.
        replicas: how many.
        front: "round-robin" or "least-loaded".
        reply: seconds before the deadline at which the newest answer is sent.
        noise: standard deviation of the logarithm of the steps' times over the real ones.
        adapt: whether the schedulers correct their estimates by the real times.
        real: the steps' times; None: the schedulers' estimates.
        overheads: what requests cost beside the steps; None: nothing.
        confidences: ``[S][N]`` of each stage's answers to N inputs, which the requests have in turn;
            None: unknown.
        seed: of the noise.
        watch: called with each step that starts.
    """
    noisy = random.Random(seed)
    cost = overheads or Overheads()
    servers = [Replica(make_scheduler(), turn) for turn in range(replicas)]
    loads = np.zeros(replicas, np.int64)  # rows in the care of each
    turns = itertools.cycle(range(replicas))
    number = itertools.count()
    outcomes = [Outcome(one, index) for index, one in enumerate(arrivals)]
    events: list[tuple[float, int, int, object]] = [
        (outcome.arrival.at + cost.transit, ARRIVAL, next(number), outcome) for outcome in outcomes
    ]
    heapq.heapify(events)

    def start(server: Replica, now: float) -> None:
        step = server.scheduler.next_step(now)
        if step is None:
            return
        if watch is not None:
            watch(server, step, now)
        times = real or server.scheduler.lanes[step.lane].times
        seconds = times.profiled(step.stage, step.rows)
        if noise:
            seconds *= noisy.lognormvariate(0.0, noise)
        server.steps.append((now, step, seconds))
        server.busy += seconds
        server.step_end = max(now, server.loop_free) + seconds + cost.step
        heapq.heappush(events, (server.step_end, STEP_END, next(number), (server, step, now)))

    def end(server: Replica, request: Request, now: float) -> None:
        outcome = server.care.pop(request, None)
        if outcome is not None:
            loads[server.number] -= request.rows
            outcome.stage = request.stage
            outcome.answered = server.work(now, cost.answer) + cost.transit
            server.scheduler.drop(request)

    while events:
        now, kind, _, thing = heapq.heappop(events)
        if kind == ARRIVAL:
            turn = int(loads.argmin()) if front == "least-loaded" else next(turns)
            server = servers[turn]
            loads[turn] += thing.arrival.rows  # type: ignore[attr-defined]
            done = server.work(now, cost.receive)
            heapq.heappush(events, (done, ADMISSION, next(number), (server, thing)))
        elif kind == ADMISSION:
            server, outcome = thing  # type: ignore[misc]
            arrival = outcome.arrival
            due = arrival.at + cost.transit + arrival.deadline - reply
            request = Request(due=due, rows=arrival.rows, lane=arrival.lane)
            outcome.accepted = server.scheduler.admit(request, now)
            if not outcome.accepted:
                loads[server.number] -= arrival.rows
                continue
            server.care[request] = outcome
            heapq.heappush(events, (request.due, TIMER, next(number), (server, request)))
            if arrival.leaves is not None:
                leave = (arrival.at + arrival.leaves, LEAVE, next(number), (server, request))
                heapq.heappush(events, leave)
            if server.scheduler.running is None:
                start(server, now)
        elif kind == STEP_END:
            server, step, began = thing  # type: ignore[misc]
            if server.step_end > now:  # the event loop has delayed it
                heapq.heappush(events, (server.step_end, STEP_END, next(number), thing))
                continue
            scheduler, told = server.scheduler, None
            if confidences is not None:
                column = confidences[step.stage - 1]
                cared = [server.care.get(request) for request in step.requests]
                told = [one and column[one.number % len(column)] for one in cared]
            scheduler.finish(step, now, told, seconds=now - began if adapt else None)
            last = scheduler.lanes[step.lane].times.num_stages
            ended = [request for request in step.requests if request.stage == last]
            for request in [*ended, *scheduler.expire(now), *scheduler.shed(now)]:
                end(server, request, now)
            start(server, now)
        else:
            server, request = thing  # type: ignore[misc]
            if kind == LEAVE and request in server.care:
                server.care[request].left = True
            end(server, request, now)
    return outcomes, servers


def poisson(rate: float, count: int, deadline: float, seed: int = 0) -> list[Arrival]:
    """Arrivals of a Poisson process."""
    source, now, made = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.expovariate(rate)
        made.append(Arrival(now, deadline))
    return made


def gamma(rate: float, count: int, deadline: float, seed: int = 0, cv2: float = 8) -> list[Arrival]:
    """Arrivals whose gaps are gamma distributed with this squared coefficient of variation."""
    source, now, made = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.gammavariate(1 / cv2, cv2 / rate)
        made.append(Arrival(now, deadline))
    return made
