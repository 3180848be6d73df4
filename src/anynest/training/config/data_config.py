"""Which images a run trains on, and how they are served."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from ...data import AnySplit, Dataset, Loader, make_loader
from ...data import load as load_data
from ..errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """The arguments of ``anynest.data.load`` and ``make_loader``."""

    source: str = field(
        default="digits",
        metadata={"flag": "--data", "help": "digits, fashion-mnist, a folder or file, or hub:NAME"},
    )
    holdout: int | float | None = field(
        default=None,
        metadata={
            "flag": "--holdout",
            "help": "training images kept for validation: a number or a fraction; "
            "0 validates on the test split, as the paper does",
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "flag": "--image-size",
            "help": "pixels a side (default: as found; image folders 224, unless all images are "
            "square, alike and at most 64)",
        },
    )
    limit: int | None = field(
        default=None,
        metadata={
            "flag": "--limit",
            "help": "use this many training images, always the same ones, in proportion to the "
            "classes (default: all)",
        },
    )
    on_corrupt: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "flag": "--on-corrupt",
            "help": "an undecodable image stops (raise) or is left out",
        },
    )
    augment: Literal["cifar", "imagenet", "none"] | None = field(
        default=None,
        metadata={"flag": "--augment", "help": "cifar, imagenet or none (default: by the data)"},
    )
    batch_size: int = field(
        default=128, metadata={"flag": "--batch-size", "help": "images a training step"}
    )
    evaluation_batch_size: int = field(
        default=512, metadata={"flag": "--evaluation-batch-size", "help": "images at once"}
    )
    workers: int = field(
        default=0, metadata={"flag": "--workers", "help": "processes that read image folders"}
    )

    def __post_init__(self) -> None:
        for key in ("batch_size", "evaluation_batch_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key} must be at least 1, found {getattr(self, key)}")
        if self.workers < 0:
            raise ConfigError(f"data.workers must not be negative, found {self.workers}")

    def load(self) -> Dataset:
        """The data set with its explicit, fixed splits."""
        return load_data(
            self.source,
            holdout=self.holdout,
            image_size=self.image_size,
            on_corrupt=self.on_corrupt,
            limit=self.limit,
        )

    def train_loader(
        self,
        data: Dataset,
        seed: int,
        device: torch.device,
        channels_last: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> Loader:
        """Batches of the training split, a pure function of (seed, epoch, batch), or one rank's
        part of each."""
        return make_loader(
            data.train,
            self.batch_size,
            train=True,
            augment=self.augment,
            seed=seed,
            device=device,
            mean=data.mean,
            std=data.std,
            channels_last=channels_last,
            workers=self.workers,
            rank=rank,
            world=ranks,
        )

    def evaluation_loader(
        self,
        split: AnySplit,
        data: Dataset,
        device: torch.device,
        channels_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> Loader:
        """Every image of ``split`` once, in order, not augmented, or one rank's part of each
        batch."""
        return make_loader(
            split,
            self.evaluation_batch_size,
            train=False,
            augment="none",
            seed=0,
            device=device,
            mean=data.mean,
            std=data.std,
            channels_last=channels_last,
            workers=self.workers,
            rank=rank,
            world=ranks,
        )
