"""Random requests, by the fuzzer of the benchmarks."""

import asyncio
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("fuzz_grpc")
    sys.modules.pop("fuzz_grpc")


@pytest.mark.slow
def test_random_requests(fuzzer: Any) -> None:
    shown: list[str] = []
    counts, fell = asyncio.run(fuzzer.fuzz(0, 0, 400, time.monotonic() + 300, shown.append))
    assert not fell, shown
    assert counts["cases"] == 400
    met = {key.split()[0] for key in counts} - {"cases"}
    assert met == set(fuzzer.MUTATIONS), "every mutation was met"
    for ending in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "vanished"):
        assert any(key.endswith(ending) for key in counts), ending
