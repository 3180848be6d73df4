"""Each method at its own rate: which rates are tried, which is the best, and one command for all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anynest.cli import main
from anynest.experiments.catalog import tuned
from anynest.experiments.catalog.experiment import Run, cells_of
from anynest.experiments.catalog.protocols import MICRO, MINI, PAPER, Protocol
from anynest.experiments.catalog.tuned import METHODS, RATES, SEEDS, TUNED, rate_variant
from anynest.experiments.results.records import read_results
from anynest.experiments.results.tabulate import table_of

Line = dict[str, Any]


def line(
    method: str, rate: float, held_out: Sequence[float] | None, test: float = 0.5, seed: int = 0
) -> Line:
    cell = Run("width", rate_variant(method, rate, MINI)).cell(MINI, seed)
    told = {} if held_out is None else {"validation_error": list(held_out)}
    found = {"kind": "cell", "key": cell.key, "data": "images", "error": [test] * 3, **told}
    return found | {"design": "width", "settings": cell.settings}


def lines_of(best: dict[str, float], rates: Sequence[float] = RATES) -> list[Line]:
    """Every method's error on the images held out grows with the distance from its best rate; the
    test split would choose another."""
    return [
        line(m, rate, [0.3 + abs(rate - best[m]), 0.3, 0.3 - 1e-3 * rate], test=abs(rate - 0.4))
        for m in METHODS
        for rate in rates
    ]


def seeds_of(lines: Sequence[Line]) -> dict[str, int | None]:
    return {run.variant: run.seeds for run in TUNED.wanted(MINI, lines)}


def test_it_begins_with_one_seed_at_every_rate() -> None:
    runs = TUNED.runs(MINI)
    assert [run.variant for run in runs[:4]] == [*METHODS, "sgd-mean+lr=0.2"]
    assert len(cells_of(runs, MINI, 3)) == len(METHODS) * len(RATES) == len(runs)
    assert TUNED.wanted(MINI, []) == runs
    assert set(seeds_of([]).values()) == {1}


def test_it_goes_on_with_more_seeds_at_the_best_rate_on_the_images_held_out() -> None:
    lines = lines_of({"sgd-mean": 0.2, "sgd-sum": 0.1, "osgd": 0.1})
    found = seeds_of(lines)
    assert {variant for variant, seeds in found.items() if seeds == SEEDS} == {
        "sgd-mean+lr=0.2",
        "sgd-sum",
        "osgd",
    }
    assert sum(seeds == 1 for seeds in found.values()) == 12 - 3
    cells = cells_of(TUNED.wanted(MINI, lines), MINI, 1)
    assert len(cells) == 12 + 3 * (SEEDS - 1)
    assert [cell.seed for cell in cells[12:]] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_a_method_waits_for_its_own_rates_alone() -> None:
    lines = lines_of({"sgd-mean": 0.2, "sgd-sum": 0.1, "osgd": 0.1})
    (gone,) = [found for found in lines if found["key"] == line("osgd", 0.4, None)["key"]]
    lines.remove(gone)
    found = seeds_of(lines)
    assert found["osgd"] == 1
    assert found["sgd-sum"] == SEEDS
    lines.append(line("osgd", 0.4, None))  # made before the images held out were told
    assert seeds_of(lines) == found


def test_it_goes_outward_where_the_best_is_at_an_end() -> None:
    best = {"sgd-mean": 0.8, "sgd-sum": 0.2, "osgd": 0.02}
    lines = lines_of(best)
    found = seeds_of(lines)
    assert found["sgd-mean+lr=0.8"] == found["osgd+lr=0.025"] == 1
    assert len(found) == 12 + 2
    assert found["sgd-sum+lr=0.2"] == SEEDS
    lines += lines_of(best, (0.8, 0.025))
    found = seeds_of(lines)
    assert found["sgd-mean+lr=1.6"] == found["osgd+lr=0.0125"] == 1
    lines += lines_of(best, (1.6, 0.0125))
    assert seeds_of(lines)["sgd-mean+lr=0.8"] == seeds_of(lines)["osgd+lr=0.025"] == SEEDS


def test_it_stops_at_the_outmost_rates_and_takes_the_lowest_of_equal_ones() -> None:
    every = (*RATES, 0.8, 1.6, 0.025, 0.0125)
    found = seeds_of(lines_of({"sgd-mean": 9.0, "sgd-sum": 0.0, "osgd": 9.0}, every))
    assert found["sgd-mean+lr=1.6"] == found["sgd-sum+lr=0.0125"] == SEEDS
    assert not any("lr=3.2" in variant or "lr=0.00625" in variant for variant in found)
    alike = [line(method, rate, [0.5, 0.4, 0.3]) for method in METHODS for rate in every]
    assert seeds_of(alike)["osgd+lr=0.0125"] == SEEDS


def test_a_protocol_that_holds_out_too_few_images_has_no_cells() -> None:
    assert TUNED.runs(PAPER) == TUNED.runs(MICRO) == []


def test_the_table_has_every_seed_and_says_what_is_missing() -> None:
    lines = lines_of({"sgd-mean": 0.2, "sgd-sum": 0.1, "osgd": 0.1})
    lines += [line("osgd", 0.1, [0.3, 0.3, 0.3], seed=seed) for seed in (1, 2)]
    table = table_of(TUNED, MINI, 3, lines)
    counts = {row.run.variant: row.entries[0].n for row in table.rows}
    assert counts.pop("osgd") == 3
    assert set(counts.values()) == {1}
    assert len(table.missing) == 2 + 4 + 4
    assert "width, osgd, seed 3" in table.missing


@pytest.mark.slow
def test_one_command_trains_the_rates_and_then_the_seeds(
    tmp_path: Path,
    tiny: Protocol,
    in_process: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"HELD_OUT": 50, "SEEDS": 2, "RATES": (0.05, 0.1), "LOWEST": 0.05, "HIGHEST": 0.1}
    for name, value in changes.items():
        monkeypatch.setattr(tuned, name, value)
    command = ["reproduce", "tuned", "--protocol", "tiny", "--data", "digits", "--json"]
    command += ["--out", str(tmp_path)]
    assert main([*command, "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 3 * 2
    assert main(command) == 0
    table = json.loads(capsys.readouterr().out)["tuned"]
    assert table["missing"] == []
    lines = read_results(tmp_path / "tiny.jsonl")
    assert len(lines) == 3 * 2 + 3
    assert [line["seed"] for line in lines] == [0] * 6 + [1] * 3
    for method in METHODS:
        tried = [ln for ln in lines if ln["variant"].split("+")[0] == method and ln["seed"] == 0]
        best = min(
            tried, key=lambda ln: (sum(ln["validation_error"]), ln["settings"]["optimizer"]["lr"])
        )
        (again,) = [ln for ln in lines if ln["seed"] == 1 and ln["variant"] == best["variant"]]
        (row,) = [row for row in table["rows"] if row["variant"] == again["variant"]]
        assert row["stages"][0]["n"] == 2
    assert main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)["cells"]
    assert [row["done"] for row in planned] == [True] * 9
