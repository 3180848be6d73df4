"""What a run shows while it runs: a live bar on a terminal, plain lines elsewhere, or nothing."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Reporter:
    """Receives the events of a run as they happen. This one ignores them."""

    def begin(self, steps: int, done: int) -> None:
        """The run has ``steps`` batches, of which ``done`` are done."""

    def batch(self, label: str, images: int) -> None:
        """A batch of ``images`` images is done. Called for every batch, so it must be cheap."""

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch is done; ``line`` is its line of ``metrics.jsonl``."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def end(self) -> None:
        """The run has stopped, for any reason."""


class NullReporter(Reporter):
    """Shows nothing."""


class ProgressBar:
    """Shows how much of some work is done, and an estimate of the time left.

    Args:
        console: where it is shown.
        label: what the work is called.
        plain: seconds between two lines where ``console`` is no terminal.
        first: how much was done before this process began.

    Example:
        ``with ProgressBar(console, "profiling") as bar: work(report=bar.report)``
    """

    REFRESH = 0.2  # seconds between two updates of the bar

    def __init__(
        self, console: "Console", label: str = "", *, plain: float = 30.0, first: int = 0
    ) -> None:
        self.console, self.label, self.plain, self.first = console, label, plain, first
        self.live: tuple[Progress, TaskID] | None = None
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[rest]}", markup=False),
                console=self.console,
                transient=True,
                redirect_stdout=not self.console.stderr,  # what is printed meanwhile is not ours
            )
            self.live = live, live.add_task(self.label, total=None, rest="")
            live.start()
        self.began = self.shown = time.monotonic()
        return self

    def report(self, done: int, total: int, items: int | None = None) -> None:
        """``done`` of ``total`` is done; cheap enough for a call per batch.

        ``items``: images that this process has trained on, for their rate.
        """
        now = time.monotonic()
        if now - self.shown < (self.REFRESH if self.live else self.plain) and done < total:
            return
        self.shown = now
        elapsed = now - self.began
        left = elapsed / max(done - self.first, 1) * (total - done)
        rate = "" if items is None else f"{items / max(elapsed, 1e-9):.0f} images/s, "
        rest = f"{rate}{clock(left)} left"
        if self.live:
            bar, task = self.live
            bar.update(task, completed=done, total=total, description=self.label, rest=rest)
        elif done < total:
            line = f"{self.label}: {100 * done / total:.0f} %, {rest}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live[0].stop()
            self.live = None


class ConsoleReporter(Reporter):
    """A live bar with rate and time left where ``console`` is a terminal, else plain lines."""

    PLAIN = 60.0  # seconds between two plain lines within an epoch

    def __init__(self, console: "Console") -> None:
        self.console = console
        self.bar = ProgressBar(console)
        self.steps = self.done = self.images = 0

    def begin(self, steps: int, done: int) -> None:
        self.steps, self.done = steps, done
        self.bar = ProgressBar(self.console, plain=self.PLAIN, first=done).__enter__()

    def batch(self, label: str, images: int) -> None:
        self.done += 1
        self.images += images
        self.bar.label = label
        self.bar.report(self.done, self.steps, self.images)

    def epoch(self, line: dict[str, Any]) -> None:
        self.say(epoch_text(line))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        self.bar.__exit__(None, None, None)


def percent(share: float | None) -> str:
    """
    >>> percent(0.0625), percent(None)
    ('6.2', '-')
    """
    return "-" if share is None else f"{100 * share:.1f}"


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(7325), clock(1e6)
    ('1:15', '2:02:05', '11 days 13:46:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{counted(days, 'day')} {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "epoch"), counted(3, "epoch")
    ('1 epoch', '3 epochs')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def epoch_text(line: dict[str, Any]) -> str:
    """An epoch in one line: loss and error per stage, rate, time."""
    stage = f"stage {line['stage']} " if line["stage"] is not None else ""
    train = " ".join(percent(e) for e in line["train"]["error"] if e is not None)
    held = " ".join(percent(e) for e in line["validation"]["error"] if e is not None)
    skipped = f"  {counted(line['skipped'], 'image')} skipped" if line.get("skipped") else ""
    return (
        f"{stage}epoch {line['epoch']}/{line['epochs']}  "
        f"error % per stage: train {train} | {line['validation']['split']} {held}  "
        f"lr {line['lr']:.2g}  {line['images_per_second']:.0f} images/s  "
        f"{line['seconds']:.1f} s{skipped}"
    )
