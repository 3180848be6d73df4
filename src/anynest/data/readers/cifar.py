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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import identity
from ..assemble import Raw
from ..dataset import check_labels
from ..errors import DataError
from .cifar_layouts import LAYOUTS, MD5, Layout
from .unpickle import read_pickle

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 1 << 28  # bytes; the largest published file has 154 million


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
