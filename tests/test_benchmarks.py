"""The step benchmark measures what it says: equal updates, fair turns, true peaks."""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from anynest import create_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark's modules, which are no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import _markdown
        import _memory
        import _pages
        import _probes
        import _problems
        import _rounds
        import _variants
        import throughput

        yield SimpleNamespace(
            markdown=_markdown,
            memory=_memory,
            pages=_pages,
            problems=_problems,
            probes=_probes,
            rounds=_rounds,
            variants=_variants,
            throughput=throughput,
        )
    finally:
        sys.path.remove(str(FOLDER))
        for name in [name for name in sys.modules if is_ours(name)]:
            del sys.modules[name]


def is_ours(name: str) -> bool:
    module: ModuleType | None = sys.modules[name]
    return str(FOLDER) in (getattr(module, "__file__", None) or "")


def test_every_osgd_takes_the_same_step(bench: Any) -> None:
    problem = bench.problems.network("width_nested_resnet10", batch=4, size=8)
    weights = []
    for name in ("exact", "naive", "naive-plain"):
        trainer = bench.variants.VARIANTS[name][1](problem)
        for _ in range(3):
            trainer.step()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters]))
    start = torch.cat([p.detach().flatten() for p in problem.build(False).parameters()])
    moved = (weights[0] - start).norm()
    assert moved > 1e-4
    for other in weights[1:]:
        assert (weights[0] - other).norm() < 1e-3 * moved


def test_the_plain_resnet20_is_the_one_that_is_named(bench: Any) -> None:
    model = bench.problems.ResNet20()
    assert sum(p.numel() for p in model.parameters()) == 272_974
    assert [tuple(out.shape) for out in model(torch.zeros(2, 3, 32, 32))] == [(2, 10)] * 3


def test_turns_are_rotated_and_warm_rounds_thrown_away(bench: Any) -> None:
    order: list[str] = []

    def entry(name: str) -> Any:
        def call() -> int:
            order.append(name)
            return len(order)

        return call

    found = bench.rounds.interleave({n: entry(n) for n in "abc"}, rounds=3, warm=1)
    assert "".join(order) == "abcbcacababc"
    assert found["a"] == [6, 8, 10]
    assert bench.rounds.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)


def test_the_floor_is_made_of_its_parts_and_the_combination_of_the_rest(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()  # a clock that advances by one second per reading
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(bench.probes, "time", clock)
    problem = bench.problems.network("depth_nested_sparse_resnet14", batch=4, size=8)
    found = bench.probes.Floor(problem).measure()
    f, b = found["f"], found["b"]
    assert (f, b) == (2, [1, 1])  # forward and the optimizer; a backward pass per loss
    assert found["floor"] == pytest.approx((f + sum(b)) / (f + b[-1]))
    original = torch.autograd.grad
    found = bench.probes.Combination(problem).measure()
    assert found["passes"] == 2
    assert (found["backward"], found["combination"]) == (2, 3)  # of 5 seconds in all
    assert torch.autograd.grad is original
    # stage 1 of 2, counted by hand from the plan's own numbers
    costs = [row.multiply_adds for row in problem.build(False).cost(8)]
    floor = bench.probes.floor_by_cost(problem)
    assert floor == pytest.approx(1 + 2 * costs[0] / (3 * costs[1]))


def test_the_peak_is_that_of_the_measured_step(bench: Any) -> None:
    """A step that allocates a known number of bytes on top of a known number that stay."""
    mib = 2**20

    class Known:
        def __init__(self, _: Any) -> None:
            self.kept = torch.empty(3 * mib, dtype=torch.uint8)
            self.first = True

        def step(self) -> None:
            # the first step alone is dear, and does not count
            room = torch.empty((40 if self.first else 5) * mib, dtype=torch.uint8)
            del room
            self.first = False
            more = [torch.empty(2 * mib, dtype=torch.uint8) for _ in range(2)]
            del more

        cycle = step

    problem = SimpleNamespace(x=torch.zeros(1))
    assert bench.memory.peak_bytes(problem, Known) == 8 * mib


def test_rows_take_what_their_tasks_touch(bench: Any) -> None:
    problem = bench.problems.network("width_nested_resnet10", batch=2, size=8)
    model = problem.build(False)
    touched = [sum(p.nbytes for p in model.subnetwork(s).parameters()) for s in (1, 2, 3)]
    rows, update = bench.memory.row_bytes(problem)
    assert rows == sum(touched) < 3 * touched[-1]
    assert touched[-1] < update <= rows  # every stage has a head of its own


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_what_it_found(bench: Any, tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    words = (
        "--models width_nested_resnet10 --variants sgd exact --batch 2 --image-size 8 --rounds 1 "
        "--threads 1 --markdown --json"
    )
    done = subprocess.run(
        [sys.executable, FOLDER / "step.py", *words.split(), out],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    (result,) = report["results"]
    assert [row["variant"] for row in result["variants"]] == ["sgd", "exact"]
    assert result["variants"][0]["ratio"]["median"] == 1.0
    assert result["floor"]["exact"]["median"] > 0
    assert result["memory"]["bound"] == 1.05 * (result["memory"]["sgd"] + result["memory"]["rows"])
    assert report["environment"]["threads"] == 1
    assert (
        report["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    )
    assert "| OSGD, ours, exact |" in done.stdout
    page = tmp_path / "page.md"
    page.write_text((FOLDER.parent / "docs" / "steps.md").read_text())
    before = page.read_text()
    for _ in range(2):  # the second time it takes the place of the first
        bench.markdown.write_into(page, report)
    text = page.read_text()
    assert text.count(done.stdout.strip()) == 1
    assert text.startswith(before.partition("<!-- step.py, models: begin -->")[0])
    assert text.endswith(before.partition("<!-- step.py, models: end -->")[2])
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the marks"):
        bench.markdown.write_into(page, report)


def test_prose_is_wrapped_and_nothing_else(bench: Any) -> None:
    words = "word " * 18 + "about - 1. more words than fit"
    kept = [f"| {words} |", f"    {words}", f"![{words}](a.png)", "```", words, "```"]
    lines = bench.pages.wrapped("\n".join([words, f"- {words}", *kept])).split("\n")
    assert lines[4:] == kept
    assert all(len(line) <= 100 for line in lines[:4])
    # The continuation of an item is indented; a mark of a list does not begin a line.
    assert lines[2].startswith("- word")
    assert lines[3].startswith("  ")
    assert not any(line.lstrip().startswith(("- 1", "1. ")) for line in (lines[1], lines[3]))
    assert " ".join(lines[:2]) == words
    assert bench.pages.wrapped("\n".join(lines)) == "\n".join(lines)


def test_a_curve_is_one_table(bench: Any) -> None:
    def point(losses: int, ratio: float) -> dict[str, Any]:
        row = {"shown": "ours", "ratio": {"median": ratio}}
        return {"sweep": "tasks", "stages": losses, "parameters": 7, "variants": [row]}

    lines = bench.markdown.curve("tasks", [point(2, 1.5), point(4, 2.25)])
    assert lines == ["", "| losses | 2 | 4 |", "|---|---|---|", "| ours | 1.50 | 2.25 |"]


def test_throughput_counts_what_each_method_needs(bench: Any) -> None:
    args = argparse.Namespace(device="cpu", batch=2, precision="bf16", channels_last=False)
    for method in ("sgd", "exact", "lazy"):
        run = bench.throughput.Run("depth_nested_sparse_resnet18", method, "eager", args)
        before = [p.detach().clone() for p in run.parameters]
        assert run.rate(2) > 0
        assert any(not torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    needs = {
        m: bench.throughput.multiply_adds("width_nested_resnet42", m)
        for m in ("sgd", "exact", "lazy")
    }
    one, two, three = (row.multiply_adds for row in create_model("width_nested_resnet42").cost(32))
    assert needs["sgd"] == 3 * three
    assert needs["exact"] == three + 2 * (one + two + three)
    assert needs["lazy"] == pytest.approx(needs["sgd"] + (needs["exact"] - needs["sgd"]) / 16)
