"""The loader of small sets: all images live on the device as bytes and are augmented there."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .augment import Normalize, crop_and_mirror, crop_padding, draw_crops
from .batch_sampler import Plan
from .dataset import Split


class ResidentLoader:
    """Batches of a set in memory; built by `make_loader`, which documents the arguments."""

    skipped = 0
    skipped_images: frozenset[int] = frozenset()

    def __init__(
        self,
        split: Split,
        plan: Plan,
        augment: str,
        device: torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels_last: bool,
    ) -> None:
        self._images = split.images.to(device).contiguous()
        self._labels = split.labels.to(device)
        self._plan = plan
        self._normalize = Normalize(mean, std, device, channels_last)
        self._crops = plan.train and augment == "cifar"
        self._padding = crop_padding(min(split.images.shape[-2:]))
        self._mirror = split.mirror

    @property
    def num_images(self) -> int:
        return self._plan.num_images

    def __len__(self) -> int:
        return self._plan.num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        plan, device = self._plan, self._images.device
        order = torch.from_numpy(plan.order(epoch)).to(device)
        crops = torch.empty(0)
        if self._crops:  # the whole epoch's draws at once: no copy to the device in a step
            drawn = draw_crops(
                plan.augment_key(epoch), np.arange(plan.n), self._padding, self._mirror
            )
            crops = torch.from_numpy(drawn).to(device)
        for step in plan.steps(start):
            index = order[plan.part(step)]
            if self._crops:
                picked = crop_and_mirror(self._images, index, crops[index])
            else:
                picked = self._images[index]
            yield self._normalize(picked), self._labels[index]
