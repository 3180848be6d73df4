"""A session behind sockets is a session like any other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

from anynest.engines.session import stages
from anynest.predict.channel import CANCEL, Message
from anynest.predict.isolated import IsolatedEvaluation, IsolatedSession

from .conftest import PATIENCE, FakeSession, Gate, connect, settle


@pytest.fixture
def both() -> Iterator[tuple[IsolatedSession, FakeSession]]:
    inner = FakeSession(stages=3, steps=2)
    session = connect(inner)
    yield session, inner
    session.close()


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def patiently(evaluation: IsolatedEvaluation) -> Iterator[torch.Tensor]:
    """The logits of every stage; fails, instead of waiting on, where one does not come."""
    while evaluation.stage < evaluation.num_stages:
        assert evaluation.ready(time.monotonic() + PATIENCE), "no stage came"
        if (logits := evaluation.step()) is not None:
            yield logits


def test_all_stages(both: Any) -> None:
    session, _ = both
    assert (session.num_stages, session.num_classes, session.in_channels) == (3, 4, 1)
    kept = []
    for x in (images(2.0), images(1.0, 2.0, 3.0), images(4.0)):
        evaluation = session.begin(x)
        found = list(stages(evaluation))
        assert [stage for stage, _ in found] == [1, 2, 3]
        kept += [(x, stage, logits) for stage, logits in found]
        with pytest.raises(RuntimeError, match="every stage is finished"):
            evaluation.step()
        evaluation.close()
        evaluation.close()
        with pytest.raises(RuntimeError, match=r"every stage is finished|closed"):
            evaluation.step()
    for x, stage, logits in kept:  # the caller's own, whatever came after
        assert torch.equal(logits[:, 0], x[:, 0, 0, 0] * stage)


def test_stages_are_finished_when_they_say(both: Any) -> None:
    session, _ = both
    before = time.monotonic()
    evaluation = session.begin(images(1.0, 1.0))
    times = []
    for _ in stages(evaluation):
        times.append(evaluation.at)
        time.sleep(0.01)
    evaluation.close()
    assert before < times[0] < times[1] - 0.009 < times[2] - 0.018


def test_a_batch_waits_at_each_stage_and_one_image_does_not(both: Any) -> None:
    session, inner = both
    batch = session.begin(images(1.0, 2.0))
    batch.step()
    time.sleep(0.02)
    assert len(inner.log) == 2
    batch.keep(torch.tensor([1]))
    assert torch.equal(batch.step(), torch.tensor([[4.0, 0, 0, 0]]))
    batch.close()
    one = session.begin(images(1.0))
    settle(lambda: len(inner.log) == 4 + 6)
    assert [stage for stage, _ in stages(one)] == [1, 2, 3]
    one.close()
    on = session.begin(images(1.0, 2.0), on=True)  # nor a batch that stays together
    settle(lambda: len(inner.log) == 4 + 6 + 6)
    assert [(stage, logits[:, 0].tolist()) for stage, logits in stages(on)] == [
        (1, [1.0, 2.0]), (2, [2.0, 4.0]), (3, [3.0, 6.0])
    ]  # fmt: skip
    on.close()


def test_keep(both: Any) -> None:
    session, _ = both
    batch = session.begin(images(1.0, 2.0, 3.0, 4.0))
    batch.step()
    for rows in ([], [4], [-1]):
        with pytest.raises(ValueError, match=r"rows must be from 0 to 3"):
            batch.keep(torch.tensor(rows, dtype=torch.int64))
    batch.keep(torch.tensor([3, 1]))
    batch.keep(torch.tensor([1]))
    assert batch.step()[:, 0].tolist() == [4.0]  # 2.0 at stage 2
    with pytest.raises(ValueError, match=r"rows must be from 0 to 0"):
        batch.keep(torch.tensor([1]))
    batch.close()


def test_old_messages_are_not_taken_for_new_ones(both: Any) -> None:
    session, inner = both
    old = session.begin(images(5.0))
    settle(lambda: len(inner.log) == 6)  # three answers lie there, unread
    old.close()
    before = time.monotonic()
    new = session.begin(images(1.0))
    assert len(session._all) == 1  # on the same channel
    new._channel.send(Message(CANCEL, new._number - 1))
    found = [(logits[0, 0].item(), new.at > before) for logits in patiently(new)]
    assert found == [(1.0, True), (2.0, True), (3.0, True)]
    new.close()


def test_what_is_left_does_not_write_into_the_next_images() -> None:
    """A step may end when its caller has left and another's images lie in the same channel."""
    for size in (1, 5):
        gate = Gate(1, 2)
        with closing(connect(FakeSession(stages=3, steps=2, on_step=gate))) as session:
            old = session.begin(images(*[7.0] * size))
            assert gate.reached.wait(PATIENCE)
            old.close()
            new = session.begin(images(*map(float, range(1, 30))))
            gate.opened.set()
            found = [logits[:, 0].tolist() for logits in patiently(new)]
            assert found == [[float(n * stage) for n in range(1, 30)] for stage in (1, 2, 3)]
            new.close()
            assert len(session._all) == 1


def test_channels_are_used_again(both: Any) -> None:
    session, inner = both
    for _ in range(50):
        evaluations = [session.begin(images(float(n))) for n in range(3)]
        for number, evaluation in enumerate(evaluations):
            while (logits := evaluation.step()) is None:
                pass  # it was an old message
            assert logits[0, 0].item() == number
            evaluation.close()
    assert len(session._all) == 3
    settle(lambda: not inner.open)


def test_what_is_refused(both: Any) -> None:
    session, _ = both
    for x in (torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2), images(1.0).double()):
        with pytest.raises(ValueError, match=r"images must be float32 \[batch, 1, height, width\]"):
            session.begin(x)
    session.close()
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.begin(images(1.0))
