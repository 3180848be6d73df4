"""Batches of images, normalised on the device, exactly reproducible from (seed, epoch, batch)."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .batch_sampler import Plan
from .dataset import AnySplit, Split
from .errors import DataError
from .folder_loader import StreamLoader
from .in_memory_loader import ResidentLoader
from .transforms import SMALL

AUGMENTATIONS = ("cifar", "imagenet", "none")


class Loader(Protocol):
    """What `make_loader` gives."""

    @property
    def num_images(self) -> int:
        """Images an epoch, over all ranks."""

    @property
    def skipped(self) -> int:
        """Different files met so far that could not be decoded."""

    @property
    def skipped_images(self) -> frozenset[int]:
        """Their numbers in the split."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 [B, C, H, W], labels int64 [B]) from batch number `start` on."""


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
        split: of a Dataset.
        batch_size: images in a batch over all ranks.
        train: shuffle and augment, or keep the order and the images as they are.
        mean, std: per channel, for pixels scaled to [0, 1]; a Dataset carries them.
        augment: of training: "cifar" (reflect-pad, crop, mirror where the split allows it),
            "imagenet" (random resized crop, mirror; image folders only), "none"; None is "cifar",
            and "imagenet" for image folders above 64 pixels. Evaluation never augments; image
            folders above 64 pixels are then resized by 256/224 and cut to the centre.
        seed: of the order and the augmentation; every draw is a function of it, the epoch and the
            image alone, whatever the workers and ranks.
        drop_last: leave out an uneven last batch; None is `train`.
        workers: processes that decode an image folder; sets in memory need none.
        rank, world: this process's part of every batch; the parts joined in rank order are the
            batch of one process. The last batch of an evaluation may give a rank no image.

    Raises:
        DataError: fewer images than a batch in training, an unknown augmentation, a mean or std of
            another number of channels, a rank outside the world.

    Example:
        >>> from anynest.data import load, make_loader
        >>> data = load("digits")
        >>> loader = make_loader(data.train, 64, train=True, mean=data.mean, std=data.std)
        >>> images, labels = next(loader.batches(epoch=0))
        >>> images.shape
        torch.Size([64, 1, 8, 8])
    """
    if augment is None:
        small = isinstance(split, Split) or split.image_size <= SMALL
        augment = "cifar" if small else "imagenet"
    if augment not in AUGMENTATIONS:
        raise DataError(f"augment must be one of {', '.join(AUGMENTATIONS)}, found {augment!r}")
    if not len(mean) == len(std) == split.in_channels:
        raise DataError(
            f"mean and std must have one value for each of the {split.in_channels} channels of the "
            f"{split.name} split, found {len(mean)} and {len(std)}"
        )
    if len(split) == 0:
        raise DataError(f"the {split.name} split holds no images")
    drop = train if drop_last is None else drop_last
    plan = Plan(len(split), batch_size, train, seed, drop, rank, world)
    place = torch.device(device)
    if isinstance(split, Split):
        if augment == "imagenet":
            raise DataError(
                'augment="imagenet" is for image folders, found a set in memory: use "cifar"'
            )
        return ResidentLoader(split, plan, augment, place, tuple(mean), tuple(std), channels_last)
    return StreamLoader(
        split, plan, augment, place, tuple(mean), tuple(std), channels_last, workers
    )
