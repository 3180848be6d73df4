"""Progress with the time left: a live bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..training.output.reporting import clock
from .console import Console


class Bar:
    """``with Bar(console, "profiling") as bar: work(report=bar.report)``."""

    REFRESH = 0.2  # seconds between two updates of the bar
    PLAIN = 30.0  # seconds between two plain lines

    def __init__(self, console: Console, label: str) -> None:
        self.console, self.label = console, label
        self.live: Progress | None = None
        self.task = TaskID(0)
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> "Bar":
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.live.add_task(self.label, total=None, left="")
            self.live.start()
        self.began = self.shown = time.monotonic()
        return self

    def report(self, done: int, total: int) -> None:
        """``done`` of ``total`` is behind us; cheap enough to be called often."""
        now = time.monotonic()
        if now - self.shown < (self.REFRESH if self.live else self.PLAIN) and done < total:
            return
        self.shown = now
        left = clock((now - self.began) / max(done, 1) * (total - done)) + " left"
        if self.live:
            self.live.update(self.task, completed=done, total=total, left=left)
        elif done < total:
            line = f"{self.label}: {100 * done / total:.0f} %, {left}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()
