"""``anynest evaluate --deadlines``: accuracy under real deadlines, here of a tiny network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anynest.cli import main
from anynest.cli.commands.deadlines import sample
from anynest.cli.commands.deadlines_picture import deadlines_figure
from anynest.data import load

Out = pytest.CaptureFixture[str]


def test_generous_and_impossible_deadlines(finished: Path, capsys: Out) -> None:
    """Where time is no matter the accuracy is that of the last stage; where there is none, a guess."""
    capsys.readouterr()
    argv = ["evaluate", str(finished), "--deadlines", "30s,none,1us", "--device", "cpu", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text())
    assert report["images"] == report["images_of_split"] == 360
    errors = [1 - accuracy for accuracy in report["stage_accuracy"]]
    assert errors == pytest.approx(summary["test"]["error"])
    ample, endless, none = report["deadlines"]
    for row in (ample, endless):
        assert row["accuracy"] == pytest.approx(report["stage_accuracy"][-1], abs=1 / 360)
        assert (row["stages"], row["guessed"]) == ([0, 360], 0)
    assert (ample["deadline"], endless["deadline"], none["deadline"]) == (30, None, 1e-6)
    assert (none["guessed"], none["stages"]) == (360, [0, 0])
    assert none["accuracy"] == pytest.approx(0.1, abs=0.065)  # four standard errors of a tenth
    assert none["elapsed"]["p50"] < endless["elapsed"]["p50"]
    assert (report["backend"], report["threads"]) == ("onnxruntime", 1)
    assert report == json.loads((finished / "deadlines.json").read_text())
    with Image.open(finished / "deadlines.png") as picture:
        assert picture.size == (1260, 552)


def test_auto_and_a_reduced_sample(finished: Path, capsys: Out) -> None:
    capsys.readouterr()
    argv = ["evaluate", str(finished), "--deadlines", "auto", "--samples", "30", "--device", "cpu"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    report = json.loads((finished / "deadlines.json").read_text())
    mean = report["mean_latency"]
    *deadlines, last = [row["deadline"] for row in report["deadlines"]]
    assert deadlines == pytest.approx([mean * (0.5 + i / 12) for i in range(7)], rel=1e-3)
    assert last is None
    assert mean < 10 * report["deadlines"][-1]["elapsed"]["p50"]
    assert "reduced: 30 of the 360 images of the test split" in shown
    assert "random guess" in shown
    assert str(finished / "deadlines.png") in shown
    assert {row["images"] for row in report["deadlines"]} == {30}


def test_what_was_measured_until_ctrl_c_is_shown_but_not_saved(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    for name in ("deadlines.json", "deadlines.png"):
        (finished / name).unlink(missing_ok=True)

    def stop(self: object, done: int, total: int) -> None:
        if (done, total) == (20, 360):
            raise KeyboardInterrupt

    monkeypatch.setattr("anynest.training.output.reporting.ProgressBar.report", stop)
    capsys.readouterr()
    argv = ["evaluate", str(finished), "--deadlines", "1us,none", "--device", "cpu"]
    assert main(argv) == 130
    shown = capsys.readouterr()
    assert "reduced: 20 of the 360 images" in shown.out
    assert shown.err == "anynest: stopped: the results are of fewer images and not saved\n"
    assert not (finished / "deadlines.json").exists()


def test_weights_alone_and_the_validation_split(
    finished: Path, tmp_path: Path, capsys: Out
) -> None:
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((finished / "weights.safetensors").read_bytes())
    argv = ["evaluate", str(alone), "--data", "digits", "--deadlines", "none", "--json"]
    assert main([*argv, "--samples", "7", "--split", "validation", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["images_of_split"], report["split"]) == (7, 144, "validation")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_picture() -> None:
    rows: list[dict[str, Any]] = [
        {"deadline": d, "images": 40, "accuracy": a, "standard_error": 0.05, "guessed": g,
         "stages": s}
        for d, a, g, s in [(0.001, 0.2, 30, [10, 0]), (0.0025, 0.5, 0, [15, 25]),
                           (None, 0.6, 0, [0, 40])]
    ]  # fmt: skip
    report = {
        "model": "m", "data": "d", "split": "test", "images": 40, "images_of_split": 100,
        "backend": "torch", "threads": 1, "stage_accuracy": [0.45, 0.6], "deadlines": rows,
        "environment": {"accelerator": None, "processor": "a processor"},
    }  # fmt: skip
    figure = deadlines_figure(report)
    left, right = figure.axes
    assert "40 of 100 images of the test split (reduced)" in figure.get_suptitle()
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2.5", "none"]
    points = next(line for line in left.lines if line.get_marker() == "o")
    assert points.get_ydata().tolist() == pytest.approx([20, 50, 60])
    levels = [line.get_ydata()[0] for line in left.lines if line.get_linestyle() == ":"]
    assert levels == pytest.approx([45, 60])
    heights = [[bar.get_height() for bar in bars] for bars in right.containers]
    assert heights == [[75, 0, 0], [25, 37.5, 0], [0, 62.5, 100]]
    feet = [[bar.get_y() for bar in bars] for bars in right.containers]
    assert feet == [[0, 0, 0], [75, 0, 0], [100, 37.5, 0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--deadlines auto --samples 361", "--samples must be at most the split's 360 images"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, words: str, finished: Path, capsys: Out) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(finished), *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("anynest: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert not shown.out


def test_a_sample_is_spread_over_the_split() -> None:
    """Image folders are sorted by class: the first images would be of one."""
    split = load("digits").test
    assert sample(split, None) is split
    assert sample(split, 360) is split
    part = sample(split, 90)
    assert torch.equal(part.labels, split.labels[::4])
    assert part.name == split.name
