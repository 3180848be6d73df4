"""Image folders: train/ and val/ (or test/), each with one folder per class, or class folders alone.

The images stay in their files. val/ (or test/) is the test split, as ImageNet's results are
reported on val/; if both exist, val/ is the validation split and nothing is held out. Of class
folders alone a fixed fifth, stratified by class, is the test split.
"""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from .. import randomness
from ..assemble import RawDataset, stratified
from ..dataset import FolderSplit
from ..errors import DataError
from ..transforms import SMALL
from .image_reader import open_image

EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif"),
        *(".webp", ".avif", ".ppm", ".pgm", ".tif", ".tiff"),
    )
)
DEFAULT_SIZE = 224
_VALIDATION = ("val", "valid", "validation")
_SPLITS = ("train", "test", *_VALIDATION)
_TEST_KEY = randomness.key(0x5EED, 4)
_FOREIGN = frozenset(("__MACOSX", "@eaDir", "lost+found"))  # left by archivers and file systems


def is_image_folder(folder: Path) -> bool:
    """Whether there is a train/ with folders in it."""
    return bool(_class_names(folder / "train"))


def is_class_folder(folder: Path) -> bool:
    """Whether there are two folders or more, no splits, of which the first has an image."""
    names = _class_names(folder)
    return (
        len(names) > 1
        and not set(names) & set(_SPLITS)
        and bool(image_files(str(folder / names[0])))
    )


def read_class_folders(
    folder: Path, image_size: int | None = None, on_corrupt: str = "raise"
) -> RawDataset:
    """One folder per class, without splits of its own; a fixed fifth is the test split.

    Raises:
        DataError: an empty class folder, or fewer than five images.
    """
    classes = _class_names(folder)
    ignored: Counter[str] = Counter()
    groups = _list_files(folder, classes, ignored)
    labels = torch.tensor([label for label, paths in enumerate(groups) for _ in paths])
    if len(labels) < 5:
        raise DataError(
            f"class folders without a test split must hold at least 5 images, {folder} has "
            f"{len(labels)}: add some"
        )
    size = image_size or _native_size(groups) or DEFAULT_SIZE
    paths = tuple(path for group in groups for path in group)
    whole = FolderSplit(paths, labels, "all", size, on_corrupt, root=str(folder))
    test = stratified(labels, len(labels) // 5, _TEST_KEY)
    return RawDataset(
        name=folder.resolve().name,
        classes=tuple(classes),
        notes=("tested on a fixed fifth",),
        left_out=_reasons(ignored),
        train=whole.take((~test).nonzero()[:, 0], "train"),
        test=whole.take(test.nonzero()[:, 0], "test"),
    )


def read_image_folder(
    folder: Path, image_size: int | None = None, on_corrupt: str = "raise"
) -> RawDataset:
    """List the files of every class; only the first image of some classes is opened.

    image_size: None is the images' own if they are square, alike and at most 64 pixels (looked up
    in the first of each of 32 classes), else 224.

    Raises:
        DataError: no val/ or test/, classes that differ between splits, or an empty class folder.
    """
    classes = _class_names(folder / "train")
    places = {"train": folder / "train"}
    for name, stems in (("validation", _VALIDATION), ("test", ("test",))):
        place = next((folder / stem for stem in stems if _class_names(folder / stem)), None)
        places |= {name: place} if place else {}
    if len(places) == 1:
        raise DataError(
            f"an image folder needs val/ or test/ with one folder per class beside "
            f"{folder / 'train'}, found neither"
        )
    ignored: Counter[str] = Counter()
    files: dict[str, list[list[str]]] = {}
    for name, place in places.items():
        _check_classes(classes, place)
        files[name] = _list_files(place, classes, ignored)
    size = image_size or _native_size(files["train"]) or DEFAULT_SIZE
    splits = {}
    for name, groups in files.items():
        labels = torch.tensor([label for label, paths in enumerate(groups) for _ in paths])
        paths = tuple(path for group in groups for path in group)
        splits[name] = FolderSplit(paths, labels, name, size, on_corrupt, root=str(folder))
    if "test" not in splits:
        splits["test"] = replace(splits.pop("validation"), name="test")
    imagenet = len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", c) for c in classes)
    return RawDataset(
        name="ImageNet" if imagenet else folder.resolve().name,
        classes=tuple(classes),
        left_out=_reasons(ignored),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
    )


def image_files(top: str, ignored: Counter[str] | None = None) -> list[str]:
    """The image files below a folder, by their suffix, sorted by path.

    Follows symbolic links, each folder once. Counts in `ignored` the hidden files and folders,
    folders such as __MACOSX and files of other types that it leaves out.
    """
    ignored = Counter() if ignored is None else ignored
    found: list[str] = []
    seen: set[str] = set()
    pending = [top]
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            ignored["folders linked more than once"] += 1
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                suffix = os.path.splitext(entry.name)[1].lower()
                if _is_foreign(entry.name):
                    ignored["hidden or system files and folders"] += 1
                elif entry.is_dir():
                    pending.append(entry.path)
                elif suffix in EXTENSIONS:
                    found.append(entry.path)
                else:
                    ignored[f"{suffix} files" if suffix else "files without suffix"] += 1
    return sorted(found)


def _reasons(ignored: Counter[str]) -> tuple[str, ...]:
    return tuple(f"{reason} ({count})" for reason, count in sorted(ignored.items()))


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name in _FOREIGN


def _class_names(place: Path) -> list[str]:
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not _is_foreign(e.name))


def _check_classes(classes: list[str], place: Path) -> None:
    found = _class_names(place)
    if found == classes:
        return
    lacking, added = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    named = [f"lacks {', '.join(lacking[:3])}"] if lacking else []
    named += [f"adds {', '.join(added[:3])}"] if added else []
    raise DataError(
        f"the classes of {place} must be those of train/, but it {' and '.join(named)} "
        f"({len(lacking)} lacking, {len(added)} added)"
    )


def _list_files(place: Path, classes: list[str], ignored: Counter[str]) -> list[list[str]]:
    """For each class its files in the order of their paths."""
    with os.scandir(place) as entries:
        outside = sum(not e.is_dir() and not _is_foreign(e.name) for e in entries)
    if outside:
        ignored["files outside class folders"] += outside
    groups = []
    for name in classes:
        files = image_files(str(place / name), ignored)
        if not files:
            raise DataError(
                f"every class folder must hold an image, {place / name} has none "
                f"({', '.join(sorted(EXTENSIONS))}): add some or remove it from every split"
            )
        groups.append(files)
    return groups


def _native_size(files: list[list[str]]) -> int | None:
    sizes = set()
    for group in files[:32]:
        try:
            with open_image(group[0]) as image:
                sizes.add(image.size)
        except DataError:
            continue
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height <= SMALL else None
