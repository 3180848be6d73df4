"""MNIST's IDX files (http://yann.lecun.com/exdb/mnist), plain or gzip: Fashion-MNIST, MNIST.

A file is a magic number (two zero bytes, 8 for bytes, the number of dimensions), the dimensions as
32-bit big-endian numbers, the bytes.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from .. import identity
from ..assemble import Raw
from ..errors import DataError

_STEMS = {"train": "train", "test": "t10k"}
_MAX_BYTES = 1 << 32
# The first training labels tell the known sets from their many look-alikes.
_FIRST_LABELS = {
    (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): identity.FASHION,
    (5, 0, 4, 1, 9, 2, 1, 3, 1, 4): identity.MNIST,
}


def find_idx(folder: Path) -> dict[str, Path]:
    """The IDX files of a folder (or of its raw/), by "train-images" and the like."""
    for place in (folder, folder / "raw"):
        found: dict[str, Path] = {}
        for split, stem in _STEMS.items():
            for kind, rank in (("images", 3), ("labels", 1)):
                for file in sorted(place.glob(f"{stem}-{kind}[-.]idx{rank}-ubyte*")):
                    found.setdefault(f"{split}-{kind}", file)
        if found:
            return found
    return {}


def read_idx_folder(folder: Path) -> Raw:
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
    train = _pair(files["train-images"], files["train-labels"])
    test = _pair(files["test-images"], files["test-labels"])
    first = tuple(train[1][:10].tolist())
    sizes = (len(train[1]), len(test[1]))
    known = _FIRST_LABELS.get(first)
    if known and (sizes != known.sizes or tuple(train[0].shape[1:]) != known.shape):
        known = None
    highest = max(int(train[1].max()), int(test[1].max()))
    return Raw(
        name=known.name if known else folder.resolve().name,
        classes=known.classes if known else tuple(str(i) for i in range(highest + 1)),
        train=train,
        test=test,
        mirror=known.mirror if known else False,
    )


def _pair(images_file: Path, labels_file: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{images_file} and {labels_file.name} must hold a label an image, "
            f"found {len(images)} images and {len(labels)} labels"
        )
    return images.unsqueeze(1), labels.to(torch.int64)


def read_idx(file: Path, rank: int) -> Tensor:
    """The uint8 array of `rank` dimensions in an IDX file.

    Raises:
        DataError: another type or number of dimensions (3-channel images have 4), or a size that
            its header does not announce.
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
                raise DataError(f"{file} announces {size} bytes, more than {_MAX_BYTES}")
            content = source.read(size + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file} is truncated or damaged ({error}): fetch it again") from None
    if len(content) != size:
        more = "more" if len(content) > size else len(content)
        raise DataError(
            f"{file} must hold {size} bytes as its header says, found {more}: fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
