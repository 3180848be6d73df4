"""CIFAR-10 and -100 as published (https://www.cs.toronto.edu/~kriz/cifar.html): the Python and the
binary archive, or the folder that either unpacks to.

An archive is read in memory, and only if its MD5 sum is the published one; so are the files of an
unpacked Python version. The binary version's files have no published sums: their sizes and labels
are checked.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..assemble import RawDataset
from ..dataset import Split, check_labels
from ..errors import DataError
from ..known_sets import partial_notes
from .cifar_versions import CIFAR_VERSIONS, CifarVersion
from .unpickle import read_pickle

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 1 << 28  # bytes; the largest published file has 154 million
_ARCHIVE_ERRORS = (tarfile.TarError, EOFError, zlib.error, OSError)

ReadFile = Callable[[str], tuple[bytes, str]]  # file name -> (its content, its name in messages)


def folder_version(folder: Path) -> CifarVersion | None:
    """The version whose training or test files lie in a folder."""
    for version in CIFAR_VERSIONS:
        if any((folder / name).is_file() for name in (*version.train, version.test)):
            return version
    return None


def read_cifar(path: Path) -> RawDataset:
    """Read an unpacked folder or a tar.gz archive, known by its name or else by the folder in it.

    Raises:
        DataError: it is none of the published versions, a file is missing or damaged, or an MD5 sum
            is not the published one.
    """
    version = folder_version(path) if path.is_dir() else None
    if version:
        return _read(version, _folder_reader(path, version))
    version = next((v for v in CIFAR_VERSIONS if v.archive == path.name), None)
    version = version or _version_inside(path)
    _check_md5(path, version.md5[version.archive])
    return _read(version, _archive_reader(path, version))


def _folder_reader(folder: Path, version: CifarVersion) -> ReadFile:
    def read(name: str) -> tuple[bytes, str]:
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing: unpack {version.archive} again")
        if name in version.md5:
            _check_md5(file, version.md5[name])
        return file.read_bytes(), str(file)

    return read


def _archive_reader(path: Path, version: CifarVersion) -> ReadFile:
    names = (*version.train, version.test, version.names)
    wanted = {f"{version.folder}/{name}": name for name in names}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                file = archive.extractfile(member) if name and member.isfile() else None
                if name and file and member.size <= _MAX_MEMBER:
                    contents[name] = file.read()
    except _ARCHIVE_ERRORS as error:
        raise _unreadable(path, error) from None

    def read(name: str) -> tuple[bytes, str]:
        where = f"{version.folder}/{name} in {path}"
        if name not in contents:
            raise DataError(f"{where} is missing: download {version.archive} again")
        return contents[name], where

    return read


def _version_inside(path: Path) -> CifarVersion:
    folders = {version.folder: version for version in CIFAR_VERSIONS}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                top = member.name.removeprefix("./").partition("/")[0]
                if top in folders:
                    return folders[top]
    except _ARCHIVE_ERRORS as error:
        raise _unreadable(path, error) from None
    raise DataError(
        f"{path} is none of the known archives: it has none of the folders {', '.join(folders)}"
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


def _read(version: CifarVersion, read: ReadFile) -> RawDataset:
    decode = _from_pickle if isinstance(version.label, str) else _from_records
    content, where = read(version.names)
    if isinstance(version.label, str):
        found = read_pickle(content, where).get(version.names_key, [])
    else:
        found = content.split()
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in found)
    if len(classes) != len(version.known.classes):
        raise DataError(
            f"{where} must name {len(version.known.classes)} classes, found {len(classes)}"
        )

    def split(name: str, files: tuple[str, ...]) -> Split:
        images, labels = [], []
        for file in files:
            content, where = read(file)
            pixels, numbers = decode(content, where, version.label)
            check_labels(numbers, len(classes), where)
            images.append(pixels)
            labels.append(numbers)
        return Split(torch.cat(images), torch.cat(labels), name)

    train, test = split("train", version.train), split("test", (version.test,))
    notes = partial_notes(version.known, (len(train), len(test)))
    return RawDataset(version.known.name, classes, train, test, notes=notes)


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
        raise DataError(f"{label!r} of {where} must be a list of integers")
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
