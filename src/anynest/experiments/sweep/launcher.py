"""What a launcher is: something that brings jobs to their ends, several at once, and tells.

A launcher yields events in the order in which they happen. A job whose worker dies is run again,
from its last checkpoint, ``RETRIES`` times; then it has failed.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..results.records import Line
from .job import Job

RETRIES = 2


@dataclass(frozen=True)
class Event:
    """Something happened to a job. epoch: of ``epochs``; done: here is its line; failed: for good,
    ``text`` says why; again: its worker died, it will be run again."""

    kind: Literal["begun", "epoch", "done", "failed", "again"]
    job: Job
    line: Line | None = None
    text: str = ""
    epoch: int = 0
    epochs: int = 0


class Launcher(Protocol):
    """Runs jobs."""

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Every job ends in exactly one ``done`` or ``failed``. Closing the iterator stops what
        runs, which first saves where it stands."""
