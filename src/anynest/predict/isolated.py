"""A session in a process of its own: computing never holds the interpreter lock of the caller's process.

Why: a thread that computes holds Python's lock for a moment in every step. On a busy machine the system may
take the processor from it just then, and nobody in the process, not even a caller whose deadline has come,
goes on before it gets its turn again (docs/runtime.md tells how to see it). The caller of a process apart
sleeps undisturbed and wakes as punctually as any other, and a stage that is finished in time is in the shared
memory, whoever is being served then.

The price: seconds to start (it imports torch), a second copy of the weights, a tenth of a millisecond a call.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..nets import AnytimeNetwork
from ..store import RunError
from .channel import BEGIN, CANCEL, ERROR, KEEP, LOGITS, STEP, Channel, Layout, Message, shared_file
from .child import ABOUT, with_epsilon

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from anynest.predict.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
END_TIMEOUT = 5.0  # seconds: for a killed process to be gone


class Process(Protocol):
    """What is asked of the process at the other end; a ``subprocess.Popen`` has it."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class IsolatedSession:
    """A session whose evaluations run in another process, one stage a step; ``open`` starts one.

    Args:
        process: to end with the session.
        control: the socket on which it says what its session is, and takes channels.

    Raises:
        ValueError: a source that does not fit.
        RunError: the process has ended, or could not open its source for another reason.
    """

    def __init__(self, process: Process, control: socket.socket) -> None:
        self.process, self._control = process, control
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Channel] = []
        self._all: list[Channel] = []
        self._number = 0
        self._end = weakref.finalize(self, _end, process, control, self._idle, self._owner)
        try:
            said = b""
            while not said.endswith(b"\n") and (more := control.recv(ABOUT)):
                said += more
            told: list[Any] = json.loads(said) if said else [self._obituary()]
        except BaseException:
            self.close()
            raise
        if told[0]:
            self.close()
            if told[0] == "ValueError":  # the caller's mistake, in one line
                raise ValueError(told[1])
            raise RunError(f"the compute process cannot open the network: {': '.join(told)}")
        self.backend: str = told[1]
        self.num_stages: int = told[2]
        self.num_classes: int = told[3]
        self.in_channels: int = told[4]

    @classmethod
    def open(
        cls,
        source: AnytimeNetwork | str | Path,
        *,
        backend: str = "torch",
        threads: int | None = None,
        device: str = "cpu",
    ) -> IsolatedSession:
        """Start a process for a network or a path; the rest is as for ``open_session``.

        Raises:
            ValueError: a source or an option that does not fit, or a system that is not POSIX.
            RunError: the process does not start, or cannot open the source for another reason.
        """
        if os.name != "posix":
            raise ValueError("a process of its own needs a POSIX system: leave isolated=False")
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, shared_file() as file:
            file.write(_describe(source, backend, threads, device))
            handles = theirs.fileno(), file.fileno()
            process = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps(sys.path), *map(str, handles)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=handles,
                start_new_session=True,  # Ctrl-C is ours; and a scheduling group apart
            )
        return cls(process, control)

    def begin(
        self, x: Tensor, due: float = math.inf, wait: bool = False, on: bool = False
    ) -> IsolatedEvaluation:
        """As every session's; computing begins at once.

        Args:
            due: when by ``time.monotonic`` to drop it; ``wait``: not before stage 1.
            on: go on from stage to stage unasked, as an image alone does: none will leave between.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a predictor does not outlive os.fork: open one in the child")
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.dtype != torch.float32:
            raise ValueError(
                f"images must be float32 [batch, {self.in_channels}, height, width], got {x.dtype} "
                f"{list(x.shape)}"
            )
        with self._lock:
            if self.closed:
                raise RuntimeError("the session is closed; open another")
            channel = self._idle.pop() if self._idle else self._connect()
            self._number += 1
            number = self._number
        return IsolatedEvaluation(self, channel, number, x, due, wait, on)

    def _connect(self) -> Channel:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = Channel(ours, (shared_file(), shared_file()))
        handles = [theirs.fileno(), *(file.fileno() for file in channel.files)]
        with theirs:
            try:
                socket.send_fds(self._control, [b"C"], handles)
            except OSError as error:
                channel.close()
                raise RunError(self._obituary()) from error
        self._all.append(channel)
        return channel

    def give_back(self, channel: Channel) -> None:
        """A channel that no evaluation uses any more."""
        with self._lock:
            if not self.closed:
                self._idle.append(channel)
                return
        channel.close()

    def _obituary(self) -> str:
        try:
            code = str(self.process.wait(END_TIMEOUT))
        except subprocess.TimeoutExpired:
            code = "none yet"
        return f"the compute process has ended, status {code}; open the predictor again"

    @property
    def closed(self) -> bool:
        return not self._end.alive

    def close(self) -> None:
        """End the process; who waits for an answer sees its socket close."""
        with self._lock:  # from here on, channels that are given back are closed
            left = self._end.detach()
        if left is not None:
            _end(self.process, self._control, self._idle, self._owner)


class IsolatedEvaluation:
    """One batch's way through the network of the other process. For one thread at a time."""

    def __init__(
        self,
        session: IsolatedSession,
        channel: Channel,
        number: int,
        x: Tensor,
        due: float,
        wait: bool,
        on: bool = False,
    ) -> None:
        self.stage = 0
        self.num_stages = session.num_stages
        self.at = 0.0  # when the newest stage was finished, by the clock of both processes
        self.session, self._number = session, number
        self._due, self._wait = due, wait
        self._channel: Channel | None = channel
        self._size = self._batch = len(x)
        self._on = on or len(x) == 1
        shape = (len(x), session.in_channels, int(x.shape[2]), int(x.shape[3]))
        try:
            channel.arrange(Layout(*shape, session.num_stages, session.num_classes))
            channel.images().copy_(x)
            sizes = shape[0], shape[2], shape[3]
            self._send(Message(BEGIN, number, *sizes, due=due, wait=wait, on=self._on))
        except BaseException:
            self.close()
            raise
        self._asked = True

    def ready(self, until: float) -> bool:
        """Sleep until ``step`` need not wait, or until that time; whether it need not."""
        self._ask()
        return self._open().wait(until)

    def fileno(self) -> int:
        """Of the socket that can be read when ``step`` need not wait."""
        self._ask()
        return self._open().socket.fileno()

    def step(self) -> Tensor | None:
        """The next stage's logits. None where there was but an old message to read."""
        if self.stage == self.num_stages:
            raise RuntimeError("every stage is finished; begin another evaluation")
        channel = self._open()
        self._ask()
        channel.wait(math.inf)
        try:
            message = channel.receive()
        except EOFError as error:
            raise RunError(self.session._obituary()) from error
        if message is None or message.number != self._number:
            return None
        if message.kind == ERROR:
            raise RuntimeError(message.text)
        assert message.kind == LOGITS
        self.stage, self.at = message.height, message.at
        self._asked = self._on
        return channel.logits(self.stage, message.size).clone()

    def _ask(self) -> None:
        """Have the next stage computed, where the process waits to be asked."""
        if not self._asked:
            self._asked = True
            self._send(Message(STEP, self._number))

    def keep(self, rows: Tensor) -> None:
        if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= self._size:
            raise ValueError(f"rows must be from 0 to {self._size - 1}, got {rows.tolist()}")
        if self._batch == 1:
            return  # the one image there is; its next stage may have begun
        assert not self._on, "images leave, and begin() was told that none will"
        channel = self._open()
        channel.rows(len(rows)).copy_(rows)
        self._size = len(rows)
        self._send(Message(KEEP, self._number, self._size))

    def cancel(self) -> None:
        channel = self._channel
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.send(Message(CANCEL, self._number))

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        # past its deadline the process drops it unasked: nothing more need be done at that moment
        dropped = time.monotonic() > self._due and not self._wait
        if self.stage < self.num_stages and not dropped:
            with contextlib.suppress(OSError):
                channel.send(Message(CANCEL, self._number))
        self.session.give_back(channel)

    def _open(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("the evaluation is closed; begin another")
        return self._channel

    def _send(self, message: Message) -> None:
        try:
            self._open().send(message, until=math.inf if self._wait else self._due)
        except BlockingIOError:
            pass  # so far behind that it will not answer in time: to the caller, no stage is finished
        except OSError as error:
            raise RunError(self.session._obituary()) from error


def _describe(
    source: AnytimeNetwork | str | Path, backend: str, threads: int | None, device: str
) -> bytes:
    """What the process needs to open the source: a line of JSON, and the weights of a network."""
    wanted: dict[str, Any] = {"backend": backend, "threads": threads, "device": device}
    if not isinstance(source, AnytimeNetwork):
        return json.dumps(wanted | {"path": os.fspath(source)}).encode() + b"\n"
    wanted |= {"architecture": asdict(source.architecture), "outputs": source.outputs}
    wanted["epsilons"] = [module.eps for module in with_epsilon(source)]
    state = {k: v.detach().cpu().contiguous().clone() for k, v in source.state_dict().items()}
    weights: bytes = to_bytes(state)
    return json.dumps(wanted).encode() + b"\n" + weights


def _end(process: Process, control: socket.socket, channels: list[Channel], owner: int) -> None:
    """End the process, and leave neither handles nor a zombie."""
    control.close()
    if os.getpid() == owner:  # and not a fork of it: the owner still needs the process
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
    for channel in channels:  # the others are still waited on, and closed by who gives them back
        channel.close()
