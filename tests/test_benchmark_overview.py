"""The README's picture: its script trains and draws, and what is committed is what it writes."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def overview(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("overview")


def test_the_committed_records_are_drawn(overview: ModuleType, tmp_path: Path) -> None:
    records = overview.read(overview.RESULTS)
    seeds = len({record["seed"] for record in records})
    found = [(record["plain"], record["seed"]) for record in records]
    assert found == overview.wanted(seeds)
    for record in records:
        assert len(record["error"]) == len(record["multiply_adds"])
    light, dark = overview.draw(records, tmp_path)
    assert light.read_bytes() != dark.read_bytes()
    for path in (light, dark):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / "images" / path.name).exists()


def test_the_page_has_the_committed_numbers(overview: ModuleType) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "\n".join(overview.table(overview.read(overview.RESULTS))) in page


@pytest.mark.slow
def test_it_trains_what_is_missing(
    overview: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "r.jsonl"
    arguments = ["--out", str(out), "--draw", str(tmp_path), "--seeds", "1", "--epochs", "1"]
    overview.main(arguments)
    rows = out.read_text().splitlines()
    records = [json.loads(row) for row in rows]
    runs = [(record["plain"], record["seed"]) for record in records]
    assert runs == overview.wanted(1)
    assert len(runs) == 4
    assert [bool(record["example"]) for record in records] == [True, False, False, False]
    out.write_text("\n".join(rows[:-1]) + "\n")
    capsys.readouterr()
    overview.main(arguments)
    again = out.read_text().splitlines()
    assert again[:-1] == rows[:-1]
    assert json.loads(again[-1])["error"] == records[-1]["error"]
    shown = capsys.readouterr().out
    assert shown.count("seed 0") == 1
    assert str(tmp_path / "overview-dark.png") in shown
