"""The latency benchmark measures what it says, and says when it has nothing to measure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import latency

    yield latency
    for name in set(sys.modules) - before:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_a_small_table(
    latency: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "found.json"
    told = "--models width_nested_resnet10 --rounds 3 --image-size 8 --batch 2"
    monkeypatch.setattr(sys, "argv", ["latency.py", *told.split(), "--json", str(file)])
    monkeypatch.setitem(sys.modules, "earlyon", None)
    assert latency.main() == 0
    report = json.loads(file.read_text())
    assert {"command", "environment", "versions", "results", "block_size"} <= set(report)
    assert report["earlyon"] is None
    (result,) = report["results"]
    assert result["image"] == [2, 3, 8, 8]
    assert [row["stage"] for row in result["rows"]] == [1, 2, 3]
    for row in result["rows"]:
        assert list(row["engines"]) == ["block", "standard"]
        for found in row["engines"].values():
            assert found["nested"]["low"] <= found["nested"]["median"] <= found["nested"]["high"]
            assert found["least"]["nested"] <= found["nested"]["median"]
        assert row["engines"]["block"]["of_first"]["median"] == 1
    printed = capsys.readouterr().out
    head, rule, *lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1
    assert len(lines) == 3
    assert "all stages: " in printed
    (line,) = [line for line in printed.splitlines() if "earlyon" in line]
    assert "left out: it cannot be imported" in line


def test_limits_are_judged_in_the_first_engine(latency: Any) -> None:
    def row(stage: int, block: float) -> dict[str, Any]:
        engines = {"block": block, "standard": 9.0}
        return {
            "stage": stage,
            "engines": {name: {"of_plain": {"median": ratio}} for name, ratio in engines.items()},
        }

    rows = [row(stage, ratio) for stage, ratio in enumerate((1.05, 1.2, 0.99), 1)]
    result = {"model": "width_nested_resnet42", "engines": ["block", "standard"], "rows": rows}
    assert latency.judge(result) == [
        ("all stages", 1.02, 0.99),
        ("stopping after 1", 1.1, 1.05),
        ("stopping after 2", 1.1, 1.2),
    ]


def test_a_stage_is_reached_and_no_further(latency: Any) -> None:
    x = torch.randn(1, 3, 8, 8)
    pair = latency.build("width_nested_resnet10", "torch", 1)
    tasks = len(pair.nested.tasks)
    steps: list[int] = []
    begin = pair.nested.begin

    def counted(images: torch.Tensor) -> Any:
        evaluation = begin(images)
        whole = evaluation.step
        evaluation.step = lambda: (steps.append(1), whole())[1]
        return evaluation

    pair.nested.begin = counted
    assert len(latency.drive(pair.nested, x, 1)) == 1
    assert len(steps) == tasks / 3
    assert len(latency.drive(pair.nested, x, 3)) == 3
    assert len(steps) == tasks / 3 + tasks
    assert len(latency.entries({"torch": pair}, x, cold=False)["torch", "nested", 2]()) == 2


class Exits(nn.Module):
    """As earlyon's wrapper: it leaves at the first exit whose threshold its confidence reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 2)
        self.config = SimpleNamespace(exit_points=[1, 2, 3], confidence_thresholds=[0.9, 0.8, 0.7])

    def forward(self, x: torch.Tensor) -> Any:
        reached = [n for n, least in enumerate(self.config.confidence_thresholds) if least <= 0.5]
        return SimpleNamespace(exit_taken=reached[0] if reached else -1)


def test_earlyon_leaves_where_it_is_told(latency: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("earlyon.models.cifar_resnet_ee")
    module.cifar_resnet_ee = lambda num_classes, depth: Exits()
    monkeypatch.setitem(sys.modules, "earlyon", ModuleType("earlyon"))
    monkeypatch.setitem(sys.modules, "earlyon.models", ModuleType("earlyon.models"))
    monkeypatch.setitem(sys.modules, "earlyon.models.cifar_resnet_ee", module)
    model = latency._earlyon.build()
    assert not model.training
    entries = latency._earlyon.entries(model, torch.zeros(1, 4))
    assert next(iter(entries)) == "exit 1"
    assert len(entries) == 5
    assert all(run() > 0 for run in entries.values())
