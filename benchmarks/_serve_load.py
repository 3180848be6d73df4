"""An open-loop load generator: one process on a core of its own, sockets and epoll alone.

Every request is sent at its scheduled time, whether earlier ones are answered or not, and its
latency counts from that time. So a server that stalls, or a generator that lags, cannot hide it.
Between two events the process spins: a timer of epoll has a resolution of a millisecond.

Connections are kept alive and reused, the last used first. A client has ``patience`` seconds, then
it closes its connection. Some clients *vanish*: they close it at a random time within the deadline.
Some requests are *malformed*; the right answer to them is an error of the client (4xx).

    python _serve_load.py PLAN.json        # reads plan and images, writes the outcomes beside them

The plan's ``dialect`` says how a request is written: ``v2``, the Open Inference Protocol with binary
UINT8 pixels; ``base64``, the same in JSON alone, with the pixels as one text of base64; or ``raw``,
the pixels alone. Answers are ``{"outputs": [{"data": [label]}]}`` or
``{"label": label}``.
"""

from __future__ import annotations

import base64
import errno
import gc
import heapq
import json
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GAVE_UP, REFUSED, RESET, VANISHED = 0, -1, -2, -3  # in the place of an HTTP status
NORMAL, VANISH, MALFORMED = 0, 1, 2
LAST = 1e-3  # seconds before the next send in which the process spins
CONNECTIONS = 4000  # at most; a request beyond them counts as REFUSED
clock = time.monotonic


@dataclass
class Plan:
    """What is sent, and where.

    Attributes:
        port: of the server on loopback.
        times: ``[N]`` seconds from the start, ascending.
        bodies: the pixels of each image, uint8; requests take them in turn.
        deadline: seconds.
        patience: seconds that a client waits.
        path: of the URL.
        dialect: "v2", "base64" or "raw".
        tensor: the input's description, without its binary size ("v2").
        classes: names that stand for the labels 0, 1, ... in answers.
        stages: the parameter ``stages`` of each request ("v2"); 0 for none.
        vanish: share of clients that vanish.
        malformed: share of malformed requests.
        spin: whether to spin between events; not where server and generator share a core.
        connections: opened before the first request.
        seed: of what vanishes and what is malformed.
    """

    port: int
    times: list[float]
    bodies: list[bytes]
    deadline: float
    patience: float = 2.0
    path: str = "/"
    dialect: str = "raw"
    tensor: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    stages: int = 0
    vanish: float = 0.0
    malformed: float = 0.0
    spin: bool = True
    connections: int = 32
    seed: int = 0


class Writer:
    """The bytes of a request; a v2 request states in a header how much is left of its deadline."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.v2 = plan, plan.dialect == "v2"
        self.bodies = plan.bodies
        if plan.dialect == "base64":
            self.bodies = [self._base64(body) for body in plan.bodies]
        size = len(self.bodies[0])
        lines = [f"POST {plan.path} HTTP/1.1", "Host: localhost"]
        if self.v2:
            self.json = self._json(plan.tensor, size)
            lines += ["anynest-timeout-ms: {}"]
            lines += [f"Inference-Header-Content-Length: {len(self.json)}"]
            size += len(self.json)
        media = "json" if plan.dialect == "base64" else "octet-stream"
        lines += [f"Content-Type: application/{media}", f"Content-Length: {size}"]
        self.head, _, self.rest = (
            part.encode() for part in ("\r\n".join(lines) + "\r\n\r\n").partition("{}")
        )

    def _json(self, tensor: dict[str, Any], size: int) -> bytes:
        header = {
            "inputs": [tensor | {"parameters": {"binary_data_size": size}}],
            "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
        }
        if self.plan.stages:
            header["parameters"] = {"stages": self.plan.stages}
        return json.dumps(header).encode()

    def _base64(self, body: bytes) -> bytes:
        tensor = self.plan.tensor | {"data": [base64.b64encode(body).decode()]}
        return json.dumps({"inputs": [tensor]}).encode()

    def request(self, number: int, left: float) -> bytes:
        pixels = self.bodies[number % len(self.bodies)]
        if not self.v2:
            return self.head + pixels
        milliseconds = b"%.3f" % max(0.001, 1e3 * left)
        return b"".join((self.head, milliseconds, self.rest, self.json, pixels))

    def malformed(self, number: int) -> bytes:
        """One of several wrong requests, each of which ends where its Content-Length says."""
        body = self.json + b"\0" * 100
        bodies = [
            (b"{", None),  # no JSON
            (b'{"inputs": 3}', None),  # not the protocol's
            (body, 10 * len(body)),  # a header longer than the body
            (body, len(body) - 100),  # fewer pixels than the header says
            (b"[" * 2000, None),  # too deep
        ]
        content, length = bodies[number % len(bodies)]
        lines = [f"POST {self.plan.path} HTTP/1.1", "Host: localhost"]
        if length is not None:
            lines.append(f"Inference-Header-Content-Length: {length}")
        lines.append(f"Content-Length: {len(content)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


class Connection:
    """A connection, and the request that it carries; None while it is idle."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number: int | None = None
        self.buffer = b""
        self.fresh = True

    def response(self) -> tuple[int, bytes, bool] | None:
        """Status, body and whether the connection stays open, once the response is complete."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head, body = self.buffer[:end].lower(), self.buffer[end + 4 :]
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            length = int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(body) < length:
                return None
        elif b"\r\ntransfer-encoding: chunked" in head:
            if not body.endswith(b"0\r\n\r\n"):
                return None
            body = b"".join(_chunks(body))
        return int(head[9:12]), body, b"\r\nconnection: close" not in head


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        yield rest[:length]
        body = rest[length + 2 :]


class Generator:
    """Sends a plan's requests; ``run`` returns the outcomes."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.writer = plan, Writer(plan)
        self.labels: dict[Any, int] = {name: number for number, name in enumerate(plan.classes)}
        count = len(plan.times)
        self.sent = np.full(count, np.nan)
        self.done = np.full(count, np.nan)
        self.status = np.full(count, REFUSED, np.int16)
        self.stage = np.zeros(count, np.int16)
        self.label = np.full(count, -1, np.int16)
        self.elapsed = np.full(count, np.nan)
        source = np.random.default_rng(plan.seed)
        draws = source.random(count)
        self.kind = np.where(draws < plan.vanish, VANISH, NORMAL)
        self.kind[draws > 1 - plan.malformed] = MALFORMED
        self.vanish_after = plan.deadline * source.random(count)
        self.epoll = select.epoll()
        self.open: dict[int, Connection] = {}
        self.idle: list[Connection] = []
        self.waits: deque[tuple[float, int, Connection]] = deque()  # by when a client gives up
        self.vanishing: list[tuple[float, int, Connection]] = []  # a heap
        self.answered = 0
        self.retried = np.zeros(count, np.int16)
        self.busy = 0.0

    def run(self) -> dict[str, Any]:
        """Send everything, and wait until all is answered or given up."""
        for _ in range(self.plan.connections):
            self.idle.append(self.connect())
        count, position = len(self.plan.times), 0
        start = clock() + 0.05
        self.due = [start + at for at in self.plan.times]
        gc.collect()
        gc.disable()
        before = time.process_time()
        while self.answered < count:
            began = now = clock()
            if position < count and self.due[position] <= now:
                while position < count and self.due[position] <= now:
                    self.send(position)
                    position, now = position + 1, clock()
                self.busy += now - began
            events = self.epoll.poll(self.wait(now, position))
            began = clock()
            for descriptor, _ in events:
                self.readable(self.open.get(descriptor))
            if self.expire(clock()) or events:
                self.busy += clock() - began
        gc.enable()
        for connection in list(self.open.values()):
            self.close(connection)
        self.epoll.close()
        return {
            "start": start,
            "scheduled": np.array(self.due),
            "sent": self.sent,
            "done": self.done,
            "status": self.status,
            "stage": self.stage,
            "label": self.label,
            "elapsed": self.elapsed,
            "kind": self.kind,
            "retried": self.retried,
            "busy": self.busy,
            "cpu": time.process_time() - before,
            "wall": clock() - start,
        }

    def wait(self, now: float, position: int) -> float:
        """Seconds that epoll may wait."""
        nearest = now + 0.1
        if position < len(self.due):
            nearest = min(nearest, self.due[position])
        if self.vanishing:
            nearest = min(nearest, self.vanishing[0][0])
        if self.plan.spin:
            return max(0.0, nearest - now - LAST) if nearest - now > 2 * LAST else 0.0
        return max(0.0, nearest - now)

    # -- requests -----------------------------------------------------------------------------------
    def connect(self) -> Connection:
        connection = Connection(self.plan.port)
        self.open[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def send(self, number: int) -> None:
        connection = self.take()
        if connection is None:
            self.finish(number, REFUSED)
            return
        now = clock()
        if np.isnan(self.sent[number]):
            self.sent[number] = now
        if self.kind[number] == MALFORMED:
            data = self.writer.malformed(number)
        else:
            left = self.plan.deadline - (now - self.due[number])
            data = self.writer.request(number, left)
        connection.number = number
        try:
            if connection.socket.send(data) < len(data):
                raise OSError(errno.EAGAIN, "the socket's buffer is full")
        except OSError:
            self.lost(connection)
            return
        self.waits.append((self.due[number] + self.plan.patience, number, connection))
        if self.kind[number] == VANISH:
            leaves = self.due[number] + float(self.vanish_after[number])
            heapq.heappush(self.vanishing, (leaves, number, connection))

    def take(self) -> Connection | None:
        """An idle connection, else a new one."""
        if self.idle:
            return self.idle.pop()
        if len(self.open) >= CONNECTIONS:
            return None
        try:
            return self.connect()
        except OSError:
            return None

    def readable(self, connection: Connection | None) -> None:
        if connection is None:
            return  # closed by an earlier event
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lost(connection)
            return
        connection.buffer += data
        found = connection.response()
        if found is None or connection.number is None:
            return
        status, body, stays = found
        number, connection.number, connection.buffer = connection.number, None, b""
        connection.fresh = False
        self.finish(number, status, body)
        if stays:
            self.idle.append(connection)
        else:
            self.close(connection)

    def finish(self, number: int, status: int, body: bytes = b"") -> None:
        self.done[number] = clock()
        self.status[number] = status
        self.answered += 1
        if status != 200:
            return
        answer = json.loads(body)
        if "outputs" in answer:
            label = answer["outputs"][0]["data"][0]
            self.label[number] = self.labels.get(label, label)
            parameters = answer.get("parameters") or {}
            self.stage[number] = parameters.get("stage", 0)
            self.elapsed[number] = 1e-6 * parameters.get("elapsed_us", np.nan)
        else:
            self.label[number] = answer["label"]

    def lost(self, connection: Connection) -> None:
        """The server has closed a connection."""
        self.close(connection)
        number, connection.number = connection.number, None
        if number is None:
            return
        if not connection.fresh and not connection.buffer:
            # the server closed an idle connection while the request was on its way: every HTTP
            # client sends it again
            self.retried[number] += 1
            self.send(number)
        else:
            self.finish(number, RESET)

    def close(self, connection: Connection) -> None:
        if self.open.pop(connection.socket.fileno(), None) is not None:
            self.epoll.unregister(connection.socket.fileno())
            connection.socket.close()
        if connection in self.idle:
            self.idle.remove(connection)

    def expire(self, now: float) -> bool:
        """Close the connections of clients that give up or vanish."""
        any_closed = False
        while self.vanishing and self.vanishing[0][0] <= now:
            _, number, connection = heapq.heappop(self.vanishing)
            any_closed |= self._leave(number, connection, VANISHED)
        while self.waits and (self.waits[0][0] <= now or self.waits[0][2].number is None):
            _, number, connection = self.waits.popleft()
            any_closed |= self._leave(number, connection, GAVE_UP)
        return any_closed

    def _leave(self, number: int, connection: Connection, status: int) -> bool:
        if connection.number != number:
            return False  # answered before
        connection.number = None
        self.close(connection)
        self.finish(number, status)
        return True


def main() -> None:
    path = Path(sys.argv[1])
    plan = json.loads(path.read_text())
    images = np.load(path.with_suffix(".images.npy"), mmap_mode="r")
    times = np.load(path.with_suffix(".times.npy")).tolist()
    core = plan.pop("core")
    if core is not None:
        os.sched_setaffinity(0, {core})
    outcome = Generator(Plan(times=times, bodies=[x.tobytes() for x in images], **plan)).run()
    np.savez(path.with_suffix(".outcome.npz"), **outcome)


if __name__ == "__main__":
    main()
