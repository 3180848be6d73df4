"""The compute thread: it takes step after step from the scheduler, and publishes the results.

The scheduler is shared with the event loop, which admits and drops requests, under one lock.
Evaluations belong to the thread alone. A job's newest result is set before it is published, so that
the event loop's timer finds it even if the publication is late.

A failed step ends its requests: those without an answer with an error, the others with the newest
they have. If stage 1 fails for several requests, each is computed alone, so that one request's
inputs do not harm the others. Then a new thread starts, which first computes every model once; until
that succeeds, the worker is not ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..predict.thread_scheduling import schedule_thread
from .batches import Job, Result, Timing, advance, begin, free, run_step
from .models import ServedModel, softmax
from .scheduler import Scheduler, Step

_log = logging.getLogger(__name__)

RETRY = 1.0  # seconds between two attempts to compute after a failure


@dataclass(frozen=True, eq=False)
class Report:
    """A finished step, for the event loop: what it was, and the jobs with new results.

    Attributes:
        model: None where no step was finished, but jobs failed.
        stage: that was computed.
        rows: of the batch.
        seconds: that it took.
        jobs: whose ``newest`` is new.
    """

    model: ServedModel | None
    stage: int
    rows: int
    seconds: float
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Load:
    """How busy the compute thread is.

    Attributes:
        waiting_rows: without an answer, in the queue.
        held_rows: with an answer, in the queue for a later stage.
        mandatory: share of the recent time that stage 1 takes.
    """

    waiting_rows: int
    held_rows: int
    mandatory: float


class Worker:
    """One thread that computes.

    Args:
        scheduler: of this worker alone.
        publish: called in the thread with each report; must not block.
        scheduling: how the system schedules the thread (predict/thread_scheduling.py).

    Attributes:
        ready: whether it computes; False before ``start`` and after a failure.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        publish: Callable[[Report], None],
        scheduling: str = "behind",
    ) -> None:
        self._scheduler, self._publish, self._scheduling = scheduler, publish, scheduling
        self._changed = threading.Condition()
        self._gone: deque[Job] = deque()
        self._models: dict[ServedModel, bool] = {}  # and whether it retires
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._free_since = 0.0  # when it could begin the next step: what passes counts as its time
        self.ready = False

    # -- called by the event loop -----------------------------------------------------------------
    def start(self) -> None:
        """Start the thread."""
        self._spawn()
        self.ready = True

    def add(self, model: ServedModel) -> None:
        """Compute a model's requests, too; it has been warmed up."""
        assert model.times is not None
        with self._changed:
            self._scheduler.add_lane(model, model.times, model.gains)
            self._models[model] = False

    def retire(self, model: ServedModel) -> None:
        """Close a model's session when its last request has ended."""
        with self._changed:
            self._models[model] = True
            self._changed.notify()

    def admit(self, job: Job, now: float) -> bool:
        """Accept a job whose inputs will follow, or refuse it."""
        with self._changed:
            return self._scheduler.admit(job, now)

    def readmit(self, job: Job, rows: int, due: float, now: float) -> bool:
        """Accept a waiting job again with other rows and another due time, or refuse it."""
        with self._changed:
            return self._scheduler.readmit(job, rows, due, now)

    def submit(self, job: Job) -> None:
        """Compute a job, whose inputs are there."""
        with self._changed:
            job.ready = True
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Compute nothing more for a job."""
        with self._changed:
            self._scheduler.drop(job)
            self._gone.append(job)
            self._changed.notify()

    def wait(self, now: float) -> float:
        """Estimated seconds until stage 1 of all waiting requests is finished."""
        with self._changed:
            return self._scheduler.wait(now)

    def load(self, now: float) -> Load:
        """How busy the thread is."""
        with self._changed:
            scheduler = self._scheduler
            return Load(
                sum(one.rows for one in scheduler.waiting if not one.gone),
                sum(one.rows for one in scheduler.held if not one.gone),
                scheduler.mandatory(now),
            )

    def stop(self) -> None:
        """End the thread after the running step."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end. Returns whether it has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    # -- the thread -------------------------------------------------------------------------------
    def _spawn(self, probe: bool = False) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(probe,), name="anynest-server", daemon=True
        )
        self._thread.start()

    def _run(self, probe: bool) -> None:
        if not probe:  # else the thread that failed, which started this one, passes it on
            schedule_thread(self._scheduling)
        self._free_since = time.monotonic()
        step: Step | None = None
        try:
            if probe and not self._probe():
                return
            while True:
                step = None
                step = self._next()
                if step is None:
                    break
                self._compute(step)
        except BaseException as error:
            self._recover(step, error)

    def _next(self) -> Step | None:
        """The next step; None to end."""
        with self._changed:
            while not self._stopped:
                self._clean_up()
                step = self._scheduler.next_step(time.monotonic())
                if step is not None:
                    return step
                self._changed.wait()
                self._free_since = time.monotonic()
            self._gone.extend(self._scheduler.clear())  # type: ignore[arg-type]
            self._clean_up()
        return None

    def _clean_up(self) -> None:
        """Free the rows of jobs that have gone, and the sessions of retired models."""
        free([self._gone.popleft() for _ in range(len(self._gone))])
        for model in [model for model, retires in self._models.items() if retires]:
            if self._scheduler.is_empty(model):
                self._scheduler.remove_lane(model)
                del self._models[model]
                model.close()

    def _compute(self, step: Step) -> None:
        """Compute a step and publish its results.

        Raises:
            Exception: of the model, after the results are published.
        """
        jobs: list[Job] = list(step.requests)  # type: ignore[arg-type]
        model = jobs[0].model
        began = time.monotonic()
        failure: Exception | None = None
        outputs: Sequence[Tensor | Exception]
        try:
            outputs = run_step(model.session, step.stage, jobs)
        except Exception as error:
            failure = error
            outputs = self._compute_alone(step.stage, jobs, error)
        now = time.monotonic()
        timing = Timing(step.stage, step.rows, now - began, now)
        confidences: list[tuple[float, float] | None] = [None] * len(jobs)
        if step.stage < model.num_stages:  # else there is nothing to decide by them
            confidences = _confidences(model, outputs)
        for job, output, confidence in zip(jobs, outputs, confidences, strict=True):
            job.inputs = None
            job.timings.append(timing)
            job.newest = _result(job, step.stage, output, confidence, now)
            if job.newest.stage == step.stage:
                job.results.append(job.newest)
        ended = [job for job in jobs if job.newest is not None and job.newest.stop_reason]
        with self._changed:
            for job in ended:
                job.gone = True
            self._scheduler.finish(
                step,
                time.monotonic(),
                [None if c is None else c[0] for c in confidences],
                now - self._free_since if failure is None else None,
            )
            late = self._scheduler.expire(time.monotonic())
            excess = self._scheduler.shed(time.monotonic())
            others: dict[Job, str] = dict.fromkeys(late, "deadline")  # type: ignore[arg-type]
            others |= dict.fromkeys(excess, "load")  # type: ignore[arg-type]
            self._gone.extend([*ended, *others])
        for job, reason in others.items():
            assert job.newest is not None
            job.newest = replace(job.newest, stop_reason=reason)
        self._free_since = now
        told = tuple(dict.fromkeys([*jobs, *others]))
        report = Report(model, step.stage, step.rows, timing.seconds, told)
        self._publish(report)
        if failure is not None:
            raise failure

    def _compute_alone(
        self, stage: int, jobs: Sequence[Job], error: Exception
    ) -> list[Tensor | Exception]:
        """After a failure: stage 1 of each job alone; later stages cannot be repeated."""
        for job in jobs:
            if job.batch is not None:
                job.batch.remove(job)
        if stage > 1 or len(jobs) == 1:
            return [error] * len(jobs)
        found: list[Tensor | Exception] = []
        for job in jobs:
            try:
                found += run_step(job.model.session, stage, [job])
            except Exception as own:
                if job.batch is not None:
                    job.batch.remove(job)
                found.append(own)
        return found

    # -- failures ---------------------------------------------------------------------------------
    def _recover(self, step: Step | None, error: BaseException) -> None:
        """Start a new thread in the place of this one."""
        self.ready = False
        _log.error("the compute thread failed and starts again: %s", describe(error))
        with self._changed:
            if self._scheduler.running is not None or step is None:
                self._abandon(error)
            if not self._stopped:
                self._spawn(probe=True)

    def _abandon(self, error: BaseException) -> None:
        """End all requests: what failed is not one step of a model."""
        jobs: list[Job] = self._scheduler.clear()  # type: ignore[assignment]
        now = time.monotonic()
        for job in jobs:
            job.newest = _failed(job, error, now)
            self._gone.append(job)
        self._publish(Report(None, 0, 0, 0.0, tuple(jobs)))

    def _probe(self) -> bool:
        """Compute one sample with every model until that succeeds; False if the worker stops."""
        while not self._stopped:
            try:
                for model in list(self._models):
                    probe(model)
            except Exception as error:
                _log.error("the compute thread cannot compute yet: %s", describe(error))
                with self._changed:
                    if not self._stopped:
                        self._changed.wait(RETRY)
            else:
                self.ready = True
                return True
        return False


def probe(model: ServedModel) -> None:
    """Compute every stage of one sample."""
    for evaluation in begin(model.session, [model.example]):
        try:
            for _ in range(model.num_stages):
                advance(evaluation)
        finally:
            evaluation.close()


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _confidences(
    model: ServedModel, outputs: Sequence[Tensor | Exception]
) -> list[tuple[float, float] | None]:
    """The mean and the least confidence of each output's rows; None if it is not class logits."""
    logits = [one for one in outputs if isinstance(one, Tensor)]
    if not logits or model.num_classes is None or logits[0].dim() != 2:
        return [None] * len(outputs)
    together = logits[0] if len(logits) == 1 else torch.cat(logits)
    values = together.float().cpu().numpy()  # whose calls cost a third of torch's
    rows = iter(softmax(values).max(axis=1).tolist())
    found: list[tuple[float, float] | None] = []
    for output in outputs:
        if isinstance(output, Exception):
            found.append(None)
        else:
            own = [next(rows) for _ in range(len(output))]
            found.append((sum(own) / len(own), min(own)))
    return found


def _failed(job: Job, error: BaseException, now: float) -> Result:
    """The last result of a job that cannot go on: its newest answer, or none."""
    if job.newest is not None:
        return replace(job.newest, stop_reason="failure", error=describe(error))
    return Result(0, None, now, "failure", describe(error))


def _result(
    job: Job,
    stage: int,
    output: Tensor | Exception,
    confidence: tuple[float, float] | None,
    now: float,
) -> Result:
    """A job's result of a stage, with the reason why it is the last, if it is."""
    if isinstance(output, Exception):
        return _failed(job, output, now)
    reason = ""
    if stage == job.model.num_stages:
        reason = "complete"
    elif job.policy and confidence and confidence[1] >= job.policy.threshold(stage):
        reason = "confident"
    elif stage >= job.last_stage:
        reason = "requested"
    return Result(stage, output, now, reason)
