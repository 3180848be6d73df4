"""Training by OSGD with refreshed weights: the flag, a resume to the same bits, bad values."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anynest.cli import main
from anynest.training import ConfigError, Interrupted, TrainConfig, train
from anynest.training.output.reporting import NullReporter
from anynest.training.output.run_folder import RunFolder
from anynest.training.step import TrainStep

Tiny = Callable[..., TrainConfig]


class Stop(NullReporter):
    """Asks for a stop after a number of batches, as a signal does."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def batch(self, label: str, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def outcome(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    lines = RunFolder(folder).read_history()
    learned = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
    return (folder / "weights.safetensors").read_bytes(), learned


@pytest.mark.parametrize(
    "method",
    [{"refresh": 3}, {"name": "osgd-norm", "refresh": 4, "C": "calibrated"}],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, tiny: Tiny, method: dict[str, Any]
) -> None:
    """Stopped in between two refreshes, in mid-epoch."""
    config = tiny(method=method, optimizer={"lr": 0.01})
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", reporter=Stop(7))
    train(None, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_the_steps_are_those_of_the_method(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches, a refresh at every third; the epoch's cosines are those of the refreshes."""
    seen = []
    real = TrainStep.backward

    def spy(self: TrainStep, *args: Any) -> Any:
        stats = real(self, *args)
        seen.append(stats.refreshed)
        return stats

    monkeypatch.setattr(TrainStep, "backward", spy)
    train(tiny(method={"refresh": 3}), tmp_path / "run")
    assert seen == [step % 3 == 0 for step in range(10)]
    history = RunFolder(tmp_path / "run").read_history()
    assert all(line["cosines"] is not None for line in history)


def test_the_flag(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = "--data digits --model width_nested_resnet10 --base-width 2 --epochs 1 --device cpu"
    torch.set_num_threads(1)
    assert main(["train", *flags.split(), "--refresh", "3", "--out", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["method"]["refresh"] == 3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"refresh": 0}, "refresh must be a whole number from 1, found 0"),
        ({"refresh": "auto"}, 'found "auto"'),
        ({"name": "sgd-sum", "refresh": 4}, "takes no option 'refresh'"),
        ({"name": "greedy", "refresh": 4}, "method.refresh has no meaning for greedy"),
    ],
)
def test_bad_values_are_named(tiny: Tiny, method: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message) as caught:
        tiny(method=method)
    assert "\n" not in str(caught.value)
