"""``anynest train`` on a folder of pictures: nothing else must be typed, and what it chose is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anynest.cli import main

Out = pytest.CaptureFixture[str]
QUICK = ["--epochs", "1", "--base-width", "2", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of 40 pictures, one per class, without splits."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 190)):
        folder = tmp_path / "my pets" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(level - 50, level + 50, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "my pets"


def test_model_and_data_are_enough(pictures: Path, tmp_path: Path, capsys: Out) -> None:
    argv = ["train", "--model", "width_nested_resnet10", "--data", str(pictures)]
    assert main([*argv, *QUICK]) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "runs" / "width_nested_resnet10-my-pets"
    for words in (
        "run folder: runs/width_nested_resnet10-my-pets",
        "my pets (tested on a fixed fifth): 2 classes, 58 train, 6 validation, 16 test, 3x12x12",
        "validation: 6 images, not trained on",
        "batches of 32",
        "augmentation: reflect-pad, random crop, mirror",
        "optimizer: sgd, learning rate 0.1, times 0.2 after 30 %, 60 %, 80 %",
        "osgd",
    ):
        assert words in shown
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["images"] == 16
    assert main([*argv, *QUICK, "--quiet"]) == 0
    assert (folder.parent / f"{folder.name}-2" / "weights.safetensors").is_file()
    assert main(["evaluate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["images"] == 16


def test_a_run_folder_is_never_invented_for_a_resumed_run(pictures: Path, capsys: Out) -> None:
    assert main(["train", "--data", str(pictures), "--resume"]) == 2
    assert "give --data SOURCE, --out FOLDER, or --resume FOLDER" in capsys.readouterr().err
