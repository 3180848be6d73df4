"""The deadline benchmark counts what it says, and prints it as tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's module, which is in no package."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        import deadlines

        yield deadlines
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


def test_a_short_run(bench: Any) -> None:
    arguments = "--network width_nested_resnet10 --backend torch --loads none --seconds 1"
    result = {"command": "python deadlines.py", "environment": {}, "versions": {}}
    result |= bench.measure(bench.parse([*arguments.split(), "--image-size", "16"]))
    result = json.loads(json.dumps(result))
    rows = result["rows"]
    assert [(row["in_stage"], row["way"]) for row in rows] == [
        (stage, way) for stage in (1, 2, 3) for way in bench.SCHEDULING
    ]
    for row in rows:
        count = row["predictions"]
        assert count > 0
        assert sum(row["stages"].values()) + row["empty"] == count
        assert row["empty_in_time"] <= row["empty"]
        assert row["cut"] <= count
        assert list(row["late"]) == list(row["bare"]) == ["p50", "p90", "p99", "p99.9"]
        assert row["bare"]["p50"] > 0
    result["environment"] = {"accelerator": None, "processor": "p", "threads": 1, "cores": 2}
    result["environment"]["python"] = "3"
    text = bench.markdown(result)
    assert text.count("\n| ") == 1 + len(rows)
    assert "**Idle cores**" in text


def test_quantiles(bench: Any) -> None:
    values = [float(n) for n in range(1000)]
    assert list(bench.quantiles(values).values()) == [500.0, 900.0, 990.0, 999.0]
    assert set(bench.quantiles([]).values()) == {0.0}


def test_wrong_arguments(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--loads", "none,heavy"])
    assert "choose from none,same,own, found {'heavy'}" in capsys.readouterr().err
