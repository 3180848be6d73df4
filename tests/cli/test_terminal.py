"""Commands on a pseudo-terminal: progress, colours, NO_COLOR and FORCE_COLOR."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from anynest.data import load as load_data

pty = pytest.importorskip("pty", reason="needs POSIX")

ANYNEST = [sys.executable, "-m", "anynest"]
STYLE = re.compile(r"\x1b\[([0-9;]*)m")
COLOR = re.compile(r"(^|;)(3[0-8]|4[0-8]|9[0-7]|10[0-7])(;|$)")  # as parameters of a style
COMMANDS = {
    "evaluate": ["evaluate", "{run}"],
    "calibrate": ["calibrate", "{run}"],
    "profile": ["profile", "{run}", "--rounds", "1", "--no-plain", "--device", "cpu"],
    "export": ["export", "{run}", "--force"],
    "doctor": ["doctor"],
}


def environment(**given: str) -> dict[str, str]:
    names = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    return {**kept, "TERM": "xterm-256color", "COLUMNS": "80", **given}


def on_terminal(arguments: list[str], *, stdout: int | None = None, **given: str) -> str:
    """What a command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*ANYNEST, *arguments], stdin=theirs, stdout=stdout or theirs, stderr=theirs,
            env=environment(**given),
        )  # fmt: skip
    finally:
        os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def colors(text: str) -> list[str]:
    return [style for style in STYLE.findall(text) if COLOR.search(style)]


def piped(arguments: list[str], **given: str) -> str:
    done = subprocess.run(
        [*ANYNEST, *arguments], capture_output=True, text=True, env=environment(**given), check=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_long_commands_show_progress_without_colour_if_asked(command: str, finished: Path) -> None:
    arguments = [part.format(run=finished) for part in COMMANDS[command]]
    shown = on_terminal(arguments)
    assert colors(shown), "a bar or spinner has a colour"
    assert "\x1b[?25l" in shown, "a live display hides the cursor"
    plain = on_terminal(arguments, NO_COLOR="1")
    assert "\x1b[?25l" in plain
    assert not colors(plain)


def test_colours_of_pipes(finished: Path) -> None:
    arguments = ["evaluate", str(finished)]
    assert "\x1b" not in piped(arguments)
    assert STYLE.search(piped(arguments, FORCE_COLOR="1"))
    assert not colors(piped(arguments, FORCE_COLOR="1", NO_COLOR="1"))


def test_training_respects_no_color(tmp_path: Path, tiny: list[str]) -> None:
    assert colors(on_terminal([*tiny, "--out", str(tmp_path / "a")]))
    assert not colors(on_terminal([*tiny, "--out", str(tmp_path / "b")], NO_COLOR="1"))


def test_predictions_of_many_pictures(finished: Path, tmp_path: Path) -> None:
    """A bar on standard error where the answers go to a file, which has nothing but JSON."""
    for number, image in enumerate(load_data("digits").test.images[:8, 0]):  # type: ignore[union-attr]
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    arguments = ["predict", str(finished), str(tmp_path), "--json"]
    with open(tmp_path / "out.jsonl", "w") as file:
        shown = on_terminal(arguments, stdout=file.fileno())
    assert "pictures" in shown
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert all("class" in json.loads(line) for line in lines)
    assert "\x1b" not in on_terminal(arguments)  # the answers are the progress
