"""Uploads and downloads, by huggingface_hub itself against a server on loopback."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import anynest
from anynest.cli import main
from anynest.nets import registry
from anynest.predict.early_stopping.saved_policy import SavedPolicy, policy_file, revision_of
from anynest.store import RunError, RunFolderError, hub, read_info
from anynest.training import TrainConfig, train

from .hub_server import Hub, serving

pytest.importorskip("huggingface_hub")

CONFIG = {
    "model": {"name": "width_nested_resnet10", "growth": [[1, 1], [2, 1]], "base_width": 2},
    "data": {"source": "digits", "limit": 200},
    "schedule": {"epochs": 1},
    "run": {"device": "cpu", "threads": 1},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing") / "run"
    train(TrainConfig.from_json(CONFIG), folder)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
        yield server


def cached(folder: Path) -> list[Path]:
    """The files with content in the cache."""
    return [p for p in (folder / "cache").rglob("blobs/*") if p.is_file() and p.stat().st_size]


def test_what_is_pushed_is_loaded(server: Hub, run: Path) -> None:
    address = anynest.push_to_hub(run, "user/name", message="the first")
    assert address == f"{server.address}/user/name/commit/{0:040d}"
    assert server.messages == ["the first"]
    assert server.private == {"user/name": False}
    (files,) = server.repositories["user/name"]
    assert set(files) == {"weights.safetensors", "README.md"}
    assert files["weights.safetensors"] == (run / "weights.safetensors").read_bytes()
    model, local = anynest.load("hf://user/name"), anynest.load(run)
    assert model.name == local.name
    x = torch.randn(3, 1, 8, 8)
    for found, wanted in zip(model(x), local(x), strict=True):
        assert torch.equal(found, wanted)
    assert read_info("hf://user/name") == read_info(run)
    assert read_info(Path("hf://user/name")) == read_info(run)


def test_a_revision_is_another_file(server: Hub, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(TrainConfig.from_json({**CONFIG, "run": {**CONFIG["run"], "seed": 1}}), other)
    anynest.push_to_hub(run, "user/name")
    anynest.push_to_hub(other / "weights.safetensors", "user/name")
    first, newest = (
        anynest.load(source).state_dict()
        for source in (f"hf://user/name@{0:040d}", "hf://user/name")
    )
    wanted = [anynest.load(folder).state_dict() for folder in (run, other)]
    for found, local in zip((first, newest), wanted, strict=True):
        assert all(torch.equal(found[name], local[name]) for name in local)
    with pytest.raises(RunError, match="hf://user/name@v9: there is no such revision"):
        anynest.load("hf://user/name@v9")


@pytest.fixture
def calibrated(run: Path, tmp_path: Path) -> Path:
    """A copy of the run with a policy of ``anynest calibrate``."""
    folder = tmp_path / "calibrated"
    shutil.copytree(run, folder)
    SavedPolicy((0.75,), "a goal", revision_of(folder), "net", "digits", "validation").save(
        folder / "policy.json"
    )
    return folder


def test_the_policy_goes_with_the_weights(
    server: Hub, calibrated: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anynest.push_to_hub(calibrated, "user/name")
    files = server.repositories["user/name"][-1]
    assert files["policy.json"] == (calibrated / "policy.json").read_bytes()
    assert "`policy.json` has confidences" in files["README.md"].decode()
    image = str(calibrated.parent / "image.png")
    Image.new("L", (8, 8)).save(image)
    assert main(["predict", "hf://user/name", image]) == 0
    assert "stops early by" in capsys.readouterr().err
    assert SavedPolicy.read("hf://user/name").policy.thresholds == (0.75,)
    # Weights without a policy take the place of those with one: theirs does not stay.
    anynest.push_to_hub(run, "user/name")
    files = server.repositories["user/name"][-1]
    assert "policy.json" not in files
    assert "policy.json" not in files["README.md"].decode()
    assert not policy_file("hf://user/name").exists()


def test_evaluate_fetches_the_policy(
    server: Hub, calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anynest.push_to_hub(calibrated, "user/name")
    argv = ["evaluate", "hf://user/name", "--data", "digits", "--policy", "saved", "--json"]
    assert main(argv) == 0
    assert "policy" in json.loads(capsys.readouterr().out)


def test_a_policy_of_other_weights_is_not_pushed(server: Hub, calibrated: Path) -> None:
    saved = json.loads((calibrated / "policy.json").read_text())
    (calibrated / "policy.json").write_text(json.dumps({**saved, "revision": "0" * 12}))
    with pytest.raises(RunFolderError, match=r"calibrated for these weights .* remove the file"):
        anynest.push_to_hub(calibrated, "user/name")
    assert not server.repositories


def test_without_the_hub_the_cache_is_enough(
    server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anynest.push_to_hub(run, "user/name")
    anynest.load("hf://user/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not policy_file("hf://user/name").exists()


def test_the_licence_of_an_earlier_card_is_kept(server: Hub, run: Path) -> None:
    card = "---\nlicense: mit\ntags:\n- mine\n---\n# Old title\n"
    server.repositories["user/name"] = [{"README.md": card.encode(), "other.txt": b"kept"}]
    anynest.push_to_hub(run, "user/name")
    files = server.repositories["user/name"][-1]
    text = files["README.md"].decode()
    assert text.startswith("---\nlicense: mit\ntags:\n- mine\n---\n\n# width")
    assert "Old title" not in text
    assert files["other.txt"] == b"kept"


def test_an_interrupted_download_leaves_nothing(
    server: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["user/name"] = [
        {"weights.safetensors": (run / "weights.safetensors").read_bytes()}
    ]
    server.cut = True
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries
    with pytest.raises(RunError, match=r"cannot download weights.safetensors of hf://user/name"):
        anynest.load("hf://user/name")
    assert cached(tmp_path) == []
    server.cut = False
    assert anynest.load("hf://user/name").num_stages == 2
    assert len(cached(tmp_path)) == 1


def test_a_downloaded_file_is_checked_like_any_other(server: Hub) -> None:
    server.repositories["user/name"] = [{"weights.safetensors": b"\x80\x04pickle"}]
    with pytest.raises(RunFolderError, match="is no whole safetensors file"):
        anynest.load("hf://user/name")


def test_what_is_missing_is_said(server: Hub) -> None:
    with pytest.raises(RunError, match="hf://user/none: there is no such repository") as info:
        anynest.load("hf://user/none")
    assert "\n" not in str(info.value)
    server.repositories["user/name"] = [{"README.md": b""}]
    with pytest.raises(RunError, match="hf://user/name: it has no such file"):
        anynest.load("hf://user/name")


def test_a_gated_repository_is_told_from_a_missing_one() -> None:
    """The error of the first is a kind of that of the second, in huggingface_hub as here."""
    missing = type("RepositoryNotFoundError", (Exception,), {})
    gated = type("GatedRepoError", (missing,), {})
    with pytest.raises(RunError, match="access must be asked for"), hub._explained("download"):
        raise gated
    with pytest.raises(RunError, match="there is no such repository"), hub._explained("download"):
        raise missing


def test_a_refused_upload_is_one_line(server: Hub, run: Path) -> None:
    server.refuse = True
    with pytest.raises(RunError, match="cannot upload to hf://user/name: ") as info:
        anynest.push_to_hub(run, "user/name")
    assert "\n" not in str(info.value)
    assert server.repositories == {}


@pytest.mark.parametrize(
    "name",
    ["name", "a/b/c", "../etc", "user/..", "user/a..b", "/name", "user/", "user/na me", "-u/n", ""],
)
def test_wrong_names_reach_no_network(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_api", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(RunFolderError, match="a repository must be OWNER/NAME"):
        anynest.push_to_hub(run, name)
    with pytest.raises(RunFolderError, match="must be OWNER/NAME"):
        anynest.load(f"hf://{name}")


@pytest.mark.parametrize("revision", ["", "../x", "a b", "-x", "a\nb", "x" * 300])
def test_wrong_revisions_reach_no_network(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_api", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(RunFolderError, match="must be a branch, a tag or a commit"):
        anynest.load(f"hf://user/name@{revision}")


def test_without_the_library_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: anynest.load("hf://user/name"),
        lambda: anynest.push_to_hub(run, "user/name"),
    ):
        with pytest.raises(RunFolderError, match=r"pip install 'anynest\[hub\]'"):
            call()


def test_a_run_that_is_not_finished_is_not_pushed(server: Hub, run: Path, tmp_path: Path) -> None:
    for missing, words in (
        ("weights.safetensors", "is not finished"),
        ("summary.json", "cannot read"),
    ):
        folder = tmp_path / missing
        shutil.copytree(run, folder)
        (folder / missing).unlink()
        with pytest.raises(RunFolderError, match=words):
            anynest.push_to_hub(folder, "user/name")
    assert server.requests == []


def test_commands(
    server: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "user/name", "--private", "--message", "mine"]) == 0
    assert capsys.readouterr().out == f"{server.address}/user/name/commit/{0:040d}\n"
    assert server.private == {"user/name": True}
    assert server.messages == ["mine"]
    assert main(["evaluate", "hf://user/name", "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["error"]
    assert found == json.loads((run / "summary.json").read_text())["test"]["error"]
    assert main(["evaluate", "hf://user/name"]) == 2
    assert "give --data" in capsys.readouterr().err
    assert main(["profile", "hf://user/name", "--rounds", "1", "--no-plain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["costs"]) == 2
    assert main(["export", "hf://user/name"]) == 2
    assert "give --out FOLDER" in capsys.readouterr().err
    assert main(["export", "hf://user/name", "--out", str(tmp_path / "onnx")]) == 0
    assert (tmp_path / "onnx" / "manifest.json").is_file()
    assert main(["evaluate", "hf://user"]) == 2
    assert main(["evaluate", "hf://user/none"]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_a_predictor_of_a_repository(server: Hub, run: Path) -> None:
    anynest.push_to_hub(run, "user/name")
    x = torch.randn(1, 8, 8)
    with anynest.AnytimePredictor("hf://user/name") as shared, anynest.AnytimePredictor(run) as own:
        assert shared.classes == own.classes
        assert torch.equal(shared.predict(x).logits, own.predict(x).logits)


def test_a_dry_run_asks_nothing(server: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "user/name", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("---\nlibrary_name: anynest\n")
    assert server.requests == []


def test_a_network_of_a_module_needs_it(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @anynest.register
    def own_resnet() -> anynest.nets.Architecture:
        return anynest.nets.Architecture(blocks=(1,), growth=((1, 1), (2, 1)), base_width=2)

    config = TrainConfig.from_json({**CONFIG, "model": {"name": "own_resnet"}})
    train(config, tmp_path / "run")
    anynest.push_to_hub(tmp_path / "run", "user/name")
    card = server.repositories["user/name"][-1]["README.md"].decode()
    assert f"import {__name__}  # registers own_resnet" in card
    del registry._FACTORIES["own_resnet"]
    with pytest.raises(RunFolderError, match=f"--import {__name__} on the command line"):
        anynest.load("hf://user/name")
    with pytest.raises(RunFolderError, match=f"--import {__name__}"):
        anynest.push_to_hub(tmp_path / "run", "user/name")
