"""Accepted inputs, and the errors for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anynest.data import DataError, make_loader
from anynest.data.dataset import FolderSplit
from anynest.data.readers.image_reader import ImageFileReader
from anynest.predict.inputs import ImageReader, needs_decoding
from anynest.predict.predictor import AnytimePredictor
from anynest.store import WeightsInfo

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def info(channels: int = 3, size: int = 8, **more: Any) -> WeightsInfo:
    return WeightsInfo(
        model="none",
        arguments={},
        classes=("cat", "dog", "eel", "fox"),
        mean=MEAN[:channels],
        std=STD[:channels],
        image_size=size,
        data="none",
        anynest="0",
        **more,
    )


@pytest.fixture
def reader() -> ImageReader:
    return ImageReader(3, info())


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floats_are_taken_as_they_are(reader: ImageReader, dtype: torch.dtype) -> None:
    for shape in ((3, 5, 7), (1, 3, 5, 7), (4, 3, 5, 7)):
        x = torch.randn(shape).to(dtype)
        for form in (x, x.numpy()):
            batch, single = reader(form)
            assert single == (len(shape) == 3)
            assert batch.dtype == torch.float32
            assert torch.equal(batch, x.float().reshape(-1, 3, 5, 7))


def test_bytes_in_another_order(reader: ImageReader) -> None:
    x = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    for order in "<>":
        batch, _ = reader(x.astype(x.dtype.newbyteorder(order)))
        assert torch.equal(batch[0], torch.from_numpy(x))


def test_inputs_are_copied(reader: ImageReader) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    batch, _ = reader(x)
    assert batch.data_ptr() != x.data_ptr()
    assert not batch.requires_grad
    array = np.zeros((3, 8, 8), np.float32)
    array.flags.writeable = False  # torch warns about these, and warnings are errors
    reader(array)


def test_raw_pixels_in_all_their_forms(reader: ImageReader, pixels: Tensor, tmp_path: Path) -> None:
    expected = normalised(pixels)
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    path = tmp_path / "a.png"
    image.save(path)
    for form in (pixels, array, image, path, str(path)):
        batch, single = reader(form)
        assert single
        torch.testing.assert_close(batch, expected.unsqueeze(0))
    many = torch.stack([pixels, 255 - pixels])
    batch, single = reader(many)
    assert not single
    torch.testing.assert_close(batch[1], normalised(255 - pixels))
    batch, single = reader([path, image, pixels, array, expected])
    assert (len(batch), single) == (5, False)
    for row in batch:
        torch.testing.assert_close(row, expected)


def test_other_sizes_are_made_as_an_evaluation_makes_them(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 21, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    split = FolderSplit((str(path),), torch.zeros(1, dtype=torch.int64), "test", 8)
    loader = make_loader(split, 1, train=False, mean=MEAN, std=STD)
    (expected, _), *_ = loader.batches(0)
    reader = ImageReader(3, info())
    for form in (path, array, torch.from_numpy(array).permute(2, 0, 1)):
        torch.testing.assert_close(reader(form)[0], expected)
    whole = ImageReader(3, info(fit="whole"))
    torch.testing.assert_close(whole(path)[0], ImageFileReader(8, MEAN, STD, "whole")(str(path)))
    assert not torch.equal(whole(path)[0], expected)


def test_grey(tmp_path: Path) -> None:
    reader = ImageReader(1, info(1))
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = ((torch.from_numpy(array) / 255 - MEAN[0]) / STD[0]).view(1, 1, 8, 8)
    for form in (array, array[:, :, None], Image.fromarray(array), torch.from_numpy(array)[None]):
        torch.testing.assert_close(reader(form)[0], expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(8, 8),
            r"images must be \[3, H, W\] or \[B, 3, H, W\] and not empty, found \[8, 8\]",
        ),
        (torch.zeros(1, 8, 8), r"found \[1, 8, 8\]"),
        (torch.zeros(8, 8, 3), r"found \[8, 8, 3\]"),
        (torch.zeros(0, 3, 8, 8), "not empty"),
        (torch.zeros(3, 0, 8), "not empty"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"or uint8 \(raw pixels\), found torch.int64"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "found torch.complex64"),
        (torch.full((3, 8, 8), float("nan")), "must be finite, found NaN"),
        (torch.full((3, 8, 8), float("inf")), "must be finite, found NaN or infinite"),
        (torch.full((3, 8, 8), 1e300, dtype=torch.float64), "must be finite"),
        (np.array(["a"]), "images must be numbers, found an array of <U1"),
        (np.array([None]), "images must be numbers, found an array of object"),
        pytest.param(
            np.zeros((3, 8, 8), np.longdouble),
            "have a dtype that torch has, found an array of float.*: pass x.astype",
            marks=pytest.mark.skipif(np.longdouble(1).nbytes == 8, reason="it is float64 here"),
        ),
        (np.zeros((2, 8, 8, 3), np.uint8), r"one image .* found \[2, 8, 8, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"found \[8, 8, 4\]"),
        (np.zeros((0, 8), np.uint8), r"found \[0, 8\]"),
        ([], "at least one image, found an empty list"),
        (torch.zeros(3, 8, 8, device="meta"), "dense tensors with values, found layout .* meta"),
        (torch.zeros(3, 8, 8).to_sparse(), "found layout torch.sparse_coo"),
        ([torch.zeros(2, 3, 8, 8)], "found a batch at index 0"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)], "one size, found 8x8, 9x8 pixels"),
        ("nowhere.png", "cannot read 'nowhere.png': No such file"),
        (Image.new("F", (8, 8)), "convertible to RGB, found F: the given image"),
    ],
)
def test_rejected_images(reader: ImageReader, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        reader(x)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("x", [None, 3, {"x": 3}])
def test_rejected_types(reader: ImageReader, x: Any) -> None:
    with pytest.raises(TypeError, match="images must be a tensor"):
        reader(x)


def test_damaged_pictures(reader: ImageReader, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as opened:
        for form in (tmp_path / "cut.png", opened):
            with pytest.raises(ValueError, match="cannot decode") as raised:
                reader(form)
            assert "on_corrupt" not in str(raised.value)  # of no use here


def test_files_are_refused_as_in_training(reader: ImageReader, tmp_path: Path) -> None:
    Image.new("RGB", (1, 500_000)).save(tmp_path / "elongated.png")
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    for path in sorted(tmp_path.iterdir()):
        split = FolderSplit((str(path),), torch.zeros(1, dtype=torch.int64), "train", 8)
        loader = make_loader(split, 1, train=False, mean=MEAN, std=STD)
        with pytest.raises(DataError) as trained:
            next(iter(loader.batches(0)))
        with pytest.raises(DataError) as predicted:
            reader(path)
        assert str(trained.value).startswith(str(predicted.value))
        with Image.open(path) as image, pytest.raises(DataError) as given:
            reader(image)
        assert str(given.value) == str(predicted.value).replace(str(path), "the given image")


def test_a_bare_network_knows_no_pictures(pixels: Tensor) -> None:
    for channels, form in ((3, pixels), (3, Image.new("RGB", (8, 8))), (3, [pixels])):
        with pytest.raises(ValueError, match="need the mean, std and size of the training images"):
            ImageReader(channels, None)(form)
    five = ImageReader(5, info(3))
    with pytest.raises(ValueError, match=r"1 channel \(grey\) or 3 \(RGB\), found a network of 5"):
        five(Image.new("RGB", (8, 8)))


def test_what_takes_time(pixels: Tensor) -> None:
    assert not needs_decoding(pixels)
    assert not needs_decoding(pixels.numpy())
    assert all(
        needs_decoding(form) for form in ("a.png", Path("a"), [pixels], Image.new("L", (1, 1)))
    )


def test_class_names(make_session: Any) -> None:
    with AnytimePredictor(make_session(), info=info(1, 2)) as predictor:
        one = predictor.predict(torch.full((1, 2, 2), 2.0), None)
        assert (one.names, one.label) == (("cat",), 0)
        two = predictor.predict(torch.full((2, 1, 2, 2), -2.0), None)
        assert two.names == ("dog", "dog")
        assert two.to_dict()["names"] == ["dog", "dog"]


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_other_sizes_are_fitted_as_in_the_weights(fit: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    info = WeightsInfo("m", {}, ("a", "b"), mean, std, 8, "d", "0", fit)
    expected = ImageFileReader(8, mean, std, fit)(str(tmp_path / "a.png"))
    for given in (tmp_path / "a.png", picture, np.array(picture)):
        found, single = ImageReader(3, info)(given)
        assert single
        assert torch.equal(found, expected)
    other = ImageFileReader(8, mean, std, "whole" if fit == "crop" else "crop")
    assert not torch.equal(other(str(tmp_path / "a.png")), expected)
