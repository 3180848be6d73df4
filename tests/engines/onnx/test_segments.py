"""Graphs of any network: one per stage, equal to PyTorch, with state that is passed on in place."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anynest import AnytimePredictor
from anynest.engines.onnx.export import convert as conversion
from anynest.engines.onnx.export.compare import ConversionError
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.manifest import FILE, read_manifest
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.open import open_session
from anynest.engines.segment_engine import SegmentSession
from anynest.engines.session import stages
from anynest.nets import create_model
from anynest.store import RunFolderError, WeightsInfo

from ..backbones import Segmented, mlp


class First(nn.Module):
    """Tokens to their features; the mask is passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        x = self.layer(self.embed(ids), src_key_padding_mask=mask == 0)
        return self.head(x[:, 0]), x.transpose(1, 2), mask, ids


class Second(nn.Module):
    """Transposed features; needs the number of tokens, and passes the mask on."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.last = last

    def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.layer(x.transpose(1, 2), src_key_padding_mask=mask == 0)
        x = x.view(ids.shape[0], ids.shape[1], 2, 4).flatten(2)
        logits = self.head((x * mask.unsqueeze(2)).sum(1) / ids.shape[1])
        return (logits,) if self.last else (logits, x.transpose(1, 2), mask, ids)


class Encoder(Segmented):
    """int64 ids and a mask ``[B, T]``, logits ``[B, 3]``."""

    input_names = ("ids", "mask")
    num_classes = 3

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([First(), Second(last=False), Second(last=True)])
        self.example_inputs = tuple(tokens(2, 5).values())

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        return [output for _, output in self.stages(ids, mask)]

    def stages(self, ids: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor]]:  # type: ignore[override]
        state: tuple[Tensor, ...] = (ids, mask)
        for number, segment in enumerate(self.parts, 1):
            output, *rest = segment(*state)
            state = tuple(rest)
            yield number, output


class Block(nn.Module):
    """A convolution of stride 2; the last one flattens what it got as ``[B, C, H W]``."""

    def __init__(self, inputs: int, *, last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.last = last

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.last:
            x = x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).unflatten(2, x.shape[2:])
        x = torch.relu_(self.norm(self.conv(x)))
        logits = self.head(x.mean((2, 3)))
        return (logits,) if self.last else (logits, x)


class Cnn(Segmented):
    """Images ``[B, 3, H, W]``, logits ``[B, 4]``."""

    in_channels = 3
    num_classes = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([Block(3), Block(6, last=True)])


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    mask = torch.ones(batch, length)
    mask[:, -1] = 0
    return {"ids": torch.randint(0, 11, (batch, length), generator=generator), "mask": mask}


def vectors(batch: int) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch))


def images(batch: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def named_mlp() -> Segmented:
    network = mlp()
    network.example_inputs = (vectors(2),)  # type: ignore[assignment]
    return network.eval()


NETWORKS: dict[str, tuple[Any, Any]] = {
    "mlp": (named_mlp, [vectors(1), vectors(5)]),
    "encoder": (Encoder, [tokens(1, 5), tokens(3, 4), tokens(2, 9)]),
    "cnn": (Cnn, [images(1), images(4, 17, 40)]),
}


@pytest.fixture(scope="module")
def opened() -> dict[str, tuple[Any, OnnxSession]]:
    return {}


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def case(name: str, opened: dict[str, Any]) -> tuple[Any, OnnxSession, list[Any]]:
    make, inputs = NETWORKS[name]
    if name not in opened:
        network = make().eval()
        opened[name] = network, OnnxSession.of_segments(network)
    network, session = opened[name]
    return network, session, inputs


def answers(evaluation: Any) -> list[Tensor]:
    found = [output for _, output in stages(evaluation)]
    evaluation.close()
    return found


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def rows(x: Any, indices: Any) -> Any:
    return {n: v[indices] for n, v in x.items()} if isinstance(x, dict) else x[indices]


def test_every_batch_and_size(name: str, opened: dict[str, Any]) -> None:
    network, session, inputs = case(name, opened)
    torch_session = SegmentSession(network)
    assert session.backend == "onnxruntime"
    assert session.input_names == torch_session.input_names
    for x in inputs:
        same(answers(session.begin(x)), answers(torch_session.begin(x)))


def test_samples_leave_and_join(name: str, opened: dict[str, Any]) -> None:
    network, session, inputs = case(name, opened)
    x = inputs[-1]
    wanted = answers(SegmentSession(network).begin(x))
    for stage in range(session.num_stages):
        parts = []
        for piece in ([1], [0, 1]):
            evaluation = session.begin(rows(x, piece))
            for _ in range(stage):
                evaluation.step()
            parts.append(evaluation)
        parts[1].compact(torch.tensor([1, 0]))
        joined = session.join(parts)  # 1, 1, 0
        same(answers(joined), [output[[1, 1, 0]] for output in wanted[stage:]])


def test_a_cancelled_evaluation(name: str, opened: dict[str, Any]) -> None:
    _, session, inputs = case(name, opened)
    evaluation = session.begin(inputs[0])
    evaluation.step()
    evaluation.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        evaluation.step()
    evaluation.close()


def test_state_that_is_passed_on_is_not_copied(opened: dict[str, Any]) -> None:
    """All stages read the mask and the ids where ``begin`` wrote them."""
    _, session, _ = case("encoder", opened)
    evaluation = session.begin(tokens(2, 5))
    executor = evaluation.buffers.executor
    assert ["mask" in stage.inputs for stage in executor.stages] == [True] * 3
    assert [len(stage.gives) for stage in executor.stages] == [1, 1, 0]
    for stage in executor.stages:  # nothing copies an input
        assert not {*stage.gives} & {"ids", "mask"}
    evaluation.step()
    evaluation.buffers.arrays["mask"][...] = 0  # read by the next stage, without its logits
    assert not torch.allclose(evaluation.step(), answers(session.begin(tokens(2, 5)))[1])
    evaluation.close()


def test_nothing_runs_twice(name: str, opened: dict[str, Any]) -> None:
    """Each product and convolution is in the graph of one stage."""
    import onnx

    network, session, _ = case(name, opened)
    graphs = session._executors.graphs
    assert graphs is not None
    weights: list[str] = []
    for model in graphs.models:
        parsed = onnx.load_model_from_string(model)
        weights += [t.name for t in parsed.graph.initializer if len(t.dims) > 1]
        assert "/" not in str(model) or b"File" not in model  # no paths of the source code
    sizes = [w.numel() for w in network.parameters() if w.dim() > 1]
    assert len(weights) == len(sizes)


def test_buffers_are_used_again(opened: dict[str, Any]) -> None:
    _, session, _ = case("encoder", opened)
    first = session.begin(tokens(2, 5))
    memory = first.buffers
    first.close()
    other = session.begin(tokens(2, 6))
    assert other.buffers is not memory
    second = session.begin(tokens(2, 5))
    assert second.buffers is memory
    other.close()
    second.close()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ({"ids": torch.zeros(2, 5), "mask": torch.zeros(2, 5)}, "input ids must be int64"),
        ({"ids": torch.zeros(2, 5).long()}, "found ids"),
        ({"ids": torch.zeros(2, 5, 1).long(), "mask": torch.zeros(2, 5)}, "ids must be"),
        ({"ids": torch.zeros(2, 5).long(), "mask": torch.zeros(2, 4)}, "must be|do not run"),
        (torch.zeros(2, 5).long(), "pass a dict"),
    ],
)
def test_inputs_that_do_not_fit(x: Any, words: str, opened: dict[str, Any]) -> None:
    _, session, _ = case("encoder", opened)
    with pytest.raises(ValueError, match=words) as error:
        session.begin(x)
    assert "\n" not in str(error.value)


def test_other_sizes_of_a_fixed_input(opened: dict[str, Any]) -> None:
    _, session, _ = case("mlp", opened)
    with pytest.raises(ValueError, match=r"x must be \[batch, 6\].*found \[batch, 7\]"):
        session.begin(torch.zeros(2, 7))


# -- networks without graphs --------------------------------------------------------------------


class Branch(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * 2 if x.sum() > 0 else x,)


class Unknown(nn.Module):
    """An operation that ONNX lacks."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.linalg.eigvalsh(x.unsqueeze(2) * x.unsqueeze(1)),)


class Frozen(nn.Module):
    """Its graph has the batch of the example in it."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x + torch.ones(len(x), 1),)


def of(segment: nn.Module) -> Segmented:
    network = Segmented([named_mlp().parts[0], segment])
    network.example_inputs = (vectors(2),)  # type: ignore[assignment]
    return network.eval()


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        (Branch(), "stage 2 cannot be exported"),
        (Unknown(), "stage 2 cannot be converted.*_linalg_eigh"),
        (Frozen(), "cannot be exported|batches of any size"),
    ],
)
def test_networks_without_graphs(segment: nn.Module, words: str) -> None:
    """One line names the stage."""
    with pytest.raises(ConversionError, match=words) as error:
        OnnxSession.of_segments(of(segment))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("use backend='torch'")


def test_a_network_without_an_example() -> None:
    with pytest.raises(ConversionError, match="set example_inputs to a tuple"):
        OnnxSession.of_segments(mlp().eval())


def test_bfloat16() -> None:
    network = mlp(torch.bfloat16).eval()
    with pytest.raises(ConversionError, match=r"no torch.bfloat16.*with .float\(\)"):
        OnnxSession.of_segments(network, example={"x": vectors(2).bfloat16()})


@pytest.mark.slow
def test_float16() -> None:
    network = mlp(torch.float16).eval()
    x = vectors(3).half()
    session = OnnxSession.of_segments(network, example={"x": x})
    wanted = [output for _, output in network.stages(x)]
    for ours, theirs in zip(answers(session.begin(x)), wanted, strict=True):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_graphs_that_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written, and the stage is named."""
    network = named_mlp()
    to_onnx = conversion._to_onnx

    def damaged(*arguments: Any) -> Any:
        model = to_onnx(*arguments)
        for tensor in model.graph.initializer:
            if tensor.name == "segments.1.head.weight":
                array = np.frombuffer(tensor.raw_data, dtype=np.float32) * np.float32(1.01)
                tensor.raw_data = array.tobytes()
        return model

    monkeypatch.setattr(conversion, "_to_onnx", damaged)
    with pytest.raises(ConversionError, match="found stage 2 off by"):
        export(network, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_exporter_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    levels = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OnnxSession.of_segments(named_mlp())
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == levels


def test_open_session() -> None:
    """The backend runs other networks where it is asked for, and says why it cannot."""
    session = open_session(named_mlp(), backend="onnxruntime")
    assert isinstance(session, OnnxSession)
    x = vectors(3)
    same(answers(session.begin(x)), answers(SegmentSession(named_mlp()).begin(x)))
    with pytest.raises(ConversionError, match="example_inputs"):
        open_session(mlp().eval(), backend="onnxruntime")


# -- exports ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "encoder"
    export(Encoder().eval(), folder)
    return folder


def test_an_export(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert [(i.name, i.dtype) for i in manifest.inputs] == [("ids", "int64"), ("mask", "float32")]
    assert manifest.architecture is None
    assert manifest.num_stages == manifest.num_classes == 3
    session = OnnxSession.open(exported)
    wanted = SegmentSession(Encoder().eval())
    for x in (tokens(1, 5), tokens(4, 8)):
        same(answers(session.begin(x)), answers(wanted.begin(x)))


@pytest.mark.slow
def test_a_single_file(tmp_path: Path) -> None:
    network = Encoder().eval()
    export(network, tmp_path / "a", single_file=True)
    session = OnnxSession.open(tmp_path / "a")
    x = tokens(3, 6)
    same(answers(session.begin(x)), answers(SegmentSession(network).begin(x)))


def test_deadlines_without_the_code(exported: Path) -> None:
    x = tokens(2, 5)
    wanted = answers(SegmentSession(Encoder().eval()).begin(x))
    with AnytimePredictor(exported) as predictor:
        found = predictor.predict(x, deadline=60.0)
    assert found.stage == 3
    torch.testing.assert_close(torch.as_tensor(found.logits), wanted[2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_8_bits(tmp_path: Path) -> None:
    network = Cnn().eval()
    manifest = export(network, tmp_path / "a", image_size=32, calibration=images(32))
    assert manifest.quantised == {"bits": 8, "images": 32}
    x = images(8)
    found = answers(OnnxSession.open(tmp_path / "a").begin(x))
    for ours, theirs in zip(found, answers(SegmentSession(network).begin(x)), strict=True):
        assert 0 < float((ours - theirs).abs().max()) < 0.2 * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["inputs"][0].update(dtype="object"), "dtype must be one of"),
        (lambda d: d["inputs"][0].update(shape=[-1]), "positive integer"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "different names"),
        (lambda d: d.update(inputs=[]), "at least one"),
        (lambda d: d["inputs"][0].update(name="other"), "stage 1 reads 'ids'"),
        (lambda d: d["sizes"].update(size1=[2]), "two limits"),
        (lambda d: d.update(in_channels=3), "stand together"),
        (lambda d: d.pop("inputs"), "lacks 'inputs'"),
        (lambda d: d["stages"][1].update(gives=["logits1"]), "of stage 2 are not those in"),
        (lambda d: d.update(architecture={}), "must have in_channels"),
    ],
)
def test_false_manifests(exported: Path, tmp_path: Path, edit: Any, words: str) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    data = json.loads((folder / FILE).read_text())
    edit(data)
    (folder / FILE).write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match=words) as error:
        OnnxSession.open(folder)
    assert "\n" not in str(error.value)


def test_an_example_is_what_is_traced(tmp_path: Path) -> None:
    """Also where the source tells a size of its images."""
    network = Cnn()
    info = WeightsInfo("cnn", {}, tuple("abcd"), (0.5,) * 3, (0.5,) * 3, 32, "test", "0")
    manifest = export(network, tmp_path / "a", example={"x": images(2, 24, 20)}, info=info)
    assert manifest.image_size == (24, 20)
    with pytest.raises(ValueError, match="example must not be given with image_size"):
        export(network, tmp_path / "b", example={"x": images(2)}, image_size=32)
    nested = create_model("width_nested_resnet10")
    with pytest.raises(ValueError, match="example must not be given with a nested network"):
        export(nested, tmp_path / "b", example={"x": images(2)})
