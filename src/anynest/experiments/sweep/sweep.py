"""A sweep: every cell of an experiment brought to its line in the results, through interruptions.

What is done, in the results file or in a cell's folder, is not done again. The results file is
written by the sweep alone, a line as soon as its cell is finished.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from ...store import RunError, RunFolderError
from ...store.files import file_lock
from ...training.output.reporting import clock, counted
from ...training.output.run_folder import RunFolder
from ..catalog.protocols import find_protocol
from ..results.checks import read_checked
from ..results.filter_results import known_lines
from ..results.records import CELL, Line, add_results
from .cell import Cell
from .job import Job, finished_line
from .launcher import Event, Launcher

Say = Callable[[str], None]
PLAIN_SECONDS = 60.0  # between two lines about cells that are under way


@dataclass
class Sweep:
    """What is to be done and where. results: the file of lines."""

    cells: Sequence[Cell]
    out: Path
    results: Path
    source: str
    label: str  # of the images: lines of other images are not these cells'
    machine: dict[str, object] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()  # keys of cells whose trained networks are wanted too
    say: Say = lambda text: None

    def done(self) -> dict[str, Line]:
        """The lines there are, by key; those of finished folders are added to the file first."""
        known = {
            key: line
            for key, line in self.recorded().items()
            if key not in self.weights or self.trained(key)
        }
        finished = [finished_line(cell, self.out) for cell in self.cells if cell.key not in known]
        missing = self.known(line for line in finished if line is not None)
        if missing:
            add_results(self.results, missing.values())
        return {**known, **missing}

    def trained(self, key: str) -> bool:
        """Whether the network of a cell lies in its folder."""
        folders = [cell.folder(self.out) for cell in self.cells if cell.key == key]
        return any(RunFolder(folder).weights.is_file() for folder in folders)

    def recorded(self) -> dict[str, Line]:
        """The results file's lines of these images."""
        return self.known(read_checked(self.results))

    def known(self, lines: Iterable[Line]) -> dict[str, Line]:
        """Those of runs on these images as their protocol has them now, by key."""
        runs = [ln for ln in lines if (ln["kind"], ln["data"]) == (CELL, self.label)]
        names = dict.fromkeys(cell.protocol for cell in self.cells)
        found = (line for name in names for line in known_lines(runs, find_protocol(name)))
        return {line["key"]: line for line in found}

    def run(self, launcher: Launcher) -> dict[str, Line]:
        """Train what is left; every cell's line by its key.

        Errors: RunFolderError where another sweep works in the folder; RunError names the cells
        that failed, when all others are done.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if not stack.enter_context(file_lock(self.out / ".sweep.lock", wait=False)):
                raise RunFolderError(
                    f"another sweep works in {self.out}: wait for it, stop it, or choose another "
                    "--out"
                )
            lines = self.done()
            left = [cell for cell in self.cells if cell.key not in lines]
            self.say(f"{counted(len(self.cells), 'cell')}, {len(lines_of(self, lines))} done")
            jobs = [Job(cell, self.out, self.source, self.machine) for cell in left]
            progress = Progress(self, len(jobs))
            events = stack.enter_context(closing(launcher.run(jobs)))
            for event in events:
                if event.kind == "done":
                    assert event.line is not None
                    add_results(self.results, [event.line])
                    lines[event.job.cell.key] = event.line
                progress.tell(event)
            if progress.failed:
                raise RunError(
                    f"{counted(len(progress.failed), 'cell')} failed: "
                    + "; ".join(f"{name}: {why}" for name, why in progress.failed.items())
                )
        return lines


def lines_of(sweep: Sweep, lines: dict[str, Line]) -> list[Line]:
    """Those of the sweep's own cells."""
    return [lines[cell.key] for cell in sweep.cells if cell.key in lines]


class Progress:
    """Tells what happens and what remains."""

    def __init__(self, sweep: Sweep, count: int) -> None:
        self.say, self.count = sweep.say, count
        self.began = self.told = time.monotonic()
        self.finished = 0
        self.under_way: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def tell(self, event: Event) -> None:
        """One event."""
        name, key = event.job.cell.name, event.job.cell.key
        if event.kind == "done":
            self.finished += 1
            self.under_way.pop(key, None)
            self.say(self.done_text(event))
        elif event.kind == "failed":
            self.failed[name] = event.text
            self.under_way.pop(key, None)
            self.say(f"  failed: {name}: {event.text}")
        elif event.kind == "again":
            self.say(f"  {name}: its worker died ({event.text}); it goes on in another")
        elif event.kind == "epoch":
            self.under_way[key] = f"{name}, epoch {event.epoch}/{event.epochs}"
            if time.monotonic() - self.told > PLAIN_SECONDS:
                self.say("  under way: " + "; ".join(self.under_way.values()))
        else:
            return
        if event.kind != "epoch" or time.monotonic() - self.told > PLAIN_SECONDS:
            self.told = time.monotonic()

    def done_text(self, event: Event) -> str:
        """A finished cell's errors, and how long the rest may take."""
        assert event.line is not None
        errors = " ".join(f"{100 * error:.1f}" for error in event.line["error"])
        behind = self.finished + len(self.failed)
        left = (time.monotonic() - self.began) / behind * (self.count - behind)
        return (
            f"  {behind} of {self.count}: {event.job.cell.name}: error % per stage {errors}; "
            f"{event.line['seconds']:.0f} s; about {clock(left)} left"
        )
