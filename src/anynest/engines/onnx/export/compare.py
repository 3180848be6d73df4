"""Compare the stages' graphs with the segments that they were made of.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...verify import difference
from ..executor import Buffers, Executor
from .verify import run_single

TOLERANCE = 1e-3  # relative to the largest value of a stage's output, as in engines/verify.py
HALF_TOLERANCE = 2e-2  # in float16
REMEDY = "use backend='torch'"


class ConversionError(ValueError):
    """A network without graphs for ONNX Runtime; ``reason`` is the message without its remedy."""

    def __init__(self, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason


def varied(example: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """Random inputs of ``batch`` samples: the example's own, with noise where they are real numbers.

    Whole numbers, such as token ids and masks, stay as they are.
    """
    generator = torch.Generator().manual_seed(batch)
    rows = torch.randint(len(example[0]), (batch,), generator=generator)
    found = []
    for tensor in example:
        value = tensor[rows]
        if value.is_floating_point() and not torch.equal(value, value.round()):
            noise = torch.randn(value.shape, generator=generator).to(value.dtype)
            value = value + value.std() * noise / 4
        found.append(value)
    return tuple(found)


def run_segments(segments: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Every stage's output in PyTorch."""
    outputs, state = [], tuple(value.clone() for value in inputs)
    for segment in segments.children():
        output, *rest = segment(*state)
        outputs.append(output.clone())
        state = tuple(rest)
    return outputs


def compare_outputs(segments: nn.Module, executor: Executor, inputs: Sequence[Tensor]) -> float:
    """The largest difference of a stage's output, relative to its largest value.

    Raises:
        ConversionError: a stage cannot run, its output differs, or its state has no batch.
    """
    batch = len(inputs[0])
    with torch.no_grad():
        expected = run_segments(segments, inputs)
    try:
        buffers = Buffers(executor, batch, tuple(tuple(value.shape[1:]) for value in inputs))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ConversionError(f"onnxruntime cannot run the graphs: {_line(error)}") from error
    for entry, value in zip(executor.inputs, inputs, strict=True):
        buffers.arrays[entry.name][...] = value.numpy()
    worst = 0.0
    for stage, wanted in enumerate(expected, 1):
        try:
            found = torch.from_numpy(buffers.run(stage - 1))
        except Exception as error:
            raise ConversionError(
                f"onnxruntime cannot run stage {stage}: {_line(error)}"
            ) from error
        worst = max(worst, _check(stage, found, wanted))
    return worst


def _check(stage: int, found: Tensor, wanted: Tensor) -> float:
    """The difference of a stage's output; ConversionError if it is too large."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ConversionError(
            f"stage {stage} of the graphs must give {wanted.dtype} {list(wanted.shape)}, found "
            f"{found.dtype} {list(found.shape)}"
        )
    off = difference([found.double()], [wanted.double()])
    tolerance = HALF_TOLERANCE if wanted.dtype == torch.float16 else TOLERANCE
    if not off <= tolerance:
        raise ConversionError(
            f"the graphs must give PyTorch's outputs within {tolerance:g} of the largest, found "
            f"stage {stage} off by {off:.1e}"
        )
    return off


def compare_single(
    segments: nn.Module, model: Any, names: Sequence[str], inputs: Sequence[Tensor]
) -> None:
    """Compare a file of all stages with PyTorch; ``names`` are those of the inputs.

    Raises:
        ConversionError: it cannot run, or a stage's output differs.
    """
    with torch.no_grad():
        expected = run_segments(segments, inputs)
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    try:
        outputs = run_single(model, len(expected))(feed)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ConversionError(f"onnxruntime cannot run the single file: {_line(error)}") from error
    for stage, (ours, theirs) in enumerate(zip(outputs, expected, strict=True), 1):
        _check(stage, torch.from_numpy(ours), theirs)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
