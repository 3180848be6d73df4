"""A server in virtual time: the real scheduler, requests that arrive, and steps that take time.

The replicas stand behind a front that sends each request to one of them: in turn (round robin) or
to the one with the fewest rows in its care (least loaded).
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from anynest.serving.scheduler import Request, Scheduler, Step

ARRIVAL, STEP_END, TIMER, LEAVE = 2, 0, 1, 3  # the order of events at one moment


@dataclass(frozen=True)
class Arrival:
    """A request: when it arrives, how long it may take, and when its client gives up (None: no)."""

    at: float
    deadline: float
    rows: int = 1
    leaves: float | None = None


@dataclass(eq=False)
class Outcome:
    """What became of a request.

    Attributes:
        arrival: the request.
        accepted: whether it was admitted.
        stage: of its answer; 0 for none.
        answered: when the answer was sent.
        left: whether its client gave up before.
    """

    arrival: Arrival
    accepted: bool = False
    stage: int = 0
    answered: float = float("nan")
    left: bool = False

    @property
    def in_time(self) -> bool:
        return self.stage > 0 and self.answered <= self.arrival.at + self.arrival.deadline + 1e-9


@dataclass(eq=False)
class Replica:
    """One server: a scheduler and the step that runs."""

    scheduler: Scheduler
    care: dict[Request, Outcome] = field(default_factory=dict)
    steps: list[tuple[float, Step, float]] = field(default_factory=list)  # start, step, seconds
    busy: float = 0.0

    @property
    def load(self) -> int:
        return sum(request.rows for request in self.care)


def simulate(
    arrivals: Iterable[Arrival],
    make_scheduler: Callable[[], Scheduler],
    *,
    replicas: int = 1,
    front: str = "round-robin",
    reply: float = 0.001,
    noise: float = 0.0,
    adapt: bool = False,
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
        noise: standard deviation of the logarithm of real over estimated step times.
        adapt: whether the schedulers correct their estimates by the real times.
        seed: of the noise.
        watch: called with each step that starts.
    """
    noisy = random.Random(seed)
    servers = [Replica(make_scheduler()) for _ in range(replicas)]
    turns = itertools.cycle(servers)
    number = itertools.count()
    outcomes = [Outcome(one) for one in arrivals]
    events: list[tuple[float, int, int, object]] = [
        (outcome.arrival.at, ARRIVAL, next(number), outcome) for outcome in outcomes
    ]
    heapq.heapify(events)

    def start(server: Replica, now: float) -> None:
        step = server.scheduler.next_step(now)
        if step is None:
            return
        if watch is not None:
            watch(server, step, now)
        times = server.scheduler.lanes[step.lane].times
        seconds = times.profiled(step.stage, step.rows)
        if noise:
            seconds *= noisy.lognormvariate(0.0, noise)
        server.steps.append((now, step, seconds))
        server.busy += seconds
        heapq.heappush(events, (now + seconds, STEP_END, next(number), (server, step, seconds)))

    def end(server: Replica, request: Request, now: float) -> None:
        outcome = server.care.pop(request, None)
        if outcome is not None:
            outcome.stage, outcome.answered = request.stage, now
            server.scheduler.drop(request)

    while events:
        now, kind, _, thing = heapq.heappop(events)
        if kind == ARRIVAL:
            outcome: Outcome = thing  # type: ignore[assignment]
            arrival = outcome.arrival
            server = min(servers, key=lambda s: s.load) if front == "least-loaded" else next(turns)
            request = Request(due=arrival.at + arrival.deadline - reply, rows=arrival.rows)
            outcome.accepted = server.scheduler.admit(request, now)
            if not outcome.accepted:
                continue
            server.care[request] = outcome
            heapq.heappush(events, (request.due, TIMER, next(number), (server, request)))
            if arrival.leaves is not None:
                leave = (arrival.at + arrival.leaves, LEAVE, next(number), (server, request))
                heapq.heappush(events, leave)
            if server.scheduler.running is None:
                start(server, now)
        elif kind == STEP_END:
            server, step, seconds = thing  # type: ignore[misc]
            server.scheduler.finish(step, now, seconds=seconds if adapt else None)
            for request in step.requests:
                if request.stage == server.scheduler.lanes[step.lane].times.num_stages:
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
