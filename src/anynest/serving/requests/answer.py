"""What a request gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batches import Timing
from ..models import ServedModel
from ..protocol.inference import InferRequest
from ..protocol.tensors import Array


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer, or with ``answers`` one of several.

    Attributes:
        model: that gave it.
        stage: of the output, from 1.
        output: of the session.
        elapsed: seconds since the request arrived.
        deadline: likewise, until it must be answered.
        deadline_met: whether it is sent before the deadline.
        stop_reason: ``complete``, ``deadline``, ``confident``, ``requested`` (the request's
            ``stages``), ``load`` (no time is left for later stages) or ``failure``; an empty
            string where later stages may follow.
        timings: of the steps that computed it, in seconds since the request arrived.
    """

    model: ServedModel
    stage: int
    output: Tensor
    elapsed: float
    deadline: float
    deadline_met: bool
    stop_reason: str
    timings: tuple[Timing, ...]

    @property
    def stages(self) -> int:
        """S."""
        return self.model.num_stages

    def outputs(self, request: InferRequest) -> dict[str, Array]:
        """The protocol's tensors that a request asks for, whose names were checked before."""
        return self.model.outputs(self.output, self.stage, request.outputs or None)

    def parameters(self) -> dict[str, Any]:
        """The parameters of the response."""
        return {
            "stage": self.stage,
            "stages": self.stages,
            "deadline_met": self.deadline_met,
            "elapsed_us": round(self.elapsed * 1e6),
            "stop_reason": self.stop_reason,
        }
