"""8-bit graphs: static quantisation, calibrated stage by stage on real images.

Weights have 7 bits, so that sums do not overflow on any CPU, and one scale per output channel;
activations have one scale per tensor, from their range on the calibration images (Jacob et al.
2018; ONNX Runtime's QDQ format). Stage s is calibrated on the state that the quantised stages
before it compute. State passes between stages in float32.

Legend: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from ...folding import Array
from ...session import Session, stages
from ..manifest import StageNames

BATCH = 32  # images at once; ranges do not depend on it


def quantize(
    models: Sequence[Any], names: Sequence[StageNames], inputs: Mapping[str, Array]
) -> list[Any]:
    """Quantise the stages' models.

    Args:
        models: in float32, one per stage.
        names: their inputs and outputs.
        inputs: of the network, for calibration, such as images ``[N, C, H, W]``, normalised as in
            training.

    Raises:
        ValueError: no images.
    """
    import onnx
    from onnxruntime import quantization as q

    if not all(map(len, inputs.values())):
        raise ValueError("int8 needs images to calibrate on, found none")
    known = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    results = []
    with TemporaryDirectory(prefix="anynest-") as folder, _quiet():
        for number, (model, stage) in enumerate(zip(models, names, strict=True), 1):
            path = Path(folder) / f"stage{number}.onnx"
            feeds = _CalibrationReader(known, (*stage.inputs, *stage.reads))
            q.quantize_static(
                copy.deepcopy(model),  # it modifies its argument
                path,
                feeds,
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # 7 bits: without VNNI, sums of two products overflow at 8
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
                calibrate_method=q.CalibrationMethod.MinMax,
            )
            quantised = onnx.load(str(path))
            del quantised.graph.value_info[:]
            results.append(quantised)
            if number < len(models):
                known.update(_run(quantised, stage, known))
    return results


class _CalibrationReader:
    """Batches of a stage's inputs, in the interface of ``quantize_static``."""

    def __init__(self, arrays: dict[str, Array], names: Sequence[str]) -> None:
        self._batches = _batches({name: arrays[name] for name in names})

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _batches(arrays: dict[str, Array]) -> Iterator[dict[str, Array]]:
    count = len(next(iter(arrays.values()))) if arrays else 0
    for start in range(0, count, BATCH):
        yield {name: array[start : start + BATCH] for name, array in arrays.items()}


def _run(model: Any, stage: StageNames, known: dict[str, Array]) -> dict[str, Array]:
    """The state that a stage computes for all calibration images."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = (*stage.inputs, *stage.reads)
    parts = [
        session.run(list(stage.gives), feed)
        for feed in _batches({name: known[name] for name in names})
    ]
    return {
        name: np.concatenate(part)
        for name, part in zip(stage.gives, zip(*parts, strict=True), strict=True)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantiser's advice to preprocess models, which these do not need."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stage_errors(session: Session, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, ...]:
    """Each stage's share of misclassified images.

    Args:
        session: the network.
        batches: (images ``[B, C, H, W]``, labels ``[B]``).

    Raises:
        ValueError: no images.
    """
    wrong = [0] * session.num_stages
    count = 0
    for images, labels in batches:
        evaluation = session.begin(images)
        try:
            for stage, logits in stages(evaluation):
                wrong[stage - 1] += int((logits.argmax(dim=1) != labels).sum())
        finally:
            evaluation.close()
        count += len(labels)
    if not count:
        raise ValueError("errors are measured on images, found none")
    return tuple(number / count for number in wrong)
