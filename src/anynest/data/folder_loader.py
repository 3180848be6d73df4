"""The loader of image folders: worker processes decode and augment, the device normalises.

What a worker does to an image is a function of (seed, epoch, image) alone, so the batches are the
same for every number of workers.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from . import randomness
from .augment import Normalize
from .batch_sampler import Plan
from .dataset import FolderSplit
from .errors import DataError
from .readers import decode
from .transforms import DRAWS, transform

_log = logging.getLogger("anynest.data")
_TRIES = 100


@dataclass
class _Item:
    """An image on its way from a worker: no pixels where it was left out, or an error's line."""

    pixels: Tensor | None
    label: int
    bad: tuple[int, ...] = ()
    error: str | None = None


class _Files(TorchDataset[_Item]):
    """Decodes image `i` in the way of one epoch; errors travel as values, not as tracebacks."""

    def __init__(self, split: FolderSplit, train: bool, augment: str, key: int) -> None:
        self._split, self._train, self._augment, self._key = split, train, augment, key

    def __getitem__(self, i: int) -> _Item:
        split = self._split
        bad: list[int] = []
        for _ in range(_TRIES):
            try:
                return _Item(self._read(i), int(split.labels[i]), tuple(bad))
            except DataError as error:
                if split.on_corrupt != "skip":
                    return _Item(None, 0, error=str(error))
                bad.append(i)
                if not self._train:  # in training the next file stands in: batches keep their size
                    return _Item(None, 0, tuple(bad))
                i = (i + 1) % len(split)
        return _Item(
            None,
            0,
            error=f"{_TRIES} files in a row cannot be decoded, the last is {split.paths[i - 1]}",
        )

    def _read(self, i: int) -> Tensor:
        path = self._split.paths[i]
        draws = randomness.units(self._key, np.array([i]), DRAWS)[0] if self._train else None
        with decode.opened(path) as file:
            image = decode.rgb(decode.pixels(file, path))
        image = transform(image, self._split.image_size, self._augment, draws, self._split.mirror)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _collate(items: list[_Item]) -> tuple[Tensor | None, Tensor, list[int], str | None]:
    good = [item for item in items if item.pixels is not None]
    error = next((item.error for item in items if item.error), None)
    bad = [i for item in items for i in item.bad]
    images = (
        torch.stack([item.pixels for item in good if item.pixels is not None]) if good else None
    )
    return images, torch.tensor([item.label for item in good], dtype=torch.int64), bad, error


class StreamLoader:
    """Batches of an image folder; built by `make_loader`, which documents the arguments."""

    def __init__(
        self,
        split: FolderSplit,
        plan: Plan,
        augment: str,
        device: torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels_last: bool,
        workers: int,
    ) -> None:
        self._split, self._plan, self._augment, self._workers = split, plan, augment, workers
        self._device = device
        self._normalize = Normalize(mean, std, device, channels_last)
        self._bad: set[int] = set()

    @property
    def num_images(self) -> int:
        return self._plan.num_images

    @property
    def skipped(self) -> int:
        """Different files met so far that could not be decoded."""
        return len(self._bad)

    @property
    def skipped_images(self) -> frozenset[int]:
        """Their numbers in the split."""
        return frozenset(self._bad)

    def __len__(self) -> int:
        return self._plan.num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        plan, split, known = self._plan, self._split, len(self._bad)
        order = plan.order(epoch)
        source = DataLoader(
            _Files(split, plan.train, self._augment, plan.augment_key(epoch)),
            batch_sampler=[order[plan.part(step)].tolist() for step in plan.steps(start)],
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for images, labels, bad, error in source:
            if error is not None:
                raise DataError(error)
            self._bad.update(bad)
            if images is None:
                side = split.image_size
                images = torch.empty(0, 3, side, side, dtype=torch.uint8)
            moved = images.to(self._device, non_blocking=True)
            yield self._normalize(moved), labels.to(self._device, non_blocking=True)
        if len(self._bad) > known:
            first = split.paths[min(self._bad)]
            _log.warning(
                "%d undecodable images left out of the %s split, the first is %s",
                len(self._bad),
                split.name,
                first,
            )
