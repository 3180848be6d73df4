"""Rows of many requests in few evaluations: every engine gives each request its plain answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.engines.folding import FoldedNetwork
from anynest.engines.module_engine import ModuleSession
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.segment_engine import SegmentSession
from anynest.engines.torch_engine import TorchSession
from anynest.nets import create_model
from anynest.serving.batches import Job, free, run_step
from anynest.serving.models import ServedModel

from .fakes import FakeSession


def nested(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("width_nested_resnet10", **options).eval()


def mlp() -> Any:
    class Part(torch.nn.Module):
        def __init__(self, inputs: int, last: bool) -> None:
            super().__init__()
            self.body, self.head = torch.nn.Linear(inputs, 8), torch.nn.Linear(8, 4)
            self.last = last

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = self.body(x).relu()
            return (self.head(x),) if self.last else (self.head(x), x)

    class Net(torch.nn.Module):
        num_stages = 3

        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList([Part(6, False), Part(8, False), Part(8, True)])

        def segments(self) -> list[torch.nn.Module]:
            return list(self.parts)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [output for _, output in self.stages(x)]

        def stages(self, x: Tensor) -> Any:
            for number, part in enumerate(self.parts, 1):
                output, *rest = part(x)
                yield number, output
                x = rest[0] if rest else x

    torch.manual_seed(0)
    return Net().eval()


IMAGES, VECTORS = (3, 8, 8), (6,)
CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "torch": (nested, lambda net: TorchSession(FoldedNetwork.of(net)), IMAGES),
    "blocked": (nested, OnnxSession.open, IMAGES),
    "standard": (nested, lambda net: OnnxSession.open(net, layout="standard"), IMAGES),
    "modules": (nested, ModuleSession, IMAGES),
    "segments": (mlp, SegmentSession, VECTORS),
}


@pytest.mark.parametrize("name", CASES)
def test_every_request_gets_the_answer_of_a_plain_forward(name: str) -> None:
    """Random requests join, go on in random groups at each stage, and leave at any time."""
    make, open_, shape = CASES[name]
    network = make()
    session = open_(network)
    key = session.input_names[0]
    model = ServedModel("net", "1", session, {key: torch.zeros(1, *shape)})
    draw = random.Random(0)
    jobs = [
        Job(due=1.0, model=model, rows=n, inputs={key: torch.randn(n, *shape)})
        for n in (1, 2, 1, 3, 1, 1, 2, 4, 1, 1)
    ]
    with torch.no_grad():
        wanted = [network(job.inputs[key]) for job in jobs]  # type: ignore[index]
    computed = 0
    while True:
        living = [job for job in jobs if not job.gone and job.stage < model.num_stages]
        if not living:
            break
        stage = draw.choice(living).stage + 1
        pool = [job for job in living if job.stage == stage - 1]
        chosen = draw.sample(pool, draw.randint(1, min(5, len(pool))))
        outputs = run_step(session, stage, chosen)
        for job, output in zip(chosen, outputs, strict=True):
            expected = wanted[jobs.index(job)][stage - 1]
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            job.stage = stage
            computed += 1
        leaver = draw.choice(living)
        if draw.random() < 0.15 and leaver.batch is not None:
            leaver.gone = True
            batch = leaver.batch
            batch.remove(leaver)
            batch.compact()
        for job in jobs:
            if job.batch is not None:
                assert job.batch.rows[job].stop <= job.batch.size
                assert not job.batch.evaluation.closed  # type: ignore[attr-defined]
                if session.divides:
                    living_rows = sum(other.rows for other in job.batch.rows)
                    assert 2 * living_rows > job.batch.size or living_rows == job.batch.size
    assert computed > 15


def fakes(*sizes: int) -> tuple[FakeSession, list[Job]]:
    session = FakeSession()
    model = ServedModel("fake", "1", session, {"x": torch.zeros(1, 1)})
    jobs = [
        Job(due=1.0, model=model, rows=n, inputs={"x": torch.full((n, 1), float(number + 1))})
        for number, n in enumerate(sizes)
    ]
    return session, jobs


def test_only_the_rows_of_a_step_are_computed() -> None:
    session, (a, b, c, d) = fakes(2, 1, 1, 1)
    run_step(session, 1, [a, b, c])
    run_step(session, 1, [d])
    run_step(session, 2, [d, b])
    assert session.log == [(1, (1.0, 1.0, 2.0, 3.0)), (1, (4.0,)), (2, (4.0, 2.0))]
    assert len(session.open) == 2  # d's own batch is empty: closed
    run_step(session, 2, [c, a])
    run_step(session, 3, [a, b, c, d])
    assert sorted(session.log[-1][1]) == [1.0, 1.0, 2.0, 3.0, 4.0]
    assert len(session.open) == 1
    for job in (a, b, c, d):
        assert job.batch is not None
        job.batch.remove(job)
    assert session.open == set()


def test_a_whole_batch_goes_on_without_a_copy() -> None:
    session, (a, b) = fakes(2, 1)
    run_step(session, 1, [a, b])
    evaluation = a.batch.evaluation  # type: ignore[union-attr]
    run_step(session, 2, [b, a])
    assert a.batch.evaluation is evaluation  # type: ignore[union-attr]
    assert session.log[-1] == (2, (1.0, 1.0, 2.0))


def test_rows_that_have_gone_are_not_kept() -> None:
    """Once they are the most; before, at the next step that takes rows."""
    session, (a, b, c) = fakes(4, 2, 1)
    run_step(session, 1, [a, b, c])
    batch = a.batch
    assert batch is not None
    batch.remove(c)
    batch.compact()
    assert batch.size == 7
    batch.remove(a)
    batch.compact()
    assert batch.size == 2
    run_step(session, 2, [b])
    assert session.log[-1] == (2, (2.0, 2.0))


def test_a_batch_that_several_leave_is_compacted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session, (a, b, c, d) = fakes(1, 1, 1, 1)
    run_step(session, 1, [a, b, c, d])
    assert a.batch is not None
    evaluation: Any = a.batch.evaluation
    kept: list[list[int]] = []
    compact = evaluation.compact
    monkeypatch.setattr(
        evaluation, "compact", lambda rows: (kept.append(rows.tolist()), compact(rows))
    )
    free([a, d, b])
    assert kept == [[2]]
    assert (a.inputs, a.batch, d.batch) == (None, None, None)
    free([c])
    assert kept == [[2]]  # it is empty: closed
    assert session.open == set()
    free([a])  # had no rows any more
