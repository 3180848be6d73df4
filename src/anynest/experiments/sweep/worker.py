"""A process that trains one cell after another: ``python -m anynest.experiments.sweep.worker``.

It reads jobs, a JSON line each, from standard input, and answers on standard output, a JSON line
each: {"event": "epoch" | "done" | "failed" | "stopped", ...}. Between two cells it keeps the images
that it has read. When its sweep is gone, its input ends: it saves what it is training, and leaves.
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


class Told(NullReporter):
    """Tells the sweep of every epoch."""

    def __init__(self, say: "Voice") -> None:
        self.voice = say

    def epoch(self, line: dict[str, Any]) -> None:
        self.voice.tell("epoch", epoch=line["epoch"], epochs=line["epochs"])


class Voice:
    """Standard output, kept for the sweep alone: what else is printed goes to standard error."""

    def __init__(self) -> None:
        self.handle = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(self, event: str, **values: Any) -> None:
        """One line. Nobody may be left to read it."""
        with contextlib.suppress(BrokenPipeError):
            self.handle.write(json.dumps({"event": event, **values}) + "\n")
            self.handle.flush()


class Inbox:
    """Jobs as they come in, on a thread of its own, so that the input's end is noticed at once."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[str | None] = queue.Queue()
        self.busy = False
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Read until the sweep closes the pipe, or is no more."""
        for text in sys.stdin:
            self.jobs.put(text)
        if self.busy:  # the sweep never closes the pipe of a worker at work: it was killed
            os.kill(os.getpid(), signal.SIGTERM)
        self.jobs.put(None)


def main() -> int:
    """Work until the input ends; 0, or 128 + the signal that stopped it."""
    voice, inbox = Voice(), Inbox()
    while (text := inbox.jobs.get()) is not None:
        inbox.busy = True
        try:
            line = run_job(Job.loads(text), Told(voice))
        except Interrupted as error:
            voice.tell("stopped")
            return 128 + error.signal_number
        except Exception as error:
            expected = isinstance(error, (RunError, ValueError, OSError))
            if not expected:
                traceback.print_exc()
            voice.tell("failed", error=" ".join(str(error).split()) or type(error).__name__)
        else:
            voice.tell("done", line=line)
        inbox.busy = False
    return 0


if __name__ == "__main__":
    sys.exit(main())
