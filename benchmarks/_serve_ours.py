"""Starts ``anynest serve`` with a probe of its steps, and with another policy where asked.

    python _serve_ours.py PROBE.json [--first-stage-first] serve RUN --port 8000 ...

On SIGUSR2 the probe writes what was computed since the last time: seconds of steps, and how many of
a request's steps ended after it was answered (*late work*).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAME = "network"
PATIENCE = 5.0  # seconds


def command(source: Path, port: int, probe: Path, *, first_stage_first: bool = False) -> list[str]:
    """The command line of a server of one model."""
    policy = ["--first-stage-first"] if first_stage_first else []
    given = ["serve", str(source), "--name", NAME, "--port", str(port), "--grpc-port", "none"]
    return [sys.executable, str(HERE / "_serve_ours.py"), str(probe), *policy, *given]


def read_probe(pid: int, probe: Path) -> dict[str, Any]:
    """What was computed since the last call; {} if the server does not answer."""
    probe.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(probe.read_text())
            return found
        time.sleep(0.01)
    return {}


class Probe:
    """Counts steps, where the scheduler records them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        self.steps: dict[int, list[float]] = {}  # by stage: steps, rows, seconds
        self.late_steps = self.late_most = 0

    def install(self) -> None:
        from anynest.serving.scheduler import Scheduler

        original = Scheduler.finish

        def finish(scheduler: Any, step: Any, now: float, *more: Any, **named: Any) -> None:
            seconds = named.get("seconds", more[1] if len(more) > 1 else None) or 0.0
            found = self.steps.setdefault(step.stage, [0, 0, 0.0])
            found[0] += 1
            found[1] += step.rows
            found[2] += seconds
            for request in step.requests:
                if request.due < now:  # answered while the step ran
                    request.late_steps = getattr(request, "late_steps", 0) + 1
                    self.late_steps += 1
                    self.late_most = max(self.late_most, request.late_steps)
            original(scheduler, step, now, *more, **named)

        Scheduler.finish = finish  # type: ignore[method-assign]
        signal.signal(signal.SIGUSR2, lambda *_: self.write())

    def write(self) -> None:
        requests = sum(int(rows) for stage, (_, rows, _) in self.steps.items() if stage == 1)
        found = {
            "steps": dict(sorted(self.steps.items())),
            "late_share": self.late_steps / max(1, requests),
            "late_most": self.late_most,
        }
        self.reset()
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(found))
        scratch.replace(self.path)


def main() -> None:
    probe, *arguments = sys.argv[1:]
    if arguments[0] == "--first-stage-first":
        arguments = arguments[1:]
        from anynest.serving.scheduler import Scheduler

        defaults = Scheduler.__init__.__kwdefaults__
        assert defaults is not None
        defaults["first_stage_first"] = True
    Probe(Path(probe)).install()
    from anynest.cli import main as anynest

    sys.argv = ["anynest", *arguments]
    sys.exit(anynest())


if __name__ == "__main__":
    main()
