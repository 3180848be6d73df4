"""Commands with a network of one's own that is not nested: ``--import MODULE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anynest.cli import main
from anynest.nets import registry

SOURCE = '''
import anynest
from torch import nn


class Mine(nn.Module):
    num_stages = 2

    def __init__(self, num_classes, in_channels, width):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(width * n, num_classes) for n in (36, 16))

    def forward(self, x):
        return [out for _, out in self.stages(x)]

    def stages(self, x):
        x = self.first(x)
        yield 1, self.heads[0](x.flatten(1))
        yield 2, self.heads[1](self.second(x).flatten(1))


@anynest.register
def mine(num_classes=10, in_channels=1, width=4):
    """Two exits."""
    return Mine(num_classes, in_channels, width)


@anynest.register
def mistaken(num_classes=10):
    return nn.Linear(1, num_classes)
'''
TRAIN = "train --data digits --limit 200 --epochs 1 --quiet --threads 1"

Command = Callable[[str], int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module and a run of its network."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        start_anew(patch, folder)
        model = ["--model", "mine", "--model-option", "width=6", "--import", "mine"]
        assert main([*TRAIN.split(), *model, "--out", "run"]) == 0
    return folder


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in the folder as a new process would: nothing is imported or registered."""
    start_anew(monkeypatch, folder)
    return lambda line: main(line.split())


def start_anew(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.chdir(folder)
    patch.setattr(sys, "path", [*sys.path])
    patch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    patch.delitem(sys.modules, "mine", raising=False)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_evaluate(command: Command, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate run --import mine --json") == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert found["error"] == summary["test"]["error"]
    assert summary["arguments"] == {"num_classes": 10, "in_channels": 1, "width": 6}


def test_without_the_import_the_module_is_named_and_not_imported(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate run") == 2
    assert "(--import mine on the command line)" in one_line(capsys)
    assert "mine" not in sys.modules


def test_models(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models mine width*10 --import mine --json") == 0
    found, nested = json.loads(capsys.readouterr().out)
    heads = 4 * (36 + 16) * 10 + 20
    assert [stage["parameters"] for stage in found["stages"]] == [None, 112 + 148 + heads]
    assert found["description"] == "Two exits."
    assert nested["name"] == "width_nested_resnet10"
    assert command("models mine --import mine") == 0
    capsys.readouterr()
    assert command("models mistaken") == 2
    assert "mistaken needs a network with num_stages" in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--growth 1x1", "mine has no option 'growth'; networks with an Architecture have it"),
        ("--independent 1", "mine has no option 'independent'"),
        ("--model-option widht=3", "did you mean 'width'"),
        ("--method greedy", "greedy training needs a network with stage_modules"),
        ("--model mistaken", "mistaken needs a network with num_stages"),
    ],
)
def test_what_the_network_cannot_do_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    assert command(f"{TRAIN} --import mine --model mine --out other {flags}") == 2
    assert words in one_line(capsys)
    assert not Path("other").exists()
