"""CIFAR's published archives: their content, and the refusal of damaged or altered ones."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anynest.data import DataError, load
from anynest.data.readers.cifar_versions import CIFAR_VERSIONS

PYTHON10, PYTHON100, BINARY10, BINARY100 = CIFAR_VERSIONS
Make = Callable[..., SimpleNamespace]


def fails(path: Path, *parts: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("version", CIFAR_VERSIONS, ids=lambda version: version.folder)
def test_every_version_packed_and_unpacked(make_cifar: Make, version, packed: bool) -> None:
    made = make_cifar(version, packed)
    data = load(made.path, holdout=0)
    assert np.array_equal(data.train.images.numpy(), made.train_images)
    assert data.train.labels.tolist() == made.train_labels
    assert np.array_equal(data.test.images.numpy(), made.test_images)
    assert data.test.labels.tolist() == made.test_labels
    assert data.classes == version.known.classes
    assert data.label == f"{version.known.name} (partial)"
    assert data.train.mirror


def test_only_the_whole_set_bears_the_plain_name(
    make_cifar: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_cifar(BINARY10, True)
    sizes = (100, 20)
    known = type(BINARY10.known)(
        BINARY10.known.name, BINARY10.known.classes, BINARY10.known.shape, sizes
    )
    monkeypatch.setitem(BINARY10.__dict__, "known", known)
    assert load(made.path).label == "CIFAR-10"


def test_found_within_a_folder_and_under_another_name(make_cifar: Make) -> None:
    made = make_cifar(PYTHON10, True)
    renamed = made.path.with_name("mine.tgz")
    renamed.write_bytes(made.path.read_bytes())
    assert len(load(renamed, holdout=0).train) == 100
    renamed.unlink()
    assert len(load(made.path.parent, holdout=0).train) == 100


def test_by_name_from_the_data_folder(make_cifar: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_cifar(BINARY100, True)
    monkeypatch.setenv("ANYNEST_DATA", str(made.path.parent))
    assert load("cifar100").label.startswith("CIFAR-100")
    fails("cifar10", "cifar10 is not on this machine", "cifar.html")


def test_a_folder_of_several_sets_is_ambiguous(make_cifar: Make) -> None:
    made = make_cifar(BINARY10, True)
    make_cifar(BINARY100, True)
    fails(made.path.parent, "several data sets", "cifar-10-binary.tar.gz, cifar-100-binary.tar.gz")


def test_wrong_checksum_of_an_archive(make_cifar: Make) -> None:
    made = make_cifar(PYTHON10, True)
    expected = PYTHON10.md5["cifar-10-python.tar.gz"]
    content = made.path.read_bytes()
    made.path.write_bytes(content[: len(content) // 2])
    fails(made.path, "MD5", str(made.path), f"must be {expected} as published, found ")


def test_wrong_checksum_of_an_unpacked_file(make_cifar: Make) -> None:
    made = make_cifar(PYTHON10, False)
    with (made.path / "data_batch_3").open("ab") as file:
        file.write(b".")
    fails(made.path, "MD5", "data_batch_3", "found ")


def test_truncated_archive_of_another_name_and_no_archive(make_cifar: Make, tmp_path: Path) -> None:
    made = make_cifar(PYTHON10, True)
    other = tmp_path / "other" / "x.tar.gz"
    other.parent.mkdir()
    other.write_bytes(made.path.read_bytes()[:20])
    fails(other, "cannot read", "tar.gz", "truncated")
    other.write_bytes(made.path.read_bytes()[:5000])  # enough to tell whose it is
    fails(other, "MD5", "truncated")
    other.write_bytes(b"no archive at all")
    fails(other, "cannot read")
    with tarfile.open(other, "w:gz") as archive:
        archive.add(__file__, "stranger/file.py")
    fails(other, "none of the known archives", "cifar-10-batches-py")


@pytest.mark.parametrize("packed", [True, False])
def test_missing_member(make_cifar: Make, packed: bool) -> None:
    made = make_cifar(PYTHON10, packed, data_batch_2=None)
    fails(made.path, "data_batch_2", "is missing")


def test_truncated_records(make_cifar: Make) -> None:
    made = make_cifar(BINARY100, False, train__bin=bytes(3074 * 2 - 5))
    fails(made.path, "records of 3074 bytes, found 6143", "train.bin")


def test_labels_out_of_range(make_cifar: Make) -> None:
    made = make_cifar(BINARY10, False, data_batch_4__bin=bytes([10]) + bytes(3072))
    fails(made.path, "0..9, found 10", "data_batch_4.bin")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": np.zeros((2, 1024), np.uint8), b"labels": [0, 1]}, "3 channels of 32x32"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "a label an image"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": ["a", "b"]}, "integers"),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, "uint8, found f4"),
        ({b"labels": [0]}, "found NoneType"),
        ([1, 2], "holds a list"),
    ],
)
def test_bad_python_batches(make_cifar: Make, batch: object, message: str) -> None:
    made = make_cifar(PYTHON10, False, test_batch=pickle.dumps(batch, protocol=2))
    fails(made.path, message, "test_batch")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_runs_nothing(
    make_cifar: Make, packed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_cifar(PYTHON10, packed, data_batch_1=pickle.dumps({b"data": _Evil()}))
    fails(made.path, "system, which image data do not need", "data_batch_1")
    assert not (tmp_path / "pwned").exists()


def test_reading_leaves_the_disk_alone(make_cifar: Make, tmp_path: Path) -> None:
    made = make_cifar(PYTHON10, True)
    before = sorted(tmp_path.rglob("*"))
    load(made.path)
    assert sorted(tmp_path.rglob("*")) == before


def test_holdout_of_the_same_set_does_not_depend_on_its_packing(make_cifar: Make) -> None:
    a = load(make_cifar(PYTHON10, True).path)
    b = load(make_cifar(BINARY10, False).path)
    assert torch.equal(a.validation.images, b.validation.images)
