"""Which images form which batch: a pure function of (seed, epoch, batch number, rank)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import randomness
from .errors import DataError, check_integer

Indices = npt.NDArray[np.int64]
_ORDER, _AUGMENT = 1, 2


@dataclass(frozen=True)
class BatchSampler:
    """The batches of every epoch.

    Training shuffles anew each epoch; evaluation keeps the order of the split. With `world` ranks
    each takes its own contiguous part of every batch, so that the parts in rank order are the batch
    of one process; `batch_size` is that of the whole batch.
    """

    n: int
    batch_size: int
    train: bool
    seed: int
    drop_last: bool
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        size = check_integer("batch size", self.batch_size, 1)
        object.__setattr__(self, "batch_size", size)
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank must lie in 0..world-1, found rank {self.rank} of {self.world}")
        if self.train and self.batch_size < self.world:
            raise DataError(
                f"batch size must be at least the number of ranks, found {self.batch_size} for "
                f"{self.world}"
            )
        if self.train and self.n < self.batch_size:
            raise DataError(
                f"training needs at least one full batch, found {self.n} images for batches of "
                f"{self.batch_size}: lower the batch size"
            )

    @property
    def num_batches(self) -> int:
        full, rest = divmod(self.n, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def num_images(self) -> int:
        """Images in one epoch over all ranks."""
        return min(self.n, self.num_batches * self.batch_size)

    def order(self, epoch: int) -> Indices:
        """Image indices ``[N]`` in the order of the epoch."""
        if not self.train:
            return np.arange(self.n)
        return randomness.permutation(randomness.key(self.seed, epoch, _ORDER), self.n)

    def augment_key(self, epoch: int) -> int:
        """Key of the epoch's augmentation draws."""
        return randomness.key(self.seed, epoch, _AUGMENT)

    def part(self, batch: int) -> slice:
        """This rank's part of a batch, as a slice of the order."""
        first = batch * self.batch_size
        size = min(self.batch_size, self.n - first)
        return slice(
            first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world
        )

    def steps(self, start: int) -> range:
        """The batch numbers from `start` on."""
        if not 0 <= start <= self.num_batches:
            raise ValueError(f"start must lie in 0..{self.num_batches}, found {start}")
        return range(start, self.num_batches)
