"""When a run saves, and what a resumed epoch remembers of its time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anynest.training import Interrupted, RunConfig, TrainConfig, checkpointer, train
from anynest.training.checkpointer import Checkpointer
from anynest.training.distributed import World
from anynest.training.output.reporting import NullReporter
from anynest.training.output.run_folder import RunFolder


def test_when_a_save_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpointer, "time", SimpleNamespace(monotonic=lambda: now))
    folder = RunFolder(tmp_path)
    folder.prepare()
    config = RunConfig(save_minutes=1.0, save_batches=4)
    saver = Checkpointer(config, folder, World(), lambda text: None)
    assert [saver.is_due(step) for step in range(1, 9)] == [False, False, False, True] * 2
    assert not saver.minutes_are_up()
    now += 60
    assert [saver.minutes_are_up() for _ in range(2)] == [True, False]  # asked for once
    saver.requested = True
    assert saver.is_due(1)
    now += 59
    saver.save({}, {}, 1)
    assert not saver.is_due(1)
    now += 59
    assert not saver.minutes_are_up()
    never = Checkpointer(RunConfig(save_minutes=0.0), folder, World(), lambda text: None)
    now += 1e9
    assert not never.minutes_are_up()
    assert not never.is_due(5)


def test_an_epochs_time_goes_on_after_a_resume(
    tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    class Stop(NullReporter):
        left = 8

        def batch(self, label: str, images: int) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(tiny(), folder.path, reporter=Stop())
    saved: Any = folder.checkpoints.load_newest(lambda text: None)
    saved["seconds"] = 1000.0
    folder.checkpoints.save(saved, 8)
    train(None, folder.path, resume=True)
    first, second = folder.read_history()
    assert first["seconds"] < 1000 < second["seconds"]
