"""The scheduler in virtual time: with exact estimates nobody who is accepted is answered late."""

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anynest.serving import scheduler as scheduler_module
from anynest.serving.estimates import ADAPTATION, Gains, StepTimes
from anynest.serving.scheduler import Request, Scheduler, Step

BATCHES = (1, 2, 4, 8)
REPLY = 0.001
TIMES = [[0.0014 * (0.35 + 0.65 * b) for b in BATCHES], [0.002, 0.003, 0.006, 0.01]]
TIMES.append([0.005 * b for b in BATCHES])
FULL = 8 / sum(row[-1] for row in TIMES)  # requests a second, to the last stage
FIRST = 8 / TIMES[0][-1]  # to the first


@pytest.fixture(scope="module")
def simulation() -> Iterator[Any]:
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import _simulation

        yield _simulation
    finally:
        sys.path.remove(folder)
        del sys.modules["_simulation"]


def scheduler(**options: Any) -> Scheduler:
    return Scheduler(StepTimes(TIMES, BATCHES), **options)


def step_times() -> st.SearchStrategy[StepTimes]:
    """One to four stages; a larger batch takes longer, a row of it not."""

    def build(rows: list[tuple[float, float]]) -> StepTimes:
        table = [[fixed + each * b for b in BATCHES] for fixed, each in rows]
        return StepTimes(table, BATCHES)

    part = st.tuples(st.floats(0.0, 0.01), st.floats(0.0001, 0.01))
    return st.lists(part, min_size=1, max_size=4).map(build)


gains = st.one_of(
    st.none(),  # the default
    # increments worth far more than first answers: only the slack holds them back
    st.just(Gains(1e-6, [[1.0] * 5] * 3)),
)


@given(
    models=st.lists(step_times(), min_size=1, max_size=3),
    gain=gains,
    requests=st.lists(
        st.tuples(
            st.floats(0, 0.2),  # arrival
            st.floats(0.001, 0.08),  # deadline
            st.integers(1, 10),  # rows
            st.one_of(st.none(), st.floats(0, 0.05)),  # the client leaves after
            st.integers(0, 2),  # model
        ),
        max_size=40,
    ),
    first=st.booleans(),
    overload=st.sampled_from([0.0, scheduler_module.OVERLOAD]),
    front=st.sampled_from(["round-robin", "least-loaded"]),
)
@settings(max_examples=300, deadline=None)
def test_accepted_requests_are_answered_in_time(
    simulation: Any,
    models: list[StepTimes],
    gain: Gains | None,
    requests: Any,
    first: bool,
    overload: float,
    front: str,
) -> None:
    running: dict[Any, float] = {}

    def make() -> Scheduler:
        one = Scheduler(first_stage_first=first)
        for lane, times in enumerate(models):
            one.add_lane(lane, times, gain)
        return one

    def watch(server: Any, step: Step, now: float) -> None:
        times = models[step.lane]  # type: ignore[call-overload]
        assert running.get(server, 0.0) <= now  # steps do not overlap
        running[server] = now + times.profiled(step.stage, step.rows)
        assert step.requests
        assert step.rows == sum(request.rows for request in step.requests) <= times.max_batch
        for request in step.requests:
            assert request.lane == step.lane
            assert not request.gone  # nothing is computed for who has gone
            assert request.stage == step.stage - 1  # nothing twice, nothing left out
            assert now + times.profiled(step.stage, step.rows) <= request.due + 1e-12
        assert len(set(map(id, step.requests))) == len(step.requests)

    arrivals = [
        simulation.Arrival(*request[:4], lane=request[4] % len(models)) for request in requests
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "OVERLOAD", overload)
        outcomes, _ = simulation.simulate(
            arrivals,
            make,
            replicas=2,
            front=front,
            reply=REPLY,
            watch=watch,
        )
    assert [outcome.arrival for outcome in outcomes] == arrivals
    for outcome in outcomes:
        if outcome.accepted and not outcome.left:
            assert outcome.in_time
        if outcome.arrival.rows > models[outcome.arrival.lane].max_batch:
            assert not outcome.accepted


@given(times=step_times(), deadline=st.floats(0.001, 0.1), rows=st.integers(1, 8))
def test_an_idle_server_refuses_only_what_it_cannot_do(
    times: StepTimes, deadline: float, rows: int
) -> None:
    one = Scheduler(times)
    possible = times(1, rows) <= deadline
    assert one.admit(Request(due=deadline, rows=rows), now=0.0) == possible
    assert (one.next_step(0.0) is not None) == possible


def test_depth_falls_with_load_and_requests_only_beyond_stage_one(simulation: Any) -> None:
    depths, refusals = [], []
    for load in (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        arrivals = simulation.poisson(load * FULL, 4000, 0.025, seed=1)
        outcomes, _ = simulation.simulate(arrivals, scheduler, reply=REPLY)
        answered = [outcome for outcome in outcomes if outcome.accepted]
        assert all(outcome.in_time for outcome in answered)
        depths.append(sum(outcome.stage for outcome in answered) / len(answered))
        refusals.append(1 - len(answered) / len(outcomes))
        assert load * FULL > 0.8 * FIRST or refusals[-1] < 0.001
    assert depths[0] > 2.95
    assert all(later <= earlier + 0.01 for earlier, later in pairwise(depths))
    assert all(a <= b + 0.001 for a, b in pairwise(refusals))


@pytest.mark.parametrize(
    ("replicas", "front", "share"),
    [(1, "round-robin", 0.9), (2, "round-robin", 0.9), (2, "least-loaded", 0.88)],
)
def test_beyond_its_capacity_it_answers_what_stage_one_carries(
    simulation: Any, replicas: int, front: str, share: float
) -> None:
    """The least loaded front sees rows in the replicas' care, not the time that they take."""
    arrivals = simulation.poisson(replicas * 3 * FIRST, 4000 * replicas, 0.025, seed=2)
    outcomes, servers = simulation.simulate(
        arrivals, scheduler, replicas=replicas, front=front, reply=REPLY
    )
    answered = sum(outcome.in_time for outcome in outcomes)
    assert answered / arrivals[-1].at > share * replicas * FIRST
    assert all(server.scheduler.waiting == [] for server in servers)


def test_bursts_and_misjudged_times(simulation: Any) -> None:
    """Gamma arrivals; steps that take up to twice as long: few are late, all come to an end."""
    arrivals = simulation.gamma(FULL, 4000, 0.025, seed=3)
    outcomes, servers = simulation.simulate(
        arrivals, scheduler, reply=REPLY, noise=0.3, adapt=True, seed=3
    )
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    assert sum(outcome.in_time for outcome in accepted) > 0.99 * len(accepted)
    for server in servers:
        assert server.care == {}
        assert server.scheduler.waiting == []
        answered = server.scheduler.lanes[0].answered
        assert all(request.gone for pool in answered for request in pool)


def test_a_lost_cause_does_not_block_the_others() -> None:
    """A request that a slow step has made impossible costs neither a step nor an admission."""
    one = scheduler()
    assert one.admit(Request(due=0.010), now=0.0)
    step = one.next_step(0.0)
    assert step is not None
    assert one.admit(lost := Request(due=0.003), now=0.0005)
    one.finish(step, now=0.0025)  # late
    assert one.admit(Request(due=0.012), now=0.0025)
    step = one.next_step(0.0025)
    assert step is not None
    assert lost not in step.requests
    assert one.admit(Request(due=0.02), now=0.0026)


def test_an_increment_never_endangers_a_first_answer() -> None:
    """However much it gains; where there is time for both, it may go first."""
    for due, stage in ((0.004, 1), (0.012, 2)):
        one = scheduler(gains=Gains(1e-6, [[1.0] * 5] * 2))
        for _ in range(2):
            one.hold(Request(due=1.0, stage=1))  # 3 ms together
        assert one.admit(Request(due=due), now=0.0)
        step = one.next_step(0.0)
        assert step is not None
        assert step.stage == stage
    reference = scheduler(gains=Gains(1e-6, [[1.0] * 5] * 2), first_stage_first=True)
    reference.hold(Request(due=1.0, stage=1))
    assert reference.admit(Request(due=1.0), now=0.0)
    step = reference.next_step(0.0)
    assert step is not None
    assert step.stage == 1


def test_the_most_valuable_increment_goes_first() -> None:
    one = scheduler(gains=Gains(0.5, [[0.4, 0.3, 0.2, 0.1, 0.0]] * 2))
    requests = [Request(due=1.0, stage=1, confidence=c) for c in (0.9, 0.1, 0.5)]
    requests.append(Request(due=1.0, stage=1, confidence=0.9, weight=100.0))
    for request in requests:
        one.hold(request)
    step = one.next_step(0.0)
    assert step is not None
    assert step.stage == 2
    assert requests[1] in step.requests  # of lowest confidence
    assert requests[0] not in step.requests  # certain already: no gain
    assert one._gain(2, requests[1]) > one._gain(2, requests[2]) > one._gain(2, requests[0]) == 0


def test_a_request_stops_at_its_last_stage_and_a_failed_step_ends_its_requests() -> None:
    one = scheduler()
    short, other = Request(due=1.0, last_stage=1), Request(due=1.0)
    assert one.admit(short, 0.0)
    assert one.admit(other, 0.0)
    step = one.next_step(0.0)
    assert step is not None
    one.finish(step, 0.002, [0.3, 0.6])
    assert (short.stage, short.confidence, other.confidence) == (1, 0.3, 0.6)
    second = one.next_step(0.002)
    assert second is not None
    assert second.requests == (other,)
    one.fail(second, 0.003)
    assert other.gone
    assert one.next_step(0.003) is None


def test_bounds_on_waiting_rows() -> None:
    one = scheduler(max_waiting=3)
    assert one.admit(Request(due=1.0, rows=2), 0.0)
    assert not one.admit(Request(due=1.0, rows=2), 0.0)
    assert one.admit(Request(due=1.0, rows=1), 0.0)
    one.drop(one.waiting[0])
    assert one.admit(Request(due=1.0, rows=2), 0.0)


def test_step_times_interpolate_and_follow_measurements() -> None:
    times = StepTimes([[1.0, 3.0, 3.5]], batches=[1, 3, 4])
    assert [times(1, rows) for rows in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 3.5]
    times.observe(1, 2, 4.0)
    assert times(1, 1) == pytest.approx(1 + ADAPTATION)
    for _ in range(400):
        times.observe(1, 3, 1.5)
    assert times(1, 2) == pytest.approx(1.0, rel=1e-3)
    for number in range(1000):  # half of them 0.5, half 1.5 times the profile
        times.observe(1, 1, 0.5 + number % 2)
    assert 1.2 < times.correction[0] < 1.4  # above their mean: few steps take longer than planned
    assert times.profiled(1, 2) == 2.0
    for table, batches, message in (
        ([[1.0]], [2], "batches must rise from 1"),
        ([[1.0, 2.0]], [1, 1], "batches must rise from 1"),
        ([[1.0, 0.0]], [1, 2], "positive and finite"),
        ([[1.0]], [1, 2], "must have 2 times"),
        ([], [1], "must have 1 times"),
    ):
        with pytest.raises(ValueError, match=message):
            StepTimes(table, batches)


# -- several models -------------------------------------------------------------------------------
def two_models(**options: Any) -> Scheduler:
    one = Scheduler(**options)
    for lane in (0, 1):
        one.add_lane(lane, StepTimes(TIMES, BATCHES))
    return one


def test_models_share_the_time_and_batches_are_filled(simulation: Any) -> None:
    """Requests of two models in turn: neither starves, and their batches are as large as alone."""
    rate, count = 3 * FIRST, 8000
    arrivals = [simulation.Arrival(n / rate, 0.025, lane=n % 2) for n in range(count)]
    outcomes, _ = simulation.simulate(arrivals, two_models, reply=REPLY)
    answered = [sum(o.in_time for o in outcomes if o.arrival.lane == lane) for lane in (0, 1)]
    assert sum(answered) / arrivals[-1].at > 0.9 * FIRST
    assert min(answered) > 0.45 * sum(answered)
    assert all(outcome.in_time for outcome in outcomes if outcome.accepted)


def test_a_flood_of_one_model_leaves_the_other_its_share(simulation: Any) -> None:
    flood = simulation.poisson(4 * FIRST, 8000, 0.025, seed=4)
    end = flood[-1].at
    few = [simulation.Arrival(n * 0.01, 0.025, lane=1) for n in range(int(end / 0.01))]
    outcomes, _ = simulation.simulate([*flood, *few], two_models, reply=REPLY)
    assert all(outcome.in_time for outcome in outcomes if outcome.accepted)
    mine = [outcome for outcome in outcomes if outcome.arrival.lane == 1]
    theirs = [outcome for outcome in outcomes if outcome.arrival.lane == 0]
    share, other = (sum(o.in_time for o in some) / len(some) for some in (mine, theirs))
    assert share > other  # a rare request is refused no more often than one of the flood


def test_a_batch_passes_over_other_models_unless_one_would_be_late() -> None:
    for due, rows in ((0.008, 3), (0.0045, 2)):
        one = two_models()
        requests = [
            Request(due=0.0035, lane=0),
            Request(due=0.0035, lane=0),
            Request(due=due, lane=1),
            Request(due=0.02, lane=0),
        ]
        for request in requests:
            assert one.admit(request, 0.0)
        step = one.next_step(0.0)
        assert step is not None
        assert (step.lane, step.rows) == (0, rows)
        one.finish(step, now=(end := one.free_at))
        following = one.next_step(end)
        assert following is not None
        assert following.requests[0] is requests[2]


def test_models_come_and_go() -> None:
    one = two_models()
    request = Request(due=1.0, lane=1)
    assert one.is_empty(0)
    assert one.admit(request, 0.0)
    assert not one.is_empty(1)  # waiting
    step = one.next_step(0.0)
    assert step is not None
    assert not one.is_empty(1)  # running
    one.finish(step, 0.002)
    assert not one.is_empty(1)  # answered, to be refined
    one.drop(request)
    assert one.is_empty(1)
    one.remove_lane(1)
    assert one.admit(Request(due=1.0), 0.002)
    assert one.next_step(0.002) is not None


# -- what a server needs beside -------------------------------------------------------------------
def test_a_request_is_not_computed_before_its_inputs_are_there() -> None:
    """It counts in every plan, and holds back what would make it late."""
    one = scheduler(gains=Gains(1e-6, [[1.0] * 5] * 2))
    late = Request(due=0.004, ready=False)
    assert one.admit(late, 0.0)
    assert one.next_step(0.0) is None
    assert one.admit(other := Request(due=0.03), 0.0)
    step = one.next_step(0.0)
    assert step is not None
    assert step.requests == (other,)
    one.finish(step, 0.0014)
    assert one.next_step(0.0014) is None  # stage 2 of the other takes 2 ms: not both by 4 ms
    late.ready = True
    step = one.next_step(0.0014)
    assert step is not None
    assert step.requests == (late,)


def test_a_second_admission_with_the_true_rows_and_deadline() -> None:
    one = scheduler()
    request, other = Request(due=1.0, ready=False), Request(due=0.009)
    assert one.admit(request, 0.0)
    assert one.admit(other, 0.0)
    assert one.readmit(request, rows=4, due=0.009, now=0.0)
    assert (request.rows, request.due, one.waiting.count(request)) == (4, 0.009, 1)
    assert not one.readmit(request, rows=8, due=0.009, now=0.0)  # the other would be late
    assert request.gone
    assert request not in one.waiting
    step = one.next_step(0.0)
    assert step is not None
    assert step.requests == (other,)


def test_rows_between_stages_are_bounded() -> None:
    """The requests that would gain least end with the answer they have."""
    one = scheduler(max_held=3)
    requests = [Request(due=1.0, rows=1 + (n == 0)) for n in range(4)]
    for request, weight in zip(requests, (1.0, 0.5, 3.0, 2.0), strict=True):
        request.weight = weight
        assert one.admit(request, 0.0)
    step = one.next_step(0.0)
    assert step is not None
    one.finish(step, 0.01)
    assert one.shed(0.01) == [requests[0]]  # by gain per row; 5 rows, of which 3 may stay
    assert [request.gone for request in requests] == [True, False, False, False]
    assert one.shed(0.01) == []


def test_requests_that_cannot_be_refined_in_time_end() -> None:
    one = scheduler()
    tight, wide, deep = Request(due=0.003), Request(due=1.0), Request(due=0.0065)
    for request in (tight, wide, deep):
        assert one.admit(request, 0.0)
    step = one.next_step(0.0)
    assert step is not None
    assert step.rows == 2  # of the tight one and the next
    one.finish(step, one.free_at)
    assert one.expire(0.0023) == [tight]  # stage 2 takes 2 ms
    assert one.expire(0.0023) == []
    deep.stage = 2
    one.hold(deep)  # stage 3 takes 5 ms
    assert one.expire(0.0014) == []
    assert one.expire(0.0016) == [deep]
    assert not wide.gone


def test_an_idle_server_whose_estimates_went_up_serves_again() -> None:
    """After a standstill of the machine it refuses; without steps, refusals correct it."""
    one = scheduler()
    times = one.lanes[0].times
    for _ in range(50):
        times.observe(1, 1, 3600.0)
    assert times(1, 1) < 10 * TIMES[0][0]  # one measurement's weight is bounded
    admitted = [one.admit(Request(due=0.004), 0.0) for _ in range(40)]
    assert not admitted[0]
    assert any(admitted)
    # a busy server does not: its next steps will tell
    busy = scheduler()
    assert busy.admit(Request(due=0.008), 0.0)
    assert busy.next_step(0.0) is not None
    busy.lanes[0].times.correction[0] = 5.0
    assert not busy.admit(Request(due=0.004), 0.0)
    assert busy.lanes[0].times.correction[0] == 5.0


def test_all_requests_are_dropped_at_once() -> None:
    one = scheduler()
    requests = [Request(due=1.0) for _ in range(3)]
    one.hold(answered := Request(due=1.0, stage=1))
    for request in requests:
        assert one.admit(request, 0.0)
    one.drop(requests[0])
    assert one.next_step(0.0) is not None
    assert one.admit(waiting := Request(due=1.0), 0.0)
    found = one.clear()
    assert set(map(id, found)) == set(map(id, [*requests[1:], waiting, answered]))
    assert all(request.gone for request in found)
    assert one.running is None
    assert one.next_step(0.0) is None
    assert one.is_empty(0)


def test_how_long_the_queue_is() -> None:
    one = scheduler()
    assert one.wait(5.0) == 0
    for _ in range(12):
        assert one.admit(Request(due=1.0), 0.0)
    assert one.wait(0.0) == pytest.approx(TIMES[0][3] + TIMES[0][2])  # 8 rows and 4
    assert one.next_step(0.0) is not None
    assert one.wait(0.001) == pytest.approx(TIMES[0][3] + TIMES[0][2] - 0.001)


def test_what_the_time_left_cannot_carry_ends_with_the_answer_it_has() -> None:
    """Stage 2 of 8 rows takes 10 ms, 1.25 ms a row: in 4.6 ms it is done for three."""
    one = scheduler()
    requests = [Request(due=0.0165, weight=1 + n / 10) for n in range(8)]
    for request in requests:
        assert one.admit(request, 0.0)
    step = one.next_step(0.0)
    assert step is not None
    assert step.rows == 8
    one.finish(step, 0.0105)
    one.mandatory = lambda now: 0.0  # type: ignore[assignment, misc]
    waiting = Request(due=1.0)
    assert one.admit(waiting, 0.0105)  # its stage 1 comes first: 1.4 ms
    assert {request.weight for request in one.shed(0.0105)} == {1 + n / 10 for n in range(5)}
    assert one.shed(0.0105) == []
    one.mandatory = lambda now: 0.5  # type: ignore[assignment, misc]
    assert one.shed(0.0105) == [requests[5]]  # half of the time before it is one row's


def test_a_burst_does_not_end_requests_whose_deadline_is_far() -> None:
    one = scheduler()
    requests = [*(Request(due=10.0) for _ in range(7)), Request(due=0.05, weight=0.5)]
    for request in requests:
        assert one.admit(request, 0.0)
    step = one.next_step(0.0)
    assert step is not None
    one.finish(step, 0.01)
    one.mandatory = lambda now: 3.0  # type: ignore[assignment, misc]
    assert one.shed(0.01) == requests[7:]  # nothing is left before 0.05 s, much before 10 s


def test_nothing_is_held_where_stage_one_takes_all_the_time(simulation: Any) -> None:
    held: list[int] = []

    def watch(server: Any, step: Step, now: float) -> None:
        held.append(sum(one.rows for one in server.scheduler.held if not one.gone))

    arrivals = simulation.poisson(3 * FIRST, 4000, 0.025, seed=2)
    simulation.simulate(arrivals, scheduler, reply=REPLY, watch=watch)
    later = held[len(held) // 10 :]  # when the load is known
    assert sum(later) / len(later) < 1
