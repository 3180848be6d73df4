"""IDX files: MNIST's and Fashion-MNIST's."""

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anynest.data import DataError, load
from anynest.data.known_sets import MNIST
from anynest.data.readers import idx

Make = Callable[..., Path]


@pytest.mark.parametrize("packed", [True, False])
def test_plain_and_packed(make_idx: Make, packed: bool) -> None:
    images = np.random.default_rng(5).integers(0, 256, (50, 28, 28))
    data = load(make_idx(packed, train_images=images), holdout=0)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert data.train.labels.tolist() == [i % 10 for i in range(50)]
    assert (data.label, data.classes) == ("letters", MNIST.classes)
    assert not data.train.mirror
    assert load(make_idx(packed, "other"), name="mine").label == "mine"


@pytest.mark.parametrize(
    ("first", "label", "mirror"),
    [
        ((9, 0, 0, 3, 0, 2, 7, 2, 5, 5), "Fashion-MNIST", True),
        ((5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "MNIST", False),
    ],
)
def test_known_sets_are_told_by_their_labels(
    make_idx: Make, monkeypatch: pytest.MonkeyPatch, first: tuple, label: str, mirror: bool
) -> None:
    labels = np.array(first + tuple(range(10)) * 4)
    place = make_idx(train_labels=labels)
    assert load(place).label == "letters"
    known = idx._FIRST_LABELS[first]
    small = replace(known, sizes=(50, 20))
    monkeypatch.setitem(idx._FIRST_LABELS, first, small)
    data = load(place)
    assert (data.label, data.train.mirror) == (label, mirror)


def test_a_file_of_the_folder_and_torchvisions_raw_folder(make_idx: Make) -> None:
    place = make_idx(folder="raw")
    assert len(load(place.parent, holdout=0).train) == 50
    assert len(load(place / "train-labels-idx1-ubyte.gz", holdout=0).train) == 50


def fails(place: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_missing_file(make_idx: Make) -> None:
    place = make_idx()
    (place / "t10k-labels-idx1-ubyte.gz").unlink()
    fails(place, "t10k-labels-idx1-ubyte(.gz) is missing", str(place))


def test_truncated(make_idx: Make) -> None:
    place = make_idx()
    file = place / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    fails(place, str(file), "truncated")
    file.write_bytes(gzip.compress(gzip.decompress(content)[:-3]))
    fails(place, "must hold 39200 bytes as its header states, found 39197")
    file.write_bytes(gzip.compress(gzip.decompress(content) + b"x"))
    fails(place, "must hold 39200 bytes as its header states, found more")
    file.write_bytes(gzip.compress(gzip.decompress(content)[:9]))
    fails(place, "ends within its header")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    file.write_bytes(damaged)
    fails(place, str(file), "damaged")


def test_wrong_channels_and_magic(make_idx: Make) -> None:
    fails(
        make_idx(train_images=np.zeros((50, 28, 28, 3))),
        "3 dimensions (magic 00000803), found 00000804",
        "channels",
    )
    place = make_idx(folder="b")
    (place / "train-images-idx3-ubyte.gz").write_bytes(b"")
    fails(place, "found nothing")


def test_a_header_that_announces_too_much(make_idx: Make) -> None:
    place = make_idx(packed=False)
    header = bytes((0, 0, 8, 3)) + b"\xff" * 12
    (place / "train-images-idx3-ubyte").write_bytes(header)
    fails(place, "at most 4294967296 bytes, found ")


def test_counts_differ(make_idx: Make) -> None:
    fails(make_idx(train_labels=np.zeros(49)), "found 50 images and 49 labels")


def test_the_real_fashion_mnist() -> None:
    roots = (os.environ.get("ANYNEST_DATA", ""), "/usr/share/datasets")
    if not any(root and (Path(root) / "fashion-mnist").is_dir() for root in roots):
        pytest.skip("Fashion-MNIST is neither in $ANYNEST_DATA nor in /usr/share/datasets")
    data = load("fashion-mnist")
    assert data.label == "Fashion-MNIST"
    assert data.classes[9] == "Ankle boot"
    assert [len(s) for s in (data.train, data.validation, data.test)] == [54_000, 6_000, 10_000]
