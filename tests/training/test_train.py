"""Runs from start to end, and every way in which one may stop."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from anynest.store import files
from anynest.training import (
    ConfigError,
    Interrupted,
    RunError,
    RunFolderError,
    TrainConfig,
    load,
    read_config,
    train,
)
from anynest.training.output.reporting import NullReporter
from anynest.training.output.run_folder import RunFolder
from anynest.training.step import TrainStep

Tiny = Callable[..., TrainConfig]
METHODS = ["sgd-mean", "sgd-sum", "sgd-participants", "normsgd", "osgd", "osgd-norm", "greedy"]


class Listening(NullReporter):
    """Keeps what is said; calls ``then`` after a number of batches."""

    def __init__(self, batches: int = -1, then: Callable[[], None] = lambda: None) -> None:
        self.said: list[str] = []
        self.left, self.then = batches, then

    def say(self, text: str) -> None:
        self.said.append(text)

    def batch(self, label: str, images: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.then()


def bits(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def learned(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder(folder).read_history()
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


@pytest.fixture(scope="module")
def three(tiny: Tiny) -> TrainConfig:
    """The tiny config with three epochs, of five batches each."""
    return tiny(schedule={"epochs": 3})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, three: TrainConfig) -> Path:
    """A finished run of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(three, folder)
    return folder


def test_a_finished_run(whole: Path, three: TrainConfig) -> None:
    assert read_config(whole / "config.json") == three
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoints", "weights.safetensors", "curves.png",
        "summary.json", "run.lock",
    }  # fmt: skip
    assert len(list((whole / "checkpoints").iterdir())) == 2
    lines = RunFolder(whole).read_history()
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [5, 10, 15]
    for line in lines:
        for part in ("train", "validation"):
            assert len(line[part]["loss"]) == len(line[part]["error"]) == 2
        assert line["cosines"][0][0] == pytest.approx(1)
        assert line["cosines"][0][1] == pytest.approx(line["cosines"][1][0])
        assert line["images_per_second"] > 0
    assert lines[0]["lr"] == pytest.approx(0.02)  # of its last batch
    assert lines[-1]["lr"] == pytest.approx(0.0008)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["test"]["images"] == 360
    assert summary["validation"]["error"] == lines[-1]["validation"]["error"]
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_bits(
    tmp_path: Path, whole: Path, three: TrainConfig, tiny: Tiny
) -> None:
    train(three, tmp_path / "again")
    assert bits(tmp_path / "again") == bits(whole)
    train(tiny(schedule={"epochs": 3}, run={"seed": 1}), tmp_path / "other")
    assert bits(tmp_path / "other") != bits(whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(tmp_path: Path, tiny: Tiny, method: str) -> None:
    config = tiny(
        model={"base_width": 4},
        data={"limit": None},
        method={"name": method},
        optimizer={"lr": 0.01 if "norm" in method else 0.1},
        schedule={"epochs": 3},
    )
    result = train(config, tmp_path / "run")
    assert max(result.test_error) < 0.6, result.test_error
    model = load(tmp_path / "run")
    assert all(parameter.requires_grad for parameter in model.parameters())
    lines = RunFolder(tmp_path / "run").read_history()
    if method == "greedy":
        assert [line["stage"] for line in lines] == [1, 1, 1, 2, 2, 2]
        assert lines[0]["validation"]["error"][1] is None
    else:
        cosine = lines[0]["cosines"][0][1]
        assert -1 <= cosine <= 1


def test_cosines_are_of_the_same_batches_for_every_method(tmp_path: Path, tiny: Tiny) -> None:
    """With a learning rate of nearly 0 every method sees the same network in every batch, so equal
    means are means over the same batches."""
    found = {}
    for name, method in {
        "sgd-mean": {"name": "sgd-mean"},
        "participants": {"name": "sgd-participants"},
        "osgd": {"name": "osgd"},
        "refresh": {"name": "osgd", "refresh": 4},
    }.items():
        config = tiny(
            data={"batch_size": 24},  # 13 batches
            method=method,
            optimizer={"lr": 1e-12},
            schedule={"epochs": 1},
        )
        train(config, tmp_path / name)
        (line,) = RunFolder(tmp_path / name).read_history()
        assert line["cosine_batches"] == 5
        found[name] = line["cosines"][0][1]
    assert len({round(value, 5) for value in found.values()}) == 1, found
    config = tiny(method={"name": "sgd-mean"}, run={"gradient_stats": False})
    train(config, tmp_path / "unmeasured")
    assert RunFolder(tmp_path / "unmeasured").read_history()[0]["cosines"] is None


def test_one_epoch_is_what_plain_torch_does(tmp_path: Path, tiny: Tiny) -> None:
    """sgd-sum with the default recipe against a loop written out by hand, bit for bit."""
    config = tiny(method={"name": "sgd-sum"}, schedule={"epochs": 1})
    train(config, tmp_path / "run")
    data = config.data.load()
    torch.manual_seed(0)
    model = config.model.build(data.num_classes, data.in_channels)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    loader = config.data.train_loader(data, 0, torch.device("cpu"))
    drops = [round(share * len(loader)) for share in (0.3, 0.6, 0.8)]
    for batch, (images, labels) in enumerate(loader.batches(0)):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.2 ** sum(batch >= drop for drop in drops)
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(out, labels) for out in model(images)).backward()
        optimizer.step()
    trained = load(tmp_path / "run").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adamw", "lr": 1e-3, "clip": 1.0}},
        {"optimizer": {"name": "rmsprop", "lr": 1e-3}, "method": {"priority": [1, 0]}},
        {"run": {"precision": "bf16", "channels_last": True}},
        {
            "run": {"precision": "float16"},
            "method": {"name": "osgd-norm"},
            "optimizer": {"lr": 0.01},
        },
        {"run": {"deterministic": True}, "method": {"label_smoothing": 0.1}},
        {"method": {"distill": 0.5}, "optimizer": {"ema": 0.9, "decay_norms": False}},
    ],
)
def test_options_resume_to_the_same_bits(
    tmp_path: Path, tiny: Tiny, changes: dict[str, Any]
) -> None:
    """Each at least runs, and is the same after an interruption in mid-epoch."""
    config = tiny(**changes)
    train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", 7)
    train(None, tmp_path / "cut", resume=True)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    assert learned(tmp_path / "cut") == learned(tmp_path / "whole")


def interrupt(config: TrainConfig, folder: Path, batches: int, number: int = signal.SIGINT) -> str:
    before = signal.getsignal(number)
    reporter = Listening(batches, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as caught:
        train(config, folder, reporter=reporter)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    return str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_resume(
    tmp_path: Path, whole: Path, three: TrainConfig, number: int
) -> None:
    folder = tmp_path / "a run"
    said = interrupt(three, folder, 8, number)
    assert f"anynest train --resume '{folder}'" in said
    assert "epoch 2, batch 4 of 5" in said
    assert "\n" not in said
    train(None, folder, resume=True)
    assert bits(folder) == bits(whole)
    assert learned(folder) == learned(whole)


def test_damaged_newest_checkpoint(tmp_path: Path, whole: Path, three: TrainConfig) -> None:
    folder = tmp_path / "run"
    interrupt(three, folder, 12)
    newest = RunFolder(folder).checkpoints.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    reporter = Listening()
    train(None, folder, resume=True, reporter=reporter)
    assert any(str(newest) in line and "set aside" in line for line in reporter.said)
    assert bits(folder) == bits(whole)
    assert learned(folder) == learned(whole)


def test_where_no_checkpoint_is_left_nothing_starts_anew(
    tmp_path: Path, three: TrainConfig
) -> None:
    folder = RunFolder(tmp_path / "run")
    interrupt(three, folder.path, 12)
    before = folder.metrics.read_bytes()
    assert before
    for path in folder.checkpoints.paths():
        path.write_bytes(path.read_bytes()[:-100])
    reporter = Listening()
    with pytest.raises(RunFolderError, match="no whole checkpoint is left"):
        train(None, folder.path, resume=True, reporter=reporter)
    assert not reporter.said
    for path in folder.checkpoints.paths():
        path.unlink()
    with pytest.raises(RunFolderError, match="no checkpoint is left"):
        train(None, folder.path, resume=True)
    assert folder.metrics.read_bytes() == before


def test_full_disk_then_resume(
    tmp_path: Path, whole: Path, three: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = files._write, 0

    def full(file: Any, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", full)
        with pytest.raises(RunError, match="No space left"):
            train(three, folder)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    train(None, folder, resume=True)
    assert bits(folder) == bits(whole)
    assert learned(folder) == learned(whole)


@pytest.mark.parametrize("method", ["osgd", "sgd-mean", "greedy"])
def test_loss_that_is_not_finite(tmp_path: Path, tiny: Tiny, method: str) -> None:
    config = tiny(
        method={"name": method},
        optimizer={"lr": 1e18},
        schedule={"epochs": 5, "shape": "constant", "warmup_epochs": 2},
        run={"save_batches": 1},
    )
    with pytest.raises(RunError, match=r"stage \d.*epoch \d, batch \d of 5|not finite") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    state = RunFolder(tmp_path / "run").checkpoints.load_newest(lambda _: None)
    if state is not None:
        assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("method", ["osgd", "sgd-mean", "greedy"])
def test_batches_of_one_value_a_channel(tmp_path: Path, tiny: Tiny, method: str) -> None:
    """Not a matter of the learning rate."""
    config = tiny(data={"batch_size": 1, "image_size": 4, "limit": 20}, method={"name": method})
    words = r"--batch-size\) must be above 1 for images of 4 pixels a side, found 1"
    with pytest.raises(ConfigError, match=words) as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "lr" not in str(caught.value)


def poison(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """After the seventh step, the second of an epoch, put a number into stage 2's last bias."""
    real, calls = TrainStep.__call__, 0

    def step(self: TrainStep, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        output = real(self, *arguments, **named)
        if calls == 7:
            with torch.no_grad():
                self.phase.network.head(2).bias.fill_(value)
        return output

    monkeypatch.setattr(TrainStep, "__call__", step)


def test_where_the_loss_went_wrong(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in stage 2 alone, in the second epoch's third batch, is located exactly."""
    poison(monkeypatch, float("nan"))
    words = r"loss of stage 2 is nan at epoch 2, batch 3 of 5; the last good checkpoint stands"
    with pytest.raises(RunError, match=words + r" \(.*step-000000005"):
        train(tiny(), tmp_path / "run")


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch before a checkpoint may ruin the weights with no loss having shown it."""
    poison(monkeypatch, float("inf"))
    with pytest.raises(RunError, match=r"weights are not finite at epoch 2, batch 3 of 5"):
        train(tiny(run={"save_batches": 1}), tmp_path / "run")
    names = [path.name for path in RunFolder(tmp_path / "run").checkpoints.paths()]
    assert names[-1] == "step-000000006.ckpt"


@pytest.mark.parametrize("batches", [5, 15])
def test_ctrl_c_between_training_and_validation(
    tmp_path: Path, whole: Path, three: TrainConfig, batches: int
) -> None:
    folder = tmp_path / "run"
    interrupt(three, folder, batches)
    assert len(learned(folder)) == batches // 5 - 1
    train(None, folder, resume=True)
    assert bits(folder) == bits(whole)
    assert learned(folder) == learned(whole)


def test_resume_rules(tmp_path: Path, whole: Path, tiny: Tiny) -> None:
    reporter = Listening()
    before = bits(whole)
    result = train(None, whole, resume=True, reporter=reporter)
    assert "finished" in reporter.said[0]
    assert len(result.test_error) == 2
    assert bits(whole) == before
    with pytest.raises(ConfigError, match=r"schedule\.epochs was 3, now 2"):
        train(tiny(), whole, resume=True)
    with pytest.raises(RunFolderError, match=r"must be empty or new.*--resume"):
        train(tiny(), whole)
    with pytest.raises(RunFolderError, match="no run to resume"):
        train(None, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_folders_that_cannot_be_used(tmp_path: Path, tiny: Tiny) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunFolderError, match="found a file"):
        train(tiny(), blocked)
    with pytest.raises((RunFolderError, RunError), match="cannot write"):
        train(tiny(), blocked / "below")
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="must be empty or new"):
        train(tiny(), used)
    assert [path.name for path in used.iterdir()] == ["thesis.tex"]
    (used / "thesis.tex").rename(used / "config.json")  # another program's
    with pytest.raises(RunFolderError, match="must be empty or new"):
        train(tiny(), used)


def test_a_checkpoint_without_its_config_is_not_continued(tmp_path: Path, tiny: Tiny) -> None:
    """As `rm run/*` leaves it: it may be of another method."""
    run = tmp_path / "run"
    train(tiny(), run)
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    assert list((run / "checkpoints").iterdir())
    with pytest.raises(RunFolderError, match="must be empty or new"):
        train(tiny(method={"name": "sgd-sum"}), run)


def test_a_run_that_has_nothing_to_lose_keeps_no_folder(tmp_path: Path, tiny: Tiny) -> None:
    """One that failed before its first checkpoint, say at a picture that cannot be decoded."""
    folder = RunFolder(tmp_path / "run")
    folder.start(tiny())
    assert folder.started
    result = train(tiny(), folder.path)
    assert len(result.test_error) == 2
    with pytest.raises(RunFolderError, match="must be empty or new"):
        train(tiny(), folder.path)


def test_two_processes_in_one_folder(tmp_path: Path, tiny: Tiny) -> None:
    with RunFolder(tmp_path / "run").locked(), pytest.raises(RunFolderError, match="another"):
        train(tiny(), tmp_path / "run")


def test_skipped_images_are_counted(tmp_path: Path, tiny: Tiny) -> None:
    image = Image.new("RGB", (8, 8), (200, 10, 10))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(6):
                image.save(tmp_path / "images" / split / name / f"{number}.png")
    for bad in ("train/a/3.png", "train/b/1.png", "val/a/2.png"):
        (tmp_path / "images" / bad).write_bytes(b"not an image")
    config = tiny(
        data={"source": str(tmp_path / "images"), "on_corrupt": "skip", "batch_size": 4,
              "limit": None, "holdout": 0, "augment": "none"},
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert result.summary["skipped"] == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [2, 2]
    interrupt(
        config, tmp_path / "cut", 4
    )  # in the second epoch: its skipped images may be met again
    assert train(None, tmp_path / "cut", resume=True).summary["skipped"] == 3
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped"] for line in lines] == [2, 2]


def test_tensorboard(tmp_path: Path, tiny: Tiny) -> None:
    pytest.importorskip("tensorboard")
    train(tiny(run={"tensorboard": True}, schedule={"epochs": 1}), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_tensorboard_that_is_missing(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"anynest\[tensorboard\]"):
        train(tiny(run={"tensorboard": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_version(
    tmp_path: Path, three: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(three, tmp_path / "run", 7)
    monkeypatch.setattr("anynest.training.checkpointer.FORMAT", 99)
    with pytest.raises(RunFolderError, match="must have format 99, found 2"):
        train(None, tmp_path / "run", resume=True)


def test_checkpoints_of_another_network_end_in_one_line(tmp_path: Path, three: TrainConfig) -> None:
    folder = RunFolder(tmp_path / "run")
    interrupt(three, folder.path, 7)
    before = folder.metrics.read_bytes()
    width = three.model.base_width
    other = replace(three, model=replace(three.model, base_width=(width or 16) * 2))
    folder.config.write_text(other.dumps())
    with pytest.raises(
        RunFolderError, match=r"must be \[.*\], found \[.*resume with the"
    ) as caught:
        train(None, folder.path, resume=True)
    assert "\n" not in str(caught.value)
    assert folder.metrics.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", '{"model": "m", "method": "osgd", "data": "d"}', ""])
def test_a_damaged_summary_ends_in_one_line(tmp_path: Path, whole: Path, text: str) -> None:
    folder = RunFolder(shutil.copytree(whole, tmp_path / "run"))
    folder.summary.write_text(text)
    with pytest.raises(RunFolderError, match=r"summary\.json must") as caught:
        train(None, folder.path, resume=True)
    assert "\n" not in str(caught.value)
    folder.summary.unlink()  # as the message says
    train(None, folder.path, resume=True)
    assert bits(folder.path) == bits(whole)
