"""Parquet sets: rows and columns, agreement of the files, image modes, and the label of a copy."""

import dataclasses
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anynest.data import DataError, known_sets, load
from anynest.data.known_sets import CIFAR10, CIFAR100, FASHION_MNIST, MNIST
from anynest.data.readers.encoding import encoding_of, lossy_notes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Make = Callable[..., Path]
Rows = list[dict[str, object]]
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


def fails(place: Path, *parts: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        load(place, **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def encoded(mode: str, size: tuple[int, int] = (32, 32), kind: str = "PNG", **options) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def replacing(row: int, data: bytes | None) -> Callable[[Rows], None]:
    return lambda rows: rows[row].update(bytes=data)


def set_labels(file: Path, labels: list[int | None], kind: object = None) -> None:
    table = pq.read_table(file)
    column = pa.array(labels, kind or pa.int64())
    pq.write_table(table.set_column(1, "label", column), file)


def test_cifar10_schema(make_parquet: Make) -> None:
    data = load(make_parquet(), holdout=0)
    expected = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), expected)
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [i % 10 for i in range(60)]
    assert data.classes == CIFAR10.classes
    assert data.label == "CIFAR-10 (partial)"


def test_cifar100_schema(make_parquet: Make) -> None:
    data = load(make_parquet(label="fine_label", classes=CIFAR100.classes, n=(100, 9)), holdout=0)
    assert data.label == "CIFAR-100 (partial)"
    assert data.num_classes == 100
    assert data.train.labels.tolist() == list(range(100))


def test_jpeg_is_named_with_its_quality(make_parquet: Make) -> None:
    place = make_parquet(kind="JPEG", quality=75)
    assert load(place).label == "CIFAR-10 (JPEG-75, partial)"
    assert load(place, name="X").label == "X (JPEG-75, partial)"
    assert load(place, image_size=8).label == "CIFAR-10 (JPEG-75, partial, resized to 8)"
    assert load(place, image_size=32).label == "CIFAR-10 (JPEG-75, partial)"


def test_one_jpeg_among_many_is_named(make_parquet: Make) -> None:
    edit = replacing(5, encoded("RGB", kind="JPEG", quality=90))
    assert load(make_parquet(edit=edit)).label == "CIFAR-10 (partly JPEG-90, partial)"
    assert lossy_notes(Counter({"PNG": 9, "JPEG-75": 3})) == ("partly JPEG-75",)
    assert lossy_notes(Counter({"JPEG-75": 9, "JPEG-90": 3})) == ("JPEG-75/JPEG-90",)
    assert lossy_notes(Counter({f"JPEG-{q}": 1 for q in range(4)})) == ("JPEG, mixed",)


def test_every_quality_is_found() -> None:
    for quality in range(1, 101):
        data = encoded("RGB", (8, 8), "JPEG", quality=quality)
        assert encoding_of(Image.open(io.BytesIO(data))) == f"JPEG-{quality}"
    own_table = encoded("L", (8, 8), "JPEG", qtables=[[7] * 64])
    assert encoding_of(Image.open(io.BytesIO(own_table))) == "JPEG"


def test_other_sets_keep_their_own_name(make_parquet: Make) -> None:
    made = make_parquet(classes=("a", "b", "c"), image="image", folder="flowers")
    data = load(made)
    assert (data.label, data.classes) == ("flowers", ("a", "b", "c"))
    assert load(made, name="tulips").label == "tulips"
    grey = load(make_parquet(shape=(28, 28), metadata=False, folder="grey"))
    assert (grey.label, grey.in_channels, grey.classes) == ("grey", 1, MNIST.classes)


def test_fashion_mnist_by_the_hubs_names(make_parquet: Make) -> None:
    classes = ("T - shirt / top", *FASHION_MNIST.classes[1:])
    data = load(make_parquet(shape=(28, 28), classes=classes, image="image"))
    assert data.label == "Fashion-MNIST (partial)"


def test_a_resized_set_keeps_its_mirror_flag(
    make_parquet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(MNIST, sizes=(60, 20))
    monkeypatch.setattr(known_sets, "KNOWN_DATASETS", (few,))
    monkeypatch.setattr(known_sets, "MNIST", few)
    place = make_parquet(shape=(28, 28), classes=MNIST.classes, image="image")
    data = load(place, image_size=14)
    assert (data.label, data.train.mirror) == ("MNIST (resized to 14)", False)


def test_validation_split(make_parquet: Make) -> None:
    place = make_parquet(files=("train.parquet", "validation.parquet"))
    data = load(place, holdout=0)
    assert len(data.test) == 20
    make_parquet(files=("train.parquet", "test.parquet"), n=(60, 7))
    data = load(place)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [60, 20, 7]
    (place / "test.parquet").unlink()
    (place / "validation.parquet").unlink()
    fails(place, "needs a test or validation split beside", "found none")


def test_a_truncated_file(make_parquet: Make) -> None:
    place = make_parquet()
    file = place / TEST
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:200] + b"x" * 99 + content[299:]):
        file.write_bytes(damaged)
        fails(place, str(file))


def test_undecodable_rows(make_parquet: Make) -> None:
    def edit(rows: Rows) -> None:
        rows[0]["bytes"] = b"no image"
        rows[7]["bytes"] = rows[7]["bytes"][:300]
        rows[9]["bytes"] = None

    place = make_parquet(edit=edit)
    fails(place, f"{place / TRAIN} row 0 (0.img)", "cannot decode", "--on-corrupt skip")
    data = load(place, holdout=0, on_corrupt="skip")
    assert (len(data.train), data.skipped) == (57, 3)
    assert data.train.labels.tolist() == [i % 10 for i in range(60) if i not in (0, 7, 9)]
    assert "3 undecodable skipped" in str(data)
    one = make_parquet(edit=replacing(3, None), folder="one")
    fails(one, "must embed its images, found no image bytes in", "row 3")


def test_nothing_decodable(make_parquet: Make) -> None:
    def edit(rows: Rows) -> None:
        for row in rows:
            row["bytes"] = b"?"

    for image_size in (None, 16):
        place = make_parquet(edit=edit)
        fails(place, "none of the 60 images can be", on_corrupt="skip", image_size=image_size)


def test_a_shard_without_rows(make_parquet: Make) -> None:
    place = make_parquet(files=("train-0.parquet", "train-1.parquet", "test.parquet"), n=(9, 0, 9))
    assert len(load(place, holdout=0).train) == 9
    fails(make_parquet(n=(0, 9), folder="none"), "train-00000-of-00001.parquet holds no images")


def test_mixed_modes_become_rgb_as_in_a_folder(make_parquet: Make) -> None:
    kinds = {1: "L", 2: "RGBA", 3: "P", 4: "LA", 5: "1", 6: "CMYK", 7: "I;16"}

    def edit(rows: Rows) -> None:
        for row, mode in kinds.items():
            rows[row]["bytes"] = encoded(mode, kind="TIFF" if mode == "CMYK" else "PNG")

    data = load(make_parquet(edit=edit), holdout=0)
    assert data.in_channels == 3
    for row, mode in kinds.items():
        if mode != "I;16":
            with Image.open(
                io.BytesIO(encoded(mode, kind="TIFF" if mode == "CMYK" else "PNG"))
            ) as o:
                assert np.array_equal(
                    data.train.images[row].permute(1, 2, 0).numpy(), np.asarray(o.convert("RGB"))
                ), mode


def test_grey_modes_stay_grey_until_one_image_has_colours(make_parquet: Make) -> None:
    grey = {"shape": (32, 32), "edit": replacing(4, encoded("LA"))}
    data = load(make_parquet(**grey, folder="grey"), holdout=0)
    assert data.in_channels == 1
    colour = encoded("RGB")
    mixed = load(make_parquet(shape=(32, 32), edit=replacing(59, colour)), holdout=0)
    assert mixed.in_channels == 3 == mixed.test.in_channels
    kept = [i for i in range(59) if i != 4]
    assert torch.equal(mixed.train.images[kept, 2], data.train.images[kept, 0])


def test_pixels_without_a_conversion(make_parquet: Make) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.float32)).save(stream, "TIFF")
    place = make_parquet(edit=replacing(4, stream.getvalue()))
    fails(place, "must be convertible to RGB, found F", "row 4")
    assert load(place, on_corrupt="skip").skipped == 1


def test_sizes_differ(make_parquet: Make) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 8, 7)).save(stream, "PNG")
    place = make_parquet(edit=replacing(2, stream.getvalue()))
    for on_corrupt in ("raise", "skip"):
        fails(place, "32x32", "found 40x30", "row 2", "image_size", on_corrupt=on_corrupt)
    data = load(place, image_size=16, holdout=0)
    assert data.train.images.shape == (60, 3, 16, 16)
    assert data.train.images[2].flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]
    assert data.label == "set (resized to 16)"
    assert load(place, image_size=32).label == "set (resized to 32)"  # most came in that size


def test_elongated_images_have_another_size(make_parquet: Make) -> None:
    place = make_parquet(edit=replacing(2, encoded("L", (1, 20_000))))
    fails(place, "found 1x20000")
    assert load(place, image_size=8).train.images.shape[2:] == (8, 8)


def test_more_pixels_than_memory(make_parquet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet()
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 10)  # 1 MiB
    assert len(load(place).test) == 20
    fails(place, "must fit in this machine's 0.0 GiB", "0.9 GiB for 60 images", image_size=4096)


def test_labels_out_of_range(make_parquet: Make) -> None:
    place = make_parquet()
    file = place / TEST
    rest = [i % 10 for i in range(19)]
    set_labels(file, [10, *rest])
    fails(place, "0..9, found 10", "class names do not belong")
    set_labels(file, [-1, *rest])
    fails(place, "0..9, found -1", "without a label")
    set_labels(file, [*rest, None])
    fails(place, "labels must be integers, found none in row 19 of column label", str(file))
    set_labels(file, [*rest, 1 << 63], pa.uint64())
    fails(place, str(file))
    set_labels(file, [0.5, *rest], pa.float64())
    fails(place, "labels must be integers, found double in column label")
    set_labels(file, [str(i) for i in range(20)], pa.string())
    fails(place, "labels must be integers, found string in column label")


def test_labels_without_class_names(make_parquet: Make) -> None:
    place = make_parquet(metadata=False)
    set_labels(place / TEST, [True] * 20, pa.bool_())
    assert load(place, image_size=16).classes == MNIST.classes
    set_labels(place / TEST, [1 << 40] * 20)
    fails(place, "must be below 65536, found 1099511627776", "--label-column")


def test_hidden_labels_of_a_test_split(make_parquet: Make) -> None:
    place = make_parquet(files=("train.parquet", "test.parquet"))
    set_labels(place / "test.parquet", [-1] * 20)
    fails(place, "test split must have labels, found 20 images with hidden labels (all -1)")
    make_parquet(files=("train.parquet", "val.parquet"), n=(60, 30))
    data = load(place)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [54, 6, 30]
    assert str(data).endswith("left out: test split with hidden labels, all -1 (20)")


def test_classes_must_agree(make_parquet: Make) -> None:
    place = make_parquet(classes=("cat", "dog", "emu"))
    other = make_parquet(classes=("dog", "cat", "emu"), folder="other")
    (other / TEST).rename(place / TEST)
    fails(place, "same class names, found label 0 as cat in", "and as dog in", str(place / TEST))
    other = make_parquet(classes=("cat", "dog"), folder="other")
    (other / TEST).rename(place / TEST)
    fails(place, "found label 2 as emu in", "and as nothing in")
    unnamed = make_parquet(classes=("cat", "dog", "emu"), metadata=False, folder="other")
    (unnamed / TEST).rename(place / TEST)
    assert str(load(place)).endswith("left out: class names, absent in .parquet files (1)")


def test_label_columns_must_agree(make_parquet: Make) -> None:
    shards = tuple(f"train-0000{i}-of-00002.parquet" for i in range(2))
    place = make_parquet(files=(shards[0], TEST))
    make_parquet(files=(shards[1],), n=(30,), label="fine_label")
    fails(place, "one label column, found label in", "and fine_label in", shards[1])


def test_choice_of_the_label_column(make_parquet: Make) -> None:
    place = make_parquet(label="fine_label", classes=CIFAR100.classes, n=(100, 9))
    data = load(place, label_column="coarse_label")
    assert (data.classes, data.label) == (("0",), "set")
    fails(
        place, "label column named kind, found img, fine_label, coarse_label", label_column="kind"
    )
    fails(make_parquet(label="class", folder="b"), "label column", "found img, class", "choose one")
    fails(make_parquet(image="picture", folder="c"), "image column named img or image, found pict")
    table = pq.read_table(place / TRAIN).append_column("label", pa.array([0] * 100))
    pq.write_table(table, place / TRAIN)
    fails(place, "several label columns (label, fine_label): choose one", "--label-column")
    assert load(place, label_column="fine_label").num_classes == 100
    fails("digits", "for Parquet sets, found 'x' for digits", label_column="x")


def test_columns_that_hold_no_images(make_parquet: Make) -> None:
    place = make_parquet()
    table = pq.read_table(place / TRAIN)
    for column in (pa.array(["a.png"] * 60), pa.array([[1, 2]] * 60), pa.array([{"x": 1}] * 60)):
        pq.write_table(table.set_column(0, "img", column), place / TRAIN)
        fails(place, "image column must hold image bytes")
    plain = pa.array([row["bytes"] for row in table["img"].to_pylist()])
    pq.write_table(table.set_column(0, "img", plain), place / TRAIN)
    assert len(load(place, holdout=0).train) == 60


@pytest.mark.parametrize("names", [{"0": "a"}, "abc", None, 3])
def test_class_names_of_another_form_are_ignored(make_parquet: Make, names: object) -> None:
    place = make_parquet(metadata=False)
    for name in (TRAIN, TEST):
        info = {"info": {"features": {"label": {"names": names}}}}
        table = pq.read_table(place / name).replace_schema_metadata(
            {"huggingface": json.dumps(info)}
        )
        pq.write_table(table, place / name)
    assert load(place, image_size=8).classes == MNIST.classes


def test_an_image_of_too_many_pixels(make_parquet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet()
    for limit in (1000, 200):  # Pillow warns above it and raises above twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        fails(place, f"at most {limit} pixels", "row 0")


def test_without_pyarrow(make_parquet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    fails(place, "pip install 'anynest[parquet]'")


@pytest.mark.slow
def test_the_real_set(real_parquet: Path) -> None:
    data = load(real_parquet)
    assert data.label == "CIFAR-10 (JPEG-75)"
    assert data.classes == CIFAR10.classes
    assert [len(s) for s in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.std == pytest.approx((0.247, 0.2435, 0.2616), abs=4e-3)
    assert load(real_parquet, image_size=8).label == "CIFAR-10 (JPEG-75, resized to 8)"
