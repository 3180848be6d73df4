"""Which images a run trains on, and how they are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...data.limits import MAX_SIDE, MAX_WORKERS, MIN_SIDE
from .config_io import Section, option

if TYPE_CHECKING:
    import torch

    from ...data import AnySplit, Dataset, Loader


@dataclass(frozen=True)
class DataConfig(Section):
    """The arguments of ``anynest.data.load`` and ``make_loader``."""

    SECTION = "data"

    source: str = option(
        "digits",
        "--data",
        "digits, fashion-mnist, mnist, cifar10, cifar100, a folder or file, or hub:OWNER/NAME",
    )
    holdout: int | float | None = option(
        None,
        "--holdout",
        "training images kept for validation: a number or a fraction; 0 validates on the test "
        "split, as the paper does (default: a tenth)",
    )
    image_size: int | None = option(
        None,
        "--image-size",
        "pixels a side (default: as found; image folders 224, unless all images are square, alike "
        "and at most 64)",
        at_least=MIN_SIDE,
        at_most=MAX_SIDE,
    )
    limit: int | None = option(
        None,
        "--limit",
        "use this many training images, always the same ones, in proportion to the classes "
        "(default: all)",
        at_least=1,
    )
    on_corrupt: Literal["raise", "skip"] = option(
        "raise", "--on-corrupt", "an undecodable image stops (raise) or is left out"
    )
    label_column: str | None = option(
        None, "--label-column", "label column of a Parquet set (default: label or fine_label)"
    )
    augment: Literal["cifar", "imagenet", "none"] | None = option(
        None, "--augment", "cifar, imagenet or none (default: by the data)"
    )
    batch_size: int = option(128, "--batch-size", "images a training step", at_least=1)
    evaluation_batch_size: int = option(
        512, "--evaluation-batch-size", "images at once", at_least=1
    )
    workers: int = option(
        0, "--workers", "processes that read image folders", at_least=0, at_most=MAX_WORKERS
    )

    def load(self) -> Dataset:
        """Load the data set with its explicit, fixed splits."""
        from ...data import load

        return load(
            self.source,
            holdout=self.holdout,
            image_size=self.image_size,
            on_corrupt=self.on_corrupt,
            label_column=self.label_column,
            limit=self.limit,
        )

    def train_loader(self, data: Dataset, seed: int, device: torch.device, **more: Any) -> Loader:
        """Batches of the training split, a pure function of (seed, epoch, batch).

        ``more``: ``channels_last``, ``rank`` and ``world`` of ``make_loader``.
        """
        more |= {"train": True, "augment": self.augment, "seed": seed}
        return self._loader(data.train, self.batch_size, data, device, more)

    def evaluation_loader(
        self, split: AnySplit, data: Dataset, device: torch.device, **more: Any
    ) -> Loader:
        """Every image of ``split`` once, in order, not augmented; ``more`` as for training."""
        more |= {"train": False, "augment": "none", "seed": 0}
        return self._loader(split, self.evaluation_batch_size, data, device, more)

    def _loader(
        self,
        split: AnySplit,
        batch_size: int,
        data: Dataset,
        device: torch.device,
        more: dict[str, Any],
    ) -> Loader:
        from ...data import make_loader

        more |= {"mean": data.mean, "std": data.std, "workers": self.workers}
        return make_loader(split, batch_size, device=device, **more)
