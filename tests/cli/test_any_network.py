"""Commands with a network of one's own that is not nested: ``--import MODULE``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import anynest
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


class First(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, 4, 3), nn.Linear(4 * 36, num_classes)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.head(x.flatten(1)), x


class Last(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4 * 16, num_classes)

    def forward(self, x):
        return (self.head(self.conv(x).flatten(1)),)


class Cut(nn.Module):
    num_stages = 2

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.parts = nn.ModuleList([First(num_classes, in_channels), Last(num_classes)])

    def segments(self):
        return list(self.parts)

    def forward(self, x):
        return [out for _, out in self.stages(x)]

    def stages(self, x):
        logits, x = self.parts[0](x)
        yield 1, logits
        yield 2, self.parts[1](x)[0]


@anynest.register
def cut(num_classes=10, in_channels=1):
    return Cut(num_classes, in_channels)


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


def test_an_export_predicts_without_the_module(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"{TRAIN} --import mine --model cut --out cut-run") == 0
    assert command("export cut-run --out graphs --import mine") == 0
    assert sorted(path.name for path in Path("graphs").iterdir()) == [
        "manifest.json", "stage1.onnx", "stage2.onnx"
    ]  # fmt: skip
    capsys.readouterr()
    sys.modules.pop("mine")
    images = anynest.data.load("digits").test.images[:3].float()
    with anynest.AnytimePredictor("graphs") as predictor:
        found = predictor.predict(images, deadline=None)
    assert found.stage == 2
    assert "mine" not in sys.modules


def test_profile_of_a_run_and_of_a_name(
    command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("profile run --import mine --rounds 1 --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["image_size"]) == ("mine", 8)
    first, second = 6 * 36, 6 * 16
    assert [row["multiply_adds"] for row in found["costs"]] == [
        6 * 9 * 36 + first * 10,
        6 * 9 * 36 + first * 10 + 36 * 9 * 16 + second * 10,
    ]
    assert command("profile mine --import mine --rounds 1") == 2
    assert "give --image-size" in one_line(capsys)
    assert command("profile mine --import mine --rounds 1 --image-size 8") == 2
    assert "the number of channels of Mine is not known" in one_line(capsys)
    assert command("profile mistaken --import mine --rounds 1") == 2
    assert "mistaken needs a network with num_stages" in one_line(capsys)


def test_pictures_are_classified(
    command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that tells neither its channels nor its classes has those of its data."""
    from PIL import Image

    Image.linear_gradient("L").resize((8, 8)).save(folder / "picture.png")
    line = "predict run picture.png --import mine --deadline 1m --json --top 10"
    assert command(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["stages"], found["deadline_met"]) == (2, 2, True)
    assert {entry["class"] for entry in found["top"]} == set("0123456789")
    assert sum(entry["probability"] for entry in found["top"]) == pytest.approx(1)


def test_accuracy_under_deadlines(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    line = "evaluate run --import mine --deadlines 1m,none --samples 20 --json"
    assert command(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage_accuracy"][1] == found["deadlines"][0]["accuracy"]
    assert [row["stages"] for row in found["deadlines"]] == [[0, 20], [0, 20]]


def test_the_page_on_your_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/custom_networks.md: the module, the commands and the prediction, in the page's order."""
    page = (Path(__file__).parents[2] / "docs" / "custom_networks.md").read_text()
    section = page.split("## Your own network, from training to deadline")[1].split("\n## ")[0]
    module, use = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "mynet.py").write_text(module)
    start_anew(monkeypatch, tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    known = dict(registry._FACTORIES)
    commands = re.findall(r"^    anynest (.*)$", section, re.MULTILINE)
    assert [line.split()[0] for line in commands] == ["train", "evaluate", "evaluate", "profile"]
    short = {"train": "--epochs 1 --limit 200 --quiet", "profile": "--rounds 1"}
    for line in commands:
        more = "--samples 5" if "--deadlines" in line else short.get(line.split()[0], "")
        monkeypatch.setattr(registry, "_FACTORIES", dict(known))
        monkeypatch.delitem(sys.modules, "mynet", raising=False)
        assert main([*line.split(), *more.split()]) == 0
    capsys.readouterr()
    names: dict[str, object] = {"anynest": anynest, "torch": torch}
    exec(compile(use, "docs/custom_networks.md", "exec"), names)
    stage, label = capsys.readouterr().out.split()
    assert stage in ("1", "2")
    assert 0 <= int(label) <= 9
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
