"""Run by test_kill.py in a process of its own: ``kill_runner.py FOLDER CONFIG POINT...``.

For every point it forks a process that trains (or resumes) in FOLDER and that SIGKILLs itself
there; then one that trains to the end; then one that trains without interruption beside it.
A point is ``what:count``: the count-th time that process does ``what``.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from anynest.store import files, write_whole
from anynest.training import TrainConfig, step, train, trainer
from anynest.training.output import summary


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(file: BinaryIO, data: bytes) -> None:
    file.write(data[: len(data) // 2])
    file.flush()
    os.fsync(file.fileno())
    die()


def at(count: int, owner: Any, name: str, deed: Callable[..., Any], after: bool = False) -> None:
    """Make the count-th call of ``owner.name`` the last thing that this process does."""
    real = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < count:
            return real(*arguments, **named)
        if after:
            real(*arguments, **named)
        return deed(*arguments, **named)

    setattr(owner, name, counted)


def arm(point: str) -> None:
    what, count = point.split(":")
    number = int(count)

    def killed(*_: Any, **__: Any) -> None:
        die()

    if what == "step":
        at(number, step.TrainStep, "__call__", killed)
    elif what == "write":
        at(number, files, "_write", half_written)
    elif what == "rename":
        at(number, files.os, "replace", killed)
    elif what == "renamed":
        at(number, files.os, "replace", killed, after=True)
    elif what == "prune":
        at(number, Path, "unlink", killed)
    elif what == "validate":
        at(number, trainer, "evaluate", killed)
    elif what == "finish":
        at(number, summary, "save_weights", killed)
    else:
        raise SystemExit(f"no such point: {what}")


def in_child(folder: Path, config: TrainConfig, point: str | None) -> int:
    """Train in a forked process; how it ended, as ``os.waitpid`` tells."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        if point:
            arm(point)
        train(config, folder, resume=(folder / "config.json").is_file())
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    folder, config = Path(sys.argv[1]), TrainConfig.from_json(json.loads(sys.argv[2]))
    config.data.load()  # before any fork, as all that is imported
    summary.plot_run = lambda history, title, path: write_whole(path, b"")
    ends = [in_child(folder / "killed", config, point) for point in sys.argv[3:]]
    ends.append(in_child(folder / "killed", config, None))
    ends.append(in_child(folder / "whole", config, None))
    print(json.dumps([os.WTERMSIG(end) if os.WIFSIGNALED(end) else -end for end in ends]))


if __name__ == "__main__":
    main()
