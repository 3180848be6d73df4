"""A process that trains one cell after another: ``python -P -m anynest.experiments.sweep.worker``.

It reads jobs from standard input, one line of JSON each, and writes events to standard output, one
line of JSON each: {"event": "epoch" | "done" | "failed" | "stopped", ...}. The images stay in
memory between cells. When its input ends during a cell, the sweep was killed: it saves a checkpoint
and exits.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from ...training import Interrupted, RunError
from ...training.output.reporting import NullReporter
from .job import Job, run_job


class EventWriter:
    """Writes events to the original standard output; redirects other output to standard error."""

    def __init__(self) -> None:
        self.handle = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(self, event: str, **values: Any) -> None:
        """One line, dropped if the reader is gone."""
        with contextlib.suppress(BrokenPipeError):
            self.handle.write(json.dumps({"event": event, **values}) + "\n")
            self.handle.flush()


class PipeReporter(NullReporter):
    """Reports each epoch to the sweep."""

    def __init__(self, events: EventWriter) -> None:
        self.events = events

    def epoch(self, line: dict[str, Any]) -> None:
        self.events.write("epoch", epoch=line["epoch"], epochs=line["epochs"])


class JobReader:
    """Reads jobs in a thread, so that the end of the input is noticed at once."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[str | None] = queue.Queue()
        self.busy = False
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Reads until the sweep closes the pipe or ends."""
        for text in sys.stdin:
            self.jobs.put(text)
        if self.busy:  # a sweep closes the pipes of idle workers alone, so it was killed
            os.kill(os.getpid(), signal.SIGTERM)
        self.jobs.put(None)


def main() -> int:
    """Runs jobs until the input ends; 0, or 128 + the signal that interrupted a job."""
    events, reader = EventWriter(), JobReader()
    while (text := reader.jobs.get()) is not None:
        reader.busy = True
        try:
            record = run_job(Job.loads(text), PipeReporter(events))
        except Interrupted as error:
            events.write("stopped")
            return 128 + error.signal_number
        except Exception as error:
            if not isinstance(error, (RunError, ValueError, OSError)):
                traceback.print_exc()
            events.write("failed", error=" ".join(str(error).split()) or type(error).__name__)
        else:
            events.write("done", record=record)
        reader.busy = False
    return 0


if __name__ == "__main__":
    sys.exit(main())
