"""A loaded data set: three explicit splits, class names, statistics, a label and a fingerprint.

Shapes: N images, C channels, H x W pixels, K classes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from .errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images held in memory.

    images: uint8 [N, C, H, W]; labels: int64 [N] in 0..K-1; name: "train", "validation" or "test";
    mirror: whether a mirrored image still shows its class (not so for digits).
    """

    images: Tensor
    labels: Tensor
    name: str
    mirror: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        return int(self.images.shape[1])

    @property
    def image_size(self) -> int:
        return int(self.images.shape[-1])

    def take(self, indices: Tensor, name: str) -> "Split":
        """A new split of the images at `indices`."""
        return Split(self.images[indices], self.labels[indices], name, self.mirror)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that the fingerprint of a data set hashes: shape, labels and pixels."""
        yield repr(tuple(self.images.shape)).encode()
        yield self.labels.numpy().tobytes()
        yield self.images.contiguous().numpy().data.cast("B")


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images that stay in their files and are decoded batch by batch.

    paths: N files; labels: int64 [N]; image_size: side in pixels of the images a loader returns;
    on_corrupt: "raise" or "skip" for a file that cannot be decoded; root: the folder that the
    fingerprint states the paths relative to.
    """

    paths: Sequence[str]
    labels: Tensor
    name: str
    image_size: int
    on_corrupt: str = "raise"
    mirror: bool = True
    in_channels: int = 3
    root: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor, name: str) -> "FolderSplit":
        """A new split of the files at `indices`."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices], name=name)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that the fingerprint of a data set hashes: relative path, size and label of
        each file. The files are not read."""
        yield self.labels.numpy().tobytes()
        for path in self.paths:
            size = os.stat(path).st_size if os.path.exists(path) else -1
            yield f"{path.removeprefix(self.root).lstrip(os.sep)}\0{size}\0".encode(
                errors="surrogateescape"
            )


AnySplit = Split | FolderSplit


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set with its splits.

    train, validation, test: disjoint, except that `validation` *is* `test` where nothing is held
    out (the paper's protocol); its name then says "test".
    mean, std: per channel, pixels scaled to [0, 1], computed from `train` (an image folder has
    ImageNet's); label: what to call a number measured on it; skipped: images left out as
    undecodable while loading.
    """

    train: AnySplit
    validation: AnySplit
    test: AnySplit
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label: str
    skipped: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.train.in_channels

    @property
    def image_size(self) -> int:
        return self.train.image_size

    @property
    def validation_is_test(self) -> bool:
        return self.validation is self.test

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, 32 hexadecimal digits: equal content gives an equal fingerprint, in
        whatever place it lies and under whatever name.

        Covers the class names and, split by split and in order, labels and pixels of images in
        memory, and relative paths, sizes in bytes and labels of images in files (whose pixels are
        not read). Computed on first use: about 1 s per GB in memory or per 100,000 files.
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
        """Plain values (JSON-able), for instance to name what differs where two fingerprints do."""
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
        validation = (
            "validation = test" if self.validation_is_test else f"{len(self.validation)} validation"
        )
        skipped = f", {self.skipped} undecodable skipped" if self.skipped else ""
        return (
            f"{self.label}: {self.num_classes} classes, {len(self.train)} train, {validation}, "
            f"{len(self.test)} test, {self.in_channels}x{self.image_size}x{self.image_size}{skipped}"
        )


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise DataError unless every label lies in 0..num_classes-1."""
    if len(labels) == 0:
        raise DataError(f"{where} holds no images")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"labels must lie in 0..{num_classes - 1}, found {wrong} in {where}: "
            "the file is damaged or the class names do not belong to it"
        )
