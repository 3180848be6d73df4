"""Image folders in ImageNet's layout: train/ and val/ (or test/), in each one folder per class.

The images stay in their files. val/ (or test/) is the test split, as ImageNet's results are
reported on val/; where both are there, val/ is the validation split and nothing need be held out.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from ..assemble import divide, limit_notes, limited
from ..dataset import Dataset, FolderSplit
from ..errors import DataError
from ..transforms import SMALL
from . import decode

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
DEFAULT_SIZE = 224
# ImageNet's statistics, customary for any image folder: measuring would mean decoding every file.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_VALIDATION = ("val", "valid", "validation")


def is_image_folder(folder: Path) -> bool:
    """Whether there is a train/ with folders in it."""
    return bool(_class_names(folder / "train"))


def read_image_folder(
    folder: Path,
    *,
    name: str | None = None,
    holdout: int | float | None = None,
    image_size: int | None = None,
    on_corrupt: str = "raise",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Find the files of every class; nothing is decoded but the first image of some classes.

    image_size: None is the images' own where they are square, alike and at most 64 pixels (looked
    up in the first of each of 32 classes), else 224.

    Raises:
        DataError: no val/ or test/, classes that differ between the splits, an empty class folder.
    """
    classes = _class_names(folder / "train")
    held = next((folder / stem for stem in _VALIDATION if _class_names(folder / stem)), None)
    tested = folder / "test" if _class_names(folder / "test") else None
    if held is None and tested is None:
        raise DataError(
            f"an image folder needs val/ or test/ with one folder per class beside "
            f"{folder / 'train'}, found neither"
        )
    train_files = _files(folder / "train", classes)
    size = image_size or _native_size(train_files) or DEFAULT_SIZE

    root = str(folder)

    def split(files: list[list[str]], split_name: str) -> FolderSplit:
        labels = [label for label, paths in enumerate(files) for _ in paths]
        paths = tuple(path for group in files for path in group)
        return FolderSplit(paths, torch.tensor(labels), split_name, size, on_corrupt, root=root)

    splits = [split(train_files, "train")]
    for place, split_name in ((held, "validation"), (tested, "test")):
        if place is not None:
            _check_classes(classes, place)
            splits.append(split(_files(place, classes), split_name))
    own = splits[1] if len(splits) == 3 else None
    test = replace(splits[-1], name="test")
    train, validation, test = divide(splits[0], own, test, holdout, seed)
    train = limited(train, limit, seed)
    imagenet = len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", c) for c in classes)
    label = name or ("ImageNet" if imagenet else folder.resolve().name)
    label += "".join(f" ({note})" for note in limit_notes(limit))
    return Dataset(train, validation, test, tuple(classes), IMAGENET_MEAN, IMAGENET_STD, label)


def _class_names(place: Path) -> list[str]:
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _check_classes(classes: list[str], place: Path) -> None:
    found = _class_names(place)
    if found == classes:
        return
    lacking, added = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    said = [f"lacks {', '.join(lacking[:3])}"] if lacking else []
    said += [f"adds {', '.join(added[:3])}"] if added else []
    raise DataError(
        f"the classes of {place} must be those of train/, but it {' and '.join(said)} "
        f"({len(lacking)} lacking, {len(added)} added)"
    )


def _files(place: Path, classes: list[str]) -> list[list[str]]:
    """For each class its files, in order of their names."""
    groups = []
    for name in classes:
        files = sorted(images_below(str(place / name)))
        if not files:
            raise DataError(
                f"every class folder must hold an image, {place / name} has none "
                f"({', '.join(sorted(EXTENSIONS))}): add some or remove it from every split"
            )
        groups.append(files)
    return groups


def images_below(top: str) -> Iterator[str]:
    """The image files below a folder, by their suffix, in no order; hidden ones are passed over."""
    for folder, _, names in os.walk(top):
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(folder, name)


def _native_size(files: list[list[str]]) -> int | None:
    sizes = set()
    for group in files[:32]:
        try:
            with decode.opened(group[0]) as image:
                sizes.add(image.size)
        except DataError:
            continue
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height <= SMALL else None
