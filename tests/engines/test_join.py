"""Joined batches: every engine gives the outputs of one batch of all samples."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.engines.folding import FoldedNetwork
from anynest.engines.module_engine import ModuleSession
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.segment_engine import SegmentSession
from anynest.engines.session import Session, stages
from anynest.engines.torch_engine import TorchSession
from anynest.nets import create_model

from .backbones import Tagger, mlp

NETWORKS = ("width_nested_resnet10", "cascade_resnet10", "ensemble_resnet10")


def nested(name: str = NETWORKS[0], **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **options).eval()


def averages() -> Any:
    return nested(NETWORKS[2], average=True)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def vectors(batch: int) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1))


def tokens(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "ids": torch.randint(0, 11, (batch, 4), generator=generator),
        "mask": torch.rand(batch, 4, generator=generator).round(),
    }


OPEN: dict[str, tuple[Any, Any]] = {
    "torch": (lambda: TorchSession(FoldedNetwork.of(nested())), images),
    "torch average": (lambda: TorchSession(FoldedNetwork.of(averages())), images),
    "modules": (lambda: ModuleSession(nested()), images),
    "tagger": (lambda: ModuleSession(Tagger()), tokens),
    "segments": (lambda: SegmentSession(mlp()), vectors),
    "blocked": (lambda: OnnxSession.open(nested()), images),
    "standard": (lambda: OnnxSession.open(nested(), layout="standard"), images),
    "blocked average": (lambda: OnnxSession.open(averages()), images),
}


@pytest.fixture(scope="module")
def opened() -> dict[str, Session]:
    return {}


@pytest.fixture(params=OPEN)
def case(request: pytest.FixtureRequest, opened: dict[str, Session]) -> tuple[Session, Any]:
    make, inputs = OPEN[request.param]
    session = opened.get(request.param)
    if session is None:
        session = opened[request.param] = make()
    return session, inputs


def rows(x: Any, indices: Any) -> Any:
    if isinstance(x, dict):
        return {name: value[indices] for name, value in x.items()}
    return x[indices]


def advance(session: Session, x: Any, stage: int) -> Any:
    evaluation = session.begin(x)
    while evaluation.stage < stage:
        evaluation.step()
    return evaluation


def answers(evaluation: Any) -> list[Tensor]:
    found = [output for _, output in stages(evaluation)]
    evaluation.close()
    return found


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_joined_batch_is_one_batch(case: tuple[Session, Any]) -> None:
    """At every stage boundary, for random splits and orders of the samples."""
    session, inputs = case
    x = inputs(6)
    wanted = answers(session.begin(x))
    draw = random.Random(0)
    for stage in range(session.num_stages + 1):
        for _ in range(3):
            order = draw.sample(range(6), 6)
            cuts = sorted(draw.sample(range(1, 6), draw.randrange(1, 4)))
            pieces = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 6], strict=True)]
            parts = [advance(session, rows(x, piece), stage) for piece in pieces]
            joined = session.join(parts)
            assert joined.stage == stage
            same(answers(joined), [output[order] for output in wanted[stage:]])
            for part in parts:
                with pytest.raises(RuntimeError, match="the evaluation is closed"):
                    part.step()


def test_samples_leave_before_and_after(case: tuple[Session, Any]) -> None:
    """Join after compact, compact after join, and joined batches joined again."""
    session, inputs = case
    x = inputs(7)
    wanted = answers(session.begin(x))
    first, second = (advance(session, rows(x, piece), 1) for piece in ([0, 1, 2], [3, 4, 5]))
    first.compact(torch.tensor([2, 0]))
    third = advance(session, rows(x, [6]), 1)
    joined = session.join([session.join([second, first]), third])  # 3, 4, 5, 2, 0, 6
    joined.compact(torch.tensor([5, 0, 4]))  # 6, 3, 0
    later = joined.step()
    while later is None:
        later = joined.step()
    same([later], [wanted[1][[6, 3, 0]]])
    joined.compact(torch.tensor([1, 2]))  # 3, 0
    same(answers(joined), [output[[3, 0]] for output in wanted[2:]])


def test_one_evaluation_alone(case: tuple[Session, Any]) -> None:
    session, inputs = case
    x = inputs(3)
    wanted = answers(session.begin(x))
    same(answers(session.join([advance(session, x, 1)])), wanted[1:])


def test_samples_of_batches_go_on_and_the_others_stay(case: tuple[Session, Any]) -> None:
    """At every stage boundary, random samples in random order; the batches stay as they were."""
    session, inputs = case
    x = inputs(6)
    wanted = answers(session.begin(x))
    if not session.divides:
        with pytest.raises(ValueError, match="cannot be divided"):
            session.join([session.begin(x)], [torch.tensor([0])])
        return
    draw = random.Random(0)
    for stage in range(session.num_stages):
        for _ in range(4):
            pieces = [[0, 1, 2], [3, 4], [5]]
            draw.shuffle(pieces)
            parts = [advance(session, rows(x, piece), stage) for piece in pieces]
            chosen = [draw.sample(range(len(p)), draw.randint(1, len(p))) for p in pieces]
            taken: list[Tensor | None] = [torch.tensor(c) for c in chosen]
            taken[0], chosen[0] = None, list(range(len(pieces[0])))  # all of it
            order = [piece[i] for piece, c in zip(pieces, chosen, strict=True) for i in c]
            joined = session.join(parts, taken)
            assert joined.stage == stage
            same(answers(joined), [output[order] for output in wanted[stage:]])
            with pytest.raises(RuntimeError, match="the evaluation is closed"):
                parts[0].step()
            for part, piece in zip(parts[1:], pieces[1:], strict=True):
                same(answers(part), [output[piece] for output in wanted[stage:]])


def test_samples_that_there_are_not(case: tuple[Session, Any]) -> None:
    session, inputs = case
    if not session.divides:
        return
    x = inputs(3)
    one, two = advance(session, rows(x, [0, 1]), 1), advance(session, rows(x, [2]), 1)
    for taken, reason in (
        ([torch.tensor([0, 2]), None], "numbers from 0 to 1"),
        ([None, torch.tensor([], dtype=torch.int64)], "at least one int64 index"),
        ([None], "one for each of 2 evaluations, found 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            session.join([one, two], taken)  # type: ignore[arg-type]
    same(answers(session.join([one, two])), answers(session.begin(x))[1:])


def test_what_cannot_be_joined(case: tuple[Session, Any]) -> None:
    """One line says why, and the evaluations stay as they were."""
    session, inputs = case
    x = inputs(2)
    good, ahead, closed, ended = (advance(session, x, stage) for stage in (1, 2, 1, 1))
    closed.close()
    ended.cancel()
    wrong: list[tuple[list[Any], type[Exception], str]] = [
        ([], ValueError, "at least one evaluation"),
        ([good, good], ValueError, "found one twice"),
        ([good, ahead], ValueError, r"at the same stage, found \[1, 2\]"),
        ([good, closed], RuntimeError, "closed"),
        ([good, ended], RuntimeError, "cancelled"),
        ([good, object()], ValueError, "another session"),
        ([good, advance(SegmentSession(mlp()), vectors(2), 1)], ValueError, "another session"),
    ]
    for evaluations, kind, reason in wrong:
        with pytest.raises(kind, match=reason) as error:
            session.join(evaluations)
        assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="cancelled"):
        ended.step()
    same(answers(session.join([good])), answers(advance(session, x, 1)))
    for evaluation in (ahead, ended):
        evaluation.close()


def test_other_sizes() -> None:
    session = TorchSession(FoldedNetwork.of(nested()))
    pair = [session.begin(images(1)), session.begin(torch.randn(1, 3, 9, 8))]
    with pytest.raises(ValueError, match=r"equal sizes beside the batch.*\(3, 9, 8\)"):
        session.join(pair)
    onnx = OnnxSession.open(nested(), layout="standard")
    with pytest.raises(ValueError, match="equal sizes"):
        onnx.join([onnx.begin(images(1)), onnx.begin(torch.randn(1, 3, 9, 8))])
    tagger = ModuleSession(Tagger())
    with pytest.raises(ValueError, match="equal sizes"):
        tagger.join([tagger.begin(torch.ones(1, 3).long()), tagger.begin(torch.ones(1, 4).long())])
    with pytest.raises(ValueError, match="equal sizes"):  # other inputs
        tagger.join([tagger.begin(tokens(1)), tagger.begin(tokens(1)["ids"])])


def test_a_half_computed_stage() -> None:
    session = TorchSession(FoldedNetwork.of(nested()))
    evaluation = advance(session, images(1), 1)
    assert evaluation.step() is None
    with pytest.raises(ValueError, match="only be joined between stages; finish the stage"):
        session.join([evaluation])


def test_a_closed_session(case: tuple[Session, Any], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["case"]
    make, inputs = OPEN[name]
    if name.endswith("average"):
        pytest.skip("the same engine")
    session = make()
    evaluation = advance(session, inputs(2), 1)
    session.close()
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.join([evaluation])
    assert len(answers(evaluation)) == session.num_stages - 1


def test_buffers_return_to_the_pool() -> None:
    session = OnnxSession.open(nested(), layout="standard")
    parts = [advance(session, images(2), 1) for _ in range(2)]
    memory = {id(part.buffers) for part in parts}
    joined = session.join(parts)
    assert {id(buffers) for buffers in session._free} == memory
    mine = joined.buffers
    assert id(mine) not in memory
    joined.close()
    assert mine in session._free
    assert session.begin(images(4)).buffers is mine  # used again


def test_an_executor_that_was_made_again() -> None:
    """Executors are cached: evaluations of one size may hold two alike."""
    session = OnnxSession.open(nested(), layout="standard")
    old = advance(session, images(2), 1)
    session._executors._executors.clear()
    new = advance(session, images(2), 1)
    assert old.buffers.executor is not new.buffers.executor
    wanted = answers(session.begin(torch.cat([images(2), images(2)])))
    same(answers(session.join([old, new])), wanted[1:])


def test_cancelling_a_part_or_the_whole() -> None:
    session = OnnxSession.open(nested(), layout="standard")
    parts = [advance(session, images(1), 1) for _ in range(2)]
    joined = session.join(parts)
    thread = threading.Thread(target=parts[0].cancel)  # too late: it goes on in the other
    thread.start()
    thread.join()
    assert joined.step() is not None
    joined.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        joined.step()
    joined.close()
