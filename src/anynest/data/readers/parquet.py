"""Sets in the Hub's Parquet layout: an image column {bytes, path} and a column of whole numbers.

The bytes say what the images are: where they are JPEG, the set's label says so with the quality,
so that a lossy copy never passes for the original.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import identity
from ..assemble import Raw
from ..errors import DataError
from .arrow import Rows, read_rows
from .pictures import Pictures, decode_all

_SPLITS = {"train": "train", "validation": "validation|valid|val|dev", "test": "test"}


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """Files of each split, in order; empty where there is no train*.parquet.

    Looked for in the folder itself, else in the folders right below it, as the Hub lays them out.

    Raises:
        DataError: several folders below hold a set.
    """
    own = _shards(folder)
    if own:
        return own
    below = {path: _shards(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    sets = {path: shards for path, shards in below.items() if shards}
    if len(sets) > 1:
        raise DataError(
            f"{folder} holds several sets ({', '.join(path.name for path in sets)}): give one of "
            "them"
        )
    return next(iter(sets.values()), {})


def _shards(place: Path) -> dict[str, list[Path]]:
    files = sorted(place.glob("*.parquet"))
    shards = {
        split: [f for f in files if re.match(rf"({stems})(?![a-z])", f.name.lower())]
        for split, stems in _SPLITS.items()
    }
    return {split: found for split, found in shards.items() if found} if shards["train"] else {}


def read_parquet(folder: Path, *, on_corrupt: str = "raise", image_size: int | None = None) -> Raw:
    """Read a folder in which `find_shards` finds files.

    Raises:
        DataError: pyarrow is not installed; a file or shard is missing, truncated or of another
            schema; a label out of range; an image that is undecodable or does not fit the others.
    """
    shards = find_shards(folder)
    if "test" not in shards:
        if "validation" not in shards:
            raise DataError(
                f"a Parquet set needs a test*.parquet beside {shards['train'][0]}, found none"
            )
        shards["test"] = shards.pop("validation")
    parts = {split: _read_part(files, on_corrupt, image_size) for split, files in shards.items()}
    train, test, validation = parts["train"], parts["test"], parts.get("validation")
    sizes = (len(train.labels), len(test.labels))
    known = _identify(list(parts.values()), train, sizes)
    highest = max(int(part.labels.max()) for part in parts.values())
    notes = lossy([part.pictures.encodings for part in parts.values()])
    return Raw(
        name=known.name if known else folder.resolve().name,
        classes=known.classes
        if known
        else train.classes or tuple(str(i) for i in range(highest + 1)),
        train=(train.pictures.images, train.labels),
        test=(test.pictures.images, test.labels),
        validation=(validation.pictures.images, validation.labels) if validation else None,
        mirror=known.mirror if known else True,
        notes=notes + identity.notes(known, sizes),
        resized=any(part.pictures.resized for part in parts.values()),
        skipped=sum(part.pictures.skipped for part in parts.values()),
    )


@dataclass
class _Part:
    pictures: Pictures
    labels: Tensor
    classes: tuple[str, ...]
    label_column: str


def _identify(parts: list[_Part], train: _Part, sizes: tuple[int, int]) -> identity.Known | None:
    """The known set, by the one size its images came in; resizing does not change what it is."""
    came_in = frozenset[tuple[int, int]]().union(*(part.pictures.sizes for part in parts))
    if len(came_in) != 1:
        return None
    shape = (train.pictures.images.shape[1], *next(iter(came_in)))
    return identity.identify(train.classes, shape, sizes, train.label_column)


def _read_part(files: list[Path], on_corrupt: str, image_size: int | None) -> _Part:
    _check_complete(files)
    shards: list[Rows] = [read_rows(file) for file in files]
    encoded = [data for rows in shards for data in rows.encoded]
    labels = torch.tensor([label for rows in shards for label in rows.labels], dtype=torch.int64)
    if not encoded:
        raise DataError(f"{files[0]} holds no images")

    def where(row: int) -> str:
        for rows in shards:
            if row < len(rows.labels):
                return rows.where(row)
            row -= len(rows.labels)
        raise IndexError(row)

    pictures = decode_all(encoded, where, on_corrupt, image_size)
    return _Part(pictures, labels[pictures.kept], shards[0].classes, shards[0].label_column)


def _check_complete(files: list[Path]) -> None:
    """The Hub names shards NAME-00000-of-00002: all must be there."""
    totals = {match[1] for f in files if (match := re.search(r"-of-(\d+)\.parquet$", f.name))}
    if len(totals) > 1 or (totals and len(files) != int(next(iter(totals)))):
        raise DataError(
            f"the shards of {files[0]} must be complete, found {len(files)} of "
            f"{' or '.join(sorted(totals))}: fetch the missing ones"
        )


def lossy(encodings: list[Counter[str]]) -> list[str]:
    """What the label must say about the encodings found: nothing for PNG and other exact ones.

    >>> lossy([Counter({"JPEG-75": 10})]), lossy([Counter({"PNG": 9})])
    (['JPEG-75'], [])
    """
    found = sum(encodings, Counter[str]())
    exact = {"PNG", "BMP", "TIFF", "PPM", "GIF"}
    kinds = sorted(kind for kind in found if kind not in exact)
    if not kinds:
        return []
    said = "/".join(kinds) if len(kinds) <= 3 else f"{kinds[0].partition('-')[0]}, mixed"
    return [said if len(kinds) == len(found) else f"partly {said}"]
