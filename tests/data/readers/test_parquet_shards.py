"""Which Parquet files belong to which split, and whether all of them are there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anynest.data import DataError, load
from anynest.data.readers.parquet_shards import find_shards

Make = Callable[..., Path]


def touch(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()


def found(place: Path) -> dict[str, list[str]]:
    splits = find_shards(place).files()
    return {
        split: [file.relative_to(place).as_posix() for file in files]
        for split, files in splits.items()
    }


def test_names_match_exactly(tmp_path: Path) -> None:
    names = ("train", "dev", "test")
    sound = [f"{name}-00000-of-00001.parquet" for name in names]
    others = ("trainer-notes", "devices", "train_old", "test2", "test.old", "train-00000-of-1-a-b")
    touch(tmp_path, *sound, *(f"{other}.parquet" for other in others))
    assert found(tmp_path) == {"train": sound[:1], "validation": sound[1:2], "test": sound[2:]}
    assert [f.stem for f in find_shards(tmp_path).others] == sorted(others)


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["TRAIN.parquet"],
        ["train-0.parquet", "train-1.parquet"],
        [f"train_{i}.parquet" for i in range(1, 12)],
        ["train-00000-of-00002-0a1b.parquet", "train-00001-of-00002-f9e8.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
        ["train/train-00000-of-00001.parquet"],
        ["Train/0.parquet"],
    ],
)
def test_naming_schemes(names: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names, "test.parquet")
    assert found(tmp_path) == {"train": names, "test": ["test.parquet"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002-abcd.parquet"], "complete, found 1 of 2"),
        (["train-00001-of-00002.parquet"], "complete, found 1 of 2"),
        (["train-00000-of-00001.parquet", "train-00001-of-00001.parquet"], "found 2 of 1"),
        (["train-0.parquet", "train-2.parquet"], "complete, found 2 of 3"),
        (["train-5.parquet"], "complete, found 1 of 5"),
        (["train/0000.parquet", "train/0001.parquet", "train/0003.parquet"], "found 3 of 4"),
        (["train/0001.parquet"], "complete, found 1 of 2"),
        (
            ["train-00000-of-00001-aaaa.parquet", "train-00000-of-00001-bbbb.parquet"],
            "every shard must be there once, found",
        ),
        (["train-1.parquet", "train_1.parquet"], "every shard must be there once"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "named alike"),
        (["train.parquet", "train-00000-of-00001.parquet"], "named alike"),
        (["train.parquet", "train/0000.parquet"], "named alike"),
        (["train.parquet", "TRAIN.parquet"], "named alike"),
        (["train.parquet", "val.parquet", "validation.parquet"], "validation split must be named"),
    ],
)
def test_incomplete_or_ambiguous_shards(names: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *names, "test.parquet")
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_files_are_counted(make_parquet: Make) -> None:
    place = make_parquet(files=("train.parquet", "test.parquet", "train_old.parquet"), n=(9, 9, 9))
    assert str(load(place)).endswith("; left out: other .parquet files (1)")


def test_one_folder_below_and_by_file(make_parquet: Make) -> None:
    place = make_parquet(folder="repository/plain_text")
    assert len(load(place.parent, holdout=0).train) == 60
    assert len(load(place / "test-00000-of-00001.parquet", holdout=0).train) == 60
    make_parquet(folder="repository/.cache")
    assert len(load(place.parent, holdout=0).train) == 60
    make_parquet(folder="repository/other")
    with pytest.raises(DataError, match=r"several data sets \(other, plain_text\)"):
        load(place.parent)


def test_one_folder_per_split(make_parquet: Make) -> None:
    place = make_parquet(
        folder="repository/default", files=("train/0000.parquet", "test/0.parquet")
    )
    for source in (place.parent, place, place / "train" / "0000.parquet"):
        data = load(source, holdout=0)
        assert (len(data.train), len(data.test)) == (60, 20)


def test_shards_are_joined_in_order(make_parquet: Make) -> None:
    files = tuple(f"train-{i}.parquet" for i in (1, 10, *range(2, 10)))
    place = make_parquet(files=(*files, "test.parquet"), n=(1, 10, *range(2, 10), 5), shape=(8, 8))
    data = load(place, holdout=0)
    starts = torch.tensor([0, *range(1, 10)]).cumsum(0)
    assert len(data.train) == 55
    assert data.train.labels[starts].tolist() == [0] * 10
    assert data.train.labels.tolist() == [j for i in range(1, 11) for j in range(i)]
