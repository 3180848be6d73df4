"""Opening networks, weights and exported folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

import anynest
from anynest import AnytimeNetwork, create_model
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.open import open_session
from anynest.predict.early_stopping.policies import MultiplyAdds
from anynest.predict.predictor import AnytimePredictor
from anynest.store import WeightsInfo, save_weights

CLASSES = tuple("abcde")


@pytest.fixture
def model() -> AnytimeNetwork:
    return create_model("width_nested_resnet10", num_classes=5, in_channels=1, base_width=2).eval()


@pytest.fixture
def weights(model: AnytimeNetwork, tmp_path: Path) -> Path:
    info = WeightsInfo(
        model=model.name,
        arguments=model.arguments,
        classes=CLASSES,
        mean=(0.4,),
        std=(0.3,),
        image_size=8,
        data="none",
        anynest="0",
    )
    save_weights(tmp_path / "weights.safetensors", model, info)
    return tmp_path


def test_the_public_name() -> None:
    assert anynest.AnytimePredictor is AnytimePredictor


@pytest.mark.parametrize("folder", [True, False])
def test_trained_weights_know_their_images_and_classes(
    model: AnytimeNetwork, weights: Path, folder: bool
) -> None:
    pixels = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    source = weights if folder else str(weights / "weights.safetensors")
    with AnytimePredictor(source, threads=1) as predictor:
        assert predictor.classes == CLASSES
        assert (predictor.num_stages, predictor.num_classes) == (3, 5)
        found = predictor.predict(pixels, None)
    with torch.no_grad():
        expected = model(((pixels / 255 - 0.4) / 0.3).unsqueeze(0))[-1][0]
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    assert found.names == (CLASSES[int(expected.argmax())],)


def test_an_exported_folder(model: AnytimeNetwork, weights: Path, tmp_path: Path) -> None:
    from anynest.engines.onnx.export.export import export

    export(weights, tmp_path / "out")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
    with AnytimePredictor(tmp_path / "out", threads=1) as predictor:
        assert predictor.session.backend == "onnxruntime"
        assert predictor.classes == CLASSES
        for prediction, reference in zip(predictor.stream(x), expected, strict=True):
            torch.testing.assert_close(prediction.logits, reference, rtol=1e-3, atol=1e-4)
        costs = [row.multiply_adds for row in model.cost(8)]
        assert predictor.multiply_adds(8, 8) == tuple(costs)
        assert predictor.predict(x, None, policy=MultiplyAdds(costs[1])).stage == 2
    with pytest.raises(ValueError, match="use backend='onnxruntime'"):
        AnytimePredictor(tmp_path / "out", "torch")


def test_a_part_of_a_network_has_costs_of_its_own(model: AnytimeNetwork) -> None:
    part = model.subnetwork(2)
    with AnytimePredictor(part) as predictor:
        assert predictor.num_stages == 1
        assert predictor.multiply_adds(8, 8) == (part.cost(8)[0].multiply_adds,)


def test_an_exported_part_has_no_costs(model: AnytimeNetwork, tmp_path: Path) -> None:
    """Its manifest has the architecture of the whole network, whose costs it does not have."""
    from anynest.engines.onnx.export.export import export

    export(model.subnetwork(2), tmp_path / "out", image_size=8)
    x = torch.randn(1, 8, 8)
    with AnytimePredictor(tmp_path / "out") as predictor:
        assert predictor.predict(x, None).stage == predictor.num_stages == 1
        assert predictor.multiply_adds(8, 8) is None
        with pytest.raises(ValueError, match="pass profile="):
            predictor.predict(x, None, policy=MultiplyAdds(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "abacus"}, ValueError, "backend must be one of onnxruntime, torch"),
        ({"threads": 0}, ValueError, "threads must be a positive integer or None, found 0"),
        ({"threads": 100_000}, ValueError, "threads must be at most 1024, found 100000"),
        ({"device": "quantum"}, ValueError, "device must be auto, cpu, cuda or mps, found 'quan"),
        ({"device": "meta"}, ValueError, "device 'meta' is not available here"),
        ({"device": "cuda:99"}, ValueError, "device 'cuda:99' is not available here: choose from"),
        (
            {"backend": "onnxruntime", "device": "cuda"},
            ValueError,
            "on the cpu, found device 'cuda'",
        ),
        ({"monotone": "up"}, ValueError, "monotone must be one of"),
        ({"source": None}, TypeError, "a network or a path|an AnytimeNetwork or a path"),
        ({"source": "nowhere"}, ValueError, "nowhere does not exist"),
        ({"source": torch.nn.Linear(1, 1)}, TypeError, "found Linear"),
        ({"profile": 3}, TypeError, "profile must be a Profile or a path, found 3"),
        ({"info": 3}, TypeError, "info must be a WeightsInfo, found 3"),
        ({"profile": "nowhere"}, ValueError, "cannot read the profile nowhere"),
    ],
)
def test_wrong_arguments(
    model: AnytimeNetwork, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = options.pop("source", model)
    with pytest.raises(error, match=message):
        AnytimePredictor(source, **options)
    if not {"threads", "device"}.isdisjoint(options):
        with pytest.raises(error, match=message):
            open_session(source, **options)


def test_the_backend_of_an_open_session(model: AnytimeNetwork) -> None:
    session = open_session(model, backend="onnxruntime")
    with AnytimePredictor(session, "onnxruntime") as predictor:
        assert predictor.session is session
    with pytest.raises(ValueError, match="that of the session, onnxruntime, found torch: leave it"):
        AnytimePredictor(session, "torch")


def test_devices_by_any_name(model: AnytimeNetwork) -> None:
    x = torch.randn(1, 8, 8)
    for device in ("cpu", torch.device("cpu")):
        with AnytimePredictor(model, device=device) as predictor:
            assert predictor._opened.way == ("onnxruntime", "cpu", 1)
            assert predictor.predict(x, None).stage == 3
    assert isinstance(open_session(model, device="auto"), OnnxSession)


def test_a_pruned_network_is_called_by_its_modules() -> None:
    """Unless a backend that cannot do so is asked for: that is an error in one line."""
    network = create_model("width_nested_resnet10").eval()
    prune.random_unstructured(network.get_submodule("group1.layer1.stage1.conv1"), "weight", 0.5)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = [logits for _, logits in network.stages(x)]
    with AnytimePredictor(network) as predictor:
        found = [prediction.logits for prediction in predictor.stream(x)]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"stage1\.conv1 must be a plain Conv2d"):
        AnytimePredictor(network, backend="onnxruntime")
