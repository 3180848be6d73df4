"""``anynest profile``."""

import json
from pathlib import Path

import pytest
from PIL import Image

from anynest import create_model
from anynest.cli import main
from anynest.engines.onnx.export.export import export
from anynest.profiling import Profile

Out = pytest.CaptureFixture[str]
QUICK = ["--rounds", "1", "--device", "cpu"]


def test_a_run_is_profiled_into_its_folder(finished: Path, capsys: Out) -> None:
    argv = ["profile", str(finished), *QUICK, "--threads", "1", "--batch-sizes", "1,3"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    profile = Profile.read(finished)
    assert profile.ways == (("onnxruntime", "cpu", 1, 1), ("onnxruntime", "cpu", 1, 3))
    assert len(profile.rows) == len(profile.plain) == 4
    assert profile.image_size == 8
    model = create_model(profile.model, **profile.arguments)
    assert profile.costs == model.cost(8)
    plain = create_model(profile.model, **profile.arguments, independent=2)
    assert profile.plain_costs[1].parameters == sum(p.numel() for p in plain.parameters())
    assert profile.plain_costs[1].stage == 2
    for first, second in (profile.rows[:2], profile.rows[2:]):
        assert 0 < first.p50 < second.p50
    assert {row.runs for row in profile.rows} == {5}
    for words in ("latency in ms: onnxruntime on cpu, 1 thread, batch 3", "ratio", "5 runs each"):
        assert words in shown
    for name in ("profile.json", "profile.png"):
        assert str(finished / name) in shown
    with Image.open(finished / "profile.png") as picture:
        assert picture.size == (1260, 552)
    assert f"{model.cost(8)[1].multiply_adds / 1e6:.3f}" in shown


def test_json_of_a_bare_model(tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["profile", "width_nested_resnet10", *QUICK, "--image-size", "8", "--no-plain", "--json"]
    assert main(argv) == 0
    profile = Profile.loads(capsys.readouterr().out)
    assert [row.stage for row in profile.rows] == [1, 2, 3]
    assert profile.plain == profile.plain_costs == ()
    assert not list(tmp_path.iterdir())
    assert main([*argv, "--out", "p.json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "p.json").read_text())


def test_weights_alone_leave_their_folder_alone(
    finished: Path, tmp_path: Path, capsys: Out
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((finished / "weights.safetensors").read_bytes())
    assert main(["profile", str(weights), *QUICK]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert "width_nested_resnet10, images 8x8" in capsys.readouterr().out


def test_an_export_is_measured_as_it_is(finished: Path, tmp_path: Path, capsys: Out) -> None:
    folder = tmp_path / "onnx"
    export(finished, folder)
    assert main(["profile", str(folder), *QUICK]) == 0
    profile = Profile.read(folder)
    assert profile.ways == (("onnxruntime", "cpu", 1, 1),)
    assert (profile.model, profile.image_size) == ("width_nested_resnet10", 8)
    assert len(profile.rows) == len(profile.plain) == 2
    assert not (folder / "profile.png").exists()  # an export knows no errors
    capsys.readouterr()
    assert main(["profile", str(folder), *QUICK, "--backend", "torch"]) == 2
    assert "found the exported folder" in capsys.readouterr().err


def test_both_backends(finished: Path, tmp_path: Path, capsys: Out) -> None:
    argv = ["profile", str(finished), *QUICK, "--backend", "torch, onnxruntime"]
    assert main([*argv, "--no-plain", "--json", "--out", str(tmp_path / "p.json")]) == 0
    profile = Profile.loads(capsys.readouterr().out)
    assert [way[0] for way in profile.ways] == ["torch", "onnxruntime"]
    for way in profile.ways:
        first, second = profile.stages(*way)
        assert 0 < first.p50 < second.p50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("width_nested_resnet11", "near matches: width_nested_resnet"),
        ("/no/such/run", "must be a run folder, weights file, exported folder or network's name"),
        ("{run}/curves.png", "no whole safetensors file"),
        (
            "{run} --backend tensorrt",
            "--backend must be one of onnxruntime, torch, found 'tensorrt'",
        ),
        ("{run} --device quantum", "run.device"),
        ("{run} --out /no/such/p.json", "--out /no/such/p.json must lie in a folder that exists"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, words: str, finished: Path, capsys: Out) -> None:
    capsys.readouterr()
    assert main(["profile", *arguments.format(run=finished).split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("anynest: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert not shown.out


def test_interrupted(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    """Ctrl-C leaves the old profile as it was."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    old = (finished / "profile.json").exists() and (finished / "profile.json").read_bytes()
    monkeypatch.setattr("anynest.training.output.reporting.ProgressBar.report", stop)
    assert main(["profile", str(finished), *QUICK]) == 130
    assert capsys.readouterr().err == "anynest: stopped\n"
    assert (
        (finished / "profile.json").exists() and (finished / "profile.json").read_bytes()
    ) == old
