"""Random requests, by the fuzzer of the benchmarks and by schemathesis."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anynest.serving.http import unread

from .conftest import Served, listening

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(unread, "LINGER", 30.0)  # clients read the errors, however slow they are
    yield importlib.import_module("fuzz_serving")
    sys.modules.pop("fuzz_serving")


@pytest.mark.slow
def test_random_requests(fuzzer: Any) -> None:
    shown: list[str] = []
    counts, fell = asyncio.run(fuzzer.fuzz(0, 0, 600, time.monotonic() + 300, shown.append))
    assert not fell, shown
    assert counts["cases"] == 600
    met = {key.split()[0] for key in counts} - {"cases", "sound"}
    assert met == set(fuzzer.MUTATIONS), "every mutation was met"
    assert any(key.endswith(" 200") for key in counts)


@pytest.mark.slow
def test_the_description_holds(play: Any) -> None:
    """schemathesis: each response has a status, a type and a form that the description names."""
    pytest.importorskip("schemathesis")
    checks = (
        *("status_code_conformance", "content_type_conformance", "response_headers_conformance"),
        *("response_schema_conformance", "unsupported_method"),
    )
    statuses: Counter[int] = Counter()

    async def scenario(served: Served) -> None:
        app = served.app

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            async def count(message: Any) -> None:
                statuses[message.get("status", 0)] += 1
                await send(message)

            await app(scope, receive, count)

        served.app = counting
        async with listening(served) as port:
            options = ["--checks", ",".join(checks), "--max-examples", "5", "--seed", "1"]
            options += ["--phases", "coverage,fuzzing"]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "schemathesis.cli", "run", *options, "--no-color"),
                f"http://localhost:{port}/openapi.json",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": os.devnull},
            )
            try:
                output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
        assert process.returncode == 0, output.decode()[-5000:]
        served.app = app

    play(scenario, patience=600, default_deadline=2.0)
    assert statuses[200] > 20
    assert not statuses[500]
