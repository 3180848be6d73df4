"""The results file: whole lines, none twice, whatever happens to those who write it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anynest.experiments.results.records import add_results, read_results
from anynest.store import RunError, RunFolderError


def line(number: int, **changes: object) -> dict[str, object]:
    return {"kind": "cell", "key": f"{number:016x}", "protocol": "p", "data": "d", **changes}


def test_a_cell_has_one_line_per_data_set(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.jsonl"
    assert read_results(path) == []
    assert add_results(path, [line(1), line(2), line(1)]) == 2
    assert add_results(path, [line(2, seconds=9), line(3), line(1, data="other")]) == 2
    found = read_results(path)
    assert found == [line(1), line(2), line(3), line(1, data="other")]  # the first stays
    assert add_results(path, [line(1, kind="deadlines")]) == 1
    assert path.read_text().endswith("\n")
    assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "cell"', "line 1, must be JSON"),
        ("[]\n", "line 1, is no result"),
        ('{"kind": "cell", "key": "a", "data": "d"}\n', "line 1, is no result: .* protocol"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    for act in (lambda: read_results(path), lambda: add_results(path, [line(1)])):
        with pytest.raises(RunFolderError, match=words):
            act()
    assert path.read_text() == text


def test_numbers_that_json_lacks_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    add_results(path, [line(1)])
    with pytest.raises(ValueError, match="JSON compliant"):
        add_results(path, [line(2, error=[float("nan")])])
    assert read_results(path) == [line(1)]


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"
    add_results(path, [line(1)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"p\.jsonl: No space"):
        add_results(path, [line(2)])
    assert read_results(path) == [line(1)]


WRITER = """
import sys
from pathlib import Path
from anynest.experiments.results.records import add_results
first = int(sys.argv[2])
for number in range(first, first + 400):
    add_results(Path(sys.argv[1]), [{"kind": "cell", "key": str(number), "protocol": "p",
                                     "data": "d", "padding": "x" * 2000}])
    print(number, flush=True)
"""


def test_writers_at_once_and_one_killed(tmp_path: Path) -> None:
    """Two write overlapping keys; one is killed. All that either told of is there, once."""
    path = tmp_path / "p.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE, text=True
        )
        for first in (0, 4)
    ]
    told: list[list[str]] = []
    for writer in writers:
        assert writer.stdout is not None
        told.append([writer.stdout.readline() for _ in range(8)])
    writers[0].send_signal(signal.SIGKILL)
    time.sleep(0.1)
    for writer in writers:
        writer.kill()
        assert writer.stdout is not None
        told.append(writer.stdout.read().splitlines())
        writer.stdout.close()
        writer.wait()
    keys = [entry["key"] for entry in read_results(path)]
    assert len(keys) == len(set(keys))
    assert {text.strip() for part in told for text in part} <= set(keys)
    assert add_results(path, [line(1)]) == 1  # a killed writer's lock holds nobody up
    rows = path.read_text().splitlines()
    assert all(json.loads(row) for row in rows)
