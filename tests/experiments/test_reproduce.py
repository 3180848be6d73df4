"""``anynest reproduce``: plans, mistakes, and Table 3 on a small folder in ImageNet's layout."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anynest.cli import main
from anynest.experiments.catalog import protocols
from anynest.experiments.catalog.cell import overlay
from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.protocols import MICRO, Protocol
from anynest.experiments.results.evidence import Evidence
from anynest.experiments.results.records import read_results

Out = pytest.CaptureFixture[str]


def status(*command: str) -> int:
    try:
        return main(["reproduce", *command])
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_a_dry_run_lists_the_cells_and_trains_nothing(
    tmp_path: Path, tiny: Protocol, capsys: Out
) -> None:
    out = tmp_path / "out"
    command = ["table2", "--protocol", "tiny", "--data", "digits", "--out", str(out)]
    assert status(*command, "--dry-run", "--seeds", "2", "--jobs", "2", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["cells"]) == 2 * 6 * 2
    total = sum(row["seconds"] for row in planned["cells"])
    assert planned["seconds_left"] == pytest.approx(total / 2)
    assert {row["data"] for row in planned["cells"]} == {"digits (200 training images)"}
    assert not out.exists()
    assert status(*command, "--dry-run", "--seeds", "1") == 0
    said = capsys.readouterr().out
    assert "12 cells, 12 to train: about" in said
    assert len(re.findall(r"│ e\S+ +│ \S+ +│ +1 │ +0 │", said)) == 12  # a row a network and method


def test_only_and_methods_leave_single_cells(tmp_path: Path, tiny: Protocol, capsys: Out) -> None:
    command = ["--protocol", "tiny", "--data", "digits", "--out", str(tmp_path / "out")]
    command += ["--dry-run", "--json", "--seeds", "1"]

    def planned(*more: str) -> set[tuple[str, str]]:
        assert status(*more, *command) == 0
        cells = json.loads(capsys.readouterr().out)["cells"]
        assert len({cell["key"] for cell in cells}) == len(cells)
        return {(cell["network"], cell["variant"]) for cell in cells}

    two = planned("table1", "--only", "width,depth", "--methods", "osgd, sgd-mean")
    assert two == {(d, m) for d in ("width", "depth") for m in ("osgd", "sgd-mean")}
    # a method names its variants too, and a variant itself alone
    assert planned("ablations", "--only", "width", "--methods", "osgd-norm") == {
        ("width", "osgd-norm"),
        ("width", "osgd-norm+C=0.5"),
    }
    assert planned("ablations", "--methods", "osgd+raw", "--only", "depth") == {
        ("depth", "osgd+raw")
    }


def test_a_dry_run_shows_that_it_measures(
    tmp_path: Path, tiny: Protocol, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anynest.cli.commands import reproduce

    seen: list[tuple[int, int]] = []

    class Watched(reproduce.ProgressBar):
        def report(self, done: int, total: int, items: int | None = None) -> None:
            seen.append((done, total))

    monkeypatch.setattr(reproduce, "ProgressBar", Watched)
    command = ["table2", "--protocol", "tiny", "--data", "digits", "--out", str(tmp_path / "out")]
    assert status(*command, "--dry-run", "--seeds", "1", "--only", "even") == 0
    assert seen == [(number, 6) for number in range(1, 7)]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tabel1"], "no table or figure 'tabel1'; near matches: table1"),
        (["--protocol", "mikro"], "--protocol must be one of .* near matches: micro"),
        (["--seeds", "0"], "--seeds must be at least 1, found 0"),
        (["--jobs", "0"], "--jobs must be at least 1, found 0"),
        (["--data", "digitz"], "unknown source 'digitz'"),
        (["--device", "gpu"], "run.device must be"),
        (["--run-option", "precison=bf16"], "run has no key 'precison'; near matches: precision"),
        (["--run-option", "seed=3"], "seed=... has a flag of its own: --seeds"),
        (["tuned"], "--protocol must be one that has cells of tuned, found tiny: take mini"),
        (["--imagenet", "x"], "--imagenet is for table3 beside others"),
        (["--only", "widht"], "--only must be among depth, width, .*, found 'widht'"),
        (["--methods", "adam"], "--methods must be among greedy, sgd-mean, .*, found 'adam'"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, tiny: Protocol, capsys: Out, changes: list[str], words: str
) -> None:
    given = {"what": "table1", "--protocol": "tiny", "--data": "digits", "--out": str(tmp_path)}
    if changes[0].startswith("--"):
        given[changes[0]] = changes[1]
    else:
        given["what"] = changes[0]
    what = given.pop("what")
    assert status(what, *(part for pair in given.items() for part in pair)) == 2
    found = capsys.readouterr()
    assert re.search(words, found.err), found.err
    assert found.err.count("\n") == 1


def line_of(protocol: Protocol, **changes: Any) -> dict[str, Any]:
    """A good line of a cell of Table 2 on the digits, but for the changes; None takes a key out."""
    cell = Run("even", "osgd").cell(protocol, 0)
    line = {
        "kind": "cell",
        "key": cell.key,
        "protocol": protocol.name,
        "data": "digits (200 training images)",
        "design": cell.design,
        "independent": None,
        "variant": cell.variant,
        "seed": cell.seed,
        "error": [0.5, 0.4],
        "multiply_adds": [1, 2],
        "seconds": 3.0,
        "settings": cell.settings,
    }
    return {key: value for key, value in {**line, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": "gone"}, "settings must be an object, found nothing"),
        ({"error": "gone"}, "error must be a list of numbers from 0 to 1, found nothing"),
        ({"design": "gone"}, "design must be a text, found nothing"),
        ({"error": [0.5, float("nan")]}, "error must be a list of numbers from 0 to 1"),
        ({"error": [0.5], "multiply_adds": [1]}, "must have 2 stages, found 1"),
        ({"validation_error": [0.5]}, "validation_error must have as many stages as error"),
        ({"kind": "gone"}, "line 1, is no result: it must be an object with kind"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_line_that_cannot_be_used_ends_in_one_line(
    tmp_path: Path,
    tiny: Protocol,
    capsys: Out,
    changes: dict[str, Any],
    words: str,
    more: list[str],
) -> None:
    known = tmp_path / "known.jsonl"
    known.write_text(json.dumps(line_of(tiny, **changes)) + "\n")
    command = ["table2", "--protocol", "tiny", "--data", "digits", "--out", str(tmp_path / "out")]
    assert status(*command, "--results", str(known), *more) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, 1),
        ({"seconds": "gone"}, 1),
        ({"design": "spiral"}, 0),
        ({"variant": "osgd+sideways"}, 0),
        ({"variant": "osgd+priority=x"}, 0),
        ({"settings": {}}, 0),
        ({"kind": "new"}, 0),
    ],
)
def test_lines_that_the_protocol_no_longer_has_are_passed_over(
    tmp_path: Path, tiny: Protocol, capsys: Out, changes: dict[str, Any], done: int
) -> None:
    known = tmp_path / "known.jsonl"
    known.write_text(json.dumps(line_of(tiny, **changes)) + "\n")
    assert Evidence.of(read_results(known), tiny, line_of(tiny)["data"]).cells.keys() == (
        {("even", "osgd", None)} if done else set()
    )
    command = ["table2", "--protocol", "tiny", "--data", "digits", "--out", str(tmp_path / "out")]
    assert status(*command, "--results", str(known), "--dry-run", "--seeds", "1") == 0
    assert f"12 cells, {12 - done} to train" in capsys.readouterr().out


@pytest.mark.slow
def test_all_leaves_table3_out_for_want_of_its_images(
    tmp_path: Path, tiny: Protocol, capsys: Out
) -> None:
    command = ["all", "--protocol", "tiny", "--data", "digits", "--out", str(tmp_path / "o")]
    given = [*command, "--dry-run", "--seeds", "1"]
    known = tmp_path / "o"
    assert not known.exists()
    assert status(*given) == 0
    said = capsys.readouterr().out
    assert "left out without --imagenet FOLDER: table3" in said
    assert "imagenet-width" not in said


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """ImageNet's layout: two classes, twelve pictures each to train on, three to test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_table3_on_a_small_folder(
    tmp_path: Path,
    pictures: Path,
    in_process: None,
    capsys: Out,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"data": {"image_size": 32, "batch_size": 8}, "schedule": {"epochs": 1}}
    families = {"imagenet": overlay(MICRO.families["imagenet"], small)}
    quick = Protocol("quick", "for tests", families, models=MICRO.models)
    monkeypatch.setitem(protocols.PROTOCOLS, "quick", quick)
    out = tmp_path / "out"
    command = ["table3", "--protocol", "quick", "--data", str(pictures), "--out", str(out)]
    assert status(*command, "--seeds", "1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Table 3, imagenet-width: test error %, pictures, protocol quick" in said
    lines = read_results(out / "quick.jsonl")
    assert {(line["design"], line["variant"]) for line in lines} == {
        (design, method)
        for design in ("imagenet-width", "imagenet-depth")
        for method in ("sgd-mean", "osgd", "sgd-sum")
    }
    assert {line["test_images"] for line in lines} == {6}
    assert {len(line["error"]) for line in lines} == {2, 3}
