"""Networks of any kind in torch: by their segments, or by their ``stages``."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anynest
from anynest.engines.inputs import InputSpec
from anynest.engines.module_engine import ModuleSession
from anynest.engines.open import open_session
from anynest.engines.segment_engine import SegmentSession
from anynest.engines.session import Session, stages

from .backbones import Embedded, Segment, Segmented, Tagger, mlp

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def vectors(batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def answers(session: Session, x: Any) -> list[Tensor]:
    evaluation = session.begin(x)
    found = [output for _, output in stages(evaluation)]
    evaluation.close()
    return found


@torch.no_grad()
def wanted(network: nn.Module, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = network.eval()(*inputs, **named)
    return outputs


class NotExported(Segmented):
    """Segments that only the attempt shows to be impossible."""

    def segments(self) -> list[nn.Module]:
        raise RuntimeError("segments need a body\nthat can be exported")


class Conv(nn.Module):
    """Images of 2 channels, in half precision."""

    num_stages, num_classes, in_channels = 2, 3, 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(images)]

    def stages(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        x = self.conv(images)
        yield 1, x.mean((2, 3))
        yield 2, x.amax((2, 3))


# -- which engine, and what it gives --------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments(dtype: torch.dtype) -> None:
    network, x = mlp(dtype), vectors(5, dtype)
    session = open_session(network, backend="torch")
    assert isinstance(session, SegmentSession)
    assert (session.num_stages, session.num_classes, session.in_channels) == (3, None, None)
    assert (session.backend, session.input_names) == ("torch", ("x",))
    for mine, theirs in zip(answers(session, x), wanted(network, x), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs)
    assert torch.equal(answers(session, {"x": x})[2], answers(session, x)[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stages(dtype: torch.dtype) -> None:
    network = Embedded().to(dtype)
    x = {"weight": vectors(4, dtype)[:, 0], "features": torch.arange(12).reshape(4, 3) % 9}
    session = open_session(network)
    assert isinstance(session, ModuleSession)
    assert (session.num_classes, session.input_names) == (4, ("features", "weight"))
    for mine, theirs in zip(answers(session, x), wanted(network, **x), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs)


def test_optional_inputs_and_other_outputs() -> None:
    session, network = open_session(Tagger()), Tagger().eval()
    ids, mask = torch.arange(12).reshape(3, 4) % 11, torch.eye(3, 4)
    for x in (ids, {"ids": ids}):
        torch.testing.assert_close(answers(session, x)[1], wanted(network, ids)[1])
    torch.testing.assert_close(
        answers(session, {"mask": mask, "ids": ids})[1], wanted(network, ids, mask)[1]
    )
    assert not torch.equal(wanted(network, ids, mask)[1], wanted(network, ids)[1])


def test_a_network_that_cannot_be_cut(caplog: pytest.LogCaptureFixture) -> None:
    base = mlp()
    network = NotExported(list(base.parts)).eval()
    session = open_session(network)
    assert isinstance(session, ModuleSession)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "segments need a body that can be exported" in record.message
    x = vectors(3)
    assert torch.equal(answers(session, x)[2], wanted(base, x)[2])


def test_images_are_converted_to_the_networks_type() -> None:
    network = Conv().half()
    session = open_session(network)
    images = torch.randn(2, 2, 5, 5)
    for x in (images, images.half(), {"images": images}):
        assert torch.equal(answers(session, x)[0], wanted(network, images.half())[0])
    with pytest.raises(ValueError, match=r"must be \[batch, 2, height, width\]"):
        session.begin(torch.randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"images must be float32, found torch\.uint8"):
        session.begin(torch.zeros(2, 2, 5, 5, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_network_runs_as_it_is() -> None:
    network = mlp()
    compiled: Any = torch.compile(network)
    assert torch.equal(
        answers(open_session(compiled, backend="torch"), vectors(2))[0],
        wanted(network, vectors(2))[0],
    )


def test_exits_on_a_body_and_segments_of_shared_weights() -> None:
    """Weights that the user's network shares between segments stay shared, and are copied."""
    shared = nn.Linear(6, 6)
    torch.manual_seed(0)
    network = Segmented(
        [Segment(shared, nn.Linear(6, 2)), Segment(shared, nn.Linear(6, 2), last=True)]
    )
    session = SegmentSession(network)
    weights = {id(p) for p in session.module.parameters()}
    assert len(weights) == 6
    assert not weights & {id(p) for p in network.parameters()}
    before = answers(session, vectors(2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(answers(session, vectors(2))[1], before[1])
    assert network.training
    assert not session.module.training


def test_exits_of_a_body() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    network = anynest.add_exits(body, example=vectors(2), num_classes=3, after={"1": "auto"})
    session = open_session(network, backend="torch")  # in training mode: served as in eval mode
    assert isinstance(session, SegmentSession)
    x = vectors(4)
    for mine, theirs in zip(answers(session, x), wanted(network, x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_sizes_that_segments_do_not_stand_for() -> None:
    """A branch on a size is frozen in an exported graph."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(1, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.mean(1, keepdim=True)).relu()
            return self.last(2 * y if x.shape[1] > 9 else y)  # type: ignore[no-any-return]

    network = anynest.add_exits(
        Branching(), example=torch.randn(2, 5), num_classes=2, after={"first": "auto"}
    ).eval()
    session = open_session(network, backend="torch")
    assert isinstance(session, SegmentSession)
    assert torch.equal(answers(session, torch.ones(1, 7))[1], wanted(network, torch.ones(1, 7))[1])
    with pytest.raises(
        ValueError, match=r"do not stand for inputs of these sizes, found \[1, 12\]"
    ):
        session.begin(torch.ones(1, 12))


# -- steps, memory, threads -----------------------------------------------------------------------
def test_an_output_is_a_copy() -> None:
    """No later step writes into it, also where segments share memory."""

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x.mul_(2)
            return x, x

    class Last(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.mul_(2),)

    x = vectors(2)
    session = SegmentSession(Segmented([Doubling(), Doubling(), Last()]))
    found = answers(session, x)
    for number, output in enumerate(found, 1):
        assert torch.equal(output, x * 2**number)
    assert torch.equal(x, vectors(2))  # nor does any step write into the inputs

    class InPlace(nn.Module):
        num_stages = 2

        def forward(self, x: Tensor) -> list[Tensor]:
            return [output for _, output in self.stages(x)]

        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            yield 1, x.mul_(2)
            yield 2, x.mul_(2)

    first, second = answers(ModuleSession(InPlace()), x)
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, 4 * x)


def test_samples_that_left_are_not_computed() -> None:
    session = SegmentSession(mlp())
    sizes: list[int] = []
    for segment in session.segments:
        segment.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])))
    evaluation = session.begin(vectors(5))
    evaluation.step()
    evaluation.compact(torch.tensor([4, 1]))
    assert torch.equal(evaluation.step(), wanted(mlp(), vectors(5)[[4, 1]])[1])
    assert sizes == [5, 2]


def test_parts_without_samples_end() -> None:
    """A joined generator is closed when its last sample leaves."""
    closed: list[int] = []

    class Watched(nn.Module):
        num_stages = 3

        def forward(self, x: Tensor) -> list[Tensor]:
            return [output for _, output in self.stages(x)]

        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            try:
                for stage in (1, 2, 3):
                    yield stage, stage * x
            finally:
                closed.append(len(x))

    session = ModuleSession(Watched())
    parts = []
    for size in (1, 2, 3):
        parts.append(session.begin(vectors(size)))
        parts[-1].step()
    joined = session.join(parts)
    assert closed == []
    joined.compact(torch.tensor([5, 0]))  # of the third and the first
    assert closed == [2]
    assert torch.equal(joined.step(), 2 * torch.cat([vectors(3)[2:], vectors(1)]))
    joined.compact(torch.tensor([1]))
    assert closed == [2, 3]
    joined.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        joined.step()
    (kept, _), *_ = joined.parts  # a reference to the generator does not keep it running
    joined.close()
    joined.close()
    assert closed == [2, 3, 1]
    assert next(kept, None) is None


def test_a_paused_pass_ends_with_its_evaluation() -> None:
    """By close, by an error, by the last stage, and when the evaluation is dropped."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.last = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if float(x.abs().max()) > 1e9:  # cannot be exported
                raise MemoryError("no more")
            threads.append(torch.get_num_threads())
            grads.append(torch.is_grad_enabled())
            return self.last(self.second(x))  # type: ignore[no-any-return]

    threads: list[int] = []
    grads: list[bool] = []
    network = anynest.add_exits(
        Gated(), example=vectors(2), num_classes=6, after={"first": "auto", "second": "auto"}
    ).eval()
    session = open_session(network, threads=3)
    assert isinstance(session, ModuleSession)
    before = threading.active_count()
    del threads[:], grads[:]
    mine = threading.Thread(target=lambda: answers(session, vectors(2)))
    mine.start()
    mine.join()
    assert threads == [3]
    assert grads == [False]
    assert threading.active_count() == before

    evaluation: Any = session.begin(vectors(2))
    evaluation.step()
    assert threading.active_count() == before + 1
    evaluation.close()
    assert threading.active_count() == before

    evaluation = session.begin(vectors(2))
    evaluation.step()
    del evaluation
    gc.collect()
    assert threading.active_count() == before

    evaluation = session.begin(torch.full((2, 6), -1e20))
    evaluation.step()
    with pytest.raises(MemoryError):
        evaluation.step()
    assert threading.active_count() == before


def test_state_is_freed() -> None:
    session = SegmentSession(mlp())
    evaluation = session.begin(vectors(2))
    evaluation.step()
    held = [weakref.ref(tensor) for tensor in evaluation.state]
    evaluation.step()
    assert all(ref() is None for ref in held)
    evaluation.close()
    assert evaluation.state == ()


# -- what is wrong is said in one line ------------------------------------------------------------
class Wrong(nn.Module):
    num_stages = 2

    def __init__(self, *outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]

    def stages(self, x: Tensor) -> Iterator[Any]:
        yield from self.outputs


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([(1, {"logits": 0})], "stage 1 of Wrong must give a tensor, found dict: give one of its"),
        ([(1, torch.ones(3, 2))], r"batch of 2 as dimension 0, found \[3, 2\]"),
        ([(1, torch.ones(()))], r"batch of 2 as dimension 0, found \[\]"),
        ([(2, torch.ones(2, 2))], "must yield stage 1, found stage 2"),
        ([], r"must yield 2 outputs \(num_stages\), found 0"),
    ],
)
def test_wrong_stages(outputs: list[Any], reason: str) -> None:
    evaluation = ModuleSession(Wrong(*outputs)).begin(vectors(2))
    with pytest.raises(RuntimeError, match=reason) as error:
        evaluation.step()
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()


class Gives(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(2, 2), r"segment 1 must give \(output, \*state\), found Tensor"),
        ((torch.ones(2, 2),), "segment 1 must give state for the next, found none"),
        ((torch.ones(3, 2), torch.ones(2)), r"segment 1 must give an output with the batch of 2"),
        ((torch.ones(2, 2), torch.ones(4)), r"segment 1's state must give an output"),
        ((torch.ones(2, 2), None), r"segment 1's state must give a tensor, found NoneType"),
    ],
)
def test_wrong_segments(value: Any, reason: str) -> None:
    evaluation = SegmentSession(Segmented([Gives(value), Gives(value)])).begin(vectors(2))
    with pytest.raises(RuntimeError, match=reason):
        evaluation.step()
    with pytest.raises(RuntimeError, match="closed"):
        evaluation.step()


def test_networks_that_lack_something() -> None:
    for module, name in ((nn.Linear(2, 2), "num_stages"), (nn.Sequential(), "num_stages")):
        with pytest.raises(TypeError, match=f"needs a network with {name}") as error:
            open_session(module)
        assert "anynest.add_exits" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="from a network or a path, found int"):
        open_session(3)  # type: ignore[arg-type]
    network = mlp()
    network.segments = lambda: list(network.parts)[:2]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="one for each of 3 stages, found 2"):
        open_session(network)

    class Nameless(Wrong):
        def forward(self, *x: Tensor) -> list[Tensor]:
            return list(x)

        def stages(self, *x: Tensor) -> Iterator[Any]:
            yield from ((1, x[0]), (2, x[0]))

    with pytest.raises(ValueError, match="input_names must name the inputs of Nameless"):
        open_session(Nameless())
    named = Nameless()
    named.input_names = ("a", "b")  # type: ignore[assignment]
    assert len(answers(open_session(named), {"b": vectors(2), "a": vectors(2)})) == 2


@pytest.mark.parametrize(
    ("x", "kind", "reason"),
    [
        (
            torch.zeros(2, 3).long(),
            ValueError,
            "takes the inputs features, weight, found one tensor",
        ),
        ({"features": 1, "weight": 2}, TypeError, "input features must be a tensor, found int"),
        ({"features": torch.zeros(2, 3).long()}, ValueError, "must be features, weight, found f"),
        ({}, ValueError, "must be features, weight, found none"),
        ({"features": 0, "weight": 0, "x": 0}, ValueError, "found features, weight, x"),
        ([1], TypeError, "a tensor or a dict of named tensors, found list"),
    ],
)
def test_wrong_inputs(x: Any, kind: type[Exception], reason: str) -> None:
    session = open_session(Embedded())
    with pytest.raises(kind, match=reason) as error:
        session.begin(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("features", "weight", "reason"),
    [
        ((2, 3), (3,), "one batch size as dimension 0, found features 2, weight 3"),
        ((), (2,), r"features must have the batch as dimension 0.*found \[\]"),
        ((0, 3), (0,), r"no dimension of 0, found \[0, 3\]"),
    ],
)
def test_wrong_sizes(features: tuple[int, ...], weight: tuple[int, ...], reason: str) -> None:
    session = open_session(Embedded())
    x = {"features": torch.zeros(features).long(), "weight": torch.zeros(weight)}
    with pytest.raises(ValueError, match=reason):
        session.begin(x)


def test_wrong_types() -> None:
    session = open_session(Embedded())
    features = torch.zeros(2, 3).long()
    for weight, reason in (
        (
            torch.ones(2).double(),
            r"must be torch.float32.*found torch.float64: pass weight.to\(torch",
        ),
        (torch.ones(2, device="meta"), "a dense tensor with values"),
        (torch.eye(2)[0].to_sparse(), "a dense tensor with values"),
    ):
        with pytest.raises(ValueError, match=reason):
            session.begin({"features": features, "weight": weight})
    mixed = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).half()])
    mixed.input_names = ("x",)  # type: ignore[assignment]
    assert InputSpec.of(mixed).dtype is None


def test_onnxruntime_needs_segments() -> None:
    with pytest.raises(ValueError, match=r"segments .* are missing in Embedded: .*backend='torch'"):
        open_session(Embedded(), backend="onnxruntime")


def test_segments_that_cannot_be_exported(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU they run in PyTorch, and one line says why; asked for by name they are refused."""
    network = mlp()  # which tells no example
    session = open_session(network)
    assert isinstance(session, SegmentSession)
    (line,) = [r.message for r in caplog.records if r.name.startswith("anynest")]
    assert line.startswith("running the network's segments in PyTorch, not ONNX Runtime: ")
    assert "\n" not in line
    with pytest.raises(ValueError, match="example") as error:
        open_session(network, backend="onnxruntime")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_segments_run_in_onnxruntime() -> None:
    """The default on a CPU, once exported, with inputs of other sizes and batches that join."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    network = anynest.add_exits(body, example=vectors(2), num_classes=3, after={"1": "auto"})
    session = open_session(network)
    assert session.backend == "onnxruntime"
    x = vectors(5)
    parts = [session.begin(x[:2]), session.begin({"input": x[2:]})]
    for part in parts:
        part.step()
    joined = session.join(parts)
    joined.compact(torch.tensor([4, 0]))
    torch.testing.assert_close(joined.step(), wanted(network, x)[1][[4, 0]])
    assert session.input_names == network.input_names
