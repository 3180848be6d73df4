"""``anynest calibrate`` and the commands that stop early by its file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anynest.cli import main
from anynest.cli.commands.predict import Answers
from anynest.data import load as load_data
from anynest.data import make_loader
from anynest.nets.pretrained import list_pretrained, pretrained_file
from anynest.predict import SavedPolicy
from anynest.store import RunError, load

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run of its own: the policy in it changes what ``predict`` does."""
    folder = tmp_path_factory.mktemp("calibrate") / "run"
    assert main([*tiny, "--epochs", "4", "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def calibrated(run: Path) -> Path:
    assert main(["calibrate", str(run)]) == 0
    return run


def picture(folder: Path) -> str:
    from PIL import Image

    image = load_data("digits").test.images[0, 0]  # type: ignore[union-attr]
    Image.fromarray(image.numpy()).save(folder / "x.png")
    return str(folder / "x.png")


def report(argv: list[str], capsys: Out) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def exits(run: Path, thresholds: list[float], split: str) -> tuple[float, float]:
    """Accuracy, and the share that stops at stage 1, from the network itself."""
    data = load_data("digits") if split == "test" else run_data(run)
    part = getattr(data, split)
    loader = make_loader(part, 512, train=False, mean=data.mean, std=data.std)
    network, right, early, images = load(run), 0, 0, 0
    for x, y in loader.batches(0):
        with torch.no_grad():
            first, last = (logits.softmax(1) for logits in network.eval()(x))
        done = first.amax(1) >= thresholds[0]
        right += int((torch.where(done, first.argmax(1), last.argmax(1)) == y).sum())
        early, images = early + int(done.sum()), images + len(y)
    return right / images, early / images


def run_data(run: Path) -> Any:
    from anynest.training import read_config

    return read_config(run / "config.json").data.load()


def test_the_file_says_what_the_policy_does(run: Path, capsys: Out) -> None:
    told = report(["calibrate", str(run)], capsys)
    assert told["file"] == str(run / "policy.json")
    saved = json.loads((run / "policy.json").read_text())
    assert saved == {key: value for key, value in told.items() if key != "file"}
    assert (saved["data"], saved["split"], saved["model"]) == (
        "digits", "validation", "width_nested_resnet10",
    )  # fmt: skip
    accuracy, early = exits(run, saved["thresholds"], "validation")
    found = saved["report"]
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert found["exit_rates"][0] == pytest.approx(early, abs=1e-9)
    assert found["images"] == len(run_data(run).validation)
    assert found["accuracy"] >= found["stage_accuracy"][-1] - 0.01 - 1e-9


def test_goals(run: Path, capsys: Out) -> None:
    half = report(["calibrate", str(run), "--budget", "60%"], capsys)["report"]
    assert half["cost"] <= 0.6 * half["stage_cost"][-1]
    least = report(["calibrate", str(run), "--budget", str(half["stage_cost"][0])], capsys)
    assert least["report"]["exit_rates"] == [1.0, 0.0]
    never = report(["calibrate", str(run), "--target-accuracy", "1"], capsys)["report"]
    assert never["reached"] is False
    assert "cannot be reached" in never["note"]
    exact = report(["calibrate", str(run), "--max-drop", "0"], capsys)["report"]
    assert exact["accuracy"] >= exact["stage_accuracy"][-1]


def test_predict_takes_it_up_and_says_so(
    calibrated: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = calibrated / "policy.json"
    saved = json.loads(file.read_text())
    argv = ["predict", str(calibrated), picture(tmp_path), "--json"]
    for threshold, stage in ((0.0001, 1), (2.0, 2)):
        file.write_text(json.dumps({**saved, "thresholds": [threshold]}))
        capsys.readouterr()
        assert main(argv) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["stage"] == stage
        assert shown.err.startswith(f"anynest: stops early by {file} (target accuracy ")
        assert shown.err.count("\n") == 1
    file.write_text(json.dumps({**saved, "thresholds": [0.0001]}))
    for flags in (["--policy", "none"], ["--confidence", "1"]):
        capsys.readouterr()
        assert main([*argv, *flags]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["stage"] == 2, flags
        assert not shown.err
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**saved, "thresholds": [2.0]}))
    assert main([*argv, "--policy", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == 2
    seen = []
    monkeypatch.setattr(Answers, "answer", lambda self, path, x: seen.append(self.policy))
    assert main([*argv, "--policy", "saved"]) == 0
    assert seen[0].thresholds == (0.0001,)


@pytest.mark.parametrize("command", ["calibrate", "export"])
def test_nothing_is_written_beside_weights_of_the_package(command: str, capsys: Out) -> None:
    name = list_pretrained()[0]
    before = set(pretrained_file(name).parent.iterdir())
    assert main([command, name]) == 2
    assert f"{name} lies in no folder of yours: give --out" in capsys.readouterr().err
    assert set(pretrained_file(name).parent.iterdir()) == before


def test_a_policy_is_read_by_the_weights_it_lies_beside(calibrated: Path) -> None:
    saved = SavedPolicy.read(calibrated)
    for source in ("weights.safetensors", "policy.json"):
        assert SavedPolicy.read(calibrated / source) == saved


def test_evaluate_measures_it(calibrated: Path, capsys: Out) -> None:
    told = report(["evaluate", str(calibrated), "--policy", "saved"], capsys)
    thresholds = SavedPolicy.read(calibrated).thresholds
    accuracy, early = exits(calibrated, list(thresholds), "test")
    assert told["policy"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert told["policy"]["exit_rates"][0] == pytest.approx(early, abs=1e-9)
    assert "policy" not in report(["evaluate", str(calibrated)], capsys)
    assert main(["evaluate", str(calibrated), "--policy", "saved"]) == 0
    shown = capsys.readouterr().out
    assert "stopped here %" in shown
    assert f"stopped by {calibrated / 'policy.json'}: accuracy {100 * accuracy:.2f} %" in shown


def test_an_export_and_bare_weights_need_a_split(run: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "onnx"
    assert main(["export", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(out), "--data", "digits"]) == 2
    assert "give --data and --split" in capsys.readouterr().err
    told = report(["calibrate", str(out), "--data", "digits", "--split", "test"], capsys)
    assert told["file"] == str(out / "policy.json")
    capsys.readouterr()
    assert main(["predict", str(out), picture(tmp_path), "--policy", "saved"]) == 0
    assert main(["predict", str(run), picture(tmp_path), "--policy", told["file"]]) == 2
    assert "must be calibrated for these weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{", "must be JSON"),
        ("[]", "must have the format anynest-policy-1"),
        ({"format": "x"}, "must have the format anynest-policy-1"),
        ({"thresholds": []}, "confidence thresholds must be numbers from 0"),
        ({"thresholds": ["x"]}, "confidence thresholds must be numbers from 0"),
        ({"thresholds": [0.5] * 5}, "one for each of the stages 1 to 1, found 5"),
        ({"thresholds": 0.5}, "thresholds must be a list, found 0.5"),
        ({"revision": "0" * 12}, "must be calibrated for these weights"),
        ({"odd": 1}, "its keys must be"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    change: Any, words: str, calibrated: Path, tmp_path: Path, capsys: Out
) -> None:
    file = calibrated / "policy.json"
    saved = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps({**saved, **change}))
    capsys.readouterr()
    assert main(["predict", str(calibrated), picture(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("anynest: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert shown.err.rstrip().endswith("--policy none")
    assert not shown.out


def test_a_policy_that_is_missing(run: Path, tmp_path: Path, capsys: Out) -> None:
    (run / "policy.json").unlink(missing_ok=True)
    image = picture(tmp_path)
    assert main(["predict", str(run), image]) == 0
    capsys.readouterr()
    for argv in (["predict", str(run), image], ["evaluate", str(run)]):
        assert main([*argv, "--policy", "saved"]) == 2
        assert "`anynest calibrate` writes one" in capsys.readouterr().err


def test_the_file_is_written_whole_or_not_at_all(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = calibrated / "policy.json"
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises((RunError, OSError)):
        SavedPolicy.read(file).save(file)
    assert file.read_bytes() == before
