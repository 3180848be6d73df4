"""The torch backend keeps a session's promises: steps, memory, threads, modes, errors."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anynest.engines import gemm
from anynest.engines import torch_engine as torch_session
from anynest.engines.model_source import resolve
from anynest.engines.session import open_session, stages
from anynest.engines.torch_engine import TorchSession
from anynest.nets import AnytimeNetwork, create_model
from anynest.store import RunFolderError, WeightsInfo, save_weights

NAME = "width_nested_resnet10"


@pytest.fixture
def network() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model(NAME).eval()


@pytest.fixture(params=["gemm", "plain"])
def session(request: pytest.FixtureRequest, network: AnytimeNetwork) -> TorchSession:
    return TorchSession(network, kernels=request.param)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def answers(session: Any, x: Tensor) -> list[Tensor]:
    evaluation = session.begin(x)
    found = [logits for _, logits in stages(evaluation)]
    evaluation.close()
    return found


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_step_is_a_node_of_one_stage(session: TorchSession, network: AnytimeNetwork) -> None:
    evaluation = session.begin(images(2))
    assert (session.backend, session.num_stages, session.in_channels) == ("torch", 3, 3)
    assert session.num_classes == 10
    for stage in range(1, 4):
        nodes = sum(n.birth == stage for layer in network.plan.layers for n in layer.nodes)
        for _ in range(nodes):  # all that the stage adds, and nothing else
            assert evaluation.stage == stage - 1
            assert evaluation.step() is None
        logits = evaluation.step()
        assert logits is not None
        assert logits.shape == (2, 10)
        assert evaluation.stage == stage
    with pytest.raises(RuntimeError, match="every stage is finished"):
        evaluation.step()
    evaluation.cancel()
    evaluation.close()
    evaluation.close()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.keep(torch.tensor([0]))


def test_later_training_changes_nothing(session: TorchSession, network: AnytimeNetwork) -> None:
    x = images(2)
    before = answers(session, x)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.add_(1)
    assert all(map(torch.equal, answers(session, x), before))


def test_logits_are_the_callers_own(session: TorchSession) -> None:
    for count in (1, 3):
        found = answers(session, images(count))
        kept = [logits.clone() for logits in found]
        for logits in answers(session, images(count, seed=1)):
            logits.zero_()
        assert all(map(torch.equal, found, kept))
        assert all(logits.is_contiguous() for logits in found)


def test_images_are_taken_at_the_beginning(session: TorchSession) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    x.zero_()
    assert all(map(torch.equal, [logits for _, logits in stages(evaluation)], wanted))


@pytest.mark.parametrize("name", [NAME, "depth_nested_sparse_resnet14"])
def test_memory_that_was_left_half_way_serves_the_next(name: str) -> None:
    session = TorchSession(create_model(name).eval())
    x, other = images(1), images(1, seed=1)
    wanted = answers(session, x)
    for steps in range(1, len(session._program.tasks)):
        evaluation = session.begin(other)
        for _ in range(steps):
            evaluation.step()
        evaluation.close()
        assert len(session._free) == 1
        assert all(map(torch.equal, answers(session, x), wanted)), f"left after {steps} steps"


def test_several_threads_at_once(session: TorchSession) -> None:
    batches = [images(1 + seed % 3, seed) for seed in range(12)]
    wanted = [answers(session, x) for x in batches]
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(20)
        evaluations = [session.begin(x) for x in batches[number::4]]
        found: list[list[Tensor]] = [[] for _ in evaluations]
        while any(evaluation.stage < 3 for evaluation in evaluations):  # a node of each in turn
            for logits, evaluation in zip(found, evaluations, strict=True):
                made = evaluation.step()
                if made is not None:
                    logits.append(made)
        for evaluation, mine, theirs in zip(evaluations, found, wanted[number::4], strict=True):
            same(mine, theirs)
            evaluation.close()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result(timeout=20)


def test_memory_is_used_again_and_bounded(
    network: AnytimeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = TorchSession(network)
    made: list[tuple[int, ...]] = []
    whole = gemm.GemmProgram.workspace

    def count(self: gemm.GemmProgram, *shape: int) -> gemm.GemmWorkspace:
        made.append(shape)
        return whole(self, *shape)

    monkeypatch.setattr(gemm.GemmProgram, "workspace", count)
    for _ in range(3):
        answers(session, images(2))
    assert made == [(2, 8, 8)]
    two = session.begin(images(2)), session.begin(images(2))
    assert made == [(2, 8, 8)] * 2
    for evaluation in two:
        evaluation.close()
    answers(session, images(3))
    assert len(session._free) == 3
    size = max(workspace.nbytes for _, workspace in session._free.values())
    monkeypatch.setattr(torch_session, "POOLED_BYTES", size)
    answers(session, images(2))
    assert sum(workspace.nbytes for _, workspace in session._free.values()) <= size
    session.close()
    assert not session._free
    with pytest.raises(RuntimeError, match="session is closed"):
        session.begin(images(1))


def test_memory_is_freed_without_the_garbage_collector(session: TorchSession) -> None:
    gc.collect()
    gc.disable()
    try:
        evaluation = session.begin(images(1))
        workspace = weakref.ref(evaluation._workspace)
        list(stages(evaluation))
        session.close()
        answer = session.num_stages
        evaluation.close()  # after the session: not kept
        assert answer == 3
        assert workspace() is None
    finally:
        gc.enable()


def test_an_evaluation_under_way_outlives_its_session(session: TorchSession) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    evaluation.step()
    session.close()
    same([logits for _, logits in stages(evaluation)], wanted)


def test_a_failing_node_ends_its_evaluation_alone(
    session: TorchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    evaluation.step()
    workspace: Any = evaluation._workspace

    def fail(index: int) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(workspace, "run", fail)
    with pytest.raises(MemoryError):
        evaluation.step()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()
    evaluation.close()
    assert all(kept is not workspace for _, kept in session._free.values())
    same(answers(session, x), wanted)


def test_modes_of_the_caller_do_not_matter(session: TorchSession) -> None:
    x = images(2)
    wanted = answers(TorchSession(create_seeded(), kernels=session.kernels), x)
    with torch.inference_mode():
        same(answers(session, x), wanted)
        inside = session.begin(x)
    same([logits for _, logits in stages(inside)], wanted)
    outside = session.begin(x.clone().requires_grad_())
    outside.step()
    with torch.inference_mode():
        first = [logits for _, logits in stages(outside)]
    same(first, wanted)
    outside.close()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(answers(session, x), wanted)
    same(answers(session, x.to(memory_format=torch.channels_last)), wanted)
    same(answers(session, x[:1].expand(2, -1, -1, -1)), [logits[[0, 0]] for logits in wanted])
    for logits in answers(session, x.clone().requires_grad_()):
        assert not logits.requires_grad
        assert not logits.is_inference()


def create_seeded() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model(NAME).eval()


def test_threads_are_set_where_the_steps_are(network: AnytimeNetwork) -> None:
    session = open_session(network, threads=2)
    evaluation = session.begin(images(1))
    assert torch.get_num_threads() == 1
    evaluation.step()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(evaluation.step).result(timeout=20)
        assert pool.submit(torch.get_num_threads).result(timeout=20) == 2


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.zeros(3, 8, 8), r"\[batch, 3, height, width\].*got \[3, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8), r"\[batch, 3, .*got \[1, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float32, got torch.uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "float32, got torch.float64"),
    ],
)
def test_images_that_do_not_fit(session: TorchSession, x: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        session.begin(x)


def test_rows_that_do_not_fit(session: TorchSession) -> None:
    evaluation = session.begin(images(3))
    for rows in ([], [3], [-1], [0, 1, 2, 0], [[0]], [0.0]):
        made = torch.tensor(rows) if rows else torch.tensor(rows, dtype=torch.int64)
        with pytest.raises(ValueError, match="rows must be"):
            evaluation.keep(made)
    with pytest.raises(ValueError, match="rows must be"):
        evaluation.keep(torch.tensor([True, False, True]))
    evaluation.step()
    with pytest.raises(ValueError, match="finish the stage first"):
        evaluation.keep(torch.tensor([0]))
    same([logits for _, logits in stages(evaluation)], answers(session, images(3)))


def test_a_weights_file_is_a_network(tmp_path: Path, network: AnytimeNetwork) -> None:
    arguments = {"num_classes": 10, "in_channels": 3}
    numbers = (0.5, 0.5, 0.5)
    classes = tuple("0123456789")
    info = WeightsInfo(NAME, arguments, classes, numbers, numbers, 8, "none", "0.1.0")
    save_weights(tmp_path / "weights.safetensors", network, info)
    x = images(2)
    for source in (tmp_path, tmp_path / "weights.safetensors", str(tmp_path)):
        same(answers(open_session(source), x), answers(open_session(network), x))
        assert resolve(source).info == info


def test_sources(tmp_path: Path, network: AnytimeNetwork) -> None:
    with pytest.raises(
        ValueError, match="backend must be one of torch, onnxruntime, got 'tensorrt'"
    ):
        open_session(network, backend="tensorrt")
    for threads in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="threads must be a positive integer or None"):
            open_session(network, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="AnytimeNetwork or a path, got Linear"):
        open_session(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(RunFolderError, match="does not exist"):
        open_session(tmp_path / "none")
    with pytest.raises(ValueError, match="kernels must be one of auto, gemm, plain, got 'fast'"):
        TorchSession(network, kernels="fast")
