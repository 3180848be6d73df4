"""earlyon's ResNet-56 for CIFAR with three exits, where that package is installed and can be imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

NEVER, ALWAYS = 2.0, 0.0  # thresholds that no confidence reaches, and that every one does


class Absent(Exception):
    """Why there is nothing to measure, in one line."""


def build() -> Any:
    """The network with its exits, in eval mode, with fresh weights.

    Raises:
        Absent: the package cannot be imported.
    """
    try:
        from earlyon.models.cifar_resnet_ee import cifar_resnet_ee
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise Absent(f"earlyon is left out: it cannot be imported ({reason})") from error
    return cifar_resnet_ee(num_classes=10, depth=56).eval()


def entries(model: Any, x: torch.Tensor) -> dict[str, Callable[[], float]]:
    """By exit, a run that leaves there; then the network without exits.

    Each runs twice and gives the seconds of its second run.
    """
    count = len(model.config.exit_points)
    bare = build().backbone  # without the hooks

    def leave(exit_: int) -> float:
        model.config.confidence_thresholds[:] = [
            ALWAYS if number == exit_ else NEVER for number in range(count)
        ]
        start = time.perf_counter()
        taken = model(x).exit_taken
        seconds = time.perf_counter() - start
        assert taken == (exit_ if exit_ < count else -1), "it left elsewhere"
        return seconds

    def alone() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            bare(x)
            return time.perf_counter() - start

    def second(run: Callable[[], float]) -> Callable[[], float]:
        return lambda: (run(), run())[1]

    runs = {f"exit {number + 1}": second(partial(leave, number)) for number in range(count)}
    runs["no exit taken"] = second(partial(leave, count))
    runs["the network without exits"] = second(alone)
    return runs
