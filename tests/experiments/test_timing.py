"""Figure 10's measurement, estimates and tables on small networks, through the command line."""

import json
from pathlib import Path

import pytest

from anynest.cli.main import main
from anynest.experiments import timing
from anynest.experiments.protocols import Protocol
from anynest.experiments.results import read_results


def test_figures_9_and_10_from_start_to_end(
    tmp_path: Path, tiny: Protocol, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(timing, "IMAGES", 12)
    command = ["reproduce", "fig9", "fig10", "--protocol", "tiny", "--data", "digits"]
    command += ["--seeds", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*command, "--jobs", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    lines = read_results(tmp_path / "tiny.jsonl")
    measured = [line for line in lines if line["kind"] == "deadlines"]
    assert [line["panel"] for line in measured] == ["a", "b", "c"]
    for line in measured:
        assert line["test_images"] == 12
        assert len(line["deadlines"]) == 8
        shortest, longest = line["deadlines"][0], line["deadlines"][6]
        assert longest == pytest.approx(2 * shortest)
        biggest = line["mean_seconds"][line["biggest"]][-1]
        assert longest == pytest.approx(biggest)
        assert line["biggest"].startswith("oracle-")
        for times in line["mean_seconds"].values():
            assert times == sorted(times)
        for errors in line["error"].values():
            assert all(0 <= error <= 1 for error in errors)
        ended = {name: errors[-1] for name, errors in line["error"].items()}
        assert ended["oracle-all"] == ended["oracle-each"]
    assert set(measured[0]["error"]) == {"base: even", "nest: width", "oracle-all", "oracle-each"}
    assert {"nest: alternating", "nest: simultaneous", "base: eann"} < set(measured[2]["error"])

    panels = {figure["name"]: figure for figure in report["fig9"]["figures"]}
    assert list(panels) == ["fig9a", "fig9b", "fig9c"]
    roles = [series["role"] for series in panels["fig9a"]["series"]]
    assert roles == ["nested", "baseline", "oracle"]
    for series in panels["fig9b"]["series"]:
        work = [spot["x"] for spot in series["spots"]]
        assert work == sorted(work)
        assert len(work) == 2
    assert [f["name"] for f in report["fig10"]["figures"]] == ["fig10a", "fig10b", "fig10c"]

    assert main(command) == 0  # nothing is trained or measured again
    said = capsys.readouterr().out
    assert f"{len(lines) - 3} cells, {len(lines) - 3} done" in said
    assert read_results(tmp_path / "tiny.jsonl") == lines
    assert "no deadline" in said
    assert main([*command, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert all(row["done"] for row in planned["cells"])
    assert planned["seconds_left"] == 0
