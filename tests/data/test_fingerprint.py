"""The fingerprint of a data set: equal for equal content, different after any change."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anynest.data import Dataset, Split, load


def in_memory(**changes: object) -> Dataset:
    """Four training images and two test images of 2 x 2 pixels."""
    values: dict[str, object] = {
        "images": torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2),
        "labels": torch.tensor([0, 1, 0, 1]),
        "classes": ("a", "b"),
        "label": "made",
        **changes,
    }
    images, labels = values["images"], values["labels"]
    test = Split(images[:2], labels[:2], "test")
    train = Split(images, labels, "train")
    return Dataset(train, test, test, values["classes"], (0.5,), (0.5,), values["label"])


def test_of_images_in_memory() -> None:
    made = in_memory()
    assert len(made.fingerprint) == 32
    assert made.fingerprint == in_memory().fingerprint == in_memory(label="other").fingerprint
    pixels = made.train.images.clone()
    pixels[3, 0, 1, 1] += 1
    changed = [
        in_memory(images=pixels),
        in_memory(images=made.train.images.view(4, 1, 4, 1)),
        in_memory(labels=torch.tensor([0, 1, 1, 0])),
        in_memory(classes=("b", "a")),
        replace(made, validation=made.train),
        replace(made, train=made.test, validation=made.test),
    ]
    assert len({made.fingerprint, *(data.fingerprint for data in changed)}) == 7


def test_is_the_same_on_every_machine() -> None:
    """A change here would make every run of an earlier version refuse to resume."""
    assert in_memory().fingerprint == "69fd5e9cb7983590978327e1a1c6cbd9"


def test_depends_on_the_division_and_not_on_the_strides_of_a_tensor() -> None:
    whole, limited = load("digits"), load("digits", limit=1292)
    assert len({whole.fingerprint, limited.fingerprint, load("digits", seed=1).fingerprint}) == 3
    made = in_memory()
    strided = torch.stack([made.train.images] * 2, -1)[..., 0]
    assert in_memory(images=strided).fingerprint == made.fingerprint


def test_of_images_in_files(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_folder()
    found = load(place).fingerprint
    monkeypatch.chdir(place)
    assert load(".").fingerprint == found
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(place, moved)
    assert load(moved).fingerprint == found
    data = load(place)
    relabelled = replace(data, test=replace(data.test, labels=data.test.labels.flip(0)))
    seen = {found, relabelled.fingerprint}
    file = moved / "val" / "dog" / "3.png"
    with file.open("ab") as stream:
        stream.write(b".")
    seen.add(load(moved).fingerprint)
    file.rename(file.with_name("33.png"))
    seen.add(load(moved).fingerprint)
    file.with_name("33.png").unlink()
    without = load(moved)
    seen.add(without.fingerprint)
    (moved / "val" / "dog" / "2.png").unlink()  # after the listing
    seen.add(replace(without, label="x").fingerprint)
    assert len(seen) == 6
