"""CIFAR-10 and -100 as their authors publish them (https://www.cs.toronto.edu/~kriz/cifar.html):
the Python and the binary archive, or the folder either unpacks to.

An archive is read in memory, and only when its MD5 sum is the published one; so are the files of
an unpacked Python version. The binary version's files have no published sums: their sizes and
labels are checked.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anynest.data import identity
from anynest.data.assemble import Raw
from anynest.data.dataset import check_labels
from anynest.data.errors import DataError
from anynest.data.unpickle import read_pickle

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 1 << 28  # bytes; the largest published file has 154 million


@dataclass(frozen=True)
class Layout:
    """One published version. label: the label's key in a pickle, or its byte in a binary record."""

    known: identity.Known
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label: str | int
    name_key: str = ""


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = (
    Layout(
        *(identity.CIFAR10, "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        *(_BATCHES, "test_batch", "batches.meta", "labels", "label_names"),
    ),
    Layout(
        *(identity.CIFAR100, "cifar-100-python.tar.gz", "cifar-100-python"),
        *(("train",), "test", "meta", "fine_labels", "fine_label_names"),
    ),
    Layout(
        *(identity.CIFAR10, "cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
        *(tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "batches.meta.txt", 0),
    ),
    Layout(
        *(identity.CIFAR100, "cifar-100-binary.tar.gz", "cifar-100-binary"),
        *(("train.bin",), "test.bin", "fine_label_names.txt", 1),
    ),
)

MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}

Read = Callable[[str], tuple[bytes, str]]  # file name -> (its content, how to call it)


def folder_layout(folder: Path) -> Layout | None:
    """The layout whose training or test files lie in the folder."""
    for layout in LAYOUTS:
        if any((folder / name).is_file() for name in (*layout.train, layout.test)):
            return layout
    return None


def read_folder(folder: Path, layout: Layout) -> Raw:
    """Read an unpacked archive."""

    def read(name: str) -> tuple[bytes, str]:
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing: unpack {layout.archive} again")
        expected = MD5.get(f"{layout.folder}/{name}")
        if expected:
            _check_md5(file, expected)
        return file.read_bytes(), str(file)

    return _read(layout, read)


def read_archive(path: Path) -> Raw:
    """Read a tar.gz archive, known by its name or else by the folder in it.

    Raises:
        DataError: it is none of the four published archives, or its MD5 sum is not the published.
    """
    layout = next((layout for layout in LAYOUTS if layout.archive == path.name), None)
    if layout is None:
        layout = _layout_inside(path)
    _check_md5(path, MD5[layout.archive])
    wanted = {
        f"{layout.folder}/{name}": name for name in (*layout.train, layout.test, layout.names)
    }
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                file = archive.extractfile(member) if name and member.isfile() else None
                if name and file and member.size <= _MAX_MEMBER:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from None

    def read(name: str) -> tuple[bytes, str]:
        where = f"{layout.folder}/{name} in {path}"
        if name not in contents:
            raise DataError(f"{where} is missing: download {layout.archive} again")
        return contents[name], where

    return _read(layout, read)


def _layout_inside(path: Path) -> Layout:
    folders = {layout.folder: layout for layout in LAYOUTS}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                top = member.name.removeprefix("./").partition("/")[0]
                if top in folders:
                    return folders[top]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from None
    raise DataError(
        f"{path} is none of the archives known here: "
        f"it holds none of the folders {', '.join(folders)}"
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:120]
    return DataError(f"cannot read {path} as tar.gz ({reason}): it is truncated or damaged")


def _check_md5(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise DataError(
            f"the MD5 sum of {path} must be {expected} as published, found {found}: "
            "it is truncated or altered, download it again"
        )


def _read(layout: Layout, read: Read) -> Raw:
    decode = _from_pickle if isinstance(layout.label, str) else _from_records
    content, where = read(layout.names)
    if isinstance(layout.label, str):
        found = read_pickle(content, where).get(layout.name_key, [])
    else:
        found = content.split()
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in found)
    if len(classes) != len(layout.known.classes):
        raise DataError(
            f"{where} must name {len(layout.known.classes)} classes, found {len(classes)}"
        )

    def part(names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for name in names:
            content, where = read(name)
            pixels, numbers = decode(content, where, layout.label)
            check_labels(numbers, len(classes), where)
            images.append(pixels)
            labels.append(numbers)
        return torch.cat(images), torch.cat(labels)

    train, test = part(layout.train), part((layout.test,))
    notes = identity.notes(layout.known, (len(train[1]), len(test[1])))
    return Raw(layout.known.name, classes, train, test, notes=notes)


def _from_pickle(content: bytes, where: str, label: str | int) -> tuple[Tensor, Tensor]:
    batch = read_pickle(content, where)
    pixels = batch.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        shape = pixels.shape if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(
            f"'data' of {where} must be [N, {_PIXELS}] bytes (3 channels of 32x32), found {shape}"
        )
    labels = batch.get(str(label))
    if not isinstance(labels, list) or any(type(value) is not int for value in labels):
        raise DataError(f"{label!r} of {where} must be a list of whole numbers")
    if len(labels) != len(pixels):
        raise DataError(f"{where} must have a label an image, found {len(labels)}, {len(pixels)}")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.tensor(labels, dtype=torch.int64)


def _from_records(content: bytes, where: str, label: str | int) -> tuple[Tensor, Tensor]:
    """Binary records: one label byte (CIFAR-100: coarse, then fine), then the pixels."""
    size = int(label) + 1 + _PIXELS
    if not content or len(content) % size:
        raise DataError(
            f"{where} must consist of records of {size} bytes, found {len(content)} bytes: "
            "it is truncated, fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    images = torch.from_numpy(records[:, -_PIXELS:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(records[:, int(label)].astype(np.int64))
