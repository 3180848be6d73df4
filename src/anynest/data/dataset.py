"""A loaded data set: three explicit splits, class names, statistics, a label and a fingerprint.

Shapes: N images, C channels, H x W pixels, K classes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from .errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]`` in ``0..K-1``.
        name: "train", "validation" or "test".
        mirror: whether a mirrored image keeps its class (not so for digits).
    """

    images: Tensor
    labels: Tensor
    name: str
    mirror: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        """C: 1 for grey, 3 for RGB."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> int:
        """The side of the square images, in pixels."""
        return int(self.images.shape[-1])

    def take(self, indices: Tensor, name: str) -> "Split":
        """A new split of the images at `indices`."""
        return Split(self.images[indices], self.labels[indices], name, self.mirror)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that the fingerprint hashes: shape, labels and pixels."""
        yield repr(tuple(self.images.shape)).encode()
        yield self.labels.numpy().tobytes()
        yield self.images.contiguous().numpy().data.cast("B")


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images in files, decoded batch by batch.

    Attributes:
        paths: N files.
        labels: int64 ``[N]``.
        name: "train", "validation" or "test".
        image_size: side in pixels of the images that a loader returns.
        on_corrupt: "raise" or "skip" for a file that cannot be decoded.
        mirror: whether a mirrored image keeps its class.
        root: the folder that the fingerprint states the paths relative to.
    """

    paths: Sequence[str]
    labels: Tensor
    name: str
    image_size: int
    on_corrupt: str = "raise"
    mirror: bool = True
    root: str = ""
    in_channels: ClassVar[int] = 3

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor, name: str) -> "FolderSplit":
        """A new split of the files at `indices`."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices], name=name)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that the fingerprint hashes: labels, relative paths and sizes."""
        yield self.labels.numpy().tobytes()
        for path in self.paths:
            size = os.stat(path).st_size if os.path.exists(path) else -1
            yield f"{path.removeprefix(self.root).lstrip(os.sep)}\0{size}\0".encode(
                errors="surrogateescape"
            )


AnySplit = Split | FolderSplit


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits.

    Attributes:
        train, validation, test: disjoint, except that `validation` *is* `test` if nothing is held
            out (the paper's protocol); its name is then "test".
        classes: K names.
        mean, std: per channel, pixels scaled to [0, 1], computed from `train` (ImageNet's for an
            image folder).
        label: the name that a number measured on the data set is reported under.
        skipped: images left out while loading because they cannot be decoded.
        left_out: files and rows that were not read, with counts and reasons.
    """

    train: AnySplit
    validation: AnySplit
    test: AnySplit
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label: str
    skipped: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """C: 1 for grey, 3 for RGB."""
        return self.train.in_channels

    @property
    def image_size(self) -> int:
        """The side of the square images, in pixels."""
        return self.train.image_size

    @property
    def validation_is_test(self) -> bool:
        """Whether nothing was held out: reports on ``validation`` are then on ``test``."""
        return self.validation is self.test

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, 32 hexadecimal digits, independent of where the data set lies and
        what it is called.

        Covers the class names and, for each split in order, labels and pixels of images in memory,
        or relative paths, sizes in bytes and labels of images in files (whose pixels are not read).
        Computed on first use, in about 1 s per GB in memory or per 100,000 files.
        """
        digest = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for split in (self.train, self.validation, self.test):
            digest.update(f"\0{split.name} {len(split)} {split.image_size}\0".encode())
            if split is self.validation and self.validation_is_test:
                continue  # hashed as the test split
            for part in split.content():
                digest.update(part)
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """JSON-able values, for instance to report what differs between two data sets."""
        return {
            "fingerprint": self.fingerprint,
            "label": self.label,
            "classes": list(self.classes),
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "validation_is_test": self.validation_is_test,
            "skipped": self.skipped,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __str__(self) -> str:
        """One line: what was read, and what was left out."""
        validation = (
            "validation = test" if self.validation_is_test else f"{len(self.validation)} validation"
        )
        skipped = f", {self.skipped} undecodable skipped" if self.skipped else ""
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.label}: {self.num_classes} classes, {len(self.train)} train, {validation}, "
            f"{len(self.test)} test, {self.in_channels}x{self.image_size}x{self.image_size}"
            f"{skipped}{left_out}"
        )


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Check that there are labels and that all lie in 0..num_classes-1.

    Raises:
        DataError: there is none, or one lies outside.
    """
    if len(labels) == 0:
        raise DataError(f"{where} holds no images")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        reason = (
            "-1 marks images without a label, which cannot be used"
            if wrong == -1
            else "the file is damaged or the class names do not belong to it"
        )
        raise DataError(
            f"labels must lie in 0..{num_classes - 1}, found {wrong} in {where}: {reason}"
        )


def check_memory(shape: tuple[int, ...], what: str) -> None:
    """Check that uint8 images of a shape fit in this machine's memory.

    Raises:
        DataError: they need more than there is, which would end the process.
    """
    needed = math.prod(shape)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # of a container; "max" where there is none
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if needed > found:
        raise DataError(
            f"images in memory must fit in this machine's {found / 2**30:.1f} GiB, found "
            f"{needed / 2**30:.1f} GiB for {what}: give a smaller image_size or an image folder"
        )
