"""Names and paths are printed as they are, and colours respect NO_COLOR."""

import io
import json
from pathlib import Path

import pytest

from anynest.cli import main
from anynest.cli.console import Console, make_table
from anynest.store.figures import new_figure, save_figure

Out = pytest.CaptureFixture[str]
ODD = ["[/x]", "r_[/x]", "[red]a[/red]", ":smile:", "[link=x]", "\\[b]", "a[b", "{x}", "%s"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("terminal", [False, True])
def test_text_and_tables_are_printed_as_they_are(text: str, terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, no_color=True, width=60)
    console.print(text)
    console.print(make_table(f"title {text}", [f"head {text}"], [[text]], caption=f"end {text}"))
    shown = file.getvalue()
    assert shown.splitlines()[0] == text
    for part in (f"title {text}", f"head {text}", f"end {text}"):
        assert part in shown
    assert shown.count(text) == 5


def test_long_text_is_not_wrapped_and_tables_fit() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40)
    console.print("word " * 20)
    console.print(make_table("title " * 20, ["a"], [["1"]]))
    first, *rest = file.getvalue().splitlines()
    assert len(first) == 100
    assert max(map(len, rest)) <= 40


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_respected(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Console(file=file, force_terminal=True).print("text", style="red")
    assert ("\x1b[31m" in file.getvalue()) is not no_color


def test_names_in_figures_are_no_formulas(tmp_path: Path) -> None:
    figure = new_figure(2, 2)
    figure.suptitle("a $_^ b$")
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 2], label="$\\nope{")
    axes.set_xscale("log")
    axes.set_title("$$")
    axes.legend()
    save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert any("mathdefault" in label.get_text() for label in axes.get_xticklabels())
    assert all(label.get_parse_math() for label in axes.get_xticklabels())


def test_commands_print_odd_paths(tiny: list[str], tmp_path: Path, capsys: Out) -> None:
    """A run in such a folder is trained, evaluated, profiled, exported and used."""
    run = tmp_path / "r_[" / "x]:smile:"
    assert main([*tiny, "--out", str(run)]) == 0
    assert f"{run}/weights.safetensors\n" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    label = "digits [/b]"
    (run / "summary.json").write_text(json.dumps({**summary, "model": label}))
    assert main(["train", "--resume", str(run)]) == 0
    assert label in capsys.readouterr().out
    quick = ["--rounds", "1", "--device", "cpu", "--no-plain"]
    for argv, name in (
        (["evaluate", str(run), "--deadlines", "none", "--samples", "3"], "deadlines.json"),
        (["profile", str(run), *quick], "profile.json"),
        (["export", str(run)], "onnx/stage2.onnx"),
    ):
        assert main(argv) == 0
        assert f"{run}/{name}" in capsys.readouterr().out
