"""The one door: names, near matches, the Hub."""

import doctest
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import anynest.data
from anynest.data import DataError, load, loader, loading, make_loader
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


@pytest.mark.parametrize("source", ["", " ", "\t"])
def test_an_empty_source_is_not_the_current_folder(source: str) -> None:
    fails(source, f"must not be empty, found {source!r}", "'.' for the current folder")


@pytest.mark.parametrize(
    "source", ["a" * 5000, "a\0b", "~nobody_of_this_name/x", "hub:", "a/" * 3000]
)
def test_paths_that_cannot_exist(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(source)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "train").mkdir()
    monkeypatch.setattr("os.scandir", scandir)
    fails(str(tmp_path), "cannot read", "Permission denied")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "test-0.parquet", "cifar-10-python.tar.gz", "test_batch"):
        os.mkfifo(tmp_path / name)
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    for name in ("", "train-0.parquet", "cifar-10-python.tar.gz"):
        fails(str(tmp_path / name), "none of the known layouts" if not name else "Not a directory")


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        raise MemoryError

    monkeypatch.setattr(loading, "read_digits", read)
    fails("digits", "digits does not fit in memory", "smaller image_size")


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys, anynest.data.locate; from anynest.data import DataError;"
        "print(anynest.data.locate.SOURCES, issubclass(DataError, ValueError));"
        "assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "('digits', 'fashion-mnist', 'mnist', 'cifar10', 'cifar100') True"
    )
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        anynest.data.lod  # noqa: B018


def test_bad_options() -> None:
    fails("digits", "'raise' or 'skip', found 'ignore'", on_corrupt="ignore")
    for size in (0, 1, -3, 4097, 100_000, 10**30, 2.0, "32"):
        fails("digits", f"an integer from 2 to 4096 pixels, found {size!r}", image_size=size)
    for limit in (0, 10**30, 1.5):
        fails("digits", "limit must be an integer from 1 to ", f"found {limit}", limit=limit)
    for holdout in (float("nan"), float("inf"), 10**400, -1):
        fails("digits", "holdout must be 0", f"found {holdout}", holdout=holdout)


def test_numpy_numbers() -> None:
    whole = load("digits", image_size=np.int64(8), limit=np.int64(64), holdout=np.int64(3))
    assert (whole.label, len(whole.validation)) == ("digits (64 training images)", 3)
    assert len(load("digits", holdout=np.float32(0.5)).validation) == 718
    loader = make_loader(
        *(whole.train, np.int64(16)), train=True, mean=whole.mean, std=whole.std, workers=np.int8(0)
    )
    assert [len(y) for _, y in loader.batches(np.int64(1), start=np.int64(2))] == [16, 16]


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
