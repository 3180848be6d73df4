"""The loader of images in memory: all live on the device as bytes and are augmented there."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .augment import Normalize, crop_and_mirror, crop_padding, draw_crops
from .batch_sampler import BatchSampler
from .dataset import Split


class InMemoryLoader:
    """Batches of a `Split`; see `loader.make_loader`."""

    skipped_images: frozenset[int] = frozenset()

    def __init__(
        self, split: Split, sampler: BatchSampler, augment: str, normalize: Normalize
    ) -> None:
        self._images = split.images.to(normalize.device).contiguous()
        self._labels = split.labels.to(normalize.device)
        self._sampler = sampler
        self._normalize = normalize
        self._augmented = sampler.train and augment == "cifar"
        self._padding = crop_padding(min(split.images.shape[-2:]))
        self._mirror = split.mirror

    @property
    def num_images(self) -> int:
        return self._sampler.num_images

    def __len__(self) -> int:
        return self._sampler.num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, device = self._sampler, self._images.device
        order = torch.from_numpy(sampler.order(epoch)).to(device)
        crops = torch.empty(0)
        if self._augmented:  # the epoch's draws at once, so that no step copies to the device
            key, indices = sampler.augment_key(epoch), np.arange(sampler.n)
            drawn = draw_crops(key, indices, self._padding, self._mirror)
            crops = torch.from_numpy(drawn).to(device)
        for step in sampler.steps(start):
            index = order[sampler.part(step)]
            if self._augmented:
                images = crop_and_mirror(self._images, index, crops[index])
            else:
                images = self._images[index]
            yield self._normalize(images), self._labels[index]
