"""What a served model takes and gives: prepared as in training, bit for bit; one size; one line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anynest.data import load as load_data
from anynest.data.augment import Normalize
from anynest.data.readers.image_reader import ImageFileReader
from anynest.engines.session import stages
from anynest.nets import create_model
from anynest.nets.pretrained import read_card
from anynest.predict import Confidence, SavedPolicy
from anynest.predict.early_stopping.saved_policy import revision_of
from anynest.serving.models import ServedModel, _errors
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.warm_up import warm_up
from anynest.store import WeightsInfo, save_weights

from .fakes import FakeSession, fake_model

MANY = 1 << 20  # pixels
TRAINED = "cifar10-jpeg75-16px"  # weights of the package
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def info(channels: int = 3, **given: Any) -> WeightsInfo:
    values: dict[str, Any] = {
        "model": "width_nested_resnet10",
        "arguments": {"in_channels": channels},
        "classes": tuple(f"class {n}" for n in range(10)),
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "image_size": 8,
        "data": "test",
        "anynest": "0",
    }
    return WeightsInfo(**{**values, **given})


class Images(FakeSession):
    in_channels = 3
    num_classes = 10


def model(channels: int = 3, **given: Any) -> ServedModel:
    session = Images()
    session.in_channels = channels  # type: ignore[assignment]
    about = info(channels, **given)
    side = about.image_size
    return ServedModel("net", "1", session, {"x": torch.zeros(1, channels, side, side)}, about)


def picture(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def encoded(*pictures: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    array = np.empty(len(pictures), object)
    array[:] = pictures
    return array.reshape(shape or (len(pictures),))


# -- images ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("fit", ["crop", "whole"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_prepared_as_in_an_evaluation_of_the_training(
    channels: int, fit: str, tmp_path: Path
) -> None:
    """The same bits as the reader of image files, which evaluations use."""
    mode = "L" if channels == 1 else "RGB"
    files = [
        picture(8, 8, mode=mode),
        picture(23, 11, mode=mode),
        picture(9, 40, "JPEG", mode),
        picture(64, 64, "WEBP" if channels == 3 else "BMP", mode),
    ]
    reader = ImageFileReader(8, MEAN[:channels], STD[:channels], fit)
    wanted = []
    for number, data in enumerate(files):
        path = tmp_path / str(number)
        path.write_bytes(data)
        wanted.append(reader(str(path)))
    served = model(channels, fit=fit)
    for shape in ((4,), (4, 1)):
        found = served.read({"x": encoded(*files, shape=shape)}, MANY)["x"]
        assert torch.equal(found, torch.cat(wanted))


def test_raw_pixels_in_both_orders_are_normalised_as_in_training() -> None:
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    wanted = Normalize(MEAN, STD, torch.device("cpu"), False)(pixels)
    served = model()
    assert torch.equal(served.read({"x": pixels.numpy()}, 1)["x"], wanted)
    last = pixels.permute(0, 2, 3, 1).numpy()
    found = served.read({"x": last}, 1)["x"]
    assert torch.equal(found, wanted)
    assert found.is_contiguous()


def test_where_both_orders_fit_it_is_channels_first() -> None:
    served = model(image_size=3)
    pixels = torch.randint(0, 256, (2, 3, 3, 3), dtype=torch.uint8)
    wanted = Normalize(MEAN, STD, torch.device("cpu"), False)(pixels)
    assert torch.equal(served.read({"x": pixels.numpy()}, 1)["x"], wanted)


def test_normalised_images_are_taken_as_they_are() -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    read_only = np.frombuffer(images.tobytes(), np.float32).reshape(images.shape)
    found = model().read({"x": read_only}, 1)["x"]
    assert torch.equal(found, torch.from_numpy(images))


def test_pixels_are_bounded_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    served = model()
    data = picture(40, 20)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ProtocolError, match="at most 799 pixels, found 40x20; make it") as found:
        served.read({"x": encoded(data)}, 799)
    assert found.value.status == 413


def test_pictures_for_nobody_are_not_decoded() -> None:
    asked: list[int] = []

    def is_over() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    with pytest.raises(ProtocolError, match="over before picture 2 was decoded") as found:
        model().read({"x": encoded(*[picture(8, 8)] * 3, b"not reached")}, MANY, is_over)
    assert found.value.status == 504


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({}, "inputs must be x, found"),
    "another name": ({"y": np.zeros((1, 3, 8, 8), np.float32)}, "inputs must be x, found y"),
    "two": (
        {n: np.zeros((1, 3, 8, 8), np.float32) for n in "xy"},
        "inputs must be x, found x, y",
    ),
    "no rows": ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "one batch of at least 1"),
    "no dimensions": ({"x": np.zeros((), np.float32)}, "one batch of at least 1"),
    "size": (
        {"x": np.zeros((1, 3, 9, 8), np.float32)},
        r"x must be \[rows, 3, 8, 8\], as the model serves, found \[1, 3, 9, 8\]",
    ),
    "raw size": ({"x": np.zeros((1, 3, 9, 8), np.uint8)}, "or .rows, 8, 8, 3., found .1, 3, 9, 8"),
    "raw dimensions": ({"x": np.zeros((8, 8, 3), np.uint8)}, "raw images must be .rows, 3, 8, 8."),
    "double": ({"x": np.zeros((1, 3, 8, 8))}, "must be FP32, found FP64: x may be FP32, UINT8"),
    "integers": ({"x": np.zeros((1, 3, 8, 8), np.int64)}, "x must be FP32, found INT64"),
    "NaN": ({"x": np.full((1, 3, 8, 8), np.nan, np.float32)}, "must be finite"),
    "no picture": ({"x": encoded(b"GIF89a no")}, "x: cannot decode picture 0"),
    "empty": ({"x": encoded(b"")}, "x: cannot decode picture 0"),
    "second": ({"x": encoded(picture(8, 8), b"?")}, "x: cannot decode picture 1"),
    "truncated": ({"x": encoded(picture(40, 40)[:200])}, "x: cannot decode picture 0"),
    "elongated": ({"x": encoded(picture(1, 400_000))}, "x: images must not be so elongated"),
    "shape": ({"x": encoded(*[picture(8, 8)] * 2, shape=(1, 2))}, "must be .rows. or .rows, 1."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(ProtocolError, match=message) as found:
        model().read(given, MANY)
    assert found.value.status == 400
    assert "\n" not in str(found.value)


def test_a_bare_network_takes_normalised_images_alone() -> None:
    served = ServedModel("net", "1", Images(), {"x": torch.zeros(1, 3, 8, 8)})
    assert served.datatypes == ("FP32",)
    for array, message in (
        (np.zeros((1, 3, 8, 8), np.uint8), "raw images need the mean and std"),
        (encoded(picture(8, 8)), "encoded pictures need"),
    ):
        with pytest.raises(ProtocolError, match=message):
            served.read({"x": array}, MANY)
    assert model().datatypes == ("FP32", "UINT8", "BYTES")


# -- other networks -------------------------------------------------------------------------------
class Tokens(FakeSession):
    input_names = ("ids", "weight")  # type: ignore[assignment]
    num_classes = None  # type: ignore[assignment]


def tokens() -> ServedModel:
    example = {"ids": torch.zeros(2, 4, dtype=torch.int64), "weight": torch.zeros(2)}
    return ServedModel("tokens", "1", Tokens(), example)


def test_named_tensors_of_other_networks() -> None:
    served = tokens()
    ids, weight = np.arange(12).reshape(3, 4), np.ones(3, np.float32)
    found = served.read({"weight": weight, "ids": ids}, 1)
    assert list(found) == ["ids", "weight"]
    assert torch.equal(found["ids"], torch.arange(12).view(3, 4))
    assert found["weight"].dtype == torch.float32
    assert served.rows({"weight": weight, "ids": ids}) == 3
    assert served.datatypes == ("INT64", "FP32")
    for given, message in (
        ({"ids": ids}, "inputs must be ids, weight, found ids"),
        ({"ids": ids, "weight": weight[:2]}, r"one batch.*ids \[3, 4\], weight \[2\]"),
        ({"ids": ids.astype(np.int32), "weight": weight}, "ids must be INT64, found INT32"),
        ({"ids": ids[:, :3], "weight": weight}, r"ids must be \[rows, 4\]"),
        ({"ids": ids, "weight": encoded(b"1", b"2", b"3")}, "weight must be FP32, found BYTES"),
    ):
        with pytest.raises(ProtocolError, match=message):
            served.read(given, 1)


def test_outputs() -> None:
    served = model()
    logits = torch.randn(3, 10) * 100
    found = served.outputs(logits, 2)
    probabilities = logits.softmax(1)
    np.testing.assert_allclose(found["probabilities"], probabilities.numpy(), rtol=1e-5, atol=1e-30)
    assert np.array_equal(found["logits"], logits.numpy())
    best = logits.argmax(1).tolist()
    assert found["label"].tolist() == [f"class {index}".encode() for index in best]
    np.testing.assert_allclose(found["confidence"], probabilities.amax(1).numpy(), rtol=1e-5)
    assert found["stage"].tolist() == [2, 2, 2]
    assert {name: array.dtype.str for name, array in found.items()} == {
        "probabilities": "<f4",
        "logits": "<f4",
        "label": "|O",
        "confidence": "<f4",
        "stage": "<i4",
    }
    described = {one["name"]: one for one in served.metadata()["outputs"]}
    assert list(described) == list(found)
    for name, array in found.items():
        assert described[name]["shape"][1:] == list(array.shape[1:])
    unnamed = ServedModel("net", "1", Images(), {"x": torch.zeros(1, 3, 8, 8)})
    assert unnamed.outputs(logits, 1)["label"].tolist() == [str(index).encode() for index in best]
    other = tokens().outputs(torch.ones(2, 4, 5), 1)
    assert list(other) == ["output", "stage"]
    assert other["output"].shape == (2, 4, 5)


def test_descriptions() -> None:
    served = model()
    metadata = served.metadata(("1", "3"))
    assert (metadata["name"], metadata["versions"]) == ("net", ["1", "3"])
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    config = fake_model(FakeSession()).config()
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}]
    label = next(one for one in served.config()["output"] if one["name"] == "label")
    assert label["data_type"] == "TYPE_STRING"
    json.dumps([metadata, config], allow_nan=False)


def test_the_least_rows_of_a_body() -> None:
    plain = model(channels=2)  # not the channels of a picture
    row = 2 * 8 * 8 * 4
    for rows in (1, 4, 9):
        assert plain.least_rows(100 + rows * row, 100) == rows
        assert plain.least_rows(100 + rows * row + row - 1, 100) == rows
        assert plain.least_rows(100 + rows * row) == 1  # JSON: a number has any length
        assert model().least_rows(100 + rows * row, 100) == 1  # a picture has any size
    assert plain.least_rows(0) == plain.least_rows(5, 5) == 1


# -- sources --------------------------------------------------------------------------------------
def saved(folder: Path, errors: Any) -> Path:
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10", in_channels=3)
    save_weights(folder / "weights.safetensors", network, info())
    (folder / "summary.json").write_text(json.dumps({"validation": {"error": errors}}))
    return folder


def test_a_run_folder_brings_its_classes_and_its_gains(tmp_path: Path) -> None:
    served = ServedModel.open("net", "2", saved(tmp_path, [0.4, 0.2, 0.1]))
    try:
        assert (served.name, served.version, served.num_stages) == ("net", "2", 3)
        assert served.labels == info().classes
        assert len(served.revision) == 12
        assert served.gains.first == pytest.approx(0.6)
        # half of the errors of stage 1 are corrected by stage 2
        assert served.gains(2, 0.1) == pytest.approx(0.5 * 0.9)
        assert served.example["x"].shape == (1, 3, 8, 8)
    finally:
        served.close()


def test_a_saved_policy_is_read_on_request_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, [0.4, 0.2, 0.1])
    with pytest.raises(ValueError, match="`anynest calibrate` writes one"):
        ServedModel.open("net", "1", folder, saved_policy=True)
    policy = SavedPolicy((0.9, 0.8), "goal", revision_of(folder), "net", "test", "validation")
    policy.save(folder / "policy.json")
    served = ServedModel.open("net", "1", folder)
    assert served.policy is None
    assert "policy" not in served.config()["parameters"]
    served.close()
    served = ServedModel.open("net", "1", folder, saved_policy=True)
    assert served.policy == Confidence((0.9, 0.8))
    shown = served.config()["parameters"]["policy"]["string_value"]
    assert json.loads(shown) == {"confidence": [0.9, 0.8]}
    served.close()
    replace(policy, thresholds=(0.9,)).save(folder / "policy.json")
    with pytest.raises(ValueError, match="one for each of the stages 1 to 2, found 1"):
        ServedModel.open("net", "1", folder, saved_policy=True)
    replace(policy, revision="0").save(folder / "policy.json")
    with pytest.raises(ValueError, match="must be calibrated for these weights"):
        ServedModel.open("net", "1", folder, saved_policy=True)


@pytest.mark.parametrize("errors", [None, [0.4, 0.2], [0.4, "x", 0.1], [0.1, 0.2, 7], "abc"])
def test_a_summary_without_sound_errors_is_passed_over(errors: Any, tmp_path: Path) -> None:
    assert _errors(tmp_path, 3) is None
    (tmp_path / "summary.json").write_text(json.dumps({"validation": {"error": errors}}))
    assert _errors(tmp_path, 3) is None


def test_trained_weights_of_the_package_are_served_by_name(real_parquet: Path) -> None:
    """Real pictures, as a client sends them: each stage is as good as the card says."""
    card = read_card(TRAINED)
    served = ServedModel.open("net", "1", TRAINED)
    assert served.gains.first == pytest.approx(1 - card["held_out_error"][0])
    data, count = load_data(str(real_parquet)), 256
    split = data.test
    pictures = []
    for pixels in split.images[:count].numpy():
        stream = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    images = served.read({"x": encoded(*pictures)}, MANY)["x"]
    evaluation = served.session.begin(images)
    found = []
    for stage, logits in stages(evaluation):
        given = served.outputs(logits, stage, {"label"})["label"]
        truth = [data.classes[label] for label in split.labels[:count].tolist()]
        wrong = [name.decode() != right for name, right in zip(given, truth, strict=True)]
        found.append(sum(wrong) / count)
    served.close()
    for error, told in zip(found, card["error"], strict=True):
        assert abs(error - told) < 4 * (told * (1 - told) / count) ** 0.5
    assert found[0] > found[-1]


def test_a_network_without_a_known_size_is_refused() -> None:
    network = create_model("width_nested_resnet10").eval()
    with pytest.raises(ValueError, match="sizes of the network's inputs must be known: serve a"):
        ServedModel.open("net", "1", network)
    served = ServedModel.open("net", "1", network, info=info())
    assert served.labels == info().classes
    served.close()


def test_an_example_of_any_network() -> None:
    class Net(torch.nn.Module):
        num_stages = 1
        num_classes = 3
        example_inputs = (torch.zeros(2, 5),)

        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(5, 3)

        def forward(self, features: Tensor) -> list[Tensor]:
            return [self.body(features)]

        def stages(self, features: Tensor) -> Any:
            yield 1, self.body(features)

    served = ServedModel.open("net", "1", Net())
    assert {name: list(value.shape) for name, value in served.example.items()} == {
        "features": [1, 5]
    }
    served.close()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_warm_up_decodes_pictures(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders load on first use, which takes longer than a deadline."""
    served, found = model(channels), []
    prepare = served._decode

    def noted(name: str, array: Any, *rest: Any) -> Tensor:
        found.extend(Image.open(io.BytesIO(data)).format for data in array)
        return prepare(name, array, *rest)

    monkeypatch.setattr(served, "_decode", noted)
    monkeypatch.setattr("anynest.serving.warm_up._run", lambda model, size: [0.001] * 3)
    warm_up(served, 1)
    assert {"PNG", "JPEG"} <= set(found)
    assert served.times is not None
