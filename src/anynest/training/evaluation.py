"""Loss and error of every stage on a split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data import Loader
from .distributed import World
from .metrics import RunningMetrics


@dataclass(frozen=True)
class Evaluation:
    """Loss and error per stage, from stage 1.

    Errors are shares from 0 to 1; top-5 is measured where there are more than 10 classes.
    """

    split: str
    images: int
    loss: tuple[float, ...]
    error: tuple[float, ...]
    top5_error: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``top5_error`` only where it was measured."""
        result: dict[str, Any] = {
            "split": self.split,
            "images": self.images,
            "loss": list(self.loss),
            "error": list(self.error),
        }
        if self.top5_error is not None:
            result["top5_error"] = list(self.top5_error)
        return result


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode within the context, then restore the mode of every module."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    split: str = "",
    autocast: torch.autocast | None = None,
    check: Callable[[], None] = lambda: None,
    world: World | None = None,
) -> Evaluation:
    """Evaluate every stage over ``loader`` once, in eval mode.

    Args:
        model: returns a list of S logits [B, K].
        loader: the batches.
        split: the split's name, for the result.
        autocast: the context of the forward pass.
        check: called before every batch; may raise to stop between batches.
        world: of several ranks each has its own part of every batch; the result is over all.

    Returns:
        Errors and losses per stage; the loss is the plain cross entropy, without label smoothing.

    Raises:
        ValueError: the split has no images.
    """
    sums = None
    with eval_mode(model):
        for inputs, labels in loader.batches(0):
            check()
            if sums is not None and not len(labels):
                continue  # the other ranks have the rest of this batch
            with autocast or nullcontext():
                logits = model(inputs)
            logits = [out.float() for out in logits]
            if sums is None:
                sums = RunningMetrics(len(logits), inputs.device, top5=logits[0].shape[1] > 10)
            losses = torch.stack([nn.functional.cross_entropy(out, labels) for out in logits])
            sums.add(losses, logits, labels)
    if sums is not None and world is not None:
        sums = sums.over(world)
    images = 0 if sums is None else int(sums.tensors["seen"][0])
    if sums is None or not images:
        raise ValueError(f"the {split or 'given'} split has no images: nothing to evaluate")
    means = sums.means()
    top5 = means.get("top5_error")
    loss = tuple(float("nan") if value is None else value for value in means["loss"])
    return Evaluation(split, images, loss, tuple(means["error"]), tuple(top5) if top5 else None)
