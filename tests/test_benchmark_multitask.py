"""The multitask study: runs are functions of their seed, continue, and are reported as recorded."""

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
METHODS = ["sum", "osgd-forward", "osgd-backward", "metric-forward", "metric-backward"]


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """The study's modules, which are no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import _multitask_report
        import multitask

        yield SimpleNamespace(main=multitask, report=_multitask_report)
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("multitask", "_multitask_report", "_refresh_report"):
            sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_study_continues_and_reports(study: Any, tmp_path: Path) -> None:
    """A second start runs what is missing alone, a line that was cut off again."""
    pytest.importorskip("sklearn")
    out = tmp_path / "runs" / "study.jsonl"
    methods = [*METHODS, "pcgrad"] if find_spec("torchjd") else METHODS
    arguments = ["--out", str(out), "--quick", "--methods", *methods]
    threads = torch.get_num_threads()
    try:
        study.main.main(arguments)
        first = out.read_text()
        lines = first.splitlines(keepends=True)
        out.write_text("".join(lines[:-1]) + lines[-1][:20])
        study.main.main(arguments)
        page = tmp_path / "page.md"
        name = "tasks, adamw, errors"
        page.write_text(f"before\n<!-- {name}: begin -->\nold\n<!-- end -->\nafter\n")
        end = ["--report-only", "--page", str(page), "--figures", str(tmp_path)]
        study.main.main([*arguments, *end])
    finally:
        torch.set_num_threads(threads)
    second = out.read_text().splitlines(keepends=True)
    assert second[:-1] == lines[:-1]
    a, b = json.loads(lines[-1]), json.loads(second[-1])
    for name in ("kind", "settings", "lr", "seed", "validation", "test", "cosines"):
        assert a.get(name) == b.get(name)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "OSGD, class first" in text
    assert (tmp_path / "multitask.png").stat().st_size > 0


def test_the_rate_is_chosen_by_validation_errors_alone(study: Any) -> None:
    settings = {"problem": "tasks", "method": "sum"}
    errors = {0.1: [[9.0, 5.0, 50.0], [9.0, 5.0, 10.0]], 0.2: [[18.0, 5.0, 10.0]] * 2}
    records = [
        {
            "kind": "tune",
            "settings": settings,
            "lr": lr,
            "diverged": False,
            "validation": validation,
            "test": [100.0 * lr] * 3,
        }
        for lr, seeds in errors.items()
        for validation in seeds
    ]
    # 0.1: (0.1 + 0.1 + 0.3) / 3; 0.2: (0.2 + 0.1 + 0.1) / 3
    assert study.report.best_rate(records, settings) == 0.2
    records[-1]["diverged"] = True
    assert study.report.best_rate(records, settings) == 0.1


def test_test_images_take_no_part_in_training_or_tuning(study: Any) -> None:
    pytest.importorskip("sklearn")
    images, _ = study.main.digits()
    batch = next(study.main.batches(0, 50))[0]
    train, rest = images[: study.main.TRAIN], images[study.main.TRAIN :]
    assert all((row == train).all(1).any() for row in batch)
    again = next(study.main.batches(0, 50))[0]
    assert torch.equal(batch, again)
    assert not torch.equal(batch, next(study.main.batches(1, 50))[0])
    assert len(rest) > study.main.VALIDATION
