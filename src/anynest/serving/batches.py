"""Batches on the compute thread: rows of several requests in one evaluation.

A step takes rows of several batches that stand at one stage. They are copied into one new batch,
once, and the others stay where they are. So the rows of a batch are those of living requests,
beside rows whose requests went on or have gone; a batch with more of these is compacted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..engines.session import Evaluation, Session
from ..predict.early_stopping.policies import Confidence
from .models import ServedModel
from .scheduler import Request


class Timing(NamedTuple):
    """A step that computed some rows of a job.

    Attributes:
        stage: from 1.
        rows: of the batch.
        seconds: that it took.
        end: when it was finished, in seconds on some clock.
    """

    stage: int
    rows: int
    seconds: float
    end: float


@dataclass(eq=False, kw_only=True)
class Job(Request):
    """A request with what it computes.

    Attributes:
        model: that it asks for.
        inputs: by name; None before they are there and after stage 1 has begun.
        policy: the job is done before the last stage where every row reaches its threshold.
        batch: where its rows are; None before stage 1.
        newest: its newest result.
        results: of each stage so far.
        timings: of the steps so far, by ``time.monotonic``.
        streams: whether each result is sent when it is there.
    """

    model: ServedModel
    inputs: dict[str, Tensor] | None = None
    policy: Confidence | None = None
    batch: Batch | None = None
    newest: Result | None = None
    results: list[Result] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    streams: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """What one stage, or a failure, gives a job.

    Attributes:
        stage: that was computed.
        output: of the job's rows; None for a failure.
        at: when, by ``time.monotonic``.
        stop_reason: why it is the last; an empty string if later stages may follow.
        error: one line, for a failure.
    """

    stage: int
    output: Tensor | None
    at: float
    stop_reason: str = ""
    error: str = ""


@dataclass(eq=False)
class Batch:
    """An evaluation.

    Attributes:
        evaluation: between two stages.
        size: its rows.
        divides: whether rows can leave it.
        rows: which of them belong to which living job.
    """

    evaluation: Evaluation
    size: int
    divides: bool
    rows: dict[Job, slice] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, evaluation: Evaluation, jobs: Sequence[Job]) -> Batch:
        """A batch of jobs' rows, in their order."""
        batch = cls(evaluation, 0, session.divides)
        batch._place(jobs)
        return batch

    def remove(self, job: Job) -> None:
        """Forget a job's rows."""
        self.rows.pop(job, None)
        job.batch = None
        if not self.rows:
            self.evaluation.close()

    def compact(self) -> None:
        """Free the rows that belong to no job, if they are the most."""
        living = sum(job.rows for job in self.rows)
        if self.rows and 2 * living <= self.size and self.divides:
            self.evaluation.compact(_indices(self.rows.values()))
            self._place(list(self.rows))

    def _place(self, jobs: Sequence[Job]) -> None:
        self.rows, self.size = {}, 0
        for job in jobs:
            self.rows[job] = slice(self.size, self.size + job.rows)
            self.size += job.rows
            job.batch = self


def run_step(session: Session, stage: int, jobs: Sequence[Job]) -> list[Tensor]:
    """Compute a stage for jobs that stand at the stage before.

    Returns:
        The output of each.
    """
    groups = [list(jobs)] if session.divides else [[job] for job in jobs]
    found: dict[Job, Tensor] = {}
    for group in groups:
        batch = _start(session, group) if stage == 1 else _gather(session, group)
        output = advance(batch.evaluation)
        for job in group:
            found[job] = output[batch.rows[job]]
    return [found[job] for job in jobs]


def free(jobs: Iterable[Job]) -> None:
    """Forget jobs' inputs and rows. A batch that several leave is compacted once."""
    left: dict[Batch, None] = {}
    for job in jobs:
        job.inputs = None
        if job.batch is not None:
            left[job.batch] = None
            job.batch.remove(job)
    for batch in left:
        batch.compact()


def begin(session: Session, inputs: Sequence[Mapping[str, Tensor]]) -> list[Evaluation]:
    """Evaluations of requests' inputs: one of all, if the session divides batches, else one each.

    A session that does not divide batches gains nothing from larger ones that it can compute.
    """
    if not session.divides:
        return [session.begin(one) for one in inputs]
    if len(inputs) == 1:
        return [session.begin(inputs[0])]
    together = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
    return [session.begin(together)]


def advance(evaluation: Evaluation) -> Tensor:
    """Compute the next stage."""
    output = evaluation.step()
    while output is None:
        output = evaluation.step()
    return output


def _start(session: Session, jobs: list[Job]) -> Batch:
    inputs = [job.inputs for job in jobs if job.inputs is not None]
    (evaluation,) = begin(session, inputs)
    return Batch.of(session, evaluation, jobs)


def _gather(session: Session, jobs: list[Job]) -> Batch:
    """One batch of the jobs' rows and no others."""
    sources: dict[Batch, list[Job]] = {}
    for job in jobs:
        assert job.batch is not None
        sources.setdefault(job.batch, []).append(job)
    wanted = sum(job.rows for job in jobs)
    if len(sources) == 1 and next(iter(sources)).size == wanted:
        return next(iter(sources))
    rows = [_indices(source.rows[job] for job in taken) for source, taken in sources.items()]
    joined = session.join([source.evaluation for source in sources], rows)
    for source, taken in sources.items():
        for job in taken:
            source.remove(job)
        source.compact()
    return Batch.of(session, joined, [job for taken in sources.values() for job in taken])


def _indices(rows: Iterable[slice]) -> Tensor:
    """The numbers of all rows, int64."""
    return torch.tensor([row for part in rows for row in range(part.start, part.stop)])
