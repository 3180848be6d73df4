"""Figure 10's measurement, estimates and tables on small networks, through the command line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anynest.cli import main
from anynest.experiments.catalog.cell import Cell
from anynest.experiments.catalog.protocols import Protocol
from anynest.experiments.results.records import add_results, read_results
from anynest.experiments.sweep import timing


@pytest.mark.slow
def test_figures_9_and_10_from_start_to_end(
    tmp_path: Path,
    tiny: Protocol,
    in_process: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "IMAGES", 12)
    command = ["reproduce", "fig9", "fig10", "--protocol", "tiny", "--data", "digits"]
    command += ["--seeds", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
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
    # nor where the trained networks are not at hand, unless something is to be measured
    moved = ["--results", str(tmp_path / "tiny.jsonl"), "--out", str(tmp_path / "new"), "--json"]
    assert main([*command, *moved, "--dry-run"]) == 0
    assert all(row["done"] for row in json.loads(capsys.readouterr().out)["cells"])
    add_results(tmp_path / "some.jsonl", [ln for ln in lines if ln not in measured[:1]])
    moved[1] = str(tmp_path / "some.jsonl")
    assert main([*command, *moved, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)["cells"]
    left = {row["network"].split(" ")[0] for row in planned if not row["done"]}
    assert left
    assert not any("depth" in name or "eann" in name for name in left)


def test_the_fastest_of_the_rounds_counts_for_each_stage(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    seconds = random.uniform(1, 2, (2, 3, 4, 2))  # [network, round, input, stage]
    said = random.integers(0, 3, (2, 4, 2))  # the answers do not change from round to round
    labels = [0, 1, 2, 0]
    sessions: Any = [SimpleNamespace(num_stages=2, number=n) for n in range(2)]
    calls: list[tuple[int, int]] = []

    def run_once(session: Any, image: torch.Tensor) -> tuple[list[float], list[int]]:
        call = session.number, int(image)
        calls.append(call)
        turn = calls.count(call) - 1 - (5 if call[1] == 0 else 0)
        if turn < 0:
            return [0.0, 0.0], [9, 9]  # warming up: of no account
        return seconds[call[0], turn, call[1]].tolist(), said[call].tolist()

    monkeypatch.setattr(timing, "run_once", run_once)
    monkeypatch.setattr(timing, "WARM_UPS", 5)
    monkeypatch.setattr(timing, "ROUNDS", 3)
    images = [torch.tensor(float(n)) for n in range(4)]
    found = timing.time_all(sessions, cells[:2], images, labels)
    assert len(set(seconds.argmin(1).flat)) == 3  # each round is the fastest somewhere
    for network, timed in enumerate(found):
        assert np.array_equal(timed.seconds, seconds[network].min(0))
        assert np.array_equal(timed.wrong, said[network] != np.array(labels)[:, None])
