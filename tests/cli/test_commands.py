"""The commands: what they print, their exit status, one line for a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anynest import create_model, list_models
from anynest.cli import main
from anynest.nets import registry
from anynest.training import ConfigError, RunError, RunFolderError, load, read_config

Out = pytest.CaptureFixture[str]


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anynest", "train", "--out", "x", "--epochs", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "anynest: --epochs must be at least 1, found 0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --out {new} --model-option blcoks=1", "'blocks'"),
        ("train --out {new} --method greedy --priority 0,1", "greedy"),
        ("train --out {new} --priority 0,0", "permutation"),
        ("train --out {new} --priority 1,0", "permutation"),
        ("train --out {new} --method osgd --norm-c 1", "--norm-c"),
        ("train --out {new} --schedule cosine --milestones 1", "--milestones has no meaning"),
        (
            "train --out {new} --epochs 1 --milestones 30,60",
            "--milestones must come before the end of the run, 1 epoch, found 30, which is never",
        ),
        ("train --out {new} --recipe paper-cifar --milestones 60,200", "found 200, which is never"),
        ("train --out {new} --schedule constant --lr-factor 0.1", "--lr-factor has no meaning"),
        ("train --out {new} --optimizer-option momentum=abc", "options.momentum must be a number"),
        ("train --out {new} --optimizer-option nesterov=1", "nesterov must be true or false"),
        ("train --out {new} --optimizer adamv", "adamw"),
        ("train --out {new} --optimizer-option momntum=1", "near matches: momentum"),
        ("train --out {new} --device cuda:99", "not available"),
        ("train --out {new} --device quantum", "run.device"),
        ("train --out {new} --data /no/such/folder", "/no/such/folder"),
        ("train --out {new} --holdout 1.5", "holdout"),
        ("train --out {new} --batch-size 5000", "5000"),
        ("train --out {run}", "must be empty or new"),
        ("train --out {run}/config.json", "found a file"),
        ("train --resume {new}", "no run to resume"),
        ("train --resume {run} --lr 0.5", "optimizer.lr was not set, now 0.5"),
        ("train --resume {run} --epochs 7", "schedule.epochs was 1, now 7"),
        ("train --resume {run} --method sgd-sum --lr 0.5", "method.name"),
        ("evaluate {new}", "does not exist"),
        ("evaluate {run}/curves.png", "no whole safetensors file"),
        ("evaluate {run} --device quantum", "run.device"),
        ("evaluate {run} --import no_such_module", "--import no_such_module failed"),
        ("demo --out {run}", "must be empty or new"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: str, words: str, tmp_path: Path, finished: Path, capsys: Out
) -> None:
    new = tmp_path / "new"
    argv = [part.format(new=new, run=finished) for part in arguments.split()]
    if argv[0] == "train" and "--resume" not in argv and "--device" not in argv:
        argv += ["--device", "cpu"]
    capsys.readouterr()
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("anynest: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert not new.exists() or not any(new.iterdir())


def test_a_failed_run_has_status_1(tiny: list[str], tmp_path: Path, capsys: Out) -> None:
    argv = [*tiny, "--out", str(tmp_path / "run"), "--lr", "1e18", "--quiet"]
    assert main(argv) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "epoch 1" in shown
    assert main(argv) == 1  # nothing was saved: the folder is free for another try
    assert "resume" not in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "resume" not in capsys.readouterr().err


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYNEST_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        main(["train", "--epochs", "0", "--out", "x"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunError("a\nb"), 1),
        (OSError(28, "full"), 2),
        (ValueError(""), 2),
        (
            ValueError("a Exception raised from f:1 (most recent call first)\n" + "frame\n" * 1000),
            2,
        ),
        (ValueError("x" * 5000), 2),
        (RuntimeError("Storage size calculation overflowed with sizes=[1]"), 1),
        (RuntimeError("value cannot be converted to type float without overflow"), 1),
        (OverflowError("Python int too large to convert to C long"), 1),
    ],
)
def test_status_of_errors(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("anynest.cli.commands.train.run", fail)
    assert main(["train", "--out", "x"]) == status
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert len(shown) < 1100
    assert "frame" not in shown


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr("anynest.cli.commands.train.run", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["train", "--out", "x"])


def test_train_as_typed(tmp_path: Path, capsys: Out) -> None:
    """The issue's own command, on the digits and with one epoch; then --resume, both ways."""
    folder = str(tmp_path / "runs" / "a")
    argv = ["train", "--model", "width_nested_resnet10", "--data", "digits", "--method", "osgd"]
    argv += ["--epochs", "1", "--out", folder, "--threads", "1", "--device", "cpu"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "epoch 1/1" in shown
    assert folder in shown
    for resumed in (["train", "--resume", folder], [*argv, "--resume"]):
        assert main(resumed) == 0
        assert "finished" in capsys.readouterr().out
    config = read_config(tmp_path / "runs" / "a" / "config.json")
    assert config.model.name == "width_nested_resnet10"
    assert config.method.name == "osgd"


def test_resume_starts_where_no_run_is(tiny: list[str], tmp_path: Path, capsys: Out) -> None:
    """A job script may always pass --out and --resume."""
    argv = [*tiny, "--out", str(tmp_path / "run"), "--resume"]
    assert main(argv) == 0
    assert "a new one is started" in capsys.readouterr().out
    assert main(argv) == 0
    assert "finished" in capsys.readouterr().out


def test_precedence(tiny: list[str], tmp_path: Path) -> None:
    """Flags over --config over --recipe over the defaults."""
    file = tmp_path / "part.json"
    file.write_text(json.dumps({"schedule": {"epochs": 2}, "optimizer": {"lr": 0.05}}))
    argv = [*tiny, "--recipe", "paper-cifar", "--config", str(file)]
    assert main([*argv, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    config = read_config(tmp_path / "run" / "config.json")
    assert config.schedule.epochs == 1
    assert config.optimizer.lr == 0.05
    assert config.data.holdout == 0
    assert config.data.batch_size == 256
    assert config.optimizer.options == {"momentum": 0.9, "nesterov": True}


def test_train_json(tiny: list[str], tmp_path: Path, capsys: Out) -> None:
    argv = [*tiny, "--out", str(tmp_path / "run"), "--json"]
    assert main(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["test"]["error"]) == 2


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluate(finished: Path, split: str, capsys: Out) -> None:
    assert main(["evaluate", str(finished), "--split", split, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text())
    if split != "train":  # training errors are measured on the way
        assert found["error"] == summary[split]["error"]
    assert main(["evaluate", str(finished / "weights.safetensors"), "--split", split]) == 0
    assert f"{split} split" in capsys.readouterr().out


def test_evaluate_weights_alone(finished: Path, tmp_path: Path, capsys: Out) -> None:
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((finished / "weights.safetensors").read_bytes())
    assert main(["evaluate", str(alone)]) == 2
    assert "give --data" in capsys.readouterr().err
    assert main(["evaluate", str(alone), "--data", "digits", "--json"]) == 0
    summary = json.loads((finished / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out)["error"] == summary["test"]["error"]


def test_evaluate_resizes_as_the_training_did(tmp_path: Path, tiny: list[str], capsys: Out) -> None:
    """Also where the weights alone tell the size."""
    run = tmp_path / "run"
    assert main([*tiny, "--image-size", "12", "--out", str(run), "--quiet"]) == 0
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((run / "weights.safetensors").read_bytes())
    capsys.readouterr()
    assert main(["evaluate", str(alone), "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == "digits (resized to 12)"
    assert found["error"] == json.loads((run / "summary.json").read_text())["test"]["error"]


def test_models(capsys: Out) -> None:
    assert main(["models", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in described] == list_models()
    small = next(model for model in described if model["name"] == "width_nested_resnet10")
    model = create_model("width_nested_resnet10")
    last = small["stages"][-1]
    assert last["parameters"] == sum(p.numel() for p in model.parameters())
    plain = create_model("width_nested_resnet10", independent=3)
    assert last["independent_parameters"] == sum(p.numel() for p in plain.parameters())
    assert [row["multiply_adds"] for row in small["stages"]] == [
        row.multiply_adds for row in model.cost(32)
    ]
    assert main(["models", "width_nested_resnet10", "--image-size", "8"]) == 0
    assert "independent" in capsys.readouterr().out


def test_models_list_and_patterns(capsys: Out) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    small = next(line for line in lines if line.startswith("width_nested_resnet10 "))
    count = sum(p.numel() for p in create_model("width_nested_resnet10").parameters())
    assert small.split()[1:3] == ["3", f"{count / 1e6:.3f}"]
    assert main(["models", "width*10", "--json"]) == 0
    named = [model["name"] for model in json.loads(capsys.readouterr().out)]
    assert named == list_models("width*10")


def test_a_model_of_ones_own(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import anynest\nfrom anynest.nets import Architecture\n\n@anynest.register\n"
        "def my_resnet8() -> Architecture:\n"
        "    return Architecture(blocks=(1, 1), growth=((1, 1), (2, 1)), base_width=2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def start_anew() -> None:
        monkeypatch.setattr(registry, "_FACTORIES", {**known})
        sys.modules.pop("mine", None)

    known = dict(registry._FACTORIES)
    start_anew()
    own = [*tiny, "--model", "my_resnet8"]
    assert main([*own, "--import", "mine", "--out", "run", "--quiet"]) == 0
    assert "mine" not in (tmp_path / "run" / "config.json").read_text()
    start_anew()
    with pytest.raises(RunFolderError, match=r"the module mine registered it.*--import mine"):
        load(tmp_path / "run")
    assert main(["evaluate", "run"]) == 2
    assert main(["evaluate", "run", "--import", "mine"]) == 0
    start_anew()


def test_doctor(capsys: Out) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert report["packages"]["torch"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("ok ") == len(report["checks"])


def test_doctor_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr("anynest.cli.commands.doctor.TOLERANCE", 0.0)
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2


def test_models_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/custom_networks.md."""
    page = (Path(__file__).parents[2] / "docs" / "custom_networks.md").read_text()
    lines = page.split("## A nested network of other sizes")[1].split("`import")[0].splitlines()
    (tmp_path / "mynets.py").write_text("\n".join(line[4:] for line in lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    assert main(["models", "two_width_resnet14", "--import", "mynets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
