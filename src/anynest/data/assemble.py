"""From what a reader found to a Dataset: the holdout, the size, the statistics.

The holdout is one fixed permutation per set, stratified by class, with no dependence on a run's
seed: two runs with different seeds validate on the same images. A number chooses among permutations.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import randomness
from .dataset import Dataset, FolderSplit, Split, check_labels
from .errors import DataError

_HOLDOUT, _LIMIT = 1, 2
DEFAULT_HOLDOUT = 0.1
SplitT = TypeVar("SplitT", Split, FolderSplit)


@dataclass
class Raw:
    """A reader's answer. images: uint8 [N, C, H, W], labels: int64 [N], per split; resized: whether
    the reader has resized any."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None = None
    mirror: bool = True
    notes: list[str] = field(default_factory=list)
    skipped: int = 0
    resized: bool = False


def stratified(labels: Tensor, count: int, stream: int) -> Tensor:
    """Mask [N] of exactly `count` images, every class in proportion, by a fixed permutation.

    Each image gets its place within its own class (shuffled) as a fraction; the `count` smallest
    fractions are taken.
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
    count = round(n * wanted) if 0 < wanted < 1 else int(wanted)
    if wanted < 0 or (wanted >= 1 and count != wanted) or count >= n:
        raise DataError(
            f"holdout must be 0, a fraction below 1 or a number below the {n} training images, "
            f"found {holdout}"
        )
    return count


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 [N, C, H, W], in units of 255.

    Exact sums of whole numbers, so the same on every machine; a constant channel has deviation 1.
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


def _resize(images: Tensor, size: int) -> Tensor:
    shape = (size, size)
    parts = [
        functional.interpolate(part.float(), shape, mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in torch.split(images, 1024)
    ]
    return torch.cat(parts)


def assemble(
    raw: Raw,
    holdout: int | float | None,
    image_size: int | None,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Check a reader's arrays and make the Dataset."""
    named = {"train": raw.train, "test": raw.test}
    if raw.validation is not None:
        named["validation"] = raw.validation
    splits, resized = {}, raw.resized
    for name, (images, labels) in named.items():
        check_labels(labels, len(raw.classes), f"the {name} split of {raw.name}")
        if image_size is not None and tuple(images.shape[-2:]) != (image_size, image_size):
            images, resized = _resize(images, image_size), True
        splits[name] = Split(images, labels, name, raw.mirror)
    channels = {name: split.in_channels for name, split in splits.items()}
    if len(set(channels.values())) > 1:
        raise DataError(f"all splits of {raw.name} must have the same channels, found {channels}")
    sizes = {name: tuple(split.images.shape[-2:]) for name, split in splits.items()}
    if len(set(sizes.values())) > 1 or len(set(next(iter(sizes.values())))) > 1:
        raise DataError(
            f"images of {raw.name} must be square and of one size, found {sizes}: give image_size"
        )
    train, validation, test = divide(
        splits["train"], splits.get("validation"), splits["test"], holdout, seed
    )
    train = limited(train, limit, seed)
    mean, std = statistics(train.images)
    notes = raw.notes + ([f"resized to {train.image_size}"] if resized else [])
    notes += limit_notes(limit)
    label = raw.name + (f" ({', '.join(notes)})" if notes else "")
    return Dataset(train, validation, test, raw.classes, mean, std, label, raw.skipped)


def limited(train: SplitT, limit: int | None, seed: int = 0) -> SplitT:
    """`limit` of the images left to train on, every class in proportion, by one fixed permutation; the
    images of a smaller limit are among those of a larger one, as far as rounding allows."""
    if limit is None:
        return train
    if not 1 <= limit <= len(train):
        raise DataError(f"limit must be from 1 to the {len(train)} training images, found {limit}")
    kept = stratified(train.labels, limit, randomness.key(0x5EED, _LIMIT, seed))
    return train.take(kept.nonzero()[:, 0], "train")


def limit_notes(limit: int | None) -> list[str]:
    """What the label must say about a limit.

    >>> limit_notes(4000), limit_notes(None)
    (['4000 training images'], [])
    """
    return [] if limit is None else [f"{limit} training images"]


def divide(
    train: SplitT,
    validation: SplitT | None,
    test: SplitT,
    holdout: int | float | None,
    seed: int = 0,
) -> tuple[SplitT, SplitT, SplitT]:
    """The (train, validation, test) splits; a set's own validation split is kept as it is."""
    if validation is not None:
        if holdout:
            raise DataError(
                f"this set has a validation split of its own, so holdout must be left out, "
                f"found {holdout}"
            )
        return train, validation, test
    count = holdout_count(holdout, len(train))
    if count == 0:
        return train, test, test
    held = stratified(train.labels, count, randomness.key(0x5EED, _HOLDOUT, seed))
    return (
        train.take((~held).nonzero()[:, 0], "train"),
        train.take(held.nonzero()[:, 0], "validation"),
        test,
    )
