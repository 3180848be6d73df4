"""Turns a reader's result into a Dataset: holdout, limit, size, statistics, label.

The holdout is one fixed permutation per data set, stratified by class and independent of a run's
seed: two runs with different seeds validate on the same images.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import randomness
from .dataset import AnySplit, Dataset, Split, check_labels, check_memory
from .errors import DataError, check_integer

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation per channel
_HOLDOUT, _LIMIT = 1, 2
DEFAULT_HOLDOUT = 0.1
# ImageNet's statistics, customary for image folders: measuring would mean decoding every file.
IMAGENET_STATISTICS: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class RawDataset:
    """What a reader returns.

    Attributes:
        train, test, validation: the data set's own splits, all in memory or all in files.
        notes: what the label must say, such as "partial".
        left_out: what the reader did not read, with counts and reasons.
        skipped: images that cannot be decoded.
        resized: whether the reader has resized any image.
    """

    name: str
    classes: tuple[str, ...]
    train: AnySplit
    test: AnySplit
    validation: AnySplit | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    skipped: int = 0
    resized: bool = False


def assemble(
    raw: RawDataset,
    holdout: int | float | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Check a reader's splits and divide them; `loading.load` documents the arguments."""
    splits = {"train": raw.train, "test": raw.test}
    if raw.validation is not None:
        splits["validation"] = raw.validation
    resized = raw.resized
    for name, split in splits.items():
        check_labels(split.labels, len(raw.classes), f"the {name} split of {raw.name}")
        if image_size is None or not isinstance(split, Split):
            continue
        if split.images.shape[-2:] != (image_size, image_size):
            splits[name], resized = replace(split, images=_resize(split, image_size)), True
    _check_alike(splits, raw.name)
    train, validation, test = _divide(
        splits["train"], splits.get("validation"), splits["test"], holdout, seed
    )
    notes = list(raw.notes)
    if resized:
        notes.append(f"resized to {train.image_size}")
    if limit is not None:
        limit = check_integer("limit", limit, 1, len(train), " (the training images)")
        kept = stratified(train.labels, limit, randomness.key(0x5EED, _LIMIT, seed))
        train = train.take(kept.nonzero()[:, 0], "train")
        notes.append(f"{limit} training images")
    mean, std = IMAGENET_STATISTICS
    if isinstance(train, Split):
        mean, std = statistics(train.images)
    label = raw.name + (f" ({', '.join(notes)})" if notes else "")
    return Dataset(
        train, validation, test, raw.classes, mean, std, label, raw.skipped, raw.left_out
    )


def stratified(labels: Tensor, count: int, stream: int) -> Tensor:
    """Mask ``[N]`` of exactly `count` images, every class in proportion, by a fixed permutation.

    Each image's place within its (shuffled) class, as a fraction; the `count` smallest fractions
    are taken. The images of a smaller count are among those of a larger one, up to rounding.
    """
    classes = labels.numpy()
    shuffled = randomness.permutation(stream, len(classes))
    fraction = np.empty(len(classes))
    for value in np.unique(classes):
        members = shuffled[classes[shuffled] == value]
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = shuffled[np.argsort(fraction[shuffled], kind="stable")[:count]]
    mask = torch.zeros(len(classes), dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return mask


def holdout_count(holdout: int | float | None, n: int) -> int:
    """Number of the n training images to hold out; None is a tenth."""
    wanted = DEFAULT_HOLDOUT if holdout is None else holdout
    if 0 < wanted < 1:
        wanted = round(n * wanted)
    if not (0 <= wanted < n and wanted == int(wanted)):
        raise DataError(
            f"holdout must be 0, a fraction below 1 or a number below the {n} training images, "
            f"found {holdout}"
        )
    return int(wanted)


def statistics(images: Tensor) -> Statistics:
    """Per-channel mean and standard deviation of uint8 ``[N, C, H, W]``, in units of 255.

    Exact sums of integers, so equal on every machine; a constant channel has deviation 1.
    """
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).tolist()
        n = sum(counts)
        first = sum(v * c for v, c in enumerate(counts))
        second = sum(v * v * c for v, c in enumerate(counts))
        variance = (n * second - first * first) / (n * n)
        means.append(first / n / 255)
        deviations.append(variance**0.5 / 255 if variance else 1.0)
    return tuple(means), tuple(deviations)


def _resize(split: Split, size: int) -> Tensor:
    shape = (len(split), split.in_channels, size, size)
    check_memory(shape, f"the {split.name} split")
    resized = torch.empty(shape, dtype=torch.uint8)
    chunk = min(1024, max(1, (1 << 24) // size**2))  # images at once
    for first in range(0, len(split), chunk):
        part = split.images[first : first + chunk].float()
        scaled = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
        resized[first : first + chunk] = scaled.round_().clamp_(0, 255)
    return resized


def _check_alike(splits: dict[str, AnySplit], name: str) -> None:
    channels = {split_name: split.in_channels for split_name, split in splits.items()}
    if len(set(channels.values())) > 1:
        raise DataError(f"all splits of {name} must have the same channels, found {channels}")
    sizes = {
        split_name: tuple(split.images.shape[-2:])
        for split_name, split in splits.items()
        if isinstance(split, Split)
    }
    if len({side for size in sizes.values() for side in size}) > 1:
        raise DataError(
            f"images of {name} must be square and of one size, found {sizes}: give image_size"
        )


def _divide(
    train: AnySplit,
    validation: AnySplit | None,
    test: AnySplit,
    holdout: int | float | None,
    seed: int,
) -> tuple[AnySplit, AnySplit, AnySplit]:
    """The (train, validation, test) splits; a data set's own validation split is kept
    unless the test split is to take its place."""
    if validation is not None:
        if holdout:
            raise DataError(
                f"this data set has a validation split of its own, so holdout must be left out, "
                f"found {holdout}"
            )
        return train, test if holdout == 0 else validation, test
    count = holdout_count(holdout, len(train))
    if count == 0:
        return train, test, test
    held = stratified(train.labels, count, randomness.key(0x5EED, _HOLDOUT, seed))
    return (
        train.take((~held).nonzero()[:, 0], "train"),
        train.take(held.nonzero()[:, 0], "validation"),
        test,
    )
