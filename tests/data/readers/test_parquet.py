"""The Hub's Parquet layout, and the honest name of what lies in it."""

import dataclasses
import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anynest.data import DataError, identity, load, names
from anynest.data.readers import decode
from anynest.data.readers.parquet import find_shards, lossy

Make = Callable[..., Path]


def fails(place: Path, *parts: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        load(place, **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_cifar10_schema(make_parquet: Make) -> None:
    data = load(make_parquet(), holdout=0)
    expected = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), expected)
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [i % 10 for i in range(60)]
    assert data.classes == names.CIFAR10
    assert data.label == "CIFAR-10 (partial)"


def test_cifar100_schema(make_parquet: Make) -> None:
    data = load(make_parquet(label="fine_label", classes=names.CIFAR100, n=(200, 100)), holdout=0)
    assert data.label == "CIFAR-100 (partial)"
    assert data.num_classes == 100
    assert data.train.labels.tolist() == [i % 100 for i in range(200)]


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 95, 100])
def test_jpeg_is_named_with_its_quality(make_parquet: Make, quality: int) -> None:
    data = load(make_parquet(kind="JPEG", quality=quality))
    assert data.label == f"CIFAR-10 (JPEG-{quality}, partial)"


def test_one_jpeg_among_many_is_told(make_parquet: Make) -> None:
    def edit(rows: list[dict[str, object]]) -> None:
        stream = io.BytesIO()
        Image.open(io.BytesIO(rows[5]["bytes"])).save(stream, "JPEG", quality=90)
        rows[5]["bytes"] = stream.getvalue()

    assert load(make_parquet(edit=edit)).label == "CIFAR-10 (partly JPEG-90, partial)"


def test_one_split_of_jpeg_is_told() -> None:
    assert lossy([Counter(PNG=9), Counter({"JPEG-75": 3})]) == ["partly JPEG-75"]
    assert lossy([Counter({"JPEG-75": 9}), Counter({"JPEG-90": 3})]) == ["JPEG-75/JPEG-90"]


@pytest.mark.parametrize("quality", range(1, 101))
def test_every_quality_is_found(quality: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality)
    assert decode.jpeg_quality(Image.open(stream)) == quality


def test_own_quantisation_table_is_no_quality() -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG", qtables=[[7] * 64])
    assert decode.jpeg_quality(Image.open(stream)) is None


def test_other_sets_keep_their_own_name(make_parquet: Make) -> None:
    made = make_parquet(classes=("a", "b", "c"), image="image", folder="flowers")
    data = load(made)
    assert (data.label, data.classes) == ("flowers", ("a", "b", "c"))
    assert load(made, name="tulips").label == "tulips"
    grey = load(make_parquet(shape=(28, 28), metadata=False, folder="grey"))
    assert (grey.label, grey.in_channels, grey.classes) == ("grey", 1, names.MNIST)


def test_fashion_mnist_by_the_hubs_names(make_parquet: Make) -> None:
    classes = ("T - shirt / top", *names.FASHION_MNIST[1:])
    data = load(make_parquet(shape=(28, 28), classes=classes, image="image"))
    assert data.label == "Fashion-MNIST (partial)"


def test_a_given_name_hides_no_loss(make_parquet: Make) -> None:
    assert load(make_parquet(kind="JPEG", quality=75), name="X").label == "X (JPEG-75, partial)"


def test_found_one_folder_below_and_by_file(make_parquet: Make) -> None:
    place = make_parquet(folder="repository/plain_text")
    assert len(load(place.parent, holdout=0).train) == 60
    assert len(load(place / "test-00000-of-00001.parquet", holdout=0).train) == 60
    make_parquet(folder="repository/other")
    fails(place.parent, "several sets (other, plain_text)")


def test_names_that_only_begin_like_a_split(tmp_path: Path) -> None:
    sound = {
        split: [tmp_path / f"{stem}-00000-of-00001.parquet"]
        for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    for (file,) in sound.values():
        file.touch()
    for other in ("trainer-notes", "devices", "values", "testimony"):
        (tmp_path / f"{other}.parquet").touch()
    assert find_shards(tmp_path) == sound


def test_shards_are_joined_in_order(make_parquet: Make) -> None:
    place = make_parquet(files=("train-00000-of-00002.parquet", "test.parquet"))
    fails(place, "shards", "found 1 of 00002")
    make_parquet(n=(30, 20), files=("train-00001-of-00002.parquet", "test.parquet"))
    data = load(place, holdout=0)
    assert len(data.train) == 90
    assert torch.equal(data.train.images[:30], data.train.images[60:])


def test_no_test_file(make_parquet: Make) -> None:
    place = make_parquet(files=("train.parquet", "test.parquet"))
    (place / "test.parquet").unlink()
    fails(place, "needs a test*.parquet")


def test_validation_file(make_parquet: Make) -> None:
    place = make_parquet(files=("train.parquet", "validation.parquet"))
    data = load(place, holdout=0)
    assert len(data.test) == 20
    make_parquet(files=("train.parquet", "test.parquet"), n=(60, 7))
    data = load(place)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [60, 20, 7]


def test_truncated(make_parquet: Make) -> None:
    place = make_parquet()
    file = place / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    fails(place, "cannot read", str(file), "truncated")
    file.write_bytes(b"")
    fails(place, "cannot read", str(file))


def _break(*rows_to_break: int) -> Callable[[list[dict[str, object]]], None]:
    def edit(rows: list[dict[str, object]]) -> None:
        for i in rows_to_break:
            rows[i]["bytes"] = rows[i]["bytes"][: 200 if i % 2 else 3]

    return edit


def test_undecodable_images(make_parquet: Make) -> None:
    place = make_parquet(edit=_break(0, 5, 8))
    fails(place, "cannot decode", "row 0 (0.img)", "on_corrupt")
    data = load(place, on_corrupt="skip", holdout=0)
    assert (len(data.train), data.skipped) == (57, 3)
    kept = [i for i in range(60) if i not in (0, 5, 8)]
    assert data.train.labels.tolist() == [i % 10 for i in kept]
    expected = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), expected[kept])
    assert "3 undecodable skipped" in str(data)
    assert data.describe()["skipped"] == 3


def test_the_row_is_named_within_its_shard(make_parquet: Make) -> None:
    place = make_parquet(files=("train-00000-of-00002.parquet", "test.parquet"))
    make_parquet(edit=_break(7), files=("train-00001-of-00002.parquet", "test.parquet"))
    fails(place, "train-00001-of-00002.parquet row 7 (7.img)")


def test_nothing_decodable(make_parquet: Make) -> None:
    place = make_parquet(edit=_break(*range(60)))
    fails(place, "none of the 60 images can be decoded", on_corrupt="skip")


def test_no_bytes(make_parquet: Make) -> None:
    fails(make_parquet(edit=lambda rows: rows[3].update(bytes=None)), "row 3", "no image bytes")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_wrong_channels(make_parquet: Make, mode: str) -> None:
    def edit(rows: list[dict[str, object]]) -> None:
        stream = io.BytesIO()
        Image.new(mode, (32, 32)).save(stream, "PNG")
        rows[4]["bytes"] = stream.getvalue()

    place = make_parquet(edit=edit)
    for on_corrupt in ("raise", "skip"):
        fails(place, f"wrong channels ({mode})", "row 4", on_corrupt=on_corrupt)


def test_sizes_differ(make_parquet: Make) -> None:
    def edit(rows: list[dict[str, object]]) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (40, 30), (9, 8, 7)).save(stream, "PNG")
        rows[2]["bytes"] = stream.getvalue()

    place = make_parquet(edit=edit)
    fails(place, "32x32", "found 40x30", "row 2", "image_size")
    data = load(place, image_size=16, holdout=0)
    assert data.train.images.shape == (60, 3, 16, 16)
    assert data.train.images[2].flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]
    assert data.label == "set (resized to 16)"
    data = load(place, image_size=32)
    assert data.label == "set (resized to 32)"  # though most came in that size


def test_a_resized_set_keeps_its_name(make_parquet: Make) -> None:
    place = make_parquet(kind="JPEG", quality=75)
    assert load(place, image_size=8).label == "CIFAR-10 (JPEG-75, partial, resized to 8)"
    assert load(place, image_size=32).label == "CIFAR-10 (JPEG-75, partial)"


def test_a_resized_set_keeps_its_mirror_flag(
    make_parquet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(identity.MNIST, sizes=(60, 20))
    monkeypatch.setattr(identity, "KNOWN", (few,))
    monkeypatch.setattr(identity, "MNIST", few)
    place = make_parquet(shape=(28, 28), classes=names.MNIST, image="image")
    data = load(place, image_size=14)
    assert (data.label, data.train.mirror) == ("MNIST (resized to 14)", False)


def test_labels_out_of_range(make_parquet: Make) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = make_parquet()
    file = place / "test-00000-of-00001.parquet"
    table = pq.read_table(file)
    for value, message in ((10, "0..9, found 10"), (-1, "0..9, found -1"), (None, "whole numbers")):
        column = pa.array([value, *table["label"].to_pylist()[1:]], pa.int64())
        pq.write_table(table.set_column(1, "label", column), file)
        fails(place, message)


def test_other_schema(make_parquet: Make) -> None:
    fails(make_parquet(image="picture"), "image column named img or image, found picture, label")
    fails(make_parquet(label="class", folder="b"), "label column", "found img, class")


def test_a_picture_of_too_many_pixels(make_parquet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet()
    for limit in (1000, 200):  # a warning of Pillow's above it, an error above twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        fails(place, f"at most {limit} pixels", "row 0")


def test_without_pyarrow(make_parquet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    fails(place, "pip install 'anynest[parquet]'")


def test_the_real_set_resized(real_parquet: Path) -> None:
    assert load(real_parquet, image_size=8).label == "CIFAR-10 (JPEG-75, resized to 8)"


def test_the_real_set(real_parquet: Path) -> None:
    data = load(real_parquet)
    assert data.label == "CIFAR-10 (JPEG-75)"
    assert data.classes == names.CIFAR10
    assert [len(s) for s in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.std == pytest.approx((0.247, 0.2435, 0.2616), abs=4e-3)
