"""Streams and asyncio: results as they come, a responsive event loop, and cancellation."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.predict.early_stopping.policies import Confidence, Deadline
from anynest.predict.prediction import DeadlineError, NetworkError
from anynest.predict.predictor import AnytimePredictor

from .conftest import PATIENCE, settle

Image = Callable[[float], Tensor]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


async def reached(gate: Any) -> None:
    while not gate.reached.is_set():
        await asyncio.sleep(0.001)


# -- streams ---------------------------------------------------------------------------------------
def test_every_stage_in_turn(make_session: Any, make_image: Image) -> None:
    with AnytimePredictor(make_session()) as predictor:
        stream = predictor.stream(make_image(2.0))
        time.sleep(0.05)  # a slow reader misses nothing
        predictions = list(stream)
        assert [p.stage for p in predictions] == [1, 2, 3]
        assert [p.logits[0].item() for p in predictions] == [2, 4, 6]
        assert [p.stop_reason for p in predictions] == [None, None, "last stage"]
        elapsed = [p.elapsed for p in predictions]
        assert 0 < elapsed[0] <= elapsed[1] <= elapsed[2]
        assert all(p.deadline is None and p.deadline_met for p in predictions)
        assert list(stream) == []


def test_each_stage_comes_before_the_next_is_done(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(2)
    with AnytimePredictor(make_session(on_step=gate)) as predictor:
        stream = predictor.stream(make_image(1.0))
        assert next(stream).stage == 1
        gate.opened.set()
        assert [p.stage for p in stream] == [2, 3]


def test_a_stream_ends_at_its_deadline_or_policy(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(2, 2)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor:
        start = time.monotonic()
        assert [p.stage for p in predictor.stream(make_image(1.0), 0.2)] == [1]
        assert time.monotonic() - start >= 0.2
        assert [p.stage for p in predictor.stream(make_image(1.0), 0.0)] == []
        gate.opened.set()
        settle(lambda: not session.open)
        sure = predictor.stream(make_image(2.0), policy=Confidence(0.9))
        assert [(p.stage, p.stop_reason) for p in sure] == [(1, None), (2, "policy")]
        late = predictor.stream(make_image(1.0), policy=Deadline(30))
        assert [p.deadline for p in late] == [30, 30, 30]


def test_deadlines_beyond_what_can_be_slept(make_session: Any, make_image: Image) -> None:
    async def main() -> None:
        assert [p.stage async for p in predictor.astream(make_image(1.0), 1e10)] == [1, 2, 3]
        assert (await predictor.apredict(make_image(1.0), 1e10)).stage == 3

    with AnytimePredictor(make_session()) as predictor:
        assert [p.stage for p in predictor.stream(make_image(1.0), 1e10)] == [1, 2, 3]
        assert predictor.predict(make_image(1.0), 1e10).stage == 3
        run(main())


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_leaving_a_stream_cancels_the_rest(
    make_session: Any, make_image: Image, gates: Any, how: str
) -> None:
    gate = gates(2)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor:
        stream = predictor.stream(make_image(1.0))
        next(stream)
        assert gate.reached.wait(PATIENCE)
        if how == "close":
            stream.close()
            assert list(stream) == []
        elif how == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        gate.opened.set()
        settle(lambda: not session.open)
        assert (2, 2) not in [entry[1:] for entry in session.log]
        assert predictor.predict(make_image(1.0), None).stage == 3


# -- asyncio ---------------------------------------------------------------------------------------
def test_the_loop_goes_on_while_a_kernel_runs(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(2)

    async def main() -> None:
        ticks = 0
        task = asyncio.ensure_future(predictor.apredict(make_image(1.0), 30.0))
        await reached(gate)
        for _ in range(50):
            await asyncio.sleep(0.001)
            ticks += not task.done()
        assert ticks == 50
        gate.opened.set()
        prediction = await task
        assert (prediction.stage, prediction.stop_reason) == (3, "last stage")

    with AnytimePredictor(make_session(on_step=gate)) as predictor:
        run(main())


def test_the_newest_stage_at_the_deadline(make_session: Any, make_image: Image, gates: Any) -> None:
    gate = gates(3)

    async def main() -> None:
        prediction = await predictor.apredict(make_image(1.0), 0.2)
        assert (prediction.stage, prediction.stop_reason) == (2, "deadline")
        assert prediction.elapsed >= 0.2
        assert prediction.deadline_met
        gate.opened.set()
        forever = await predictor.apredict(make_image(1.0), None)
        assert (forever.stage, forever.deadline) == (3, None)

    with AnytimePredictor(make_session(on_step=gate)) as predictor:
        run(main())


def test_nothing_by_the_deadline(make_session: Any, make_image: Image, gates: Any) -> None:
    gate = gates(1)

    async def main() -> None:
        with pytest.raises(DeadlineError):
            await predictor.apredict(make_image(1.0), 0.02)
        guess = await predictor.apredict(make_image(1.0), 0.02, on_timeout="guess")
        assert guess.guessed
        waiting = asyncio.ensure_future(
            predictor.apredict(make_image(1.0), 0.02, on_timeout="wait")
        )
        await asyncio.sleep(0.05)
        assert not waiting.done()
        gate.opened.set()
        late = await waiting
        assert (late.stage, late.deadline_met, late.stop_reason) == (1, False, "deadline")

    with AnytimePredictor(make_session(on_step=gate)) as predictor:
        run(main())


@pytest.mark.parametrize("kind", ["predict", "stream"])
def test_cancelling_the_task_cancels_the_work(
    make_session: Any, make_image: Image, gates: Any, kind: str
) -> None:
    gate = gates(2)
    session = make_session(on_step=gate)

    async def read() -> None:
        async for _ in predictor.astream(make_image(1.0)):
            pass

    async def main() -> None:
        work = predictor.apredict(make_image(1.0), None) if kind == "predict" else read()
        task = asyncio.ensure_future(work)
        await reached(gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        while session.open:
            await asyncio.sleep(0.001)
        assert (2, 2) not in [entry[1:] for entry in session.log]
        assert (await predictor.apredict(make_image(1.0), None)).stage == 3

    with AnytimePredictor(session) as predictor:
        run(main())


def test_asynchronous_streams(make_session: Any, make_image: Image, gates: Any) -> None:
    gate = gates(3)
    session = make_session(on_step=gate)

    async def main() -> None:
        found = [p async for p in predictor.astream(make_image(2.0), 0.2)]
        assert [(p.stage, p.stop_reason) for p in found] == [(1, None), (2, None)]
        assert [p async for p in predictor.astream(make_image(2.0), 0.0)] == []
        gate.opened.set()
        found = [p async for p in predictor.astream(make_image(2.0))]
        assert [(p.stage, p.logits[0].item()) for p in found] == [(1, 2), (2, 4), (3, 6)]
        left = predictor.astream(make_image(2.0))
        assert (await anext(left)).stage == 1
        await left.aclose()
        assert [p async for p in left] == []
        while session.open:
            await asyncio.sleep(0.001)

    with AnytimePredictor(session) as predictor:
        run(main())


def test_a_loop_that_is_busy_past_the_deadline_loses_no_stage(
    make_session: Any, make_image: Image
) -> None:
    x = torch.stack([make_image(1.0)] * 3)

    async def slow_reader() -> list[int]:
        got = []
        async for prediction in predictor.astream(x, 0.2):
            got.append(prediction.stage)
            time.sleep(0.3)
        return got

    async def busy_neighbour() -> list[int]:
        stream = predictor.astream(x, 0.2)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # computing starts
        time.sleep(0.3)
        return [(await first).stage, *[p.stage async for p in stream]]

    with AnytimePredictor(make_session()) as predictor:
        stream, late = predictor.stream(x, 0.2), []
        for prediction in stream:
            late.append(prediction.stage)
            time.sleep(0.3)
        assert late == [1, 2, 3]
        assert run(slow_reader()) == [1, 2, 3]
        assert run(busy_neighbour()) == [1, 2, 3]


def test_a_loop_that_is_busy_past_the_deadline_hears_of_the_last_stage(
    make_session: Any, make_image: Image
) -> None:
    async def main() -> None:
        call = asyncio.ensure_future(predictor.apredict(make_image(1.0), 0.2))
        await asyncio.sleep(0)  # computing starts
        time.sleep(0.3)
        found = await call
        assert (found.stage, found.stop_reason, found.deadline_met) == (3, "last stage", True)
        assert found.overshoot > 0

    with AnytimePredictor(make_session()) as predictor:
        run(main())


def test_many_at_once(make_session: Any, make_image: Image) -> None:
    async def main() -> None:
        calls = [predictor.apredict(make_image(float(n)), 30.0) for n in range(60)]
        for number, prediction in enumerate(await asyncio.gather(*calls)):
            assert prediction.logits.tolist() == [3.0 * number, 0, 0, 0]

    session = make_session()
    with AnytimePredictor(session) as predictor:
        run(main())
        settle(lambda: not session.open)


def test_errors(make_session: Any, make_image: Image) -> None:
    def on_step(stage: int, node: int) -> None:
        if stage == 2:
            raise OSError("a kernel")

    async def main() -> None:
        with pytest.raises(NetworkError, match="failed in stage 2"):
            await predictor.apredict(make_image(1.0), 30.0)
        stream = predictor.astream(make_image(1.0))
        assert (await anext(stream)).stage == 1
        with pytest.raises(NetworkError, match="failed in stage 2"):
            await anext(stream)
        with pytest.raises(ValueError, match="finite"):
            await predictor.apredict(make_image(float("nan")), 30.0)
        with pytest.raises(ValueError, match="finite"):
            await anext(predictor.astream(make_image(float("nan"))))

    with AnytimePredictor(make_session(on_step=on_step)) as predictor:
        run(main())


def test_a_loop_that_ends_first(make_session: Any, make_image: Image, gates: Any) -> None:
    """The thread survives an event loop that is closed before the result comes."""
    gate = gates(2)
    session = make_session(on_step=gate)
    kept = []

    async def main() -> None:
        stream = predictor.astream(make_image(1.0))
        kept.append(stream)
        await anext(stream)

    with AnytimePredictor(session) as predictor:
        run(main())
        gate.opened.set()
        settle(lambda: not session.open)
        kept.clear()
        gc.collect()
        assert predictor.predict(make_image(1.0), None).stage == 3


def test_files_are_read_beside_the_loop(
    make_session: Any, monkeypatch: pytest.MonkeyPatch, make_image: Image
) -> None:
    import threading

    readers = []

    async def main() -> None:
        await predictor.apredict([make_image(1.0)], None)
        await predictor.apredict(make_image(1.0), None)

    with AnytimePredictor(make_session()) as predictor:
        read = predictor._inputs
        monkeypatch.setattr(
            predictor, "_inputs", lambda x: (readers.append(threading.current_thread()), read(x))[1]
        )
        run(main())
    assert readers[0] is not threading.main_thread()
    assert readers[1] is threading.main_thread()
