"""One prediction under way: what the caller waits for, and what is done step by step.

Who does it: a worker thread, which steps through the evaluation itself; or, where the network runs in a
process of its own, the caller, who takes in what comes from there (``apart``).

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
from .isolated import IsolatedEvaluation, IsolatedSession
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
        self._apart: IsolatedEvaluation | None = None
        self._rows: Tensor | None = None  # who is under way; None: all
        self._state: Tensor | None = None
        self._latch = threading.Lock()
        self._latch.acquire()

    # -- the caller's side ----------------------------------------------------------------------------
    def start_apart(self, session: IsolatedSession) -> None:
        """Begin in the other process."""
        assert self._x is not None
        terms = self.terms
        try:
            self._apart = session.begin(self._x, terms.due, terms.wait, on=terms.policy is None)
        except RuntimeError as error:
            if session.closed:  # meanwhile
                raise RuntimeError(CLOSED) from error
            raise
        self._evaluation, self._x = self._apart, None

    def wait(self, until: float) -> bool:
        """Sleep to the end of the job or to ``until``, whichever is sooner; whether it is the end."""
        if self._apart is not None:
            while self.take_in(until):
                pass
            return self.ended is not None
        left = until - time.monotonic()
        timeout = -1 if left > threading.TIMEOUT_MAX else max(0.0, left)
        ended = self._latch.acquire(timeout=timeout)
        if ended:
            self._latch.release()
        return ended

    def take_in(self, until: float) -> bool:
        """Sleep to the next message of the other process, and deal with it; whether one came.

        A stage that was finished in time counts, however late its message is read.
        """
        if self.ended is not None or self._apart is None:
            return False
        now, terms = time.monotonic(), self.terms
        late = now > terms.due and (self.answer is not None or not terms.wait)
        try:
            if not self._apart.ready(now if late else until):
                if late:
                    self._end("deadline")
                return False
            ended = self._step(self._apart)
        except BaseException as error:
            closed = isinstance(error, Exception) and self._apart.session.closed
            self.fail(RuntimeError(CLOSED) if closed else error)
            return True
        if ended is not None:
            self._end(ended)
        return True

    def take_in_all(self) -> None:
        """Deal with what has come, without waiting."""
        while self.take_in(0.0):
            pass

    def fileno(self) -> int | None:
        """What can be read when ``take_in`` has something to do; None where a worker does the work."""
        return self._apart.fileno() if self._apart is not None else None

    def leave(self) -> None:
        """Nobody wants it any more: at most the step that is running is still computed."""
        self.cancelled = True
        evaluation = self._evaluation
        if self._apart is not None:
            self._apart.close()
        elif evaluation is not None:
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
        at = time.monotonic() if self._apart is None else self._apart.at
        return Answer(stages, logits, probabilities, confidence, at, ended)

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
        self._evaluation.keep(rows)
        self._rows = rows if self._rows is None else self._rows[rows]
        self._state = None if self._state is None else self._state[rows]

    def _end(self, ended: str) -> None:
        self.ended = ended
        evaluation, self._evaluation = self._evaluation, None
        self._x = self._state = self._rows = None
        self._latch.release()
        if self._tell is not None:
            self._tell(None)
        if evaluation is not None and self._apart is None:
            with contextlib.suppress(Exception):  # the worker has others to serve
                evaluation.close()  # last: nobody waits for it. Apart, the caller does when it leaves


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
