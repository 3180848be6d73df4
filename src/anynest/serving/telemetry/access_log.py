"""The access log: one line of JSON for each request, written by a thread of its own.

A disk or a reader of the output that stalls must not hold up answers: lines wait in a bounded queue,
beyond which they are dropped and counted.
"""

from __future__ import annotations

import io
import json
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
        while True:
            with self._changed:
                while not (self._lines or self._reopen or self._closed):
                    self._changed.wait()
                lines, ends = list(self._lines), self._closed
                self._lines.clear()
                reopen, self._reopen = self._reopen, False
            try:
                if reopen and self._path != STDOUT:
                    self._file.close()
                    self._file = self._open()
                data = memoryview("".join(lines).encode())
                while data:
                    data = data[self._file.write(data) :]
            except (OSError, ValueError):  # a full disk, a closed pipe: requests go on
                self.dropped += len(lines)
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
