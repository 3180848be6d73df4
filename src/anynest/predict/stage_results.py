"""The result of each stage: outputs in the caller's order, and whether to go on.

Floating-point outputs ``[b, K]`` are logits of classes. Policies and monotone rules need them.

Legend: B samples of the batch, b samples still being computed, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..profiling import StageLatency
from .early_stopping.policies import PolicyInput
from .monotonicity import Rule, softmax
from .options import PredictOptions


@dataclass(frozen=True, eq=False)
class StageResult:
    """What is known after a stage: ``[K]`` for a single image, ``[B, ...]`` for a batch.

    Attributes:
        stages: the newest finished stage of each sample.
        output: the logits, or another output.
        probabilities: of the logits; None for other outputs.
        at: when the network finished the stage, by ``time.monotonic``.
        stop_reason: why no stage follows; None where one does.
    """

    stages: tuple[int, ...]
    output: Tensor
    probabilities: Tensor | None
    at: float
    stop_reason: str | None


class StageResults:
    """Collects a batch's outputs stage by stage. Samples that are done keep their result.

    Args:
        options: policy, deadline and ``min_completion_probability`` of the call.
        rule: maps logits to probabilities (predict/monotonicity.py).
        single: the caller passed one image rather than a batch.
        costs: multiply-adds of one image up to each stage, where known.
        latencies: measured latency of each stage; needed for ``min_completion_probability``.
    """

    def __init__(
        self,
        options: PredictOptions,
        *,
        rule: Rule = softmax,
        single: bool = False,
        costs: Sequence[int] | None = None,
        latencies: Sequence[StageLatency] | None = None,
    ) -> None:
        self.single = single
        self._options, self._rule = options, rule
        self._costs, self._latencies = costs, latencies
        self._state: Tensor | None = None  # of the rule, [b, K]
        self._active: Tensor | None = None  # int64 [b], positions in the batch; None: all
        self._newest: StageResult | None = None

    @torch.no_grad()
    def add(
        self, stage: int, num_stages: int, output: Tensor, at: float
    ) -> tuple[StageResult, Tensor | None]:
        """Add the output of a stage that was finished ``at`` this time.

        Returns:
            The result, and the indices of the samples to go on with; None for all of them.

        Raises:
            ValueError: a policy or a monotone rule, and an output that is no logits ``[b, K]``.
        """
        probabilities: Tensor | None = None
        if is_logits(output):
            self._state, probabilities = self._rule(self._state, output)
        elif self._options.policy is not None or self._rule is not softmax:
            what = "a policy" if self._options.policy is not None else "monotone="
            raise ValueError(
                f"{what} needs floating-point logits [batch, classes], found an output "
                f"{list(output.shape)} {output.dtype}: predict without"
            )
        stop_reason, done = "last stage" if stage == num_stages else None, None
        if stop_reason is None:
            done = None if probabilities is None else self._done(stage, probabilities)
            stop_reason = self._stop_reason(stage, done)
        result = self._newest = self._merge(stage, output, probabilities, at, stop_reason)
        if stop_reason is not None or done is None or not bool(done.any()):
            return result, None
        assert self._state is not None
        indices = (~done).nonzero().squeeze(1)
        self._active = indices if self._active is None else self._active[indices]
        self._state = self._state[indices]
        return result, indices

    def _done(self, stage: int, probabilities: Tensor) -> Tensor | None:
        """bool ``[b]``: the images that the policy stops at this stage."""
        options = self._options
        if options.policy is None:
            return None
        cost, next_cost = self._costs[stage - 1 : stage + 1] if self._costs else (None, None)
        elapsed = time.monotonic() - options.called
        return options.policy.stop(PolicyInput(stage, probabilities, elapsed, cost, next_cost))

    def _stop_reason(self, stage: int, done: Tensor | None) -> str | None:
        """Why stage + 1 is not started; None to start it."""
        if done is not None and bool(done.all()):
            return "policy"
        options = self._options
        if self._latencies is not None and math.isfinite(options.seconds):
            probability = self._latencies[stage].step_within(options.due - time.monotonic())
            if probability < (options.min_completion_probability or 0.0):
                return "completion probability"
        return None

    def _merge(
        self,
        stage: int,
        output: Tensor,
        probabilities: Tensor | None,
        at: float,
        stop_reason: str | None,
    ) -> StageResult:
        """The newest result of every sample."""
        newest = self._newest
        stages: tuple[int, ...] = (stage,) * len(output)
        if self._active is not None and newest is not None:
            assert probabilities is not None
            assert newest.probabilities is not None
            output = newest.output.index_copy(0, self._active, output)
            probabilities = newest.probabilities.index_copy(0, self._active, probabilities)
            active = set(self._active.tolist())
            stages = tuple(stage if i in active else old for i, old in enumerate(newest.stages))
        if self.single:
            output = output[0]
            probabilities = None if probabilities is None else probabilities[0]
        return StageResult(stages, output, probabilities, at, stop_reason)


def on_cpu(output: Tensor, *, copy: bool = False) -> Tensor:
    """An output on the CPU, or a copy of it; of float16 and bfloat16, in float32. Waits for a GPU."""
    small = output.is_floating_point() and output.element_size() < 4
    return output.to("cpu", torch.float32 if small else output.dtype, copy=copy)


def is_logits(output: Tensor) -> bool:
    """Whether an output is floating point ``[B, K]``: logits of K classes."""
    return output.dim() == 2 and output.is_floating_point()
