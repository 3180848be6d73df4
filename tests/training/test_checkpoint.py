"""Checkpoints are whole or absent, damage is found, and nothing in a file is executed."""

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from anynest.store import RunFolderError, files
from anynest.store.files import write_whole
from anynest.training import RunError
from anynest.training.output.checkpoint import Checkpoints, CorruptCheckpoint, pack, unpack


def state(number: int) -> dict[str, Any]:
    return {"x": torch.full((1000,), float(number)), "random": (3, (1, 2), None), "f": 0.5}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path)
    for number in (1, 2, 3):
        made.save(state(number), number)
    return made


def test_keeps_the_last_two(checkpoints: Checkpoints) -> None:
    names = [path.name for path in checkpoints.paths()]
    assert names == ["step-000000002.ckpt", "step-000000003.ckpt"]
    said: list[str] = []
    newest = checkpoints.load_newest(said.append)
    assert newest is not None
    assert newest["x"][0] == 3
    assert newest["random"] == (3, (1, 2), None)
    assert not said


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path)
    for step in (999_999_999, 1_000_000_000):
        made.save(state(1), step)
    assert made.paths()[-1].name == "step-1000000000.ckpt"


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated_newest_is_named_and_set_aside(checkpoints: Checkpoints, share: float) -> None:
    newest = checkpoints.paths()[-1]
    newest.write_bytes(cut(newest.read_bytes(), share))
    said: list[str] = []
    found = checkpoints.load_newest(said.append)
    assert found is not None
    assert found["x"][0] == 2
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "\n" not in said[0]
    assert newest.with_name(newest.name + ".corrupt").exists()
    assert not newest.exists()


def test_any_flipped_bit_is_found() -> None:
    data = pack(state(1))
    for place in [*range(0, len(data), 97), *range(len(data) - 48, len(data))]:
        with pytest.raises(CorruptCheckpoint):
            unpack(flip(data, place))


def test_none_left(checkpoints: Checkpoints, tmp_path: Path) -> None:
    paths = checkpoints.paths()
    for path in paths:
        path.write_bytes(b"")
    said: list[str] = []
    for _ in range(2):  # the second time is no fresh start either
        with pytest.raises(
            RunFolderError, match=r"no whole checkpoint is left.*000000003"
        ) as found:
            checkpoints.load_newest(said.append)
        assert "\n" not in str(found.value)
    assert not said
    assert checkpoints.paths() == paths
    assert Checkpoints(tmp_path / "none").load_newest(said.append) is None


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a right checksum and a pickle that would run code is refused."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": Evil()}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    good = pack({})
    monkeypatch.setattr(torch, "save", lambda _, file: file.write(buffer.getvalue()))
    forged = pack({})
    assert forged[-8:] == good[-8:]
    with pytest.raises(CorruptCheckpoint, match="safely"):
        unpack(forged)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("where", ["_write", "fsync", "replace"])
def test_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")

    def full(file: Any, data: bytes = b"", *_: Any) -> None:
        if where == "_write":
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files if where == "_write" else files.os, where, full)
    with pytest.raises(RunError, match="No space left on device; free some space") as caught:
        write_whole(path, b"afterwards")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file in the folder's place")
    with pytest.raises(RunError, match="cannot write"):
        write_whole(tmp_path / "folder" / "file", b"x")


def test_a_new_run_is_not_to_be_resumed() -> None:
    error = OSError(errno.ENOENT, "No such file or directory")
    assert "resume" in files.explain(error, Path("/proc/foo"))
    assert files.explain(error, Path("/proc/foo"), started=False).endswith("choose another folder")


def test_leftovers_of_a_killed_process_go(checkpoints: Checkpoints) -> None:
    left = checkpoints.folder / ".step-000000004.ckpt.123.tmp"
    left.write_bytes(b"half")
    checkpoints.load_newest(lambda _: None)
    assert not left.exists()
