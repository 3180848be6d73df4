"""ONNX Runtime's engine: compaction, cancelling, threads, memory, choice of graphs, errors."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from anynest.engines.folding import FoldedNetwork
from anynest.engines.onnx import executor_cache
from anynest.engines.onnx import session as onnx_session
from anynest.engines.onnx.executor import Buffers, Layout
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.nchwc.block_size import block_size
from anynest.engines.onnx.session import POOLED_COUNT, OnnxSession
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.nets import AnytimeNetwork, create_model

LAYOUTS = ("standard", "blocked")


@pytest.fixture(scope="module")
def network() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model("width_nested_resnet10").eval()


@pytest.fixture(params=LAYOUTS)
def session(request: pytest.FixtureRequest, folded: FoldedNetwork) -> OnnxSession:
    if request.param == "blocked" and block_size() == 1:
        pytest.skip("this processor has no kernels in blocks")
    return OnnxSession(folded, layout=request.param)


@pytest.fixture(scope="module")
def folded(network: AnytimeNetwork) -> FoldedNetwork:
    return FoldedNetwork.of(network)


def images(count: int, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def expected(network: AnytimeNetwork, x: Tensor) -> list[Tensor]:
    return [logits for _, logits in network.stages(x)]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_steps_are_stages(session: OnnxSession, network: AnytimeNetwork) -> None:
    x = images(3)
    evaluation = session.begin(x)
    assert (session.num_stages, session.num_classes, session.in_channels) == (3, 10, 3)
    assert (evaluation.stage, evaluation.num_stages) == (0, 3)
    found = [evaluation.step() for _ in range(3)]
    assert evaluation.stage == 3
    with pytest.raises(RuntimeError, match="every stage is finished"):
        evaluation.step()
    for ours, theirs in zip(found, expected(network, x), strict=True):
        close(ours, theirs)
    evaluation.close()
    evaluation.close()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()


def test_images_and_logits_are_copied(session: OnnxSession) -> None:
    x = images(2)
    wanted = [logits.clone() for _, logits in stages(session.begin(x.clone()))]
    evaluation = session.begin(x)
    x.fill_(float("nan"))
    found = []
    for stage, logits in stages(evaluation):
        found.append(logits)
        logits_before = logits.clone()
        torch.testing.assert_close(logits, wanted[stage - 1], rtol=0, atol=0)
    evaluation.close()
    again = session.begin(images(2) * 5)  # in the same memory
    list(stages(again))
    torch.testing.assert_close(found[-1], logits_before, rtol=0, atol=0)


def test_compaction(session: OnnxSession, network: AnytimeNetwork) -> None:
    x = images(6)
    wanted = expected(network, x)
    evaluation = session.begin(x)
    close(evaluation.step(), wanted[0])
    evaluation.compact(torch.tensor([4, 0, 3]))
    close(evaluation.step(), wanted[1][[4, 0, 3]])
    evaluation.compact(torch.tensor([2]))
    close(evaluation.step(), wanted[2][[3]])


def test_alternating_evaluations_share_no_memory(
    session: OnnxSession, network: AnytimeNetwork
) -> None:
    x = images(6)
    session.begin(x[:2]).close()  # memory for one of them lies ready
    turns = [session.begin(part) for part in (x[:2], x[2:4], x[4:])]
    for stage, wanted in enumerate(expected(network, x)):
        for number, evaluation in enumerate(turns):
            close(evaluation.step(), wanted[2 * number : 2 * number + 2])
        if stage == 0:
            turns[0].compact(torch.tensor([0, 1]))
    for evaluation in turns:
        evaluation.close()
    assert len(session._free) == 4  # one more since the compaction
    assert len({id(kept) for kept in session._free}) == 4


def test_any_size_of_image(session: OnnxSession, network: AnytimeNetwork) -> None:
    for size in (8, 9, 16, 7, 12, 10, 8):
        x = images(2, size)
        for (_, ours), theirs in zip(stages(session.begin(x)), expected(network, x), strict=True):
            close(ours, theirs)
    assert len(session._executors._executors) <= executor_cache.CACHED


def test_images_and_indices_that_do_not_fit(session: OnnxSession) -> None:
    for x in (torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="images must be"):
            session.begin(x)
    evaluation = session.begin(images(3))
    with pytest.raises(ValueError, match="indices must be"):
        evaluation.compact(torch.tensor([3]))
    assert evaluation.step().shape == (3, 10)


def test_several_threads_at_once(session: OnnxSession) -> None:
    batches = [images(count) for count in (1, 2, 3, 4)] * 5
    alone = [[logits for _, logits in stages(session.begin(x))] for x in batches]

    def run(x: Tensor) -> list[Tensor]:
        evaluation = session.begin(x)
        try:
            return [logits for _, logits in stages(evaluation)]
        finally:
            evaluation.close()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_memory_is_given_back(session: OnnxSession) -> None:
    for number in range(40):
        evaluation = session.begin(images(1 + number % 7))
        evaluation.step()
        if number % 3:
            evaluation.compact(torch.tensor([0]))
        evaluation.close()
        del evaluation
    gc.collect()
    ours = [s for s in gc.get_objects() if type(s) is Buffers and s.executor in executors(session)]
    assert len(ours) <= POOLED_COUNT


def test_large_buffers_are_released(session: OnnxSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is limited in bytes too; the newest buffers stay."""
    running = [session.begin(images(count)) for count in (1, 1, 2)]
    size = max(evaluation._buffers.nbytes for evaluation in running if evaluation._buffers)
    monkeypatch.setattr(onnx_session, "POOLED_BYTES", size)
    for evaluation in running:
        evaluation.close()
    assert [buffers.batch for buffers in session._free] == [2]
    monkeypatch.setattr(onnx_session, "POOLED_BYTES", size - 1)
    session.begin(images(2)).close()
    assert not session._free


def executors(session: OnnxSession) -> list[object]:
    return list(session._executors._executors.values())


def test_closing(network: AnytimeNetwork) -> None:
    session = OnnxSession.open(network, threads=1)
    session.begin(images(2)).close()
    assert session._free
    evaluation = session.begin(images(1))
    session.close()
    session.close()
    assert not session._free
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.begin(images(1))
    close(list(stages(evaluation))[-1][1], expected(network, images(1))[-1])
    evaluation.close()
    assert not session._free


def test_cancelled_before_a_step(session: OnnxSession, network: AnytimeNetwork) -> None:
    evaluation = session.begin(images(1))
    evaluation.step()
    evaluation.cancel()
    with pytest.raises(RuntimeError, match="was cancelled"):
        evaluation.step()
    evaluation.close()
    # the session and its memory go on
    close(next(stages(session.begin(images(1))))[1], expected(network, images(1))[0])


def test_cancelled_within_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    session = OnnxSession.open(create_model("width_nested_resnet42", independent=3))
    x = torch.zeros(16, 3, 32, 32)
    session.begin(x).step()
    began = time.perf_counter()
    session.begin(x).step()
    whole = time.perf_counter() - began
    for _ in range(20):  # on a busy machine the timer may be late
        evaluation = session.begin(x)
        timer = threading.Timer(whole / 10, evaluation.cancel)
        timer.start()
        try:
            evaluation.step()
        except RuntimeError as error:
            if "was cancelled" not in str(error):
                raise
            break
        finally:
            timer.join()
    else:
        pytest.fail("no step was interrupted")
    assert evaluation.stage == 0
    assert not capfd.readouterr().err  # ONNX Runtime would print it


def test_an_error_in_a_stage_is_one_line(session: OnnxSession) -> None:
    evaluation = session.begin(images(1))
    buffers = evaluation._buffers
    assert buffers is not None
    buffers.bindings[0].clear_binding_inputs()
    with pytest.raises(RuntimeError, match=r"onnxruntime failed in stage 1: [^\n]*$"):
        evaluation.step()


# -- which graphs ---------------------------------------------------------------------------------
def test_options_are_checked(network: AnytimeNetwork) -> None:
    with pytest.raises(
        ValueError, match="layout must be one of auto, standard, blocked, found 'x'"
    ):
        OnnxSession.open(network, layout="x")
    with pytest.raises(ValueError, match=r"providers must be among .*CPUExecutionProvider"):
        OnnxSession.open(network, providers=["QuantumExecutionProvider"])


def test_wrong_blocked_graphs_are_not_used(
    network: AnytimeNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if block_size() == 1:
        pytest.skip("this processor has no kernels in blocks")
    real: Callable[..., object] = executor_cache._blocked

    def wrong(folded: object, *rest: object) -> object:
        pair = next(iter(folded.convolutions.values()))  # type: ignore[attr-defined]
        saved, pair[0] = pair[0], (pair[0][0] * 2, pair[0][1])
        try:
            return real(folded, *rest)
        finally:
            pair[0] = saved

    monkeypatch.setattr(executor_cache, "_blocked", wrong)
    with caplog.at_level(logging.WARNING):
        session = OnnxSession.open(network, threads=1)
        found = list(stages(session.begin(images(2))))
    assert "instead of this processor's block layout" in caplog.text
    for (_, ours), theirs in zip(found, expected(network, images(2)), strict=True):
        close(ours, theirs)
    session = OnnxSession.open(network, threads=1, layout="blocked")
    with pytest.raises(RuntimeError, match="layout='blocked' failed: their logits differ by"):
        session.begin(images(2))


def test_a_processor_without_blocks(
    network: AnytimeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_cache, "block_size", lambda: 1)
    session = OnnxSession.open(network, threads=1)
    close(next(stages(session.begin(images(1))))[1], expected(network, images(1))[0])
    with pytest.raises(ValueError, match="layout='blocked' is not possible"):
        OnnxSession.open(network, layout="blocked").begin(images(1))


def test_sources(network: AnytimeNetwork, tmp_path: Path) -> None:
    export(network, tmp_path / "out", image_size=8)
    session = open_session(tmp_path / "out", backend="onnxruntime", threads=1)
    x = images(2)
    for (_, ours), theirs in zip(stages(session.begin(x)), expected(network, x), strict=True):
        close(ours, theirs)
    with pytest.raises(ValueError, match="of 8x8 pixels, as the graphs were made for, found 9x9"):
        session.begin(images(1, 9))
    with pytest.raises(ValueError, match="use backend='onnxruntime'"):
        open_session(tmp_path / "out", backend="torch")


def test_onnx_is_imported_when_used() -> None:
    import subprocess

    code = (
        "import sys, anynest.engines.onnx.export.export, anynest.cli\n"
        "print([m for m in ('onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_state_is_passed_on_in_place(session: OnnxSession) -> None:
    """The outputs of a stage are the memory that the next one reads."""
    evaluation = session.begin(images(1))
    evaluation.step()
    buffers = evaluation._buffers
    assert buffers is not None
    state = sorted(buffers.executor.live(1))
    assert state
    assert not any(buffers._copied)  # one image: joining is no work
    wanted = evaluation.step()
    evaluation.close()
    evaluation = session.begin(images(1))
    evaluation.step()
    assert evaluation._buffers is buffers
    for name in state:
        buffers.arrays[name] *= np.float32(1.5)
    assert not torch.allclose(evaluation.step(), wanted)


@pytest.mark.parametrize("batch", [1, 2])
def test_joined_values_are_adjacent_or_copied(batch: int) -> None:
    """Also if one value is in several joins that cannot all be adjacent."""
    sizes = {"a": 1, "b": 2, "c": 1, "a|b": 3, "a|b|c": 4, "b|c": 3, "a|c": 2}
    joins: dict[str, tuple[str, ...]] = {n: tuple(n.split("|")) for n in sizes if "|" in n}
    nothing = SimpleNamespace(bind_ortvalue_input=print, bind_ortvalue_output=print)
    executor = SimpleNamespace(
        sessions=[SimpleNamespace(io_binding=lambda: nothing)],
        stages=[SimpleNamespace(inputs=(), reads=(), gives=(), logits="a")],
        joins=[joins],
        num_classes=None,
        masks=lambda batch, shapes: {},
        layouts=lambda shapes: {n: Layout((size, 2, 2), np.float32) for n, size in sizes.items()},
    )
    buffers = Buffers(executor, batch, ((3, 2, 2),))  # type: ignore[arg-type]
    for name in "abc":
        buffers.arrays[name][...] = np.random.default_rng(ord(name)).random(
            buffers.arrays[name].shape
        )
    buffers.gather(0)
    for name, parts in joins.items():
        together = np.concatenate([buffers.arrays[part] for part in parts], axis=1)
        np.testing.assert_array_equal(buffers.arrays[name], together)
    copied = {
        n for n in joins if any(whole is buffers.arrays[n] for whole, _ in buffers._copied[0])
    }
    assert copied == ({"b|c", "a|c"} if batch == 1 else set(joins))
