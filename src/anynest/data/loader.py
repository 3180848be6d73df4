"""Batches of normalized images on the device, a pure function of (seed, epoch, batch)."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .augment import Normalize
from .batch_sampler import BatchSampler
from .dataset import AnySplit, FolderSplit, Split
from .errors import DataError, check_integer
from .folder_loader import FolderLoader
from .in_memory_loader import InMemoryLoader
from .limits import MAX_WORKERS
from .transforms import SMALL

AUGMENTATIONS = ("cifar", "imagenet", "none")


class Loader(Protocol):
    """The batches of one split, on the device."""

    @property
    def num_images(self) -> int:
        """Images per epoch, over all ranks."""

    @property
    def skipped_images(self) -> frozenset[int]:
        """Indices in the split of the images found so far that cannot be decoded."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 ``[B, C, H, W]`` and labels int64 ``[B]``, from batch `start` on."""


def default_augmentation(split: AnySplit) -> str:
    """The augmentation of a split's training images, where none is named."""
    return "cifar" if isinstance(split, Split) or split.image_size <= SMALL else "imagenet"


def make_loader(
    split: AnySplit,
    batch_size: int,
    *,
    train: bool,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    drop_last: bool | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """A loader of one split.

    Args:
        split: split of a Dataset.
        batch_size: images per batch over all ranks.
        train: shuffle and augment, or keep order and images as they are.
        mean, std: per channel, for pixels scaled to [0, 1]; those of the Dataset.
        augment: in training "cifar" (reflect-pad, crop, mirror where the split allows it),
            "imagenet" (random resized crop, mirror; image folders only) or "none"; None is "cifar",
            and "imagenet" for image folders above 64 pixels. Evaluation never augments: image
            folders above 64 pixels are resized by 256/224 and cropped to the centre.
        seed: of order and augmentation; every draw is a function of it, the epoch and the image,
            independent of workers and ranks.
        drop_last: leave out an uneven last batch; None is `train`.
        workers: processes that decode an image folder, from 0 to 256.
        rank, world: this process's part of every batch; the parts joined in rank order are the
            batch of one process. The last batch of an evaluation may be empty on a rank.

    Raises:
        DataError: fewer images than a batch in training, an unknown augmentation, mean or std of
            another number of channels, a number out of range, a rank outside the world.

    Example:
        >>> from anynest.data import load, make_loader
        >>> data = load("digits")
        >>> loader = make_loader(data.train, 64, train=True, mean=data.mean, std=data.std)
        >>> images, labels = next(loader.batches(epoch=0))
        >>> images.shape
        torch.Size([64, 1, 8, 8])
    """
    if augment is None:
        augment = default_augmentation(split)
    if augment not in AUGMENTATIONS:
        raise DataError(f"augment must be one of {', '.join(AUGMENTATIONS)}, found {augment!r}")
    if not len(mean) == len(std) == split.in_channels:
        raise DataError(
            f"mean and std must have one value for each of the {split.in_channels} channels of the "
            f"{split.name} split, found {len(mean)} and {len(std)}"
        )
    if len(split) == 0:
        raise DataError(f"the {split.name} split holds no images")
    workers = check_integer("workers", workers, 0, MAX_WORKERS)
    drop = train if drop_last is None else drop_last
    sampler = BatchSampler(len(split), batch_size, train, seed, drop, rank, world)
    normalize = Normalize(tuple(mean), tuple(std), torch.device(device), channels_last)
    if isinstance(split, FolderSplit):
        return FolderLoader(split, sampler, augment, normalize, workers)
    if augment == "imagenet":
        raise DataError(
            'augment="imagenet" is for image folders, found images in memory: use "cifar"'
        )
    return InMemoryLoader(split, sampler, augment, normalize)
