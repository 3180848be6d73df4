"""The torch engine: every network's logits, steps of one node, threads, modes, errors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor

from anynest.engines import torch_engine
from anynest.engines.folding import FoldedNetwork
from anynest.engines.session import Session, stages
from anynest.engines.torch_engine import TorchSession, schedule
from anynest.nets import AnytimeNetwork, create_model
from anynest.nets.nested.plan import IMAGE

NAME = "width_nested_resnet10"
SIZES = [(1, 8, 8), (2, 5, 11), (3, 1, 2)]  # batch, height, width


def open_torch(network: AnytimeNetwork, **options: Any) -> TorchSession:
    return TorchSession(FoldedNetwork.of(network), **options)


@pytest.fixture
def network() -> AnytimeNetwork:
    torch.manual_seed(0)
    return create_model(NAME).eval()


@pytest.fixture
def session(network: AnytimeNetwork) -> TorchSession:
    return open_torch(network)


def images(batch: int, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def answers(session: Session, x: Tensor) -> list[Tensor]:
    evaluation = session.begin(x)
    found = list(stages(evaluation))
    evaluation.close()
    assert [stage for stage, _ in found] == list(range(1, session.num_stages + 1))
    return [logits for _, logits in found]


@torch.no_grad()
def reference(network: AnytimeNetwork, x: Tensor) -> list[Tensor]:
    return [logits for _, logits in network.stages(x.double())]


def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == theirs.shape
        error = (mine - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-4, f"relative error {error:.1e}"


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


# -- values ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_the_networks(case: Case) -> None:
    network, x = case.network(), case.images().float()
    agree(answers(open_torch(network), x), reference(network, x))


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_sizes_parts_and_plain_networks(case: Case) -> None:
    """Odd sizes; a stage alone; the whole in training mode; the plain network of the last stage."""
    network = case.network()
    session = open_torch(network)
    for shape in SIZES:
        agree(answers(session, images(*shape)), reference(network, images(*shape)))
    x = case.images().float()
    wanted = reference(network, x)
    for stage in range(1, network.num_stages + 1):
        agree(answers(open_torch(network.subnetwork(stage)), x), [wanted[stage - 1]])
    agree(answers(open_torch(network.train()), x), wanted)
    plain = AnytimeNetwork(network.architecture.plain(network.num_stages)).double().eval()
    agree(answers(open_torch(plain), x), reference(plain, x))


@pytest.mark.parametrize("name", [NAME, "alternating_nested_sparse_resnet14", "average"])
def test_samples_leave_between_stages(name: str) -> None:
    options: dict[str, Any] = {"average": True} if name == "average" else {}
    network = create_model("ensemble_resnet10" if options else name, **options).double().eval()
    x = images(6)
    wanted = reference(network, x)
    evaluation = open_torch(network).begin(x)
    rows = torch.tensor([5, 0, 3, 1, 4])
    evaluation.compact(rows)  # before the first stage too
    shrink = [torch.tensor([4, 1, 2]), torch.tensor([1])]
    for stage, logits in stages(evaluation):
        agree([logits], [wanted[stage - 1][rows]])
        if stage < network.num_stages and shrink:
            chosen = shrink.pop(0)
            evaluation.compact(chosen)
            rows = rows[chosen]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_an_image_that_is_no_number_changes_no_other(session: TorchSession, broken: float) -> None:
    x = images(4)
    wanted = answers(session, x)
    spoiled = x.clone()
    spoiled[2] = broken
    for mine, theirs in zip(answers(session, spoiled), wanted, strict=True):
        assert torch.equal(mine[[0, 1, 3]], theirs[[0, 1, 3]])
        assert not torch.allclose(mine[2], theirs[2])


# -- steps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES[::6], ids=str)
def test_every_node_is_scheduled_once_in_time_and_after_what_it_reads(case: Case) -> None:
    plan = case.build().plan
    births = {layer.name: [node.birth for node in layer.nodes] for layer in plan.layers}
    outputs = tuple(exit_.stage for exit_ in plan.exits)
    tasks = schedule(plan, outputs)
    done: set[tuple[str, int]] = set()
    for task in tasks:
        if task.node is not None:
            assert task.layer is not None
            assert task.stage == task.node.birth
            reads, upto = [*task.node.reads], task.node.birth
            if task.node.residual not in (None, "input"):
                reads.append(task.node.residual or "")
            wanted = {(n, b) for n in reads if n != IMAGE for b in births[n] if b <= upto}
            wanted |= {(task.layer.name, b) for b in births[task.layer.name] if b < upto}
            assert wanted <= done
            assert (task.layer.name, upto) not in done
            done.add((task.layer.name, upto))
        else:
            assert task.exit is not None
            assert {(n, b) for n in task.exit.reads for b in births[n] if b <= task.stage} <= done
            assert task.last
    assert done == {(name, birth) for name, found in births.items() for birth in found}
    assert [task.stage for task in tasks if task.last] == list(range(1, len(outputs) + 1))


def test_a_step_is_a_node_of_one_stage(session: TorchSession, network: AnytimeNetwork) -> None:
    evaluation = session.begin(images(2))
    assert (session.backend, session.num_stages, session.in_channels) == ("torch", 3, 3)
    assert session.num_classes == 10
    for stage in range(1, 4):
        nodes = sum(n.birth == stage for layer in network.plan.layers for n in layer.nodes)
        for _ in range(nodes):  # all nodes that the stage adds, and no others
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
        evaluation.compact(torch.tensor([0]))


def test_later_training_changes_nothing(session: TorchSession, network: AnytimeNetwork) -> None:
    x = images(2)
    before = answers(session, x)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.add_(1)
    assert all(map(torch.equal, answers(session, x), before))


def test_images_are_copied_at_the_beginning(session: TorchSession) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    x.zero_()
    assert all(map(torch.equal, [logits for _, logits in stages(evaluation)], wanted))


def test_several_threads_at_once(session: TorchSession) -> None:
    batches = [images(1 + seed % 3, seed=seed) for seed in range(12)]
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
        for mine, theirs in zip(found, wanted[number::4], strict=True):
            same(mine, theirs)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result(timeout=20)


def test_a_running_evaluation_outlives_its_session(session: TorchSession) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    evaluation.step()
    session.close()
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.begin(x)
    same([logits for _, logits in stages(evaluation)], wanted)


def test_a_failing_node_ends_its_evaluation_alone(
    session: TorchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images(2)
    wanted = answers(session, x)
    evaluation = session.begin(x)
    evaluation.step()
    with monkeypatch.context() as patch:
        patch.setattr(torch_engine.F, "conv2d", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            evaluation.step()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()
    same(answers(session, x), wanted)


def test_modes_of_the_caller_have_no_effect(session: TorchSession, network: AnytimeNetwork) -> None:
    x = images(2)
    wanted = answers(session, x)
    with torch.inference_mode():
        inside = open_torch(network)  # opened in a mode, used outside of it
        same(answers(session, x), wanted)
        begun = session.begin(x)
    same([logits for _, logits in stages(begun)], wanted)
    same(answers(inside, x), wanted)
    outside = session.begin(x.clone().requires_grad_())
    outside.step()
    with torch.inference_mode():
        same([logits for _, logits in stages(outside)], wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(answers(session, x), wanted)
    same(answers(session, x.to(memory_format=torch.channels_last)), wanted)
    same(answers(session, x[:1].expand(2, -1, -1, -1)), [logits[[0, 0]] for logits in wanted])
    for logits in answers(session, x.clone().requires_grad_()):
        assert not logits.requires_grad
        assert not logits.is_inference()


def test_threads_are_set_where_the_steps_are(network: AnytimeNetwork) -> None:
    evaluation = open_torch(network, threads=2).begin(images(1))
    assert torch.get_num_threads() == 1
    evaluation.step()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(evaluation.step).result(timeout=20)
        assert pool.submit(torch.get_num_threads).result(timeout=20) == 2


# -- arguments ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.zeros(3, 8, 8), r"\[batch, 3, height, width\].*found \[3, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8), r"\[batch, 3, .*found \[1, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"found \[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float32, found torch.uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "float32, found torch.float64"),
        (torch.zeros(1, 3, 8, 8, device="meta"), "meta device"),
    ],
)
def test_images_that_do_not_fit(session: TorchSession, x: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        session.begin(x)


def test_indices_that_do_not_fit(session: TorchSession) -> None:
    evaluation = session.begin(images(3))
    for rows in ([], [3], [-1], [0, 1, 2, 0], [[0]], [0.0]):
        made = torch.tensor(rows) if rows else torch.tensor(rows, dtype=torch.int64)
        with pytest.raises(ValueError, match="indices must be"):
            evaluation.compact(made)
    with pytest.raises(ValueError, match="indices must be"):
        evaluation.compact(torch.tensor([True, False, True]))
    evaluation.step()
    with pytest.raises(ValueError, match="finish the stage first"):
        evaluation.compact(torch.tensor([0]))
    same([logits for _, logits in stages(evaluation)], answers(session, images(3)))
