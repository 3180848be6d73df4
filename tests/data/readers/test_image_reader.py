"""Single image files: the same pixels as in an evaluation, or one line that names the file."""

import contextlib
import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from anynest.data import DataError, load, make_loader
from anynest.data.readers.decode_images import decode_all
from anynest.data.readers.image_reader import ImageFileReader, open_image

RGB = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", [16, 80])
def test_as_the_evaluation_of_an_image_folder(size: int, tmp_path: Path) -> None:
    """80 is above the sizes that are not enlarged before the crop."""
    sizes = [(20, 30), (90, 41), (16, 16), (80, 80), (100, 101), (7, 9)]
    for split in ("train", "val"):
        for number, (width, height) in enumerate(sizes):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            suffix = ".png" if number % 3 else ".jpg"
            image = noise(width, height, "L" if number == 4 else "RGB", number)
            image.save(folder / f"{number}{suffix}")
    data = load(tmp_path, image_size=size)
    loader = make_loader(data.test, 4, train=False, mean=data.mean, std=data.std)
    expected = torch.cat([images for images, _ in loader.batches(0)])
    reader = ImageFileReader(size, data.mean, data.std, "crop")
    assert torch.equal(torch.cat([reader(path) for path in data.test.paths]), expected)


def test_as_the_evaluation_of_a_set_in_memory(tmp_path: Path) -> None:
    data = load("digits")
    loader = make_loader(data.test, 360, train=False, mean=data.mean, std=data.std)
    ((expected, _),) = loader.batches(0)
    reader = ImageFileReader(8, data.mean, data.std, "whole")
    for number in (0, 17, 359):
        file = tmp_path / f"{number}.png"
        Image.fromarray(data.test.images[number, 0].numpy()).save(file)
        assert torch.equal(reader(str(file)), expected[number : number + 1])


def test_as_a_set_that_was_resized(tmp_path: Path) -> None:
    encoded, paths = [], []
    for number, (width, height) in enumerate([(20, 30), (16, 16), (64, 33)]):
        buffer = io.BytesIO()
        noise(width, height, seed=number).save(buffer, "png")
        encoded.append(buffer.getvalue())
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(encoded[-1])
    expected = decode_all(encoded, str, "raise", 16, 3).images
    reader = ImageFileReader(16, *RGB, "whole")
    for path, image in zip(paths, expected, strict=True):
        assert torch.equal(reader.pixels(str(path)), image)
    crop = ImageFileReader(16, *RGB, "crop")
    assert not torch.equal(crop.pixels(str(paths[0])), expected[0])
    assert torch.equal(crop.pixels(str(paths[1])), expected[1])


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_modes_that_become_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    image = noise(8, 8, "L")
    if mode == "I;16":
        Image.fromarray(np.asarray(image).astype(np.uint16) << 8).save(file)
    else:
        image.convert(mode).save(file)
    with Image.open(file) as opened:
        assert opened.mode == mode
    pixels = ImageFileReader(8, *RGB).pixels(str(file))
    assert pixels.shape == (3, 8, 8)
    if mode in ("L", "I;16"):
        assert torch.equal(pixels[1], torch.from_numpy(np.array(image)))


@pytest.mark.parametrize(("depth", "suffix"), [(8, "png"), (12, "png"), (16, "png"), (12, "tif")])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_of_16_bit_grey(depth: int, suffix: str, channels: int, tmp_path: Path) -> None:
    """Values of 12 bits, as cameras write them, are not nearly black."""
    values = (np.arange(64, dtype=np.uint16).reshape(8, 8) << (depth - 6)) + 1
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    statistics = (0.5,) * channels
    pixels = ImageFileReader(8, statistics, statistics).pixels(str(tmp_path / f"a.{suffix}"))
    wanted = (values >> (depth - 8)).astype(np.uint8)
    assert np.array_equal(pixels.numpy(), np.broadcast_to(wanted, (channels, 8, 8)))


@pytest.mark.parametrize("mode", ["1", "LA", "I;16"])
def test_grey_modes_for_a_grey_network(mode: str, tmp_path: Path) -> None:
    image = noise(8, 8, "L")
    if mode == "I;16":
        made = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
    else:
        made = image.convert(mode)
    made.save(tmp_path / "a.png")
    pixels = ImageFileReader(8, (0.5,), (0.5,)).pixels(str(tmp_path / "a.png"))
    expected = image if mode != "1" else image.convert("1").convert("L")
    assert torch.equal(pixels[0], torch.from_numpy(np.array(expected)))


def write_huge(file: Path) -> None:
    """A PNG whose header states 10,000 x 10,000 pixels."""
    noise(8, 8).save(file)
    data = bytearray(file.read_bytes())
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.write_bytes(data)


def refused(path: Path | str, grey: bool = False, fit: str = "crop") -> str:
    reader = ImageFileReader(8, *(((0.5,), (0.5,)) if grey else RGB), fit)
    with pytest.raises(DataError) as caught:
        reader(str(path))
    assert "\n" not in str(caught.value)
    assert "on-corrupt" not in str(caught.value)
    assert str(path).strip("\0") in str(caught.value)
    return str(caught.value)


def test_one_line_for_each_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert "No such file" in refused(file)
    assert "not a regular file" in refused(tmp_path)
    file.write_bytes(b"")
    assert "the file is empty" in refused(file)
    file.write_bytes(b"no picture")
    assert "no known image format" in refused(file)
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop")
    assert "no known image format" in refused(file)  # a program, which Ghostscript would run
    noise(30, 30).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot decode" in refused(file)
    write_huge(file)
    assert "images must have at most 89478485 pixels" in refused(file)
    Image.new("1", (1_000_000, 1)).save(file)
    assert "elongated" in refused(file)
    ImageFileReader(8, *RGB, "whole").pixels(str(file))  # resized as a whole it does no harm
    for wrong in (str(file) + "/b.png", "a" * 5000):
        assert "cannot read" in refused(wrong)
    with pytest.raises(DataError, match="cannot read"):
        ImageFileReader(8, *RGB)("a\0b")


def test_warning_filters_stay_as_they_are(tmp_path: Path) -> None:
    """All threads share one list of filters, so it must not change, even for a moment."""
    file = tmp_path / "a.png"
    noise(8, 8).save(file)
    before = list(warnings.filters)
    first, second = open_image(str(file)), open_image(str(file))
    with first:
        second.__enter__()
        assert warnings.filters == before
    second.__exit__(None, None, None)
    assert warnings.filters == before
    write_huge(file)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        assert "images must have at most 89478485 pixels" in refused(file)
    assert not raised


def test_every_format_opens_as_in_pillow(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff", "ico", "tga", "pcx", "sgi", "ppm"):
        file = tmp_path / f"a.{suffix}"
        noise(16, 16).save(file)
        with Image.open(file) as theirs, open_image(str(file)) as ours:
            assert type(ours) is type(theirs)
            assert ours.tobytes() == theirs.tobytes()


def test_colours_for_a_grey_network(tmp_path: Path) -> None:
    file = tmp_path / "a.tiff"
    noise(8, 8).save(file)
    assert "must be grey (L), found RGB" in refused(file, grey=True)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
    assert "must be convertible to RGB, found F" in refused(file)
    assert "found F" in refused(file, grey=True)
    with pytest.raises(DataError, match="found a network of 2"):
        ImageFileReader(8, (0.5, 0.5), (0.5, 0.5))


def test_modes_without_a_conversion() -> None:
    reader = ImageFileReader(8, *RGB)
    with pytest.raises(DataError, match="must be convertible to RGB, found La: it"):
        reader.of_image(Image.new("La", (8, 8)), "it")
    for low, high in ((-1, 3), (0, 1 << 16)):
        image = Image.fromarray(np.array([[low, high]], np.int32))
        with pytest.raises(DataError, match=rf"lie in 0\.\.65535, found {low}\.\.{high}: it"):
            reader.of_image(image, "it")


@pytest.mark.parametrize("method", ["load", "convert"])
def test_too_little_memory(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    noise(8, 8, "L").save(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, method, fail)
    assert "a.png: too little memory" in refused(tmp_path / "a.png")


def test_a_format_that_pillow_was_built_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(8, 8).save(tmp_path / "a.webp")
    reason = "image file could not be identified because WEBP support not installed"
    for name, (factory, accept) in Image.OPEN.items():
        wrapped = (lambda prefix: reason) if name == "WEBP" else accept
        monkeypatch.setitem(Image.OPEN, name, (factory, wrapped))
    assert "WEBP support not installed" in refused(tmp_path / "a.webp")


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_an_image_without_pixels(fit: str) -> None:
    with pytest.raises(DataError, match="images must have pixels, found 0x3: the given image"):
        ImageFileReader(8, *RGB, fit).of_image(Image.new("RGB", (0, 3)), "the given image")


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(tmp_path / "pipe.png")


def test_hostile_bytes_end_in_one_line(tmp_path: Path) -> None:
    """Every format's file with bytes changed at random: an image, or DataError."""
    draw = random.Random(0)
    reader = ImageFileReader(8, *RGB)
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        file = tmp_path / f"a.{suffix}"
        noise(12, 12).save(file)
        whole = file.read_bytes()
        for _ in range(20):
            data = bytearray(whole)
            for _ in range(draw.randrange(1, 12)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            file.write_bytes(data[: draw.randrange(1, len(data) + 1)])
            with contextlib.suppress(DataError):
                assert reader.pixels(str(file)).shape == (3, 8, 8)
