"""8-bit graphs: integer weights, calibration, closeness to the network, stage errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from anynest.data import load, make_loader
from anynest.engines.folding import FoldedNetwork
from anynest.engines.onnx.export import quantize
from anynest.engines.onnx.export.export import export
from anynest.engines.onnx.export.quantize import stage_errors
from anynest.engines.onnx.graphs.standard import build_standard, standard_models
from anynest.engines.onnx.manifest import read_manifest
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.nets import AnytimeNetwork, create_model
from anynest.nets.nested.plan import IMAGE


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load("digits")
    loader = make_loader(data.train, 300, train=False, mean=data.mean, std=data.std)
    images, labels = next(loader.batches(0))
    return images, labels


@pytest.fixture(scope="module")
def network(digits: tuple[Tensor, Tensor]) -> AnytimeNetwork:
    """Trained until it classifies most digits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = create_model("width_nested_resnet10", in_channels=1, growth=[(1, 1), (2, 1)])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, labels = digits
    for _ in range(25):
        optimizer.zero_grad()
        losses = [torch.nn.functional.cross_entropy(out, labels) for out in model(images)]
        torch.stack(losses).sum().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=[False, True], ids=["stages", "single"])
def exported(
    request: pytest.FixtureRequest,
    network: AnytimeNetwork,
    digits: tuple[Tensor, Tensor],
    tmp_path_factory: Any,
) -> Path:
    folder = Path(tmp_path_factory.mktemp("int8")) / "out"
    images = digits[0][:64]
    export(network, folder, image_size=8, calibration=images, single_file=request.param)
    return folder


def weights(folder: Path) -> dict[str, onnx.TensorProto]:
    found = {}
    for entry in read_manifest(folder).files:
        graphs = [onnx.load(folder / entry.file).graph]
        for graph in graphs:
            found.update((tensor.name, tensor) for tensor in graph.initializer)
            graphs += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def test_weights_are_bytes_with_a_scale_a_channel(exported: Path, network: AnytimeNetwork) -> None:
    found = weights(exported)
    kernels = [t for name, t in found.items() if name.endswith("weight_quantized")]
    units = sum(len(n.units) for layer in network.plan.layers for n in layer.nodes)
    assert len(kernels) == units + 2  # two heads
    assert {t.data_type for t in kernels} == {onnx.TensorProto.INT8}
    scales = [t for name, t in found.items() if name.endswith("conv1.weight_scale")]
    assert scales
    assert all(t.dims[0] > 1 for t in scales)
    assert read_manifest(exported).quantised == {"bits": 8, "images": 64}


def test_logits_are_close_to_the_networks(
    exported: Path, network: AnytimeNetwork, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    session = open_session(exported, backend="onnxruntime", threads=1)
    assert session.num_stages == 2
    with torch.no_grad():
        wanted = [logits for _, logits in network.stages(images)]
    for (_, ours), theirs in zip(stages(session.begin(images)), wanted, strict=True):
        assert float((ours.argmax(1) == theirs.argmax(1)).float().mean()) > 0.95
        assert float((ours - theirs).abs().max()) > 0  # they are not the float graphs
        assert float((ours - theirs).abs().mean()) < 0.1 * float(theirs.abs().mean())
    batches = [(images[:100], labels[:100]), (images[100:], labels[100:])]
    errors = stage_errors(open_session(network, backend="onnxruntime", threads=1), batches)
    for found, logits in zip(errors, wanted, strict=True):
        assert found == pytest.approx(float((logits.argmax(1) != labels).float().mean()))
        assert found < 0.2
    quantised = stage_errors(session, batches)
    assert all(abs(a - b) < 0.05 for a, b in zip(quantised, errors, strict=True))


def test_errors_are_each_stages_own(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(1)
    untaught = create_model("width_nested_resnet10", in_channels=1, growth=[(1, 1), (2, 1)]).eval()
    with torch.no_grad():
        wrong = [float((logits.argmax(1) != labels).float().mean()) for logits in untaught(images)]
    assert 0 < wrong[0] != wrong[1] > 0
    batches = [(images[:100], labels[:100]), (images[100:], labels[100:])]
    assert stage_errors(open_session(untaught, threads=1), batches) == pytest.approx(wrong)


def test_ranges_come_from_the_images_given(network: AnytimeNetwork, tmp_path: Path) -> None:
    """Images of 100 times the range have 100 times the scale."""
    scales = []
    for factor in (1.0, 100.0):
        images = torch.ones(2, 1, 8, 8) * factor
        images[0] = 0
        export(network, tmp_path / str(factor), image_size=8, calibration=images)
        (scale,) = onnx.numpy_helper.to_array(weights(tmp_path / str(factor))["image_scale"]).flat
        scales.append(float(scale))
    assert scales[1] == pytest.approx(100 * scales[0], rel=1e-3)
    assert scales[0] == pytest.approx(1 / 255, rel=1e-3)


def test_later_stages_are_calibrated_on_quantised_state(
    network: AnytimeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = FoldedNetwork.of(network)
    graphs = build_standard(folded)
    models, _ = standard_models(folded, graphs, (8, 8))
    before = [model.SerializeToString() for model in models]
    handed: list[set[str]] = []
    real = quantize._run

    def spy(model: Any, *rest: Any) -> Any:
        handed.append({node.op_type for node in model.graph.node})
        return real(model, *rest)

    monkeypatch.setattr(quantize, "_run", spy)
    images = np.random.default_rng(0).standard_normal((40, 1, 8, 8), dtype=np.float32)
    quantize.quantize(models, [graph.names for graph in graphs], {IMAGE: images})
    assert [("QuantizeLinear" in kinds) for kinds in handed] == [True]
    assert [model.SerializeToString() for model in models] == before


def test_calibration_that_does_not_fit(network: AnytimeNetwork, tmp_path: Path) -> None:
    for wrong, words in (
        (torch.zeros(0, 1, 8, 8), "found none"),
        (torch.zeros(1, 3, 8, 8), "must be normalised images \\[N, 1, 8, 8\\]"),
        (torch.zeros(1, 1, 9, 9), "\\[1, 1, 9, 9\\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8"),
    ):
        with pytest.raises(ValueError, match=words):
            export(network, tmp_path / "out", image_size=8, calibration=wrong)
    assert not list(tmp_path.iterdir())


def test_logging_is_left_as_it_was(network: AnytimeNetwork, tmp_path: Path) -> None:
    level = logging.getLogger().level
    export(network, tmp_path / "out", image_size=8, calibration=torch.randn(2, 1, 8, 8))
    assert logging.getLogger().level == level


def test_errors_are_measured_on_something(network: AnytimeNetwork) -> None:
    session = open_session(network, backend="onnxruntime", threads=1)
    with pytest.raises(ValueError, match="found none"):
        stage_errors(session, [])
    assert np.isfinite(stage_errors(session, [(torch.zeros(1, 1, 8, 8), torch.zeros(1))])).all()
