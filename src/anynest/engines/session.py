"""The protocols of every inference engine: a session, and an evaluation of one batch.

    session = open_session(model)  # or a run folder, a weights file, an exported folder
    evaluation = session.begin(images)
    for stage, logits in stages(evaluation):  # stop at any time
        ...
    evaluation.close()

A *step* is the smallest piece of work that is not interrupted: one node of a layer (torch) or one
stage's graph (onnxruntime). The caller may stop between any two steps.

Legend: B batch, C channels, H height, W width, K classes, S stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

BACKENDS = ("onnxruntime", "torch")


class Evaluation(Protocol):
    """The evaluation of one batch.

    Used by one thread at a time; ``cancel`` may be called from any thread.
    """

    @property
    def stage(self) -> int:
        """The newest finished stage, 0 before the first."""

    @property
    def num_stages(self) -> int:
        """S."""

    def step(self) -> Tensor | None:
        """Compute the next node or stage.

        Returns:
            The logits ``[B, K]`` if this step finishes a stage, else None. They are a copy: no
            later step writes into them.

        Raises:
            RuntimeError: every stage is finished, or the evaluation is closed or cancelled.
        """

    def compact(self, indices: Tensor) -> None:
        """Continue with a subset of the batch.

        Args:
            indices: ``[b]`` int64, the samples of the current batch to keep, in their new order.

        Raises:
            ValueError: invalid or no indices, or a stage that is half computed.
        """

    def cancel(self) -> None:
        """Interrupt the running step where the backend can; no further steps will be asked for."""

    def close(self) -> None:
        """Release the buffers; a second call has no effect."""


class Session(Protocol):
    """A network ready to run. ``begin`` may be called from several threads at once."""

    @property
    def backend(self) -> str:
        """``"onnxruntime"`` or ``"torch"``."""

    @property
    def num_stages(self) -> int:
        """S."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def in_channels(self) -> int:
        """C."""

    def begin(self, x: Tensor) -> Evaluation:
        """Start the evaluation of a batch.

        Args:
            x: images ``[B, C, H, W]``, float32 and normalised; they are copied.

        Raises:
            ValueError: images of another shape or type.
            RuntimeError: the session is closed.
        """

    def close(self) -> None:
        """Free the session's memory; running evaluations may finish."""


def stages(evaluation: Evaluation) -> Iterator[tuple[int, Tensor]]:
    """Run the remaining steps; yield (stage, logits ``[B, K]``) as each stage is finished."""
    while evaluation.stage < evaluation.num_stages:
        logits = evaluation.step()
        if logits is not None:
            yield evaluation.stage, logits
