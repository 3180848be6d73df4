"""The experiment on conflicting tasks: equal lengths are equal, and its verdicts follow from the
records."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
Record = dict[str, Any]


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        import _conflict_report
        import conflict

        yield conflict, _conflict_report
    finally:
        sys.path.remove(str(FOLDER))


def test_a_quick_run_resumes_and_writes_its_page(tmp_path: Path) -> None:
    out, page = tmp_path / "c.jsonl", tmp_path / "page.md"

    def call(*words: str) -> str:
        command = [sys.executable, str(FOLDER / "conflict.py"), *words, "--quick", "--seeds", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    assert "20 runs, 0 done" in call("--out", str(out), "--epochs", "2")
    rows = out.read_text().splitlines()
    out.write_text("\n".join(rows[:-3]) + "\n")
    assert "20 runs, 17 done" in call("--out", str(out), "--epochs", "2")
    again = [json.loads(row) for row in out.read_text().splitlines()]
    before = [json.loads(row) for row in rows]
    for key in ("key", "error", "cosine"):
        assert [r[key] for r in again] == [r[key] for r in before]  # the same bits
    page.write_text("a\n<!-- conflict: begin -->\nold\n<!-- conflict: end -->\nb\n")
    call("--read", str(out), "--into", str(page))
    text = page.read_text()
    assert "20 of 20 runs are finished" in text
    assert "old" not in text
    assert text.startswith("a\n")
    cosines = {(r["share"], r["conflict"]): r["cosine"] for r in again if r["method"] == "sum"}
    assert cosines["80 units and classifier", 0] == pytest.approx(1)
    assert cosines["80 units and classifier", 10] < 0 < cosines["8 of 80 units", 10]


def test_directions_and_lengths(modules: tuple[ModuleType, ModuleType]) -> None:
    conflict, _ = modules
    torch.manual_seed(0)
    model = conflict.TwoTasks("80 units and classifier")
    parameters = list(model.parameters())
    x, labels = conflict.batch_of("train")
    assert len(x) == 400
    assert len(conflict.batch_of("test")[0]) > 1000
    pairs = zip(model(x[:50]), conflict.labels_of(labels[:50], 5), strict=True)
    losses = [torch.nn.functional.cross_entropy(out, y) for out, y in pairs]
    found = {m: conflict.step_of(m, losses, parameters) for m in conflict.METHODS}
    lengths = {m: conflict.norm(g).item() for m, g in found.items()}
    assert lengths["sum, as long"] == pytest.approx(lengths["osgd"], rel=1e-5)
    assert lengths["osgd, as long"] == pytest.approx(lengths["sum"], rel=1e-5)
    assert lengths["mean"] == pytest.approx(lengths["sum"] / 2, rel=1e-5)
    assert lengths["sum"] != pytest.approx(lengths["osgd"], rel=1e-3)

    def cosine(a: str, b: str) -> float:
        flat = [torch.cat([g.flatten() for g in found[m]]) for m in (a, b)]
        return torch.nn.functional.cosine_similarity(*flat, dim=0).item()

    assert cosine("sum", "sum, as long") == pytest.approx(1, abs=1e-5)
    assert cosine("osgd", "osgd, as long") == pytest.approx(1, abs=1e-5)
    assert cosine("sum", "osgd") < 0.999


def records_of(errors: dict[str, float], cosine: float, noise: float = 0.002) -> list[Record]:
    """One setting, three seeds and two rates; the second rate is worse by 0.1 everywhere."""
    return [
        {
            "share": "s",
            "conflict": 5,
            "method": method,
            "lr": lr,
            "seed": seed,
            "cosine": cosine,
            "error": [error + 0.1 * (lr > 0.1) + noise * seed * (method == "osgd"), 0.5],
            "held_out_error": [error + 0.1 * (lr > 0.1), 0.5],
            "epochs": 1,
            "cpu_seconds": 1.0,
            "environment": {"processor": "p", "torch": "2"},
        }
        for method, error in errors.items()
        for lr in (0.1, 0.2)
        for seed in range(3)
    ]


ALIKE = {"sum": 0.2, "osgd": 0.198, "sum, as long": 0.2, "osgd, as long": 0.2, "mean": 0.3}
DIRECTION = {"sum": 0.3, "osgd": 0.2, "sum, as long": 0.3, "osgd, as long": 0.2, "mean": 0.3}


@pytest.mark.parametrize(
    ("errors", "cosine", "first", "second"),
    [
        (ALIKE, -0.5, "prediction 1 is not refuted", "prediction 2 is not refuted"),
        (DIRECTION, -0.5, "1 is refuted in 1 of 1 settings", "prediction 2 is not refuted"),
        (DIRECTION, 0.5, "1 is refuted in 1 of 1 settings", "2 is refuted in 1 settings with"),
    ],
)
def test_the_verdicts_follow_from_the_records(
    modules: tuple[ModuleType, ModuleType],
    errors: dict[str, float],
    cosine: float,
    first: str,
    second: str,
) -> None:
    _, report = modules
    lines = report.verdicts(records_of(errors, cosine))
    assert first in lines[0]
    assert second in lines[0]
    assert ("prediction 1 is not refuted" in lines[1]) == (errors is ALIKE)


def test_differences_are_paired_and_at_the_best_rates(
    modules: tuple[ModuleType, ModuleType],
) -> None:
    _, report = modules
    records = records_of(DIRECTION, 0.0)
    setting = ("s", 5)
    assert report.best_rate(records, setting, "osgd") == 0.1
    found = report.at_best_rates(records, setting, ("osgd", "mean"), report.TASK_1)
    assert found == pytest.approx([-10, -9.8, -9.6])
    # the worse rate of one method alone does not move its best, and does move the average of rates
    worse = [
        {**r, "error": [0.9, 0.5], "held_out_error": [0.9, 0.5]}
        if (r["method"], r["lr"]) == ("osgd", 0.2)
        else r
        for r in records
    ]
    same = report.at_best_rates(worse, setting, ("osgd", "mean"), report.TASK_1)
    assert same == pytest.approx(found)
    pair = ("osgd", "sum, as long")
    assert report.at_equal_rates(worse, setting, pair, report.TASK_1)[0] > 0
    assert report.at_equal_rates(records, setting, pair, report.TASK_1)[0] == pytest.approx(-10)
    assert report.markdown([], 7) == "0 of 7 runs are finished. There is no result yet.\n"
