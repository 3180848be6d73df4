"""What sessions and evaluations of all engines share: closing, counting stages, joining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import check_indices


class BatchSession:
    """A session until it is closed; see :class:`~anynest.engines.session.Session`."""

    closed = False
    divides = True  # ``join`` takes some samples of a batch

    def close(self) -> None:
        """Refuse further batches; running evaluations may finish."""
        self.closed = True

    def require_open(self) -> None:
        """RuntimeError if it is closed."""
        if self.closed:
            raise RuntimeError("the session is closed; open another")


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads in this thread; None leaves their number."""
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


class BatchEvaluation:
    """One batch between two stages; see :class:`~anynest.engines.session.Evaluation`.

    Args:
        session: that began it.
        stage: the newest finished stage.
    """

    def __init__(self, session: Any, stage: int = 0) -> None:
        self.session = session
        self.stage = stage
        self.num_stages: int = session.num_stages
        self.closed = False
        self.cancelled = False

    @property
    def at_boundary(self) -> bool:
        """Whether no stage is half computed."""
        return True

    @property
    def sizes(self) -> object:
        """All sizes beside the batch; equal for evaluations that can be joined."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Refuse further steps; the running one is finished."""
        self.cancelled = True

    def require_open(self) -> None:
        """RuntimeError if it is closed."""
        if self.closed:
            raise RuntimeError("the evaluation is closed; begin another")

    def require_running(self) -> None:
        """RuntimeError if it is closed or cancelled."""
        self.require_open()
        if self.cancelled:
            raise RuntimeError("the evaluation was cancelled; begin another")

    def require_stage(self) -> None:
        """RuntimeError if there is no stage left to compute."""
        self.require_running()
        if self.stage == self.num_stages:
            raise RuntimeError("every stage is finished; begin another evaluation")


E = TypeVar("E", bound=BatchEvaluation)


def check_join(session: object, evaluations: Sequence[object], kind: type[E]) -> list[E]:
    """The evaluations, if a session can join them.

    Raises:
        ValueError: none, one twice, one of another session, in the middle of a stage or at another
            stage, or other sizes.
        RuntimeError: one is closed or cancelled.
    """
    found: list[E] = []
    for evaluation in evaluations:
        if not isinstance(evaluation, kind) or evaluation.session is not session:
            raise ValueError(
                "evaluations can only be joined by the session that began them, found one of "
                "another session"
            )
        if any(evaluation is other for other in found):
            raise ValueError("evaluations to join must be different, found one twice")
        evaluation.require_running()
        if not evaluation.at_boundary:
            raise ValueError("samples can only be joined between stages; finish the stage first")
        found.append(evaluation)
    if not found:
        raise ValueError("join needs at least one evaluation, found none")
    if len({evaluation.stage for evaluation in found}) > 1:
        raise ValueError(
            "evaluations to join must stand at the same stage, found "
            f"{[evaluation.stage for evaluation in found]}"
        )
    for evaluation in found:
        if evaluation.sizes != found[0].sizes:
            raise ValueError(
                "evaluations to join must have equal sizes beside the batch, found "
                f"{found[0].sizes} and {evaluation.sizes}"
            )
    return found


def check_rows(rows: Sequence[Tensor | None] | None, batches: Sequence[int]) -> list[Tensor | None]:
    """The samples to join from each batch, on the CPU; None stands for all.

    Raises:
        ValueError: not one entry for each batch, or indices that it does not have.
    """
    if rows is None:
        return [None] * len(batches)
    if len(rows) != len(batches):
        raise ValueError(
            f"rows must be one for each of {len(batches)} evaluations, found {len(rows)}"
        )
    return [
        None if indices is None else check_indices(indices, batch)
        for indices, batch in zip(rows, batches, strict=True)
    ]


def concatenate(tensors: Sequence[Tensor], rows: Sequence[Tensor | None]) -> Tensor:
    """Samples of several batches as one batch; None stands for all of a batch."""
    parts = [
        tensor if indices is None else tensor.index_select(0, indices.to(tensor.device))
        for tensor, indices in zip(tensors, rows, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
