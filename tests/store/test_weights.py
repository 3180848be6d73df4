"""Weights files: what is saved comes back, what is damaged is refused in one line."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anynest.nets import create_model, list_models, registry
from anynest.store import RunFolderError, WeightsInfo, load, read_info, save_weights

ARGUMENTS = {"num_classes": 3, "in_channels": 1, "growth": [[1, 1], [2, 1]], "base_width": 2}


def info(**changes: Any) -> WeightsInfo:
    values: dict[str, Any] = {
        "model": "width_nested_resnet10", "arguments": ARGUMENTS, "classes": ("a", "b", "ç"),
        "mean": (0.5,), "std": (0.25,), "image_size": 8, "data": "tiny", "anynest": "0",
    }  # fmt: skip
    return WeightsInfo(**{**values, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", **ARGUMENTS)
    model(torch.randn(4, 1, 8, 8))  # moves the batch norms' statistics
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, info())
    return path


def test_round_trip(saved: Path) -> None:
    torch.manual_seed(0)
    model = create_model("width_nested_resnet10", **ARGUMENTS)
    model(torch.randn(4, 1, 8, 8))
    loaded = load(saved)
    assert not loaded.training
    images = torch.randn(2, 1, 8, 8)
    for ours, theirs in zip(model.eval()(images), loaded(images), strict=True):
        assert torch.equal(ours, theirs)
    assert read_info(saved) == info()


def test_the_same_weights_are_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    for number in range(5):
        save_weights(tmp_path / str(number), load(saved), info())
        assert (tmp_path / str(number)).read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("name", [name for name in list_models() if name[-2:] in ("10", "14")])
def test_small_models_of_the_registry(tmp_path: Path, name: str) -> None:
    model = create_model(name, num_classes=3).eval()
    path = tmp_path / "w"
    known = info(model=model.name, arguments=model.arguments, mean=(0.0,) * 3, std=(1.0,) * 3)
    save_weights(path, model, known)
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(images)[-1], load(path)(images)[-1])


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def metadata(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (metadata(format="pt"), "format 'pt'"),
        (metadata(arguments="{"), "damaged metadata"),
        (metadata(arguments="[" * 100_000), "damaged metadata"),
        (metadata(mean='["a"]'), "wrong types"),
        (metadata(fit="stretch"), "wrong types"),
        (metadata(mean="[1" + "0" * 400 + "]"), "wrong types"),
        (metadata(std="[0]"), "std must be above 0, found [0]"),
        (metadata(std="[-0.5]"), "std must be above 0, found [-0.5]"),
        (metadata(std="[]", mean="[]"), "one number a channel, found 0 and 0"),
        (metadata(mean="[0, 0]"), "one number a channel, found 2 and 1"),
        (metadata(mean="[0, 0]", std="[1, 1]"), "mean and std must be 1, found 2"),
        (metadata(classes='["a"]'), "classes must be 3, found 1"),
        (metadata(classes='"abc"'), "classes must be a list, found str"),
        (metadata(image_size="-5"), "image_size must be from 1 to 65536 pixels, found -5"),
        (metadata(image_size="1000000"), "found 1000000"),
        (metadata(model="width_nested_resnet01"), "near matches"),
        (metadata(model="os.system"), "no model named"),
        (metadata(arguments='{"num_classes": 4}'), "does not fit"),
        (metadata(arguments='{"base_width": 1000000}'), "does not fit"),
        (metadata(arguments='{"base_width": "x"}'), "base_width"),
        (metadata(arguments='{"frob": 1}'), "frob"),
        (lambda header: header.pop("__metadata__"), "format None"),
        (lambda header: header["__metadata__"].pop("classes"), "classes"),
        (lambda header: header.update(extra=header["head1.bias"]), "no whole safetensors file"),
    ],
)
def test_bad_metadata(saved: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    rewrite(saved, change)
    with pytest.raises(RunFolderError) as caught:
        load(saved)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def test_how_pictures_were_fitted(saved: Path) -> None:
    save_weights(saved, load(saved), info(fit="whole"))
    assert read_info(saved).fit == "whole"
    rewrite(saved, lambda header: header["__metadata__"].pop("fit"))
    assert read_info(saved).fit == "crop"  # a file of before it was told


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RunFolderError, match="no whole safetensors file"):
        load(saved)


def test_paths(saved: Path, tmp_path: Path) -> None:
    assert load(saved.parent).num_stages == 2  # a folder with the file in it
    with pytest.raises(RunFolderError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="holds no weights"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"not finished: it has saved nothing"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "checkpoints").mkdir()
    (tmp_path / "empty" / "checkpoints" / "step-1.ckpt").touch()
    with pytest.raises(RunFolderError, match=r"not finished.*--resume"):
        load(tmp_path / "empty")


def test_a_loaded_network_is_told_the_classes_and_channels_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(nn.Module):
        """Tells nothing but its stages."""

        num_stages = 1

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.head(x.flatten(1))]

        def stages(self, x: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
            yield 1, self.forward(x)[0]

    class Fixed(Silent):
        num_classes = property(lambda self: None)

    class Other(Silent):
        num_classes = 4

    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    for kind in (Silent, Fixed, Other):
        registry.register(kind)
        path, pair = tmp_path / kind.__name__, {"mean": (0.0, 0.0), "std": (1.0, 1.0)}
        own = info(model=kind.__name__, arguments={}, module="my.nets", **pair)
        save_weights(path, kind(), own)
        assert read_info(path).module == "my.nets"
    told = load(tmp_path / "Silent")
    assert (told.num_classes, told.in_channels) == (3, 2)
    assert load(tmp_path / "Fixed").num_classes is None
    with pytest.raises(RunFolderError, match="classes must be 4, found 3"):
        load(tmp_path / "Other")


@pytest.mark.parametrize("module", ["os; rm", "a b", "-m", "", "__main__"])
def test_what_is_no_module_is_not_named_as_one(tmp_path: Path, module: str) -> None:
    model = create_model("width_nested_resnet10", **ARGUMENTS)
    save_weights(tmp_path / "w", model, info(model="unknown_one", module=module))
    with pytest.raises(RunFolderError, match="there is no model named 'unknown_one'") as caught:
        load(tmp_path / "w")
    assert f"--import {module} " not in str(caught.value)
