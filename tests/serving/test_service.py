"""The service with sessions whose steps the test controls: what is answered, when, and by what."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from anynest.predict import Confidence
from anynest.predict.thread_scheduling import BEHIND_NICE
from anynest.serving import worker
from anynest.serving.batches import Result
from anynest.serving.models import ServedModel
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.requests.answer import Answer
from anynest.serving.requests.refused import Refused
from anynest.serving.requests.ticket import Ticket
from anynest.serving.service import NETWORK, Service

from .fakes import PATIENCE, FakeSession, Gate, fake_model, request, serving

SOON = 0.15  # seconds: a deadline that is waited for


class Events:
    """An observer that counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.steps: list[tuple[int, int]] = []

    def received(self, model: Any) -> None:
        self.counts["received"] += 1

    def refused(self, model: Any, reason: str) -> None:
        self.counts[f"refused {reason}"] += 1

    def answered(self, model: Any, answer: Answer, rows: int) -> None:
        self.counts["answered"] += 1

    def failed(self, model: Any, status: int) -> None:
        self.counts[f"failed {status}"] += 1

    def left(self, model: Any) -> None:
        self.counts["left"] += 1

    def step(self, model: Any, stage: int, rows: int, seconds: float) -> None:
        self.steps.append((stage, rows))


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def guarded() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, found: errors.append(found))
        async with asyncio.timeout(PATIENCE):
            await main()
        assert errors == []

    asyncio.run(guarded())


def admit(service: Service, seconds: float | None = PATIENCE / 2, **options: Any) -> Ticket:
    given: dict[str, Any] = {"nbytes": 4, "arrived": time.monotonic(), "seconds": seconds}
    return service.admit(service.model("fake"), **{**given, **options})


async def ask(
    service: Service, *values: float, seconds: float = PATIENCE / 2, **given: Any
) -> Answer:
    with admit(service, seconds) as ticket:
        await ticket.begin(request(*values, **given))
        return await ticket.answer()


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, PATIENCE)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the compute thread does next; it is bounded by the test's patience."""
    while not condition():
        await asyncio.sleep(0.001)


def test_requests_are_answered_with_their_own_rows() -> None:
    session, events = FakeSession(), Events()

    async def main() -> None:
        async with serving(lambda: fake_model(session), observer=events, max_batch=8) as service:
            answers = await asyncio.gather(
                *(ask(service, *map(float, range(1, n + 1))) for n in (1, 3, 2, 8, 5))
            )
            for n, answer in zip((1, 3, 2, 8, 5), answers, strict=True):
                assert answer.output[:, 0].tolist() == [3.0 * (row + 1) for row in range(n)]
                assert (answer.stage, answer.stages, answer.stop_reason) == (3, 3, "complete")
                assert answer.deadline_met
                assert set(answer.parameters()) == {
                    *("stage", "stages", "deadline_met", "elapsed_us", "stop_reason")
                }
            assert service.in_flight == service.bytes_in_flight == 0

    run(main)
    assert session.open == set()
    assert events.counts == {"received": 5, "answered": 5}
    assert sum(rows for stage, rows in events.steps if stage == 3) == 19


def test_requests_that_wait_while_a_step_runs_are_computed_together() -> None:
    gate = Gate(1)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session, max_batch=4)) as service:
            first = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            others = [asyncio.create_task(ask(service, float(n))) for n in range(2, 7)]
            await until(lambda: service.in_flight == 6)
            gate.opened.set()
            await asyncio.gather(first, *others)

    run(main)
    firsts = [values for stage, values in session.log if stage == 1]
    assert firsts[0] == (1.0,)
    assert sorted(map(len, firsts[1:])) == [1, 4]  # none of more than max_batch


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_timer_answers_while_a_step_runs(stage: int) -> None:
    """The newest stage at the deadline, whatever is computed; afterwards nothing more is."""
    gate = Gate(stage)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            if stage == 1:
                with pytest.raises(ProtocolError, match="no stage was finished within") as found:
                    await ask(service, 1.0, seconds=SOON)
                assert found.value.status == 504
            else:
                answer = await ask(service, 1.0, seconds=SOON)
                assert (answer.stage, answer.stop_reason) == (stage - 1, "deadline")
                assert answer.output.tolist() == [[float(stage - 1), 0, 0, 0]]
            assert gate.reached.is_set()
            assert not gate.opened.is_set()  # the step still runs
            gate.opened.set()
            answer = await ask(service, 2.0)
            assert answer.stage == 3
            assert session.served(1.0) == list(range(1, stage + 1))  # one late step at most
        assert session.open == set()

    run(main)


def test_an_answer_that_cannot_be_refined_in_time_is_sent_at_once() -> None:
    """Nobody waits for a deadline until which nothing more is computed."""
    session = FakeSession()

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            times = service.model("fake").times
            assert times is not None
            times.correction[1] = 100 * PATIENCE / 1e-6  # of stage 2
            answer = await ask(service, 1.0, seconds=PATIENCE - 1)
            assert (answer.stage, answer.stop_reason) == (1, "deadline")
            assert answer.elapsed < PATIENCE / 2
            assert answer.deadline_met

    run(main)
    assert session.served(1.0) == [1]


def test_the_answer_comes_before_the_deadline_not_after_it() -> None:
    """``reply`` is subtracted: with a lag of 20 ms the answer leaves so much earlier."""
    gate = Gate(2)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            service.lag.value = service.lag.least = service.lag.most = 0.1
            with admit(service, 0.3) as ticket:
                await ticket.begin(request(1.0))
                await reached(gate)
                timer = ticket._timer
                assert timer is not None
                assert timer.when() == pytest.approx(ticket.due - 0.1 - NETWORK)
                answer = await ticket.answer()
            assert answer.elapsed >= 0.19
            assert ticket.job.due == pytest.approx(ticket.due - 0.1 - NETWORK)
            gate.opened.set()

    run(main)


def test_streams_give_each_stage_once_and_end_with_a_reason() -> None:
    gate = Gate(3)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            with admit(service) as ticket:
                await ticket.begin(request(1.0))
                found = []
                async for answer in ticket.answers():
                    found.append((answer.stage, answer.stop_reason))
                    if answer.stage == 2:
                        gate.opened.set()
            assert found == [(1, ""), (2, ""), (3, "complete")]
            gate.opened.clear()
            with admit(service, SOON) as ticket:
                await ticket.begin(request(1.0))
                found = [(one.stage, one.stop_reason) async for one in ticket.answers()]
            assert found == [(1, ""), (2, ""), (2, "deadline")]
            gate.opened.set()

    run(main)


def test_a_stream_has_every_stage_also_for_a_late_reader() -> None:
    gate = Gate(3)

    async def main() -> None:
        async with serving(lambda: fake_model(FakeSession(on_step=gate))) as service:
            with admit(service) as ticket:
                await ticket.begin(request(1.0))
                assert gate.reached.wait(PATIENCE)  # the event loop sleeps through two stages
                answers = ticket.answers()
                found = [(await anext(answers)).stage for _ in range(2)]
                gate.opened.set()
                found += [one.stage async for one in answers]
        assert found == [1, 2, 3]

    run(main)


def test_a_stream_has_every_stage_also_in_the_middle_of_a_step() -> None:
    """The compute thread tells the newest result before it appends it to the list."""
    gate = Gate(1)

    async def main() -> None:
        async with serving(lambda: fake_model(FakeSession(on_step=gate))) as service:
            with admit(service) as ticket:
                await ticket.begin(request(1.0))
                assert gate.reached.wait(PATIENCE)
                one, two, three = (Result(stage, torch.ones(1, 4), 0.0) for stage in (1, 2, 3))
                ticket.job.results.extend([one, two])
                ticket.job.newest = replace(three, stop_reason="complete")
                found = [(one.stage, one.stop_reason) async for one in ticket.answers()]
            gate.opened.set()
        assert found == [(1, ""), (2, ""), (3, "complete")]

    run(main)


def test_a_policy_stops_requests_that_give_no_confidence() -> None:
    """Of the softmax of (v s, 0, 0, 0) at stage s; each stage has a threshold of its own."""

    def stopping() -> ServedModel:
        model = fake_model(FakeSession())
        model.policy = Confidence((0.99, 0.5))
        return model

    async def main() -> None:
        async with serving(stopping) as service:
            for values, given, stage, reason in (
                ((1.0,), {}, 2, "confident"),  # 0.48, then 0.71
                ((9.0,), {}, 1, "confident"),
                ((9.0, 1.0), {}, 2, "confident"),  # the least row decides
                ((0.1,), {}, 3, "complete"),
                ((1.0,), {"confidence": 0.4}, 1, "confident"),  # takes the policy's place
                ((1.0,), {"confidence": 0.9999}, 3, "complete"),
                ((0.1,), {"stages": 2}, 2, "requested"),
            ):
                answer = await ask(service, *values, **given)
                assert (answer.stage, answer.stop_reason) == (stage, reason), (values, given)

    run(main)


@pytest.mark.parametrize("streams", [False, True])
def test_the_event_loop_is_woken_for_what_is_sent_alone(
    streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waking it interrupts the next step. The steps are told all the same."""
    events, woken = Events(), 0

    async def main() -> None:
        nonlocal woken
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(callback: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal woken
            woken += getattr(callback, "__name__", "") == "_receive"
            return wake(callback, *arguments, **options)

        async with serving(fake_model(FakeSession()), observer=events) as service:
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            if not streams:
                await ask(service, 1.0)
            else:
                with admit(service) as ticket:
                    await ticket.begin(request(1.0))
                    assert [answer.stage async for answer in ticket.answers()] == [1, 2, 3]
            await until(lambda: len(events.steps) == 3)

    run(main)
    assert events.steps == [(1, 1), (2, 1), (3, 1)]
    assert 1 < woken <= 3 if streams else woken == 1


def test_steps_that_wake_nobody_are_told_by_the_heartbeat() -> None:
    gate, events = Gate(3), Events()

    async def main() -> None:
        async with serving(fake_model(FakeSession(on_step=gate)), observer=events) as service:
            asking = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            await until(lambda: len(events.steps) == 2)
            gate.opened.set()
            await asking

    run(main)


def test_what_passes_between_two_steps_counts_as_time_of_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So admission reckons with what the compute thread has to do beside the steps."""
    model, pause = fake_model(FakeSession()), 0.01
    assert model.times is not None
    observed: list[tuple[int, float]] = []
    monkeypatch.setattr(model.times, "observe", lambda *step: observed.append((step[0], step[2])))

    async def main() -> None:
        async with serving(model) as service:
            published = service.worker._publish
            monkeypatch.setattr(
                service.worker, "_publish", lambda report: (time.sleep(pause), published(report))
            )
            await ask(service, 1.0)

    run(main)
    assert [stage for stage, _ in observed] == [1, 2, 3]
    assert all(seconds >= pause for _, seconds in observed[1:])


def test_what_an_answer_takes_after_its_timer_counts_as_lag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that is there before its timer says nothing about the lag."""
    gate, found = Gate(2), []

    async def main() -> None:
        async with serving(fake_model(FakeSession(on_step=gate))) as service:
            await ask(service, 1.0, stages=1)  # the gate is for stage 2
            if service._heartbeat is not None:
                service._heartbeat.cancel()
            monkeypatch.setattr(service.lag, "add", found.append)
            with admit(service) as ticket:
                await ticket.begin(request(1.0, stages=1))
                await ticket.answer()
                ticket.sending()
            assert found == []
            with admit(service, SOON) as ticket:
                await ticket.begin(request(1.0))
                answer = await ticket.answer()
                assert (answer.stage, answer.stop_reason) == (1, "deadline")
                time.sleep(0.02)
                ticket.sending()
            gate.opened.set()

    run(main)
    (lag,) = found
    assert lag >= 0.02


def test_stages_and_confidence_end_a_request_early() -> None:
    session = FakeSession()

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            answer = await ask(service, 1.5, stages=2)
            assert (answer.stage, answer.stop_reason) == (2, "requested")
            answer = await ask(service, 2.5, stages=3)
            assert (answer.stage, answer.stop_reason) == (3, "complete")
            # the softmax of (9, 0, 0, 0) is sure, of (0.5, 0, 0, 0) not: the least row decides
            answer = await ask(service, 9.0, 9.5, confidence=0.9)
            assert (answer.stage, answer.stop_reason) == (1, "confident")
            answer = await ask(service, 9.0, 0.5, confidence=0.6)
            assert (answer.stage, answer.stop_reason) == (3, "complete")
            for given, message in (
                ({"stages": 0}, "stages must be an integer from 1 to 3, found 0"),
                ({"stages": True}, "stages must be an integer"),
                ({"confidence": 1.5}, "confidence must be above 0 and at most 1"),
                ({"confidence": "high"}, "confidence must be above 0"),
                ({"priority": -1}, "priority must be an integer from 0"),
                ({"timeout": "5"}, "timeout must be an integer"),
            ):
                with pytest.raises(ProtocolError, match=message) as found:
                    await ask(service, 1.0, **given)
                assert found.value.status == 400
            assert service.in_flight == service.bytes_in_flight == 0

    run(main)
    assert session.served(1.5) == [1, 2]
    assert session.served(9.5) == [1]


def test_the_deadline_in_the_request_counts_from_its_headers() -> None:
    session, events = FakeSession(), Events()

    async def main() -> None:
        async with serving(
            lambda: fake_model(session), observer=events, default_deadline=20.0
        ) as service:
            now = time.monotonic()
            with admit(service, arrived=now - 1.0, seconds=None) as ticket:
                assert ticket.due == pytest.approx(now - 1.0 + service.settings.max_deadline)
                await ticket.begin(request(1.0))
                assert ticket.due == pytest.approx(now - 1.0 + 20.0)  # the default
            with admit(service, arrived=now - 1.0, seconds=15.0) as ticket:
                await ticket.begin(request(1.0, timeout=30_000_000))
                assert ticket.due == pytest.approx(now - 1.0 + 15.0)  # the smallest
            with admit(service, arrived=now - 1.0, seconds=None) as ticket:
                await ticket.begin(request(1.0, timeout=30_000_000))
                assert ticket.due == pytest.approx(now - 1.0 + 30.0)  # above the default

            async def late(seconds: float | None, timeout: int | None) -> None:
                with admit(service, arrived=now - 1.0, seconds=seconds) as ticket:
                    await ticket.begin(request(1.0, timeout=timeout))

            for seconds, timeout in ((0.5, None), (0.0, None), (-3.0, None), (None, 1000)):
                with pytest.raises(ProtocolError, match="is over") as found:
                    await late(seconds, timeout)
                assert found.value.status == 504
            assert service.in_flight == service.bytes_in_flight == 0

    run(main)
    assert events.counts["refused over"] == 4


def test_a_request_that_cannot_be_in_time_is_refused_at_once() -> None:
    gate = Gate(1)
    session, events = FakeSession(on_step=gate), Events()

    async def main() -> None:
        async with serving(lambda: fake_model(session), observer=events) as service:
            model = service.model("fake")
            model.times.correction[0] = 1e6  # type: ignore[union-attr]  # a stage takes 1 s
            first = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            with pytest.raises(Refused, match="cannot be answered in time") as found:
                admit(service, 0.5)
            assert (found.value.status, found.value.unavailable) == (503, False)
            assert 0 < found.value.retry_after < PATIENCE
            # accepted by its headers, refused when its rows and its deadline are known
            ticket = admit(service, seconds=None)
            with pytest.raises(Refused, match="8 rows cannot be answered in time"):
                await ticket.begin(request(*[1.0] * 8, timeout=500_000))
            ticket.release()
            gate.opened.set()
            assert (await first).stage == 3
            assert service.in_flight == service.bytes_in_flight == 0

    run(main)
    assert events.counts == {"received": 2, "answered": 1, "refused late": 2}


def test_bounds() -> None:
    session, events = FakeSession(), Events()

    async def main() -> None:
        async with serving(
            lambda: fake_model(session),
            observer=events,
            max_batch=8,
            max_bytes_in_flight=100,
            client_limit=2,
            max_waiting=4,
        ) as service:
            with admit(service, nbytes=60, client="a") as ticket:
                with pytest.raises(Refused, match="may have 100 bytes") as found:
                    admit(service, nbytes=41)
                assert found.value.status == 503
                with admit(service, nbytes=40, client="a") as second:
                    with pytest.raises(Refused, match="a client may have 2 requests") as found:
                        admit(service, nbytes=0, client="a")
                    assert found.value.status == 429
                    admit(service, nbytes=0, client="b").release()
                    with pytest.raises(Refused, match="may have 100 bytes"):
                        second.hold(41)
                assert service.bytes_in_flight == 60
                ticket.hold(10)  # the first chunk of what was announced
                assert service.bytes_in_flight == 60
                ticket.hold(100)
                assert service.bytes_in_flight == 100
                with pytest.raises(ProtocolError, match="may have 8 rows, found 9; split it"):
                    await ticket.begin(request(*[1.0] * 9))
                three = admit(service, nbytes=0, rows=3)  # 1 + 3 rows wait
                with pytest.raises(Refused, match="cannot be answered in time"):
                    admit(service, nbytes=0, rows=1)
                three.release()
            ticket.release()  # a second time
            assert service.in_flight == service.bytes_in_flight == 0
            assert (await ask(service, 1.0)).stage == 3

    run(main)


def test_nothing_is_computed_for_a_client_that_has_gone() -> None:
    gate = Gate(2)
    session, events = FakeSession(on_step=gate), Events()

    async def main() -> None:
        async with serving(lambda: fake_model(session), observer=events) as service:
            asked = [asyncio.create_task(ask(service, float(n))) for n in (1, 2, 3)]
            await reached(gate)
            with admit(service) as ticket:
                await ticket.begin(request(4.0))
                ticket.leave()
                ticket.leave()
            asked[0].cancel()
            await asyncio.wait(asked[:1])
            gate.opened.set()
            for task in asked[1:]:
                assert (await task).stage == 3
            with pytest.raises(asyncio.CancelledError):
                await asked[0]
            assert service.in_flight == 0
            assert (await ask(service, 5.0)).stage == 3

    run(main)
    assert session.served(4.0) == []
    assert 3 not in session.served(1.0) or session.served(1.0)[-1] == 3
    assert events.counts["left"] == 2
    assert session.open == set()


def test_a_late_body_blocks_nothing_and_ends_at_its_deadline() -> None:
    session = FakeSession()

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            with admit(service, SOON) as slow:
                assert (await ask(service, 1.0)).stage == 3
                with pytest.raises(ProtocolError, match="no stage was finished"):
                    await slow.answer()
                with pytest.raises(ProtocolError, match="is over"):
                    await slow.begin(request(2.0))
            assert session.served(2.0) == []

    run(main)


def test_time_that_is_over_while_inputs_are_read_ends_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop does not wait for a decoder, and a decoder not for the next picture."""
    session, going, read = FakeSession(), threading.Event(), ServedModel.read
    over: list[bool] = []

    def slow(model: Any, inputs: Any, most: int, is_over: Any = None) -> Any:
        if is_over is not None:
            assert going.wait(PATIENCE)
            over.append(is_over())
        return read(model, inputs, most)

    monkeypatch.setattr(ServedModel, "read", slow)
    monkeypatch.setattr(ServedModel, "is_encoded", lambda model, inputs: inputs["x"][0, 0] == 7)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            with pytest.raises(ProtocolError, match="no stage was finished within 150 ms") as found:
                await ask(service, 7.0, seconds=SOON)
            assert found.value.status == 504
            assert service.in_flight == 0
            leaving = asyncio.create_task(ask(service, 7.0))
            await until(lambda: service.in_flight == 1)
            leaving.cancel()
            await asyncio.wait([leaving])
            assert (await ask(service, 1.0)).stage == 3
            going.set()
            assert (await ask(service, 7.0)).stage == 3
            assert False in over

    run(main)
    assert over[0] is True
    assert session.served(7.0) == [1, 2, 3]  # once


# -- failures -------------------------------------------------------------------------------------
def failing(stage: int, value: float, error: BaseException | None = None) -> Any:
    def hook(at: int, values: tuple[float, ...]) -> None:
        if at == stage and value in values:
            raise error or RuntimeError("bad\nluck")

    return hook


def test_one_request_s_inputs_do_not_harm_the_others() -> None:
    gate = Gate(1)
    fails = failing(1, 13.0)
    session, events = FakeSession(), Events()

    def on_step(stage: int, values: tuple[float, ...]) -> None:
        gate(stage, values)
        fails(stage, values)

    session.on_step = on_step

    async def main() -> None:
        async with serving(lambda: fake_model(session), observer=events) as service:
            first = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            good = [asyncio.create_task(ask(service, float(n))) for n in (2, 3)]
            bad = asyncio.create_task(ask(service, 13.0))
            await until(lambda: service.in_flight == 4)
            gate.opened.set()
            with pytest.raises(ProtocolError, match="RuntimeError: bad luck") as found:
                await bad
            assert found.value.status == 500
            answers = await asyncio.gather(first, *good)
            assert [answer.stage for answer in answers] == [3, 3, 3]
            await until(lambda: service.ready)
            assert (await ask(service, 4.0)).stage == 3
        assert session.open == set()

    run(main)
    assert events.counts["failed 500"] == 1


def test_a_failure_in_a_later_stage_answers_with_the_stage_before() -> None:
    session = FakeSession(on_step=failing(2, 13.0))

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            answer = await ask(service, 13.0)
            assert (answer.stage, answer.stop_reason) == (1, "failure")
            await until(lambda: service.ready)
            assert (await ask(service, 1.0)).stage == 3
        assert session.open == set()

    run(main)


def test_it_is_not_ready_until_the_models_compute_again() -> None:
    """The probe computes a blank sample; until it succeeds, requests are refused."""
    session = FakeSession(on_step=failing(1, 13.0))

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            assert service.ready
            probes = Gate(1)

            def broken(stage: int, values: tuple[float, ...]) -> None:
                if not probes.opened.is_set():
                    probes.reached.set()
                    raise RuntimeError("still broken")

            before, session.on_step = session.on_step, broken
            del before
            with pytest.raises(ProtocolError, match="still broken"):
                await ask(service, 13.0)
            await until(lambda: not service.ready)
            with pytest.raises(Refused, match="not ready") as found:
                admit(service)
            assert found.value.unavailable
            probes.opened.set()
            await until(lambda: service.ready)
            assert (await ask(service, 1.0)).stage == 3

    run(main)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(1), MemoryError()])
def test_a_failure_outside_of_a_step_ends_all_requests_and_a_new_thread_starts(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(2)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            scheduler = service.worker._scheduler
            thread = service.worker._thread
            answered = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            waiting = asyncio.create_task(ask(service, 2.0))
            await until(lambda: service.in_flight == 2)

            def raises(now: float) -> Any:
                monkeypatch.undo()
                raise error

            monkeypatch.setattr(scheduler, "next_step", raises)
            gate.opened.set()
            answer = await answered
            assert (answer.stage, answer.stop_reason) == (2, "failure")
            with pytest.raises(ProtocolError, match=type(error).__name__) as found:
                await waiting
            assert found.value.status == 500
            await until(lambda: service.ready)
            assert service.worker._thread is not thread
            assert (await ask(service, 3.0)).stage == 3
        assert session.open == set()

    run(main)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no scheduling of their own")
def test_every_compute_thread_stays_behind_the_event_loop_by_the_same_nice_value() -> None:
    found: list[int] = []
    session = FakeSession()

    def on_step(stage: int, values: tuple[float, ...]) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        failing(1, 13.0)(stage, values)

    session.on_step = on_step

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            for _ in range(2):
                with pytest.raises(ProtocolError):
                    await ask(service, 13.0)
                await until(lambda: service.ready)
            await ask(service, 1.0)

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    run(main)
    assert set(found[-3:]) == {min(19, own + BEHIND_NICE)}  # a third thread's


def test_confidences_are_the_largest_probabilities_of_rows() -> None:
    model = fake_model(FakeSession())
    one, two = torch.randn(1, 4), 30 * torch.randn(3, 4)
    two[1, 2] = math.inf
    outputs = [one, RuntimeError("failed"), two.bfloat16()]
    first, failed, second = worker._confidences(model, outputs)
    expected = two.bfloat16().float().softmax(1).amax(1)
    assert failed is None
    assert first == pytest.approx([one.softmax(1).max().item()] * 2)
    assert math.isnan(expected[1])
    assert second is not None
    assert math.isnan(second[0])
    (alone,) = worker._confidences(model, [two[:1]])
    assert alone == pytest.approx([two[:1].softmax(1).max().item()] * 2)
    assert worker._confidences(model, [two[0]]) == [None]  # not class logits


def test_waiting_requests_survive_the_failure_of_another_step() -> None:
    gate = Gate(2)
    session = FakeSession()

    def on_step(stage: int, values: tuple[float, ...]) -> None:
        gate(stage, values)
        failing(2, 13.0)(stage, values)

    session.on_step = on_step

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            bad = asyncio.create_task(ask(service, 13.0))
            await reached(gate)
            waiting = [asyncio.create_task(ask(service, float(n))) for n in (1, 2)]
            await until(lambda: service.in_flight == 3)
            gate.opened.set()
            assert (await bad).stop_reason == "failure"
            assert [(await task).stage for task in waiting] == [3, 3]

    run(main)


# -- changes while serving ------------------------------------------------------------------------
def test_a_reload_swaps_the_model_and_loses_nothing() -> None:
    gate = Gate(2)
    sessions = [FakeSession(on_step=gate), FakeSession(stages=2)]
    made: list[FakeSession] = []

    def make() -> Any:
        made.append(sessions[len(made)])
        return fake_model(made[-1])

    async def main() -> None:
        async with serving(make) as service:
            old = service.model("fake")
            before = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            with admit(service) as half:  # accepted, its body is on its way
                (new,) = await service.reload("fake")
                assert service.model("fake") is new is not old
                assert not sessions[0].closed
                gate.opened.set()
                after = await ask(service, 2.0)
                assert (after.stage, after.stages, after.model) == (2, 2, new)
                answer = await before
                assert (answer.stage, answer.model) == (3, old)
                assert not sessions[0].closed  # one is accepted still
                await half.begin(request(3.0))
                assert (await half.answer()).model is old
            await until(lambda: sessions[0].closed)
            # a caller that still holds the old model gets the new one
            with service.admit(old, nbytes=4, arrived=time.monotonic(), seconds=9.0) as ticket:
                assert ticket.model is new
            with pytest.raises(ProtocolError, match="no model 'other'"):
                await service.reload("other")
            sessions.append(sessions[1])
            made.append(sessions[1])
            with pytest.raises(IndexError):
                await service.reload()
            assert service.model("fake") is new  # a model that cannot be loaded changes nothing
            assert (await ask(service, 4.0)).stage == 2

    run(main)
    assert [session.closed for session in sessions[:2]] == [True, True]


def test_draining_answers_what_is_accepted() -> None:
    gate = Gate(2)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            asked = [asyncio.create_task(ask(service, float(n))) for n in (1, 2, 3)]
            await reached(gate)
            stopping = asyncio.create_task(service.stop(PATIENCE / 2))
            await until(lambda: service.draining)
            assert not service.ready
            with pytest.raises(Refused, match="the server stops") as found:
                admit(service)
            assert found.value.unavailable
            gate.opened.set()
            assert [(await task).stage for task in asked] == [3, 3, 3]
            await stopping
            assert not service.worker.join(0) or session.closed

    run(main)
    assert session.closed
    assert session.open == set()


def test_draining_ends_in_time() -> None:
    session = FakeSession()

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            ticket = admit(service)  # whose body never comes
            waiting = asyncio.create_task(ticket.answer())
            await service.stop(0.05)
            with pytest.raises(Refused, match="the server stops"):
                await waiting
            ticket.release()

    run(main)


def test_activations_are_bounded_and_the_least_valuable_requests_answered_first() -> None:
    """Beyond ``max_held`` rows between stages, depth goes."""
    gate = Gate(1)
    session = FakeSession(on_step=gate)

    async def main() -> None:
        async with serving(lambda: fake_model(session), max_held=3) as service:
            first = asyncio.create_task(ask(service, 1.0))
            await reached(gate)
            others = [asyncio.create_task(ask(service, float(n))) for n in range(2, 9)]
            await until(lambda: service.in_flight == 8)
            gate.opened.set()
            answers = await asyncio.gather(first, *others)
        reasons = Counter(answer.stop_reason for answer in answers)
        assert reasons == {"complete": 3, "load": 5}
        assert all(a.stage == 1 for a in answers if a.stop_reason == "load")

    run(main)
    assert session.open == set()


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_requests() -> None:
    session = FakeSession()

    async def burst(service: Service) -> None:
        for _ in range(20):
            tasks = [asyncio.create_task(ask(service, 1.0, 2.0)) for _ in range(25)]
            tasks[3].cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                assert task.cancelled() or task.exception() is None
        session.log.clear()

    async def main() -> None:
        async with serving(lambda: fake_model(session)) as service:
            counts = []
            for _ in range(6):
                await burst(service)
                assert service.in_flight == service.bytes_in_flight == 0
                await until(lambda: not session.open)
                assert service._clients == {}
                scheduler = service.worker._scheduler
                scheduler._forget_gone()
                assert scheduler.waiting == []
                assert all(not pool for lane in scheduler.lanes.values() for pool in lane.answered)
                gc.collect()
                counts.append(len(gc.get_objects()))
            assert max(counts[2:]) - min(counts[2:]) < 500  # 500 requests lie between two

    run(main)


def test_torch_s_generator_is_left_alone() -> None:
    before = torch.get_rng_state()

    async def main() -> None:
        async with serving(lambda: fake_model(FakeSession())) as service:
            await ask(service, 1.0)

    run(main)
    assert torch.equal(before, torch.get_rng_state())
