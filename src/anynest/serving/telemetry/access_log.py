"""The access log: one line of JSON for each request, written by a thread of its own.

A disk or a reader of the output that stalls must not hold up answers: lines wait in a bounded queue,
beyond which they are dropped and counted. What cannot be written is dropped too; the server's log has
a line when that begins and when it ends.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from .records import Record

MAX_LINES = 10_000  # that wait to be written
MAX_TEXT = 300  # characters of what a client may choose
STDOUT = "-"
_log = logging.getLogger(__name__)


class AccessLog:
    """Writes records to a file. A context manager that writes what is left.

    Args:
        path: appended to; ``-``: standard output.

    Attributes:
        dropped: lines that were not written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._open()
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._reopen, self._closed = False, False
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="anynest-access-log", daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        """Write a record soon."""
        line = json.dumps(line_of(record), separators=(",", ":")) + "\n"
        with self._changed:
            if len(self._lines) >= MAX_LINES:
                self.dropped += 1
                return
            self._lines.append(line)
            self._changed.notify()

    def reopen(self) -> None:
        """Open the file anew, as after its rotation."""
        with self._changed:
            self._reopen = True
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Write what is left, within ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> io.FileIO:
        if self._path == STDOUT:
            return io.FileIO(sys.stdout.fileno(), "w", closefd=False)
        return io.FileIO(self._path, "a")

    def _write(self) -> None:
        fails, lost = False, 0  # since when lines are lost, and how many were by then
        while True:
            with self._changed:
                while not (self._lines or self._reopen or self._closed):
                    self._changed.wait()
                lines, ends = list(self._lines), self._closed
                self._lines.clear()
                reopen, self._reopen = self._reopen, False
            try:
                if reopen and self._path != STDOUT:
                    old, self._file = self._file, self._open()
                    old.close()
                data = memoryview("".join(lines).encode())
                while data:
                    data = data[self._file.write(data) :]
            except (OSError, ValueError) as error:  # a full disk, a closed pipe: requests go on
                self.dropped += len(lines)
                if not fails:
                    fails, lost = True, self.dropped - len(lines)
                    _log.warning("access log %s: %s; lines are dropped", self._path, error)
            else:
                if fails and lines:
                    fails = False
                    _log.warning(
                        "access log %s: written again; %d lines were dropped",
                        self._path,
                        self.dropped - lost,
                    )
            if ends:
                self._file.close()
                return


def line_of(record: Record) -> dict[str, Any]:
    """A record as plain values; what is unknown is left out."""
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        "protocol": record.protocol,
        "method": record.method,
        "path": record.path[:MAX_TEXT],
        "client": record.client,
        "status": record.status,
        "ms": round(1e3 * record.seconds, 3),
        "bytes": record.sent,
        "request_id": record.headers.get("x-request-id", "")[:MAX_TEXT],
        **record.found,
    }
    return {key: value for key, value in line.items() if value not in (None, "")}
