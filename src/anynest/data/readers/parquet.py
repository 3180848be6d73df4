"""Parquet sets as on the Hugging Face Hub: a column of encoded images and a column of labels.

The bytes tell how the images were encoded: for JPEG the label of the data set says so with the
quality, so that a lossy copy is never taken for the original.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ..assemble import RawDataset
from ..dataset import Split
from ..errors import DataError
from ..known_sets import KnownDataset, identify, partial_notes
from .decode_images import ColourFound, DecodedImages, decode_all
from .encoding import lossy_notes
from .parquet_rows import ParquetRows, read_rows
from .parquet_shards import find_shards

_MAX_CLASSES = 1 << 16  # of a data set without class names


@dataclass(frozen=True)
class _Part:
    """The rows of one split, from one or several files."""

    files: list[ParquetRows]

    @property
    def labels(self) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([rows.labels for rows in self.files]))

    def where(self, row: int) -> str:
        """Name of an image for messages."""
        for rows in self.files:
            if row < len(rows.labels):
                return rows.where(row)
            row -= len(rows.labels)
        raise IndexError(row)

    def decode(self, on_corrupt: str, image_size: int | None, channels: int) -> DecodedImages:
        encoded = [data for rows in self.files for data in rows.encoded]
        if not encoded:
            raise DataError(f"{self.files[0].file} holds no images")
        return decode_all(encoded, self.where, on_corrupt, image_size, channels)


def read_parquet(
    folder: Path,
    image_size: int | None = None,
    on_corrupt: str = "raise",
    label_column: str | None = None,
) -> RawDataset:
    """Read a folder in which `find_shards` finds files.

    The images become grey if all are, else RGB.

    Raises:
        DataError: pyarrow is not installed; a file or shard is missing, damaged or at odds with
            the others; a label is out of range; an image cannot be decoded or has another size.
    """
    shards = find_shards(folder)
    files = shards.files()
    if "test" not in files and "validation" not in files:
        raise DataError(
            f"a Parquet set needs a test or validation split beside {files['train'][0]}, found none"
        )
    parts = {
        split: _Part([read_rows(file, label_column) for file in names])
        for split, names in files.items()
    }
    classes, left_out = _check_agreement([rows for part in parts.values() for rows in part.files])
    left_out += [f"other .parquet files ({len(shards.others)})"] if shards.others else []
    left_out += _drop_hidden_test(parts, folder)
    if "test" not in parts:
        parts["test"] = parts.pop("validation")
    decoded = _decode(parts, on_corrupt, image_size)
    splits = {}
    for name, found in decoded.items():
        splits[name] = Split(found.images, parts[name].labels[found.kept], name)
    sizes = (len(splits["train"]), len(splits["test"]))
    known = _identify(list(decoded.values()), classes, sizes, parts["train"].files[0].label_column)
    if known:
        classes = known.classes
        splits = {name: replace(split, mirror=known.mirror) for name, split in splits.items()}
    elif not classes:
        highest = max(int(split.labels.max()) for split in splits.values())
        if highest >= _MAX_CLASSES:
            raise DataError(
                f"labels of a Parquet set without class names must be below {_MAX_CLASSES}, found "
                f"{highest} in {folder}: choose the label column with label_column (--label-column)"
            )
        classes = tuple(str(i) for i in range(highest + 1))
    encodings = sum((found.encodings for found in decoded.values()), Counter[str]())
    return RawDataset(
        name=known.name if known else folder.resolve().name,
        classes=classes,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        notes=lossy_notes(encodings) + partial_notes(known, sizes),
        left_out=tuple(left_out),
        skipped=sum(len(parts[name].labels) - len(split) for name, split in splits.items()),
        resized=any(found.sizes != {tuple(found.images.shape[2:])} for found in decoded.values()),
    )


def _check_agreement(files: list[ParquetRows]) -> tuple[tuple[str, ...], list[str]]:
    """The class names of all files, and a note on files without names.

    Raises:
        DataError: files differ in their class names or label column.
    """
    first = files[0]
    for rows in files:
        if rows.label_column != first.label_column:
            raise DataError(
                f"all files of a Parquet set must have one label column, found "
                f"{first.label_column} in {first.file} and {rows.label_column} in {rows.file}: "
                "choose one with label_column (--label-column)"
            )
    named = [rows for rows in files if rows.classes]
    for rows in named:
        one, other = named[0].classes, rows.classes
        if one != other:
            at = next(i for i in count() if one[i : i + 1] != other[i : i + 1])
            raise DataError(
                f"all files of a Parquet set must have the same class names, found label {at} as "
                f"{' '.join(one[at : at + 1]) or 'nothing'} in {named[0].file} and as "
                f"{' '.join(other[at : at + 1]) or 'nothing'} in {rows.file}"
            )
    unnamed = len(files) - len(named)
    note = [f"class names, absent in .parquet files ({unnamed})"] if named and unnamed else []
    return (named[0].classes if named else ()), note


def _drop_hidden_test(parts: dict[str, _Part], folder: Path) -> list[str]:
    """Removes a test split whose labels are all -1, as benchmarks hide them; returns the note."""
    test = parts.get("test")
    if test is None or not len(test.labels) or bool((test.labels != -1).any()):
        return []
    if "validation" not in parts:
        raise DataError(
            f"the test split must have labels, found {len(test.labels)} images with hidden labels "
            f"(all -1) in {folder}: add a validation split"
        )
    del parts["test"]
    return [f"test split with hidden labels, all -1 ({len(test.labels)})"]


def _decode(
    parts: dict[str, _Part], on_corrupt: str, image_size: int | None
) -> dict[str, DecodedImages]:
    """The images of every split: grey if all are, else RGB."""
    try:
        return {name: part.decode(on_corrupt, image_size, 1) for name, part in parts.items()}
    except ColourFound:
        return {name: part.decode(on_corrupt, image_size, 3) for name, part in parts.items()}


def _identify(
    decoded: list[DecodedImages],
    classes: tuple[str, ...],
    sizes: tuple[int, int],
    label_column: str,
) -> KnownDataset | None:
    """The known data set, identified by the one size of its images before any resizing."""
    came_in = frozenset[tuple[int, int]]().union(*(found.sizes for found in decoded))
    if len(came_in) != 1:
        return None
    shape = (decoded[0].images.shape[1], *next(iter(came_in)))
    return identify(classes, shape, sizes, label_column)
