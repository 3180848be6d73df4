"""The access log: one line each, never in the way."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from anynest.serving.telemetry import access_log
from anynest.serving.telemetry.access_log import AccessLog
from anynest.serving.telemetry.records import Record

PATIENCE = 60.0


def record(path: str = "/v2", **found: object) -> Record:
    return Record("http", "GET", path, "127.0.0.1", {}, at=0.0, status=200, found=dict(found))


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("before\n")
    with AccessLog(str(file)) as log:
        log(record("/a\n\x1b[31m", outcome="answered", stage=3, deadline_met=False, reason=""))
        log(record("x" * 10_000))
    before, first, second = file.read_text().splitlines()
    assert before == "before"  # appended
    assert json.loads(first) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "protocol": "http",
        "method": "GET",
        "path": "/a\n\x1b[31m",
        "client": "127.0.0.1",
        "status": 200,
        "ms": 0.0,
        "bytes": 0,
        "outcome": "answered",
        "stage": 3,
        "deadline_met": False,
    }
    assert "\x1b" not in first  # a terminal is not told anything
    assert len(second) < 1000


def test_rotation(tmp_path: Path) -> None:
    file, old = tmp_path / "log", tmp_path / "log.1"
    with AccessLog(str(file)) as log:
        log(record("/one"))
        while not file.read_text():
            pass
        file.rename(old)
        log.reopen()
        while not file.exists():
            pass
        log(record("/two"))
    assert "/one" in old.read_text()
    assert "/one" not in file.read_text()
    assert "/two" in file.read_text()


def test_a_rotation_that_fails_loses_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is gone for a while: the log says so, and goes on when it is back."""
    folder = tmp_path / "logs"
    folder.mkdir()
    with AccessLog(str(folder / "log")) as log:
        log(record("/one"))
        while not (folder / "log").read_text():
            pass
        folder.rename(tmp_path / "old")
        log.reopen()
        while not caplog.records:
            pass
        folder.mkdir()
        log.reopen()
        while not (folder / "log").exists():
            pass
        log(record("/two"))
    assert "/one" in (tmp_path / "old/log").read_text()
    assert "/two" in (folder / "log").read_text()
    begun, ended = caplog.messages
    assert "No such file or directory" in begun
    assert "written again" in ended


def test_a_reader_that_stalls_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MAX_LINES", 10)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # and it does not read
    log = AccessLog(str(pipe))
    done = threading.Event()

    def write() -> None:
        for _ in range(5000):  # more than a pipe holds
            log(record())
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(PATIENCE)
    assert log.dropped > 0
    os.close(reader)
    log.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_counted() -> None:
    log = AccessLog("/dev/full")
    log(record())
    log.close()
    assert log.dropped == 1
