"""Compare exported graphs with the network, stage by stage, on random images.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....nets import AnytimeNetwork
from ....nets.nested.plan import IMAGE
from ....store import RunError
from ...folding import Array
from ...verify import random_images
from ..executor import Executor
from ..graphs.single_file import LOGITS, STAGE, STAGES
from ..manifest import GraphInput, StageNames

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)

AllLogits = Callable[[Array], list[Array]]  # images [B, C, H, W] -> every stage's logits


def check(network: AnytimeNetwork, run: AllLogits, size: tuple[int, int]) -> dict[str, Any]:
    """Compare graphs with ``network.stages`` on random images.

    Args:
        network: in eval mode.
        run: runs the graphs.
        size: (H, W).

    Returns:
        What was compared, and the largest error: a difference of logits, relative to the stage's
        largest logit where that is above 1.

    Raises:
        RunError: the error is above ``TOLERANCE``, or NaN.
    """
    worst = 0.0
    for batch in BATCHES:
        images = random_images(batch, network.in_channels, *size)
        with torch.no_grad():
            expected = [logits.numpy() for _, logits in network.stages(images)]
        found = run(images.numpy())
        for stage, (ours, theirs) in enumerate(zip(found, expected, strict=True), 1):
            error = _error(ours, theirs)
            if not error <= TOLERANCE:
                raise RunError(
                    f"the exported graphs must give PyTorch's logits within {TOLERANCE:g}, found "
                    f"stage {stage} off by {error:.2g} on {batch} random images; nothing was "
                    "written"
                )
            worst = max(worst, error)
    return {"batches": list(BATCHES), "max_error": worst, "tolerance": TOLERANCE}


def _error(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))


def run_stages(
    models: Sequence[Any], stages: Sequence[StageNames], inputs: Sequence[GraphInput]
) -> AllLogits:
    """Runs graphs of one stage each."""
    serialised = [model.SerializeToString() for model in models]
    return Executor(serialised, stages, inputs).run_all


def run_single(model: Any, num_stages: int) -> Callable[[Array | Mapping[str, Array]], list[Array]]:
    """Runs a file of all stages, once for each number of stages."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    taken = {value.name for value in session.get_inputs()} - {STAGES}

    def run(inputs: Array | Mapping[str, Array]) -> list[Array]:
        named = inputs if isinstance(inputs, Mapping) else {IMAGE: inputs}
        found = []
        for stage in range(1, num_stages + 1):
            feed = {**{n: named[n] for n in taken}, STAGES: np.array(stage, dtype=np.int64)}
            logits, reached = session.run([LOGITS, STAGE], feed)
            if int(reached) != stage:
                raise RunError(f"the single file must run {stage} stages, found {reached}")
            found.append(logits)
        return found

    return run
