"""One prediction under way: what the caller waits for, and what is done step by step.

Caller and worker share a few attributes, each written by one side alone in one assignment, and a latch that
the worker opens at the end. Neither ever waits for a lock that the other holds.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engines.session import Evaluation, Session
from ..profiling import StageLatency
from .monotonicity import Rule, softmax
from .policies import Moment, Policy
from .prediction import Answer, NetworkError

CLOSED = "the predictor is closed; open another"


@dataclass(frozen=True)
class Terms:
    """What a caller asked for.

    Attributes:
        called: when, by ``time.monotonic``.
        due: the deadline by the same clock; inf for none.
        policy, rule: when to stop early, and what makes probabilities of logits.
        wait: whether stage 1 is computed even after the deadline.
        single: whether the caller gave one image rather than a batch.
        costs: multiply-adds up to each stage, where known.
        latencies, sureness: stages that are done in time with less than this probability, by these
            latencies, are not begun.
    """

    called: float
    due: float = math.inf
    policy: Policy | None = None
    rule: Rule = softmax
    wait: bool = False
    single: bool = False
    costs: Sequence[int] | None = None
    latencies: Sequence[StageLatency] | None = None
    sureness: float = 0.0


class Job:
    """A batch ``x`` ``[B, C, H, W]`` on its way. ``tell`` is called, in the worker's thread, with
    each answer and with None at the end."""

    def __init__(
        self, x: Tensor, terms: Terms, tell: Callable[[Answer | None], None] | None = None
    ) -> None:
        self.terms = terms
        self.size = len(x)
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.ended: str | None = None
        self.cancelled = False
        self._x: Tensor | None = x
        self._tell = tell
        self._evaluation: Evaluation | None = None
        self._rows: Tensor | None = None  # who is under way; None: all
        self._state: Tensor | None = None
        self._latch = threading.Lock()
        self._latch.acquire()

    # -- the caller's side ----------------------------------------------------------------------------
    def wait(self, until: float) -> bool:
        """Sleep to the end of the job or to ``until``, whichever is sooner; whether it is the end."""
        left = until - time.monotonic()
        timeout = -1 if left > threading.TIMEOUT_MAX else max(0.0, left)
        ended = self._latch.acquire(timeout=timeout)
        if ended:
            self._latch.release()
        return ended

    def leave(self) -> None:
        """Nobody wants it any more: at most the step that is running is still computed."""
        self.cancelled = True
        evaluation = self._evaluation
        if evaluation is not None:
            evaluation.cancel()

    # -- the worker's side ----------------------------------------------------------------------------
    @property
    def urgency(self) -> tuple[bool, float, float]:
        """Whoever has no answer yet comes first, then the nearer deadline, then the earlier call."""
        return self.answer is not None, self.terms.due, self.terms.called

    def advance(self, session: Session) -> bool:
        """Do one step; whether there is another to do."""
        try:
            ended = self._over(time.monotonic())
            if ended is None:
                if self._evaluation is None:
                    assert self._x is not None
                    self._evaluation = session.begin(self._x)
                    self._x = None
                ended = self._step(self._evaluation)
        except BaseException as error:  # whatever a network raises is its caller's to see
            self.fail(error)
            return False
        if ended is not None:
            self._end(ended)
        return ended is None

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.error = error
        self._end("error")

    def _over(self, now: float) -> str | None:
        if self.cancelled:
            return "cancelled"
        if now > self.terms.due and (self.answer is not None or not self.terms.wait):
            return "deadline"
        return None

    def _step(self, evaluation: Evaluation) -> str | None:
        """One step; why it was the last, or None."""
        stage = evaluation.stage + 1
        try:
            logits = evaluation.step()
        except Exception as error:
            if self.cancelled:  # a backend that stops within a step says so by failing
                return "cancelled"
            raise NetworkError(f"the network failed in stage {stage}: {_line(error)}") from error
        return None if logits is None else self._finished(stage, logits, evaluation.num_stages)

    def _finished(self, stage: int, logits: Tensor, num_stages: int) -> str | None:
        """Publish a stage's answer; why it was the last, or None."""
        with torch.no_grad():
            # made in inference mode: the caller's may be used as any other
            logits = logits.to("cpu", torch.float32, copy=True)
            self._state, probabilities = self.terms.rule(self._state, logits)
            if not math.isfinite(float(logits.sum())):
                raise NetworkError(f"the logits of stage {stage} must be finite, found others")
            done = self._done(stage, probabilities) if stage < num_stages else None
            ended = "last stage" if stage == num_stages else self._satisfied(stage, done)
            answer = self._merge(stage, logits, probabilities, ended)
            over = self._over(answer.at)
            if over is not None:
                return over
            self.answer = answer
            if self._tell is not None:
                self._tell(answer)
            if ended is None and done is not None and bool(done.any()):
                self._keep((~done).nonzero().squeeze(1))
        return ended

    def _merge(
        self, stage: int, logits: Tensor, probabilities: Tensor, ended: str | None
    ) -> Answer:
        """The newest of every image: those that have left keep what they had."""
        before = self.answer
        stages: tuple[int, ...] = (stage,) * len(logits)
        if self._rows is not None and before is not None:
            logits = before.logits.index_copy(0, self._rows, logits)
            probabilities = before.probabilities.index_copy(0, self._rows, probabilities)
            under_way = set(self._rows.tolist())
            stages = tuple(
                stage if row in under_way else old for row, old in enumerate(before.stages)
            )
        confidence = float(probabilities.amax(dim=1).amin())
        if self.terms.single:  # here rather than when the deadline has come
            logits, probabilities = logits[0], probabilities[0]
        return Answer(stages, logits, probabilities, confidence, time.monotonic(), ended)

    def _done(self, stage: int, probabilities: Tensor) -> Tensor | None:
        """Which of the images under way need no further stage, by the policy."""
        terms = self.terms
        if terms.policy is None:
            return None
        cost, next_cost = terms.costs[stage - 1 : stage + 1] if terms.costs else (None, None)
        elapsed = time.monotonic() - terms.called
        return terms.policy.stop(Moment(stage, probabilities, elapsed, cost, next_cost))

    def _satisfied(self, stage: int, done: Tensor | None) -> str | None:
        """Why no stage follows this one although there is another, or None."""
        if done is not None and bool(done.all()):
            return "policy"
        terms = self.terms
        if terms.latencies is not None and math.isfinite(terms.due):
            left = terms.due - time.monotonic()
            if terms.latencies[stage].step_within(left) < terms.sureness:
                return "saved work"
        return None

    def _keep(self, rows: Tensor) -> None:
        assert self._evaluation is not None
        self._evaluation.compact(rows)
        self._rows = rows if self._rows is None else self._rows[rows]
        self._state = None if self._state is None else self._state[rows]

    def _end(self, ended: str) -> None:
        self.ended = ended
        evaluation, self._evaluation = self._evaluation, None
        self._x = self._state = self._rows = None
        self._latch.release()
        if self._tell is not None:
            self._tell(None)
        if evaluation is not None:
            with contextlib.suppress(Exception):  # the worker has others to serve
                evaluation.close()  # last: nobody waits for it


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
