"""The result of each stage: probabilities in the caller's order, and whether to go on.

Legend: B images of the batch, b images still being computed, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..profiling import StageLatency
from .monotonicity import Rule, softmax
from .options import PredictOptions
from .policies import PolicyInput


@dataclass(frozen=True, eq=False)
class StageResult:
    """What is known after a stage: ``[K]`` for a single image, ``[B, K]`` for a batch.

    Attributes:
        stages: the newest finished stage of each image.
        confidence: the largest probability; the smallest such value in the batch.
        at: when the network finished the stage, by ``time.monotonic``.
        stop_reason: why no stage follows; None where one does.
    """

    stages: tuple[int, ...]
    logits: Tensor
    probabilities: Tensor
    confidence: float
    at: float
    stop_reason: str | None


class StageResults:
    """Collects a batch's logits stage by stage. Images that are done keep their result.

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
        self, stage: int, num_stages: int, logits: Tensor, at: float
    ) -> tuple[StageResult, Tensor | None]:
        """Add the logits ``[b, K]`` of a stage that was finished ``at`` this time.

        Returns:
            The result, and the indices of the images to go on with; None for all of them.
        """
        self._state, probabilities = self._rule(self._state, logits)
        stop_reason, done = "last stage" if stage == num_stages else None, None
        if stop_reason is None:
            done = self._done(stage, probabilities)
            stop_reason = self._stop_reason(stage, done)
        result = self._newest = self._merge(stage, logits, probabilities, at, stop_reason)
        if stop_reason is not None or done is None or not bool(done.any()):
            return result, None
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
        logits: Tensor,
        probabilities: Tensor,
        at: float,
        stop_reason: str | None,
    ) -> StageResult:
        """The newest result of every image."""
        newest = self._newest
        stages: tuple[int, ...] = (stage,) * len(logits)
        if self._active is not None and newest is not None:
            logits = newest.logits.index_copy(0, self._active, logits)
            probabilities = newest.probabilities.index_copy(0, self._active, probabilities)
            active = set(self._active.tolist())
            stages = tuple(stage if i in active else old for i, old in enumerate(newest.stages))
        confidence = float(probabilities.amax(dim=1).amin())
        if self.single:
            logits, probabilities = logits[0], probabilities[0]
        return StageResult(stages, logits, probabilities, confidence, at, stop_reason)
