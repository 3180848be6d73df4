"""One prediction in flight, shared by the caller, who waits, and the scheduler's thread.

Each shared attribute is written by one side only, in a single assignment. A lock, released once
when the prediction ends, wakes the caller. Neither side waits for a lock that the other holds.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

from torch import Tensor

from ..engines.inputs import Inputs
from ..engines.session import Evaluation, Session
from .options import PredictOptions
from .prediction import NetworkError
from .stage_results import StageResult, StageResults, is_logits, on_cpu

CLOSED = "the predictor is closed; open another"

OnResult = Callable[[StageResult | None], None]


class InFlight:
    """A batch on its way through the network.

    Args:
        x: images ``[B, C, H, W]``, or all inputs by name.
        options: of the call.
        results: collects the stages' outputs.
        on_result: called in the scheduler's thread with each result, and with None at the end.

    Attributes:
        result: the newest stage finished by the deadline; None before the first.
        error: what the network raised.
        cancelled: no further stage is wanted.
    """

    def __init__(
        self,
        x: Inputs,
        options: PredictOptions,
        results: StageResults,
        on_result: OnResult | None = None,
    ) -> None:
        self.options = options
        self.size, self.single = batch_size(x), results.single
        self.result: StageResult | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self._x: Inputs | None = x
        self._results = results
        self._on_result = on_result
        self._evaluation: Evaluation | None = None
        self._finished_at = math.inf  # the newest stage, which may not be published yet
        self._over = threading.Lock()
        self._over.acquire()

    # -- the caller's side ------------------------------------------------------------------------
    def wait(self, until: float) -> bool:
        """Sleep to the end of the prediction or to ``until``. Returns whether it has ended."""
        left = until - time.monotonic()
        timeout = -1 if left > threading.TIMEOUT_MAX else max(0.0, left)
        ended = self._over.acquire(timeout=timeout)
        if ended:
            self._over.release()
        return ended

    @property
    def must_wait(self) -> bool:
        """Whether the caller, at the deadline, waits for the first result.

        So it does with ``on_timeout="wait"``, and where the network has finished stage 1 in time
        but its result is not published yet.
        """
        wait = self.options.on_timeout == "wait" or self._finished_at <= self.options.due
        return self.result is None and wait

    def cancel(self) -> None:
        """Ask for no further step; the running one is told to stop, where the engine can."""
        self.cancelled = True
        evaluation = self._evaluation
        if evaluation is not None:
            evaluation.cancel()

    def abort(self, error: BaseException) -> None:
        """Cancel, and raise ``error`` in the caller."""
        self.error = error
        self.cancel()

    # -- the scheduler's side ---------------------------------------------------------------------
    @property
    def urgency(self) -> tuple[bool, float, float]:
        """Requests without a result first, then earliest deadline, then arrival."""
        return self.result is not None, self.options.due, self.options.called

    @property
    def started(self) -> bool:
        """Whether it holds an evaluation, and with it buffers."""
        return self._evaluation is not None

    def advance(self, session: Session) -> bool:
        """Run one step of the engine. Returns whether there is another to run."""
        try:
            more = not self._too_late(time.monotonic()) and self._step(session)
        except BaseException as error:  # whatever a network raises belongs to its caller
            self.fail(error)
            return False
        if not more:
            self._end()
        return more

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.error = error
        self._end()

    def _too_late(self, now: float) -> bool:
        """Whether a result at ``now`` is of no use."""
        late = now > self.options.due
        return self.cancelled or (
            late and (self.result is not None or self.options.on_timeout != "wait")
        )

    def _step(self, session: Session) -> bool:
        """Compute one step; publish the result of a stage that it finishes."""
        if self._x is not None:
            self._evaluation, self._x = session.begin(self._x), None
        evaluation = self._evaluation
        assert evaluation is not None
        stage = evaluation.stage + 1
        try:
            output = evaluation.step()
        except Exception as error:
            if self.cancelled:  # an engine that stops within a step reports it as an error
                return False
            raise NetworkError(f"the network failed in stage {stage}: {_line(error)}") from error
        if output is None:
            return True
        output = on_cpu(output, copy=True)
        at = time.monotonic()
        if self._too_late(at):
            return False
        self._finished_at = at
        if is_logits(output) and not math.isfinite(float(output.sum())):
            raise NetworkError(f"the logits of stage {stage} must be finite, found NaN or infinity")
        result, indices = self._results.add(stage, evaluation.num_stages, output, at)
        self.result = result
        if self._on_result is not None:
            self._on_result(result)
        if indices is not None:
            evaluation.compact(indices)
        return result.stop_reason is None and not self._too_late(time.monotonic())

    def _end(self) -> None:
        evaluation, self._evaluation = self._evaluation, None
        self._x = None
        self._over.release()
        if self._on_result is not None:
            self._on_result(None)
        if evaluation is not None:
            with contextlib.suppress(Exception):  # the scheduler has other requests to serve
                evaluation.close()  # last: nobody waits for it


def batch_size(x: Inputs) -> int:
    """B."""
    return len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
