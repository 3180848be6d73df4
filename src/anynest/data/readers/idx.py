"""MNIST's IDX files (http://yann.lecun.com/exdb/mnist), plain or gzip: Fashion-MNIST, MNIST.

A file consists of a magic number (two zero bytes, 8 for bytes, the number of dimensions), the
dimensions as 32-bit big-endian integers, and the bytes.
"""

import gzip
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from ..assemble import RawDataset
from ..dataset import Split
from ..errors import DataError
from ..known_sets import FASHION_MNIST, MNIST

_STEMS = {"train": "train", "test": "t10k"}
_MAX_BYTES = 1 << 32
# The first training labels distinguish the known data sets from the many of the same format.
_FIRST_LABELS = {
    (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): FASHION_MNIST,
    (5, 0, 4, 1, 9, 2, 1, 3, 1, 4): MNIST,
}


def find_idx(folder: Path) -> dict[str, Path]:
    """The IDX files of a folder (or of its raw/), by "train-images" and the like."""
    for place in (folder, folder / "raw"):
        found: dict[str, Path] = {}
        for split, stem in _STEMS.items():
            for kind, rank in (("images", 3), ("labels", 1)):
                for file in sorted(place.glob(f"{stem}-{kind}[-.]idx{rank}-ubyte*")):
                    if file.is_file():
                        found.setdefault(f"{split}-{kind}", file)
        if found:
            return found
    return {}


def read_idx_folder(folder: Path) -> RawDataset:
    """Read a folder in which `find_idx` finds files.

    Raises:
        DataError: a file is missing, truncated, or not what its name says.
    """
    files = find_idx(folder)
    for split, stem in _STEMS.items():
        for kind, rank in (("images", 3), ("labels", 1)):
            if f"{split}-{kind}" not in files:
                place = next(iter(files.values())).parent
                raise DataError(f"{stem}-{kind}-idx{rank}-ubyte(.gz) is missing in {place}")
    train, test = (_read_split(files, name) for name in ("train", "test"))
    known = _FIRST_LABELS.get(tuple(train.labels[:10].tolist()))
    found = (len(train), len(test)), tuple(train.images.shape[1:])
    if known and found != (known.sizes, known.shape):
        known = None
    if known:
        train, test = (replace(split, mirror=known.mirror) for split in (train, test))
    highest = max(int(train.labels.max()), int(test.labels.max()))
    return RawDataset(
        name=known.name if known else folder.resolve().name,
        classes=known.classes if known else tuple(str(i) for i in range(highest + 1)),
        train=train,
        test=test,
    )


def _read_split(files: dict[str, Path], name: str) -> Split:
    images_file, labels_file = files[f"{name}-images"], files[f"{name}-labels"]
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{images_file} and {labels_file.name} must hold a label per image, "
            f"found {len(images)} images and {len(labels)} labels"
        )
    return Split(images.unsqueeze(1), labels.to(torch.int64), name, mirror=False)


def read_idx(file: Path, rank: int) -> Tensor:
    """The uint8 array of `rank` dimensions in an IDX file.

    Raises:
        DataError: another type or number of dimensions (3-channel images have 4), or another size
            than its header states.
    """
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            magic = source.read(4)
            if magic != bytes((0, 0, 8, rank)):
                raise DataError(
                    f"{file} must be IDX bytes of {rank} dimensions (magic 000008{rank:02x}), "
                    f"found {magic.hex() or 'nothing'}: wrong file, type or channels"
                )
            header = source.read(4 * rank)
            if len(header) < 4 * rank:
                raise EOFError("it ends within its header")
            shape = struct.unpack(f">{rank}I", header)
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise DataError(
                    f"{file} must hold at most {_MAX_BYTES} bytes, found {size} in its header"
                )
            content = source.read(size + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file} is truncated or damaged ({error}): fetch it again") from None
    if len(content) != size:
        more = "more" if len(content) > size else len(content)
        raise DataError(
            f"{file} must hold {size} bytes as its header states, found {more}: fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
