"""Finds the Parquet files of each split, in the layouts of the Hugging Face Hub.

    data/train-00000-of-00002-ab12.parquet   files named after their split, in the folder or below
    default/train/0000.parquet               one folder per split, as the Hub converts data sets

Names of splits match exactly: train_old.parquet and trainer.parquet belong to no split.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ..errors import DataError

_NAMES = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
_FILE = re.compile(
    r"(?P<name>[a-z]*)(?P<dash>[-_]?)"
    r"(?:(?P<index>\d+)(?:-of-(?P<total>\d+)(?:-[0-9a-z]+)?)?)?\.parquet",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Shard:
    """One file. name: its split as written; index and total: its number, None if it has none."""

    file: Path
    name: str
    index: int | None
    total: int | None


@dataclass
class Shards:
    """The files of a data set, per split in the order of their numbers; others: Parquet files in
    the same folder that belong to no split."""

    splits: dict[str, list[_Shard]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)

    def files(self) -> dict[str, list[Path]]:
        """The checked files of each split.

        Raises:
            DataError: shards are missing or there more than once, or files of a split have several
                naming schemes.
        """
        for split, shards in self.splits.items():
            _check_complete(split, shards)
        return {split: [s.file for s in shards] for split, shards in self.splits.items()}


def find_shards(folder: Path) -> Shards:
    """The Parquet files in a folder, else in one of the folders right below; no splits if neither
    has training files.

    Raises:
        DataError: several folders below hold a data set.
    """
    own = _shards(folder)
    if own.splits:
        return own
    folders = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    below = {path: _shards(path) for path in folders}
    found = {path: shards for path, shards in below.items() if shards.splits}
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several data sets ({', '.join(path.name for path in found)}): "
            "give one of them"
        )
    return next(iter(found.values()), own)


def _shards(place: Path) -> Shards:
    shards = Shards()
    files = [(file, "") for file in place.glob("*.parquet")]
    for folder in place.iterdir():
        if folder.name.lower() in _NAMES and folder.is_dir():
            files += [(file, folder.name) for file in folder.glob("*.parquet")]
    for file, folder_name in sorted(files):
        match = _FILE.fullmatch(file.name) if file.is_file() else None  # a pipe would block
        if match and bool(match["dash"]) == bool(match["name"] and match["index"]):
            name = match["name"] or folder_name
            split = _NAMES.get(name.lower())
            if split and (not folder_name or split == _NAMES[folder_name.lower()]):
                index, total = (int(match[k]) if match[k] else None for k in ("index", "total"))
                shards.splits.setdefault(split, []).append(_Shard(file, name, index, total))
                continue
        shards.others.append(file)
    if "train" not in shards.splits:
        return Shards()
    order = list(_NAMES.values())
    shards.splits = {name: shards.splits[name] for name in sorted(shards.splits, key=order.index)}
    for found in shards.splits.values():
        found.sort(key=lambda shard: (shard.index or 0, shard.file))
    return shards


def _check_complete(split: str, shards: list[_Shard]) -> None:
    """A split is one file without a number, or all shards of one scheme, each once."""
    first = shards[0]
    schemes = {(shard.name, shard.file.parent, shard.total): shard.file for shard in shards}
    if len(schemes) > 1 or (first.index is None and len(shards) > 1):
        named = " and ".join(str(shard.file) for shard in (first, shards[-1]))
        raise DataError(
            f"the files of the {split} split must be named alike, found {named}: remove one of them"
        )
    if first.index is None:
        return
    for one, other in pairwise(shards):
        if one.index == other.index:
            raise DataError(
                f"every shard must be there once, found {one.file} and {other.file.name}: "
                "remove the outdated one"
            )
    indices = {shard.index for shard in shards if shard.index is not None}
    start, end = 0, max(indices) + 1
    if first.total is not None:
        end = first.total
    elif not first.file.stem.isdecimal():  # train-1, train-2; the Hub counts from 0000
        start = min(min(indices), 1)
    if indices != set(range(start, end)):
        raise DataError(
            f"the shards of {first.file} must be complete, found {len(shards)} of {end - start}: "
            f"fetch the missing ones"
        )
