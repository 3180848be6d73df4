"""``anynest export``: what it writes and prints, and one line for a mistake."""

import json
from pathlib import Path

import pytest
import torch

from anynest.cli import main
from anynest.data import load as load_data
from anynest.engines.onnx.manifest import read_manifest
from anynest.engines.open import open_session
from anynest.engines.session import stages
from anynest.store import load

Out = pytest.CaptureFixture[str]


def report(argv: list[str], capsys: Out) -> dict[str, object]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("single", [False, True])
def test_a_runs_export_gives_its_answers(
    finished: Path, tmp_path: Path, single: bool, capsys: Out
) -> None:
    out = tmp_path / "out"
    argv = ["export", str(finished), "--format", "onnx", "--out", str(out)]
    told = report(argv + ["--single-file"] * single, capsys)
    names = ["model.onnx"] if single else ["stage1.onnx", "stage2.onnx"]
    assert told["files"] == [{"file": n, "bytes": (out / n).stat().st_size} for n in names]
    assert told["folder"] == str(out)
    manifest = read_manifest(out)
    data = load_data("digits")
    assert manifest.info is not None
    assert manifest.info.classes == data.classes
    assert manifest.info.mean == pytest.approx(data.mean)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        wanted = load(finished)(images)
    session = open_session(out, backend="onnxruntime", threads=1)
    for stage, logits in stages(session.begin(images)):
        torch.testing.assert_close(logits, wanted[stage - 1], rtol=0, atol=1e-5)


def test_it_says_what_it_wrote(finished: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "out" / "stage2.onnx") in shown
    assert "largest difference from PyTorch's logits: " in shown


def test_the_default_place_and_force(finished: Path, capsys: Out) -> None:
    argv = ["export", str(finished)]
    assert report(argv, capsys)["folder"] == str(finished / "onnx")
    assert main(argv) == 2
    assert "must be empty or new" in capsys.readouterr().err
    assert report([*argv, "--force", "--single-file"], capsys)["stages"] == 2
    weights = str(finished / "weights.safetensors")
    assert report(["export", weights, "--force"], capsys)["folder"] == str(finished / "onnx")


def test_force_replaces_an_export_that_was_calibrated(
    finished: Path, tmp_path: Path, capsys: Out
) -> None:
    argv = ["export", str(finished), "--out", str(tmp_path / "out")]
    report(argv, capsys)
    calibrate = ["calibrate", str(tmp_path / "out"), "--data", "digits", "--split", "validation"]
    assert main(calibrate) == 0
    assert (tmp_path / "out/policy.json").is_file()
    report([*argv, "--force"], capsys)
    assert not (tmp_path / "out/policy.json").exists(), "it was made for the other graphs"


def test_int8_tells_what_it_costs(finished: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out"
    argv = ["export", str(finished), "--int8", "--calibration-images", "50"]
    told = report([*argv, "--out", str(out), "--split", "validation"], capsys)
    assert (told["split"], told["images"], told["int8"]) == ("validation", 144, True)
    capsys.readouterr()
    assert main(["evaluate", str(finished), "--split", "validation", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert told["float_error"] == pytest.approx(evaluated["error"])
    assert told["error"] == pytest.approx(evaluated["error"], abs=0.05)
    quantised = read_manifest(out).quantised
    assert quantised is not None
    assert quantised["images"] == 50
    assert main([*argv, "--out", str(out), "--force"]) == 0
    shown = capsys.readouterr().out
    assert "float32" in shown
    assert "360 images" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("export {new}", "does not exist"),
        ("export {run} --int8 --image-size 16", "leave --image-size out"),
        ("export {run} --int8 --data /no/such/folder", "/no/such/folder"),
        ("export {run} --out {run}", "must be empty or new"),
        ("export {run} --out {run} --force", "holds more than an export"),
        ("export {run} --out {run}/config.json", "found a file"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: str, words: str, tmp_path: Path, finished: Path, capsys: Out
) -> None:
    new = tmp_path / "new"
    argv = [part.format(new=new, run=finished) for part in arguments.split()]
    if "--out" not in argv:
        argv += ["--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("anynest: ")
    assert shown.count("\n") == 1
    assert words in shown
    assert not (tmp_path / "out").exists()


def test_predict_runs_an_export(finished: Path, tmp_path: Path, capsys: Out) -> None:
    """Without a word about preparing pictures: the manifest says it."""
    from PIL import Image

    out = tmp_path / "out"
    assert main(["export", str(finished), "--out", str(out)]) == 0
    picture = tmp_path / "digit.png"
    pixels = load_data("digits").test.images[0, 0]  # type: ignore[union-attr]
    Image.fromarray(pixels.numpy()).save(picture)
    answers = []
    for source in (finished, out):
        capsys.readouterr()
        assert main(["predict", str(source), str(picture), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["class"] == answers[1]["class"]
    assert answers[0]["confidence"] == pytest.approx(answers[1]["confidence"], abs=1e-4)
