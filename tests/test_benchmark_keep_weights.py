"""The command that puts trained weights into the package chooses by held-out images."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from anynest.nets import create_model, pretrained
from anynest.store import WeightsInfo, save_weights

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODEL = "width_nested_resnet10"


@pytest.fixture
def keep_weights() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        import keep_weights

        yield keep_weights
    finally:
        sys.path.remove(str(FOLDER))


def make_run(folder: Path, held_out: float, test: float, split: str = "validation") -> None:
    """What a finished run leaves behind."""
    folder.mkdir(parents=True)
    model = create_model(MODEL, base_width=2)
    info = WeightsInfo(
        MODEL, model.arguments, ("a",) * 10, (0.5,) * 3, (0.25,) * 3, 8, "images", "0"
    )
    save_weights(folder / "weights.safetensors", model, info)
    config = {"data": {"source": "digits"}, "model": {"name": MODEL}, "optimizer": {"lr": 0.3}}
    (folder / "config.json").write_text(json.dumps(config))
    summary = {
        "model": MODEL,
        "method": "osgd",
        "seed": 4,
        "epochs": 2,
        "validation": {"split": split, "error": [held_out] * 3, "images": 100},
        "test": {"split": "test", "error": [test] * 3, "images": 200},
        "anynest": "0",
        "environment": {},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def test_the_best_run_by_held_out_images_is_kept(
    tmp_path: Path, keep_weights: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    make_run(tmp_path / "runs/mini/a-11111111", held_out=0.30, test=0.20)
    make_run(tmp_path / "runs/mini/b-22222222", held_out=0.25, test=0.28)
    make_run(tmp_path / "runs/mini/c-33333333", held_out=0.10, test=0.10, split="test")
    record = {"key": "22222222ffffffff", "protocol": "mini", "revision": "abc"}
    (tmp_path / "runs/mini.jsonl").write_text(json.dumps(record) + "\n")
    kept = keep_weights.keep([tmp_path / "runs"], "a-name", MODEL, into)
    assert kept.read_bytes() == (tmp_path / "runs/mini/b-22222222/weights.safetensors").read_bytes()
    monkeypatch.setattr(pretrained, "FOLDER", into)
    card = pretrained.read_card("a-name")
    assert (card["error"], card["held_out_error"], card["lr"]) == ([0.28] * 3, [0.25] * 3, 0.3)
    assert (card["protocol"], card["revision"], card["seed"]) == ("mini", "abc", 4)
    model = create_model(MODEL, base_width=2, pretrained="a-name")
    assert model.num_stages == 3


def test_what_must_not_be_kept_is_refused(
    tmp_path: Path, keep_weights: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs/a", held_out=0.3, test=0.2)
    with pytest.raises(SystemExit, match="no finished run of even"):
        keep_weights.keep([tmp_path / "runs"], "n", "even_width_resnet10", tmp_path)
    with pytest.raises(SystemExit, match="--name must be of"):
        keep_weights.keep([tmp_path / "runs"], "../n", MODEL, tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(SystemExit, match="at most 3 weights"):
        keep_weights.keep([tmp_path / "runs"], "d", MODEL, tmp_path)
    monkeypatch.setattr(keep_weights, "MAX_BYTES", 100)
    with pytest.raises(SystemExit, match="at most 100 bytes"):
        keep_weights.keep([tmp_path / "runs"], "a", MODEL, tmp_path)
    assert not list(tmp_path.glob("*.json"))
