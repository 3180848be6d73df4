"""``anynest predict``: the evaluation's answers, one line for what cannot be read, exit status 0, 1, 2."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anynest.cli import main
from anynest.cli.commands.predict import Answers
from anynest.data import load as load_data
from anynest.data import make_loader
from anynest.engines.onnx.export.export import export
from anynest.predict.prediction import NetworkError
from anynest.training import load

Out = pytest.CaptureFixture[str]
COUNT = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test images of the digits, in a folder of folders."""
    folder = tmp_path_factory.mktemp("pictures")
    images = load_data("digits").test.images[:COUNT, 0]  # type: ignore[union-attr]
    for number, image in enumerate(images):
        file = folder / f"{number // 10}" / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).save(file)
    return folder


def lines(capsys: Out) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("way", ["run", "weights", "run on onnxruntime", "export"])
def test_the_same_answers_as_an_evaluation(
    way: str, finished: Path, pictures: Path, tmp_path: Path, capsys: Out
) -> None:
    """Pictures from files, one by one, against the data set's batches through the network itself."""
    source, backend = finished, list[str]()
    if way == "weights":
        source = finished / "weights.safetensors"
    elif way != "run":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        backend = ["--backend", "onnxruntime"]
        if way == "export":  # it says itself what runs it
            source, backend = tmp_path / "onnx", []
            export(finished, source)
    capsys.readouterr()
    argv = ["predict", str(source), str(pictures), "--json", "--top", "10", *backend]
    assert main(argv) == 0
    found = lines(capsys)
    data = load_data("digits")
    loader = make_loader(data.test, COUNT, train=False, mean=data.mean, std=data.std)
    images, _ = next(loader.batches(0))
    with torch.no_grad():
        expected = load(finished)(images)[-1].softmax(dim=1)
    assert [line["path"] for line in found] == sorted(map(str, pictures.rglob("*.png")))
    for line, row in zip(found, expected, strict=True):
        shares = {int(best["class"]): best["probability"] for best in line["top"]}
        assert [shares[k] for k in range(10)] == pytest.approx(row.tolist(), abs=1e-5)
        assert line["label"] == int(row.argmax())
        assert line["class"] == data.classes[line["label"]]
        assert line["confidence"] == max(shares.values()) == line["top"][0]["probability"]
        assert (line["stage"], line["stages"]) == (2, 2)
        assert line["stop_reason"] == "last stage"
        assert line["deadline"] is None


def test_the_answer_improves_line_by_line(finished: Path, pictures: Path, capsys: Out) -> None:
    file = str(pictures / "0" / "003.png")
    assert main(["predict", str(finished), file, "--deadline", "10s", "--top", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == file
    assert [line.split()[:2] for line in shown[1:3]] == [["stage", "1"], ["stage", "2"]]
    times = [float(line.split()[2]) for line in shown[1:3]]
    assert 0 < times[0] < times[1]
    assert all(line.count("%") == 2 for line in shown[1:3])
    best = shown[2].split()[4]
    assert shown[3] == f"  {best} (stage 2 of 2, deadline 10 s met)"
    with torch.no_grad():
        data = load_data("digits")
        x = make_loader(data.test, 4, train=False, mean=data.mean, std=data.std)
        logits = [out[3] for out in load(finished)(next(x.batches(0))[0])]
    for line, row in zip(shown[1:3], logits, strict=True):
        share, place = row.softmax(dim=0).max(dim=0)
        assert f"ms  {int(place)} {100 * float(share):.1f} %" in line


def test_bad_pictures_get_a_line_each_and_the_others_go_on(
    finished: Path, pictures: Path, tmp_path: Path, capsys: Out
) -> None:
    good = str(pictures / "0" / "000.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "none").mkdir()
    bad = [str(tmp_path / f"{name}.png") for name in ("empty", "text", "colour", "huge", "missing")]
    bad.append(str(tmp_path / "none"))
    named = [good, *(part for name in bad for part in (name, good))]
    capsys.readouterr()
    assert main(["predict", str(finished), *named]) == 1
    shown = capsys.readouterr()
    assert shown.out.count(good) == 1 + len(bad)
    told = shown.err.splitlines()
    words = ["empty", "no known image format", "found RGB", "at most 89478485 pixels",
             "No such file", "has none"]  # fmt: skip
    for line, name, word in zip(told, bad, words, strict=True):
        assert line.startswith("anynest: ")
        assert name in line
        assert word in line
    assert main(["predict", str(finished), *named, "--json"]) == 1
    shown_json = capsys.readouterr()
    assert not shown_json.err
    found = [json.loads(line) for line in shown_json.out.splitlines()]
    assert [line.get("path") for line in found] == [*named[:-2], None, good]
    assert ["error" in line for line in found] == [name in bad for name in named]


def test_paths_from_standard_input(
    finished: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    files = sorted(map(str, (pictures / "1").glob("*.png")))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*files[:2], "", files[2]])))
    capsys.readouterr()
    assert main(["predict", str(finished), "-", files[3], "--json"]) == 0
    assert [line["path"] for line in lines(capsys)] == files[:4]


def test_as_a_process_that_answers_line_by_line(finished: Path, pictures: Path) -> None:
    """A path in, an answer out, before the next path is asked for; a name that is no text too."""
    odd = bytes(pictures / "0") + b"/\xff.png"
    try:
        Path(odd.decode("utf-8", "surrogateescape")).write_bytes(b"")
    except OSError:
        odd = b"none.png"  # a file system of text alone
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "anynest", "predict", str(finished), "-", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    giving_up = threading.Timer(120, process.kill)
    giving_up.start()
    for path in (bytes(pictures / "0" / "001.png"), odd, bytes(pictures / "0" / "002.png")):
        process.stdin.write(path + b"\n")
        process.stdin.flush()
        line = json.loads(process.stdout.readline())
        assert line["path"].encode("utf-8", "surrogateescape") == path
    _, told = process.communicate(timeout=60)
    giving_up.cancel()
    assert process.returncode == 1
    assert told == b""
    Path(odd.decode("utf-8", "surrogateescape")).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("when", "status", "words"),
    [
        ("raise", 1, "no stage was ready within 1 us"),
        ("wait", 0, "(stage 1 of 2, deadline 1 us missed)"),
        ("guess", 0, "(a random guess: no stage was ready in time, deadline 1 us missed)"),
    ],
)
def test_a_deadline_that_nothing_can_meet(
    when: str, status: int, words: str, finished: Path, pictures: Path, capsys: Out
) -> None:
    argv = ["predict", str(finished), str(pictures / "0" / "000.png"), "--deadline", "1us"]
    argv += ["--on-timeout", when]
    capsys.readouterr()
    assert main(argv) == status
    shown = capsys.readouterr()
    assert words in (shown.err if status else shown.out)
    assert main([*argv, "--json"]) == status
    (line,) = lines(capsys)
    if status:
        assert "error" in line
    else:
        assert line["deadline_met"] is False
        assert line["guessed"] is (when == "guess")
        assert line["stage"] == (0 if when == "guess" else 1)
        assert line["top"] == [] if when == "guess" else line["top"]
        assert line["elapsed"] > 1e-6


def test_confidence_stops_early(finished: Path, pictures: Path, capsys: Out) -> None:
    argv = ["predict", str(finished), str(pictures / "0" / "000.png"), "--json"]
    capsys.readouterr()
    assert main([*argv, "--confidence", "0.0001"]) == 0
    (line,) = lines(capsys)
    assert (line["stage"], line["stop_reason"]) == (1, "policy")
    assert main([*argv, "--confidence", "1"]) == 0
    assert lines(capsys)[0]["stage"] == 2


def test_min_completion_probability_reads_the_profile(
    finished: Path, pictures: Path, capsys: Out
) -> None:
    quick = ["--rounds", "1", "--device", "cpu", "--no-plain"]
    assert main(["profile", str(finished), *quick]) == 0
    argv = [
        "predict",
        str(finished),
        str(pictures / "0" / "000.png"),
        "--min-completion-probability",
        "1",
    ]
    capsys.readouterr()
    assert main([*argv, "--deadline", "30s", "--json"]) == 0
    assert lines(capsys)[0]["stage"] == 2
    data = json.loads((finished / "profile.json").read_text())
    slow = finished.parent / "slow.json"
    for row in data["rows"]:
        for key in ("mean", "p50", "p95", "p99"):
            row[key] = 100.0
        row["quantiles"] = row["step_quantiles"] = [100.0] * 101
    slow.write_text(json.dumps(data))
    argv += ["--deadline", "30s", "--profile", str(slow)]
    assert main([*argv, "--json"]) == 0
    (line,) = lines(capsys)
    assert (line["stage"], line["stop_reason"]) == (1, "completion probability")
    assert main(argv) == 0
    assert "(stage 1 of 2, deadline 30 s met)" in capsys.readouterr().out


def test_a_failing_network_fails_its_picture(
    finished: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def answer(self: Answers, path: str, x: torch.Tensor) -> None:
        if path.endswith("001.png"):
            raise NetworkError("stage 2 failed")
        print(path)

    monkeypatch.setattr(Answers, "answer", answer)
    capsys.readouterr()
    assert main(["predict", str(finished), str(pictures / "0")]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"anynest: {pictures}/0/001.png: stage 2 failed\n"
    assert len(shown.out.splitlines()) == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("/no/such/run x.png", "does not exist"),
        ("{run}/curves.png x.png", "no whole safetensors file"),
        (
            "{run} x.png --min-completion-probability 0 --deadline 1s",
            "--min-completion-probability must be above 0",
        ),
        (
            "{run} x.png --min-completion-probability 0.9",
            "give --deadline too",
        ),
        ("{run} x.png --profile p.json", "--min-completion-probability alone"),
        (
            "{run} x.png --min-completion-probability 1 --deadline 1s --profile no.json",
            "`anynest profile` writes",
        ),
        ("{run} x.png --backend onnxruntime --device meta", "computes on the cpu, found"),
        ("{run} x.png --device quantum", "device must be auto, cpu, cuda or mps"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, words: str, finished: Path, capsys: Out) -> None:
    capsys.readouterr()
    assert main(["predict", *arguments.format(run=finished).split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("anynest: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert not shown.out
