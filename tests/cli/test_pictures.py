"""Which picture files a command line means."""

from pathlib import Path

from anynest.cli.picture_files import find_pictures
from anynest.data import DataError


def test_files_folders_and_lines(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "b/a/1.webp", "b/notes.txt", "b/.hidden.png", "c/x.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    folder = str(tmp_path / "b")
    below = [f"{folder}/10.JPG", f"{folder}/2.png", f"{folder}/a/1.webp"]
    lines = ["no such.png\n", "\n", "  \n", f"{folder}\r\n", "last"]
    found = list(find_pictures(["x.txt", folder, "-", "y"], lines))
    assert found == ["x.txt", *below, "no such.png", *below, "last", "y"]
    (empty,) = find_pictures([str(tmp_path / "c")], [])
    assert isinstance(empty, DataError)
    assert "c has none" in str(empty)


def test_lines_are_read_as_they_come() -> None:
    """A program that writes a path and waits for the answer is not waited for."""

    def lines() -> object:
        yield "first\n"
        raise AssertionError("read too early")

    assert next(find_pictures(["-"], lines())) == "first"  # type: ignore[arg-type]
