"""The launcher protocol: runs jobs, several at once, and reports events."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..results.records import Record
from .job import Job

RETRIES = 2  # of a job whose worker died


@dataclass(frozen=True)
class Event:
    """A change in the state of a job.

    Args:
        kind: ``begun``; ``epoch`` (``epoch`` of ``epochs`` is finished); ``done`` (with the
            record); ``failed`` (for good); ``again`` (its worker died; it will be retried).
        job: The job.
        record: The record of a finished cell.
        text: Why the job failed or its worker died.
        epoch: The last finished epoch.
        epochs: The run's number of epochs.
    """

    kind: Literal["begun", "epoch", "done", "failed", "again"]
    job: Job
    record: Record | None = None
    text: str = ""
    epoch: int = 0
    epochs: int = 0


class Deaths:
    """Counts the workers lost per job and decides between retry and failure."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def event(self, job: Job, how: str, failure: str) -> Event:
        """``again``, or ``failed`` after ``RETRIES`` retries.

        Args:
            job: The job whose worker died.
            how: The cause of death.
            failure: How the error begins, such as "its worker ended".
        """
        count = self.counts[job.cell.key] = self.counts.get(job.cell.key, 0) + 1
        if count > RETRIES:
            return Event("failed", job, text=f"{failure} {count} times ({how})")
        return Event("again", job, text=how)


class Launcher(Protocol):
    """Runs jobs."""

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Yields events in order; each job ends in exactly one ``done`` or ``failed``. Closing the
        generator stops the running jobs, which save a checkpoint first."""
