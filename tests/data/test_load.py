"""The one door: names, near matches, the Hub."""

import doctest
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import anynest.data
from anynest.data import DataError, load, loader, loading
from anynest.data.readers import encoding


def fails(source: str, *parts: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_unknown_source() -> None:
    fails("digit", "unknown source 'digit'", "near matches: digits", "known: digits, fashion-mnist")
    fails("FASHION-MNIST", "near matches: fashion-mnist")
    fails("/no/such/folder", "no such file or folder")


def test_bad_options() -> None:
    fails("digits", "'raise' or 'skip', found 'ignore'", on_corrupt="ignore")
    fails("digits", "from 2 to 4096 pixels, found 0", image_size=0)


def test_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANYNEST_DATA", str(tmp_path))
    fails("mnist", "mnist is not on this machine", str(tmp_path / "mnist"), "IDX")


def test_hub(make_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_parquet(folder="snapshot/plain_text").parent
    calls = []

    def snapshot_download(repository: str, **options: object) -> str:
        calls.append((repository, options["repo_type"]))
        return str(place)

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert load("hub:uoft-cs/cifar10").label == "CIFAR-10 (partial)"
    assert calls == [("uoft-cs/cifar10", "dataset")]


def test_hub_without_a_network_or_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand a long story")

    fake = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    fails("hub:a/b", "cannot download 'a/b' from the Hub (no route to host)", "network")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails("hub:a/b", "pip install 'anynest[hub]'")


@pytest.mark.parametrize("module", [anynest.data, loading, loader, encoding])
def test_examples(module: object) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
