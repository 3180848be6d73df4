"""The protocols of every inference engine: a session, and an evaluation of one batch.

    session = open_session(model)  # or a run folder, a weights file, an exported folder
    evaluation = session.begin(images)
    for stage, logits in stages(evaluation):  # stop at any time
        ...
    evaluation.close()

A *step* is the smallest piece of work that is not interrupted: one stage, or one node of a layer
(nested networks in torch). The caller may stop between any two steps. Between two stages samples
may leave a batch (``compact``), and batches may become one (``join``).

Legend: B batch, C channels, H height, W width, K classes, S stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from .inputs import Inputs

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
            The output, such as logits ``[B, K]``, if this step finishes a stage, else None. No
            later step writes into it.

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
    def num_classes(self) -> int | None:
        """K, where the outputs are logits ``[B, K]``; else None."""

    @property
    def in_channels(self) -> int | None:
        """C, where the input is images ``[B, C, H, W]``; else None."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of all inputs."""

    def begin(self, x: Inputs) -> Evaluation:
        """Start the evaluation of a batch.

        Args:
            x: the one input, or all by name; dimension 0 is the batch. Images are float32 and
                normalised. They are copied.

        Raises:
            ValueError: a missing or unknown input, or one of another shape or type.
            TypeError: neither a tensor nor a dict of tensors.
            RuntimeError: the session is closed.
        """

    @property
    def divides(self) -> bool:
        """Whether ``join`` takes some samples of a batch and leaves the others."""

    def join(
        self, evaluations: Sequence[Evaluation], rows: Sequence[Tensor | None] | None = None
    ) -> Evaluation:
        """Join the batches of evaluations, or samples of them, into one, which goes on.

        Its outputs are those of one batch of all its samples, within rounding.

        Args:
            evaluations: of this session, between the same two stages, with equal sizes beside the
                batch. Their samples follow one another in this order.
            rows: for each evaluation ``[b]`` int64, the samples that are copied; the evaluation
                stays as it is. Or None: all of them; the evaluation is closed.

        Raises:
            ValueError: evaluations that cannot be joined, or single samples of a session that does
                not divide batches; the evaluations stay as they are.
            RuntimeError: one is closed or cancelled, or the session is closed.
        """

    def close(self) -> None:
        """Free the session's memory; running evaluations may finish."""


def stages(evaluation: Evaluation) -> Iterator[tuple[int, Tensor]]:
    """Run the remaining steps; yield (stage, output) as each stage is finished."""
    while evaluation.stage < evaluation.num_stages:
        output = evaluation.step()
        if output is not None:
            yield evaluation.stage, output
