"""Predictors of networks that are no nested ones: BERT, an LSTM, MLPs, and their inputs."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_operators
from torch import Tensor, nn

import anynest
from anynest import AnytimePredictor
from anynest.engines.open import open_session
from anynest.engines.segment_engine import SegmentSession
from anynest.predict import Confidence, Deadline, HeldOut, MultiplyAdds, NetworkError, calibrate
from anynest.predict.deadline_evaluation import measure_deadlines
from anynest.predict.early_stopping.policies import Policy, PolicyInput
from anynest.profiling.profiler import profile_network

from ..engines.backbones import Tagger
from .conftest import settle

DTYPES = (torch.float16, torch.bfloat16, torch.float64)


class Rows(nn.Module):
    """Three exits of an MLP over vectors ``[B, 6]``; segments, logits ``[B, 4]``."""

    num_stages, num_classes = 3, 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([Block(6, 8), Block(8, 8), Block(8, 8, last=True)])
        self.computed: list[int] = []

    def segments(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(x)]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for number, part in enumerate(self.parts, 1):
            output, *rest = part(x)
            yield number, output
            x = rest[0] if rest else x


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, last: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.last = nn.Linear(inputs, outputs), nn.Linear(outputs, 4), last

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x).relu()
        return (3 * self.head(x),) if self.last else (3 * self.head(x), x)


class Integers(nn.Module):
    """An MLP over integer features; the outputs are integers ``[B, 1]``, a ranking."""

    num_stages = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(x)]

    def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        scores = self.embed(x).sum(2)
        yield 1, scores.argmax(1, keepdim=True)
        yield 2, scores.argsort(1)


def vectors(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(network: nn.Module, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
    found: list[Tensor] = network.eval()(*inputs, **named)
    return found


@pytest.fixture(scope="module")
def bert() -> Any:
    """BERT with two inputs and random weights; its body returns a dict-like object."""
    torchvision_operators.define()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=3,
            max_position_embeddings=32,
        )
        body = transformers.BertForSequenceClassification(config).eval()
        layers = [f"bert.encoder.layer.{number}" for number in (0, 1)]
        network = anynest.add_exits(
            body,
            example=sentences(2),
            num_classes=3,
            after=dict.fromkeys(layers, "auto"),
            output="logits",
        )
    return network.eval()


def sentences(batch: int, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(batch) % 3 + length - 2
    return {
        "input_ids": torch.randint(0, 50, (batch, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths.unsqueeze(1)).long(),
    }


# -- BERT -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_bert_by_deadline(bert: Any) -> None:
    x = sentences(4)
    wanted = outputs(bert, **x)
    assert [tuple(v.shape) for v in bert.example_inputs] == [(2, 7), (2, 7)]
    seen: list[int] = []
    session = open_session(bert, backend="torch")
    assert isinstance(session, SegmentSession)
    session.segments[0].register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
    with AnytimePredictor(session) as predictor:
        assert seen == []  # an open session does not tell an example
    session.close()
    with AnytimePredictor(bert, backend="torch") as predictor:
        assert predictor._opened.blank().keys() == {"input_ids", "attention_mask"}
        assert predictor.num_classes == 3
        answer = predictor.predict(x, None)
        assert (answer.stage, answer.stop_reason) == (3, "last stage")
        torch.testing.assert_close(answer.logits, wanted[2])
        assert answer.labels == tuple(wanted[2].argmax(1).tolist())
        timely = predictor.predict({n: v.numpy() for n, v in x.items()}, 30.0)
        assert torch.equal(timely.output, answer.output)
        other = sentences(2, length=9)  # another batch size and length
        torch.testing.assert_close(predictor.predict(other, None).output, outputs(bert, **other)[2])
        for number, found in enumerate(predictor.stream(x), 1):
            assert found.stage == number
            torch.testing.assert_close(found.output, wanted[number - 1])
        costs = predictor.multiply_adds_of(x)
        assert costs == tuple(row.multiply_adds for row in bert.cost(*x.values()))
        stopped = predictor.predict(x, None, policy=MultiplyAdds(costs[1]))
        assert stopped.stages == (2,) * 4
        with pytest.raises(ValueError, match="takes the inputs input_ids, attention_mask, found o"):
            predictor.predict(x["input_ids"])


@pytest.mark.slow
def test_a_batch_of_sentences_is_its_sentences(bert: Any) -> None:
    x = sentences(6)
    wanted = outputs(bert, **x)
    confidence = wanted[0].softmax(1).amax(1)
    policy = Confidence(float(confidence.median()))  # some leave after stage 1
    with AnytimePredictor(bert, backend="torch") as predictor:
        batch = predictor.predict(x, None, policy=policy)
        alone = [
            predictor.predict({n: v[i : i + 1] for n, v in x.items()}, None, policy=policy)
            for i in range(6)
        ]
    assert set(batch.stages) > {1}
    assert batch.stages == tuple(one.stage for one in alone)
    torch.testing.assert_close(batch.logits, torch.cat([one.logits for one in alone]))


# -- other networks -------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """float16 and bfloat16 outputs arrive as float32, float64 ones as they are."""
    network, x = Rows().to(dtype), vectors(3).to(dtype)
    with AnytimePredictor(network, backend="torch") as predictor:
        answer = predictor.predict(x, None)
        assert answer.output.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert torch.equal(answer.output.to(dtype), outputs(network, x)[2])
        with pytest.raises(ValueError, match=r"input x must be torch\.\w+, as the network's"):
            predictor.predict(vectors(3), None)


def test_an_lstm_for_every_token() -> None:
    """Deadlines and streams take any output; classes need logits ``[B, K]``."""
    ids = torch.arange(12).reshape(3, 4) % 11
    mask = torch.tensor([[1.0, 1, 1, 0]]).repeat(3, 1)
    with AnytimePredictor(Tagger()) as predictor:
        assert predictor.num_classes is None
        answer = predictor.predict({"ids": ids, "mask": mask}, 30.0)
        torch.testing.assert_close(answer.output, outputs(Tagger(), ids, mask)[1])
        assert (answer.stage, answer.stages) == (2, (2, 2, 2))
        streamed = list(predictor.stream(ids))
        for found, wanted in zip(streamed, outputs(Tagger(), ids), strict=True):
            torch.testing.assert_close(found.output, wanted)
        for name in ("logits", "probabilities", "confidence", "labels", "label"):
            with pytest.raises(ValueError, match=r"found an output \[3, 4, 5\] torch.float32: use"):
                getattr(answer, name)
        data = answer.to_dict()
        assert np.shape(data["output"]) == (3, 4, 5)
        assert "labels" not in data
        with pytest.raises(ValueError, match=r"a policy needs floating-point logits .*\[3, 4, 5\]"):
            predictor.predict(ids, None, policy=Confidence(0.5))
        with pytest.raises(ValueError, match=r"'guess' draws a class, .* num_classes"):
            predictor.predict(ids, 1.0, on_timeout="guess")
        with pytest.raises(ValueError, match="this network takes no images"):
            predictor.multiply_adds(8, 8)
        assert predictor.predict(ids, None).stage == 2  # still usable
    with (
        AnytimePredictor(Tagger(), monotone="caching") as predictor,
        pytest.raises(ValueError, match="monotone= needs floating-point logits"),
    ):
        predictor.predict(ids, None)


def test_integers_in_and_out() -> None:
    x = torch.tensor([[1, 2, 3], [8, 0, 4]])
    with AnytimePredictor(Integers()) as predictor:
        first, second = predictor.stream(x.numpy())
        wanted = outputs(Integers(), x)
        assert torch.equal(first.output, wanted[0])
        assert torch.equal(second.output, wanted[1])
        assert second.output.dtype == torch.int64
        with pytest.raises(ValueError, match=r"found an output \[2, 3\] torch.int64"):
            _ = second.probabilities


def test_the_callers_tensors_are_copied() -> None:
    """When it is called, though its turn comes later."""
    busy, free = threading.Event(), threading.Event()

    class Busy(Integers):
        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            busy.set()
            assert free.wait(20)
            yield from super().stages(x)

    x = torch.tensor([[1, 2, 3]])
    wanted = outputs(Integers(), x)
    with AnytimePredictor(Busy()) as predictor:
        first = predictor.stream(torch.zeros(1, 3).long())
        assert busy.wait(20)
        waiting = predictor.stream(x)
        x.fill_(8)
        free.set()
        assert all(torch.equal(f.output, w) for f, w in zip(waiting, wanted, strict=True))
        first.close()


def test_policies_and_samples_that_leave() -> None:
    x = vectors(8)
    policy = Confidence((0.6, 0.8))
    with AnytimePredictor(Rows(), backend="torch") as predictor:
        batch = predictor.predict(x, None, policy=policy)
        alone = [predictor.predict(row.unsqueeze(0), None, policy=policy) for row in x]
    assert len(set(batch.stages)) > 1
    assert batch.stages == tuple(one.stage for one in alone)
    torch.testing.assert_close(batch.logits, torch.cat([one.logits for one in alone]))


def test_costs_are_counted_once_and_only_for_policies_that_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anynest.predict import opening

    counted: list[int] = []
    real = opening.stage_costs

    def count(network: Any, inputs: Any) -> Any:
        counted.append(len(next(iter(inputs.values()))))
        return real(network, inputs)

    class Known(Policy):
        def stop(self, known: PolicyInput) -> Tensor:
            costs.append(known.cost)
            return torch.zeros(len(known.probabilities), dtype=torch.bool)

    costs: list[int | None] = []
    monkeypatch.setattr(opening, "stage_costs", count)
    with AnytimePredictor(Rows(), backend="torch") as predictor:
        predictor.predict(vectors(2), None, policy=Confidence(0.5) | Deadline(9.0))
        assert counted == []
        for size in (2, 5, 2):
            predictor.predict(vectors(size), None, policy=Known())
        assert counted == [2]
        assert costs[:2] == [6 * 8 + 8 * 4, 6 * 8 + 8 * 8 + 2 * 8 * 4]


def test_calibration() -> None:
    network, x = Rows(), vectors(200)
    labels = outputs(network, x)[2].argmax(1)  # the last stage is always right
    with AnytimePredictor(network, backend="torch") as predictor:
        data = HeldOut.collect(predictor, [(x[:90], labels[:90]), (x[90:], labels[90:])])
        assert data.costs == (80, 176, 272)
        policy, report = calibrate(Confidence(), data, target_accuracy=0.95)
        assert report.reached
        found = predictor.predict(x, None, policy=policy)
        right = float((torch.tensor(found.labels) == labels).float().mean())
        assert right == pytest.approx(report.accuracy)
        assert report.cost < 272


def test_accuracy_under_deadlines() -> None:
    network, x = Rows(), vectors(6)
    labels = outputs(network, x)[2].argmax(1).tolist()
    samples = [({"x": x[i : i + 1]}, label) for i, label in enumerate(labels)]
    with AnytimePredictor(network, backend="torch") as predictor:
        results, finished = measure_deadlines(
            lambda inputs, deadline: predictor.predict(inputs, deadline, on_timeout="guess"),
            samples,
            [0.0, None],
            3,
        )
    assert finished
    assert results[0].stages[0] == 6  # guesses
    assert results[1].accuracy == 1.0


def test_threads_at_once() -> None:
    """Each caller gets the output of its own inputs."""
    network = Rows()
    batches = [vectors(1 + seed % 3, seed) for seed in range(40)]
    wanted = [outputs(network, x)[2] for x in batches]
    with AnytimePredictor(network, backend="torch") as predictor:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda x: predictor.predict(x, None), batches))

        async def both() -> list[Any]:
            return await asyncio.gather(*(predictor.apredict({"x": x}, None) for x in batches))

        later = asyncio.run(both())
    for mine, also, theirs in zip(found, later, wanted, strict=True):
        torch.testing.assert_close(mine.output, theirs)
        torch.testing.assert_close(also.output, theirs)


def test_the_computing_thread_sets_torchs_threads() -> None:
    seen: list[tuple[int, str]] = []

    class Watched(Integers):
        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            seen.append((torch.get_num_threads(), threading.current_thread().name))
            yield from super().stages(x)

    with AnytimePredictor(Watched(), threads=3) as predictor:
        predictor.predict(torch.zeros(1, 3).long(), None)
    assert seen == [(3, "anynest-predictor")]


def test_a_deadline_returns_what_is_there() -> None:
    gate, reached = threading.Event(), threading.Event()

    class Slow(Integers):
        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            for stage, output in super().stages(x):
                if stage == 2:
                    reached.set()
                    assert gate.wait(20)
                yield stage, output

    with AnytimePredictor(Slow()) as predictor:
        answer = predictor.predict(torch.zeros(2, 3).long(), 0.05, on_timeout="wait")
        assert (answer.stage, answer.stages) == (1, (1, 1))
        assert answer.stop_reason == "deadline"
        assert reached.wait(20)
        gate.set()
        assert predictor.predict(torch.zeros(2, 3).long(), None).stage == 2


def test_errors_of_a_network_reach_their_caller_alone() -> None:
    with AnytimePredictor(Integers()) as predictor:
        with pytest.raises(NetworkError, match="failed in stage 1: IndexError: index out of range"):
            predictor.predict(torch.full((1, 3), 99), None)
        with pytest.raises(ValueError, match=r"no dimension of 0, found \[0, 3\]"):
            predictor.predict(torch.zeros(0, 3).long(), None)
        with pytest.raises(ValueError, match="inputs must be numbers"):
            predictor.predict(np.array(["a"]), None)
        with pytest.raises(TypeError, match="a tensor or a dict of named tensors, found list"):
            predictor.predict([[1, 2, 3]], None)
        assert predictor.predict(torch.zeros(1, 3).long(), None).stage == 2

    class Broken(Rows):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.parts[1].head.bias.fill_(torch.nan)  # type: ignore[union-attr]

    with (
        AnytimePredictor(Broken(), backend="torch") as predictor,
        pytest.raises(NetworkError, match="the logits of stage 2 must be finite"),
    ):
        predictor.predict(vectors(1), None)


def test_a_module_without_stages() -> None:
    with pytest.raises(TypeError, match=r"with num_stages .* found Linear without: add exits"):
        AnytimePredictor(nn.Linear(2, 2))


def test_images_keep_their_conveniences() -> None:
    """One image, a list, a dict of the one input's name; float32 for a float16 network."""

    class Mean(nn.Module):
        num_stages, num_classes, in_channels = 1, 2, 1

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, dtype=torch.float16))

        def forward(self, pixels: Tensor) -> list[Tensor]:
            return [output for _, output in self.stages(pixels)]

        def stages(self, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
            yield 1, pixels.mean((2, 3)) * self.scale * torch.tensor([1.0, 2.0]).half()

    image = torch.full((1, 4, 4), 0.5)
    with AnytimePredictor(Mean()) as predictor:
        assert predictor.predict(image, None).label == 1
        assert predictor.predict([image, -image], None).labels == (1, 0)
        assert predictor.predict({"pixels": -image.unsqueeze(0)}, None).labels == (0,)
        assert predictor.predict(np.ones((1, 4, 4)), None).output.tolist() == [1.0, 2.0]
        with pytest.raises(ValueError, match="the one input must be pixels, found x"):
            predictor.predict({"x": image})
        assert predictor.multiply_adds(4, 4) == (0,)


# -- profiles -------------------------------------------------------------------------------------
def test_a_profile_for_probabilities_and_warm_up(tmp_path: Path) -> None:
    profile = profile_network(Rows(), example=vectors(2), backends=("torch",), rounds=1)
    profile.save(tmp_path / "profile.json")
    seen: list[Tensor] = []

    class Watched(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.parts[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))

    with AnytimePredictor(Watched(), "torch", tmp_path / "profile.json") as predictor:
        assert [tuple(x.shape) for x in seen] == [(1, 6)] * 2  # the warm-up
        answer = predictor.predict(vectors(1), 30.0, min_completion_probability=0.9)
        assert answer.stage == 3
        answer = predictor.predict(
            vectors(1), 1e-9, on_timeout="wait", min_completion_probability=0.9
        )
        assert answer.stage == 1
    with AnytimePredictor(Watched(), "torch", profile, warm_up=False):
        assert len(seen) == 4


def test_a_blank_sample_that_does_not_suit(tmp_path: Path) -> None:
    """The warm-up is made up: what it raises says nothing."""
    profile = profile_network(
        Integers(), example=torch.zeros(1, 3).long(), backends=("torch",), rounds=1
    )

    class Strict(Integers):
        def stages(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            if bool((x == 1).all()):
                raise KeyError("ones")
            yield from super().stages(x)

    with AnytimePredictor(Strict(), "torch", profile) as predictor:
        assert predictor.predict(torch.zeros(1, 3).long(), None).stage == 2


# -- a forward pass that pauses -------------------------------------------------------------------
def passes() -> int:
    return sum(thread.name == "anynest-pass" for thread in threading.enumerate())


def test_no_paused_pass_outlives_its_prediction() -> None:
    """After a deadline, an error, a policy, a stream that was closed, and ``close``."""
    gate = threading.Event()

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if float(x.abs().max()) > 1e6:  # not exportable
                raise KeyError("too large")
            if len(x) == 5:
                assert gate.wait(20)
            return self.last(self.second(x))  # type: ignore[no-any-return]

    model = anynest.add_exits(
        Body(), example=vectors(2), num_classes=3, after={"first": "auto", "second": "auto"}
    ).eval()
    x = vectors(2)
    with AnytimePredictor(model) as predictor:
        wanted = outputs(model, x)
        assert torch.equal(predictor.predict(x, None).output, wanted[2])
        assert predictor.predict(x, None, policy=Confidence(0.0)).stage == 1
        with predictor.stream(x) as stream:
            assert torch.equal(next(stream).output, wanted[0])
        with pytest.raises(NetworkError, match="failed in stage 2: KeyError"):
            predictor.predict(1e9 * x, None)
        late = predictor.predict(vectors(5), 0.02, on_timeout="wait")
        assert late.stage == 1
        gate.set()
        settle(lambda: passes() == 0)
        unread = predictor.stream(x)
    del unread
    settle(lambda: passes() == 0)
