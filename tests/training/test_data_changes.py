"""A resumed run knows its data: a change is named, another place of the same data is accepted."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anynest.cli import main
from anynest.data import DataError
from anynest.training import Interrupted, RunFolderError, TrainConfig, read_config, train
from anynest.training.output.reporting import NullReporter
from anynest.training.output.run_folder import RunFolder

Tiny = Callable[..., TrainConfig]


class Stop(NullReporter):
    """Sends SIGINT after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def batch(self, label: str, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """12 training and 6 validation images of two classes."""
    for split, count in (("train", 6), ("val", 3)):
        for shade, name in ((40, "dark"), (220, "bright")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (shade, number, 0)).save(folder / f"{number}.bmp")
    return tmp_path / "images"


@pytest.fixture
def stopped(images: Path, tiny: Tiny, tmp_path: Path) -> Path:
    """A run stopped in its second epoch, in the fifth batch of six."""
    data = {
        "source": str(images),
        "batch_size": 2,
        "holdout": 0,
        "augment": "none",
        "image_size": 8,
        "limit": None,
    }
    with pytest.raises(Interrupted, match="epoch 2, batch 6 of 6"):
        train(tiny(data=data), tmp_path / "run", reporter=Stop(11))
    return tmp_path / "run"


def add(images: Path) -> None:
    shutil.copy(images / "train/dark/0.bmp", images / "train/dark/9.bmp")


def remove(images: Path) -> None:
    """Fewer batches are left than were taken when the run stopped."""
    for number in range(4):
        (images / f"train/dark/{number}.bmp").unlink()


def exchange(images: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "train/dark/0.bmp")


def add_test(images: Path) -> None:
    shutil.copy(images / "val/dark/0.bmp", images / "val/dark/9.bmp")


def rename(images: Path) -> None:
    for split in ("train", "val"):
        (images / split / "dark").rename(images / split / "black")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            add,
            r"the training images have changed since the checkpoint in .*: 13 found, 12 expected",
        ),
        (remove, r"the training images have changed .*: 8 found, 12 expected"),
        (exchange, r"the content of the images has changed since the checkpoint"),
        (add_test, r"the validation images have changed .*: 7 found, 6 expected"),
        (rename, r"the classes have changed .*: \['black', 'bright'\] found, \['bright', 'dark'\]"),
    ],
)
def test_a_change_of_the_data_is_named(
    images: Path, stopped: Path, change: Callable[[Path], None], words: str
) -> None:
    before = RunFolder(stopped).metrics.read_bytes()
    change(images)
    with pytest.raises(RunFolderError, match=words) as caught:
        train(None, stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("restore the data to resume, or train in another folder")
    assert RunFolder(stopped).metrics.read_bytes() == before


def test_data_that_has_moved(images: Path, stopped: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The same content elsewhere gives the same weights, and the run remembers its place."""
    config = read_config(stopped / "config.json")
    whole = train(config, tmp_path / "whole")
    images.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"if the data has moved, give its new place \(--data\)"):
        train(None, stopped, resume=True)
    command = ["train", "--resume", str(stopped), "--data", str(tmp_path / "moved"), "--quiet"]
    assert main(command) == 0
    lines = [RunFolder(folder).read_history() for folder in (stopped, whole.folder)]
    for line in (line for history in lines for line in history):
        del line["seconds"], line["images_per_second"]
    assert lines[0] == lines[1]
    stored = json.loads((stopped / "config.json").read_text())
    assert stored["data"]["source"] == str(tmp_path / "moved")


def test_other_data_in_another_place(images: Path, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "other")
    add(tmp_path / "other")
    before = (stopped / "config.json").read_bytes()
    config = TrainConfig.from_json(json.loads(before))
    data = {**config.to_json()["data"], "source": str(tmp_path / "other")}
    with pytest.raises(RunFolderError, match="13 found, 12 expected"):
        train(TrainConfig.from_json({**config.to_json(), "data": data}), stopped, resume=True)
    assert (stopped / "config.json").read_bytes() == before
