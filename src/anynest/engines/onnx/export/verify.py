"""Whether exported graphs compute what the network computes: on random images, stage by stage.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ....nets import AnytimeNetwork
from ....nets.nested.plan import IMAGE
from ....store import RunError
from ...folding import Array
from ..executor import Program, Slot
from ..graphs.single_file import LOGITS, STAGE, STAGES
from ..manifest import StageNames

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)

Answers = Callable[[Array], list[Array]]  # images -> every stage's logits


def check(network: AnytimeNetwork, answers: Answers, size: tuple[int, int]) -> dict[str, Any]:
    """Compare graphs with PyTorch's stages on random images.

    Args:
        network: in eval mode.
        answers: the graphs.
        size: (H, W).

    Returns:
        What was compared, and the largest error: a difference of logits, relative to the largest of
        the stage where that is above 1.

    Raises:
        RunError: it is above ``TOLERANCE``, or not a number.
    """
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in BATCHES:
        images = torch.randn(batch, network.in_channels, *size, generator=draw)
        found = answers(images.numpy())
        with torch.no_grad():
            expected = [logits.numpy() for _, logits in network.stages(images)]
        for stage, (ours, theirs) in enumerate(zip(found, expected, strict=True), 1):
            error = _error(ours, theirs)
            if not error <= TOLERANCE:
                raise RunError(
                    f"the exported graphs must give PyTorch's logits within {TOLERANCE:g}, found stage "
                    f"{stage} off by {error:.2g} on {batch} random images; nothing was written"
                )
            worst = max(worst, error)
    return {"batches": list(BATCHES), "max_error": worst, "tolerance": TOLERANCE}


def _error(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))


def of_stages(
    models: Sequence[Any], stages: Sequence[StageNames], network: AnytimeNetwork
) -> Answers:
    """Graphs of one stage each, one after the other."""
    serialised = [model.SerializeToString() for model in models]
    program = Program(serialised, stages, network.in_channels, network.num_classes)

    def answers(images: Array) -> list[Array]:
        slot = Slot(program, len(images), *images.shape[2:])
        np.copyto(slot.arrays[IMAGE], images)
        return [slot.run(index).copy() for index in range(len(stages))]

    return answers


def of_single(model: Any, num_stages: int) -> Answers:
    """A file of all stages, asked for one more each time."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def answers(images: Array) -> list[Array]:
        found = []
        for stage in range(1, num_stages + 1):
            feed = {IMAGE: images, STAGES: np.array(stage, dtype=np.int64)}
            logits, reached = session.run([LOGITS, STAGE], feed)
            if int(reached) != stage:
                raise RunError(
                    f"the single file must run {stage} stages when asked to, found {reached}"
                )
            found.append(logits)
        return found

    return answers
