"""A sweep brings each cell of an experiment to its record, resuming after interruptions.

Cells that are finished, in the results file or in their run folder, are not trained again. The
sweep alone writes the results file, one record as soon as its cell is finished.
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
from ..catalog.cell import Cell
from ..catalog.protocols import find_protocol
from ..results.checks import read_checked
from ..results.filter_results import filter_results
from ..results.records import CELL, Record, add_results
from .job import Job, finished_record
from .launcher import Event, Launcher

Say = Callable[[str], None]
PROGRESS_SECONDS = 60.0  # between two lines about running cells


@dataclass
class Sweep:
    """The cells to train and the place of their results.

    Args:
        cells: The cells.
        out: Folder of the run folders.
        results: The results file.
        source: Location of the images.
        label: The images' data label; records with other labels are ignored.
        machine: Settings of the config's section ``run``.
        weights: Keys of cells whose trained networks are needed too, not their records alone.
        say: Called with each line of progress.
    """

    cells: Sequence[Cell]
    out: Path
    results: Path
    source: str
    label: str
    machine: dict[str, object] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()
    say: Say = lambda text: None

    def done(self) -> dict[str, Record]:
        """The records by key; those found in run folders are added to the results file."""
        records = {
            key: record
            for key, record in self.recorded().items()
            if key not in self.weights or self.trained(key)
        }
        finished = [
            finished_record(cell, self.out) for cell in self.cells if cell.key not in records
        ]
        found = self.current(record for record in finished if record is not None)
        if found:
            add_results(self.results, found.values())
        return {**records, **found}

    def trained(self, key: str) -> bool:
        """Whether the run folder of a cell contains its trained network."""
        folders = [cell.folder(self.out) for cell in self.cells if cell.key == key]
        return any(RunFolder(folder).weights.is_file() for folder in folders)

    def recorded(self) -> dict[str, Record]:
        """The results file's records of these images, by key."""
        return self.current(read_checked(self.results))

    def current(self, records: Iterable[Record]) -> dict[str, Record]:
        """The records of cells on these images that their protocol currently has, by key."""
        ours = [r for r in records if (r["kind"], r["data"]) == (CELL, self.label)]
        names = dict.fromkeys(cell.protocol for cell in self.cells)
        found = (record for name in names for record in filter_results(ours, find_protocol(name)))
        return {record["key"]: record for record in found}

    def run(self, launcher: Launcher) -> dict[str, Record]:
        """Trains the remaining cells and returns all records by key.

        Raises:
            RunFolderError: If another sweep uses the folder.
            RunError: If cells failed; raised after all others are done.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if not stack.enter_context(file_lock(self.out / ".sweep.lock", wait=False)):
                raise RunFolderError(
                    f"another sweep works in {self.out}: wait for it, stop it, or choose another "
                    "--out"
                )
            records = self.done()
            left = [cell for cell in self.cells if cell.key not in records]
            done = len(records_of(self, records))
            self.say(f"{counted(len(self.cells), 'cell')}, {done} done")
            progress = Progress(self.say, len(left))
            jobs = [Job(cell, self.out, self.source, self.machine) for cell in left]
            events = stack.enter_context(closing(launcher.run(jobs)))
            for event in events:
                if event.kind == "done":
                    assert event.record is not None
                    add_results(self.results, [event.record])
                    records[event.job.cell.key] = event.record
                progress.tell(event)
            if progress.failed:
                raise RunError(
                    f"{counted(len(progress.failed), 'cell')} failed: "
                    + "; ".join(f"{name}: {why}" for name, why in progress.failed.items())
                )
        return records


def records_of(sweep: Sweep, records: dict[str, Record]) -> list[Record]:
    """The records of the sweep's own cells."""
    return [records[cell.key] for cell in sweep.cells if cell.key in records]


class Progress:
    """Reports events as lines of text, with an estimate of the remaining time.

    Args:
        say: Called with each line.
        count: Number of cells to train.
    """

    def __init__(self, say: Say, count: int) -> None:
        self.say, self.count = say, count
        self.began = self.reported = time.monotonic()
        self.finished = 0
        self.running: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def tell(self, event: Event) -> None:
        """Reports one event; epochs at most once per ``PROGRESS_SECONDS``."""
        name, key = event.job.cell.name, event.job.cell.key
        match event.kind:
            case "begun":
                return
            case "epoch":
                self.running[key] = f"{name}, epoch {event.epoch}/{event.epochs}"
                if time.monotonic() - self.reported <= PROGRESS_SECONDS:
                    return
                self.say("  running: " + "; ".join(self.running.values()))
            case "done":
                self.finished += 1
                self.running.pop(key, None)
                self.say(self.done_text(event))
            case "failed":
                self.failed[name] = event.text
                self.running.pop(key, None)
                self.say(f"  failed: {name}: {event.text}")
            case "again":
                self.say(f"  {name}: its worker died ({event.text}); another one resumes it")
        self.reported = time.monotonic()

    def done_text(self, event: Event) -> str:
        """The errors of a finished cell and the estimated time for the rest."""
        assert event.record is not None
        errors = " ".join(f"{100 * error:.1f}" for error in event.record["error"])
        ended = self.finished + len(self.failed)
        left = (time.monotonic() - self.began) / ended * (self.count - ended)
        return (
            f"  {ended} of {self.count}: {event.job.cell.name}: error % per stage {errors}; "
            f"{event.record['seconds']:.0f} s; about {clock(left)} left"
        )
