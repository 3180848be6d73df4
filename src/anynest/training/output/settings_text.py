"""What a run chose or was told: one line on the data, one on the optimizer."""

from __future__ import annotations

from torch import nn, zeros

from ...data import Dataset
from ...data.loader import default_augmentation
from ..config.train_config import TrainConfig

AUGMENTATIONS = {
    "cifar": "reflect-pad, random crop",
    "imagenet": "random resized crop",
    "none": "none",
}


def data_text(config: TrainConfig, data: Dataset) -> str:
    """Validation images, batch size and augmentation.

    ``validation: 144 images, not trained on; batches of 128; augmentation: none``
    """
    if data.validation_is_test:
        validation = "the test split"
    else:
        validation = f"{len(data.validation)} images, not trained on"
    augment = config.data.augment or default_augmentation(data.train)
    mirror = ", mirror" if augment != "none" and data.train.mirror else ""
    return (
        f"validation: {validation}; batches of {config.data.batch_size}; augmentation: "
        f"{AUGMENTATIONS[augment]}{mirror}"
    )


def optimizer_text(config: TrainConfig) -> str:
    """Optimizer, rate and schedule."""
    lr = config.optimizer.build([nn.Parameter(zeros(1, 1))]).defaults["lr"]
    schedule = config.schedule
    shape: str = schedule.shape
    if shape == "steps":
        shape = f"times {schedule.factor:g} after " + ", ".join(
            f"{100 * at:g} %" if at < 1 else f"{at:g} epochs" for at in schedule.milestones
        )
    warmup = f", {schedule.warmup_epochs:g} epochs of warm-up" if schedule.warmup_epochs else ""
    return f"optimizer: {config.optimizer.name}, learning rate {lr:g}, {shape}{warmup}"
