"""What a run shows while it runs: a live bar on a terminal, plain lines elsewhere, or nothing."""

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Reporter(Protocol):
    """What the loop tells, as it happens."""

    def begin(self, steps: int, done: int) -> None:
        """The run has ``steps`` batches, of which ``done`` are behind it."""

    def batch(self, label: str, images: int) -> None:
        """One batch of ``images`` images is done; called for every one, so it must be cheap."""

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch's line of ``metrics.jsonl``."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def end(self) -> None:
        """The run has stopped, for whatever reason."""


class Silent:
    """Says nothing."""

    def begin(self, steps: int, done: int) -> None: ...

    def batch(self, label: str, images: int) -> None: ...

    def epoch(self, line: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


def percent(share: float | None) -> str:
    """
    >>> percent(0.0625), percent(None)
    ('6.2', '-')
    """
    return "-" if share is None else f"{100 * share:.1f}"


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(7325)
    ('1:15', '2:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
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
        f"lr {line['lr']:.2g}  {line['images_per_second']:.0f} images/s  {line['seconds']:.1f} s{skipped}"
    )


class Shown:
    """A live bar with rate and time left where ``console`` is a terminal, else plain lines."""

    REFRESH = 0.2  # seconds between two updates of the bar
    PLAIN = 60.0  # seconds between two plain lines within an epoch

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.steps = self.done = self.first = 0
        self.images = 0
        self.began = self.shown = time.monotonic()

    def begin(self, steps: int, done: int) -> None:
        self.steps, self.done, self.first = steps, done, done
        self.began = self.shown = time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[rest]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task("", total=steps, completed=done, rest="")
            self.bar.start()

    def batch(self, label: str, images: int) -> None:
        self.done += 1
        self.images += images
        now = time.monotonic()
        if now - self.shown < (self.REFRESH if self.bar else self.PLAIN):
            return
        self.shown = now
        elapsed = now - self.began
        left = elapsed / (self.done - self.first) * (self.steps - self.done)
        rest = f"{self.images / elapsed:.0f} images/s, {clock(left)} left"
        if self.bar:
            self.bar.update(self.task, completed=self.done, description=label, rest=rest)
        else:
            self.say(f"{label}, {100 * self.done / self.steps:.0f} %, {rest}")

    def epoch(self, line: dict[str, Any]) -> None:
        self.say(epoch_text(line))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
