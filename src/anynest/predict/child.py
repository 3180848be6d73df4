"""The compute process: it steps through its callers' evaluations, and between any two steps it listens.

A batch runs on from stage to stage without being asked, so that nothing waits for its caller; one from which
images may leave between stages stops at each. Of several evaluations the most urgent takes the next step, by
the order of predict/scheduler.py. The process ends when its parent does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any

from safetensors.torch import load as from_bytes

from ..engines.session import Evaluation, Session, open_session
from ..nets import AnytimeNetwork
from ..nets.nested.architecture import Architecture
from .channel import BEGIN, CANCEL, ERROR, KEEP, LOGITS, Channel, Layout, Message

ORPHAN_CHECK = 2000  # milliseconds: how often an idle process looks whether its parent is alive
ABOUT = 4096  # bytes at most of what it says of its session


def main(control_handle: int, source_handle: int) -> None:
    """Serve the channels that come over the control socket, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to deal with
    control = socket.socket(fileno=control_handle)
    try:
        with os.fdopen(source_handle, "rb") as file:
            file.seek(0)
            session = _open(file.read())
    except Exception as error:  # the parent tells its caller
        kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
        said = [kind, str(error)[: ABOUT // 2]]
        control.sendall(json.dumps(said).encode() + b"\n")
        return
    serve(session, control)


def serve(session: Session, control: socket.socket) -> None:
    """Say what the session is, and compute what is asked until the control socket closes."""
    about = ["", session.backend, session.num_stages, session.num_classes, session.in_channels]
    control.sendall(json.dumps(about).encode() + b"\n")
    _Server(session, control, os.getppid()).run()


def _open(payload: bytes) -> Session:
    """``payload``: a line of JSON, then the weights as safetensors where there is a network."""
    line, _, weights = payload.partition(b"\n")
    wanted = json.loads(line)
    source: Any = wanted.pop("path", None)
    if source is None:
        fields = wanted.pop("architecture")
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        whole = AnytimeNetwork(Architecture(**fields))
        outputs = tuple(wanted.pop("outputs"))
        source = whole if outputs == whole.outputs else whole.subnetwork(outputs[-1])
        source.load_state_dict(from_bytes(weights))
        for module, epsilon in zip(with_epsilon(source), wanted.pop("epsilons"), strict=True):
            module.eps = epsilon
        source.eval()
    return open_session(source, **wanted)


def with_epsilon(network: AnytimeNetwork) -> list[Any]:
    """The norms: what a caller may have set in them is in no state_dict."""
    return [module for module in network.modules() if hasattr(module, "eps")]


class _Line:
    """One channel, and the evaluation that its caller waits for."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel, self.key = channel, number
        self.evaluation: Evaluation | None = None
        self.begun = Message(CANCEL, 0)
        self.running = False
        self.size = 0
        self.arrival = 0

    @property
    def urgency(self) -> tuple[bool, float, int]:
        """As ``Job.urgency``."""
        assert self.evaluation is not None
        return self.evaluation.stage > 0, self.begun.due, self.arrival

    def drop(self) -> None:
        self.running = False
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None


class _Server:
    """The loop of the compute process."""

    def __init__(self, session: Session, control: socket.socket, parent: int) -> None:
        self.session, self.control, self.parent = session, control, parent
        self.lines: dict[int, _Line] = {}
        self.arrivals = 0
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)

    def run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for line in self.lines.values():
                line.drop()
                line.channel.close()

    def _turn(self) -> bool:
        """Listen, then do one step; False at the end."""
        running = [line for line in self.lines.values() if line.running]
        ready = self.poll.poll(0 if running else ORPHAN_CHECK)
        if not ready and not running and os.getppid() != self.parent:
            return False
        while ready:
            for handle, _ in ready:
                if handle != self.control.fileno():
                    self._listen(self.lines[handle])
                elif not self._accept():
                    return False
            ready = self.poll.poll(0)  # a new channel's first message comes right behind it
        running = [line for line in self.lines.values() if line.running]
        if running:
            self._advance(min(running, key=lambda line: line.urgency))
        return True

    def _accept(self) -> bool:
        """A new channel; False where the parent has closed."""
        data, handles, _, _ = socket.recv_fds(self.control, 1, 3)
        if not data:
            return False
        end = socket.socket(fileno=handles[0])
        files = [os.fdopen(handle, "r+b", buffering=0) for handle in handles[1:]]
        line = _Line(Channel(end, files), end.fileno())
        self.lines[line.key] = line
        self.poll.register(end, select.POLLIN)
        return True

    def _listen(self, line: _Line) -> None:
        """Do what a caller has said."""
        try:
            while (message := line.channel.receive()) is not None:
                self._do(line, message)
        except EOFError:
            line.drop()
            self.poll.unregister(line.key)
            del self.lines[line.key]
            line.channel.close()

    def _do(self, line: _Line, message: Message) -> None:
        if message.kind == BEGIN:
            line.drop()
        elif message.number != line.begun.number:
            return  # of an evaluation that is no more
        try:
            if message.kind == BEGIN:
                self._begin(line, message)
            elif message.kind == CANCEL:
                line.drop()
            elif line.evaluation is not None:
                if message.kind == KEEP:
                    line.evaluation.keep(line.channel.rows(message.size).clone())
                    line.size = message.size
                line.running = message.kind != KEEP
        except Exception as error:
            self._fail(line, error)

    def _begin(self, line: _Line, message: Message) -> None:
        session, line.begun = self.session, message
        line.channel.arrange(
            Layout(
                message.size,
                session.in_channels,
                message.height,
                message.width,
                session.num_stages,
                session.num_classes,
            )
        )
        line.evaluation = session.begin(line.channel.images())
        self.arrivals += 1
        line.running, line.size, line.arrival = True, message.size, self.arrivals

    def _advance(self, line: _Line) -> None:
        """One step of an evaluation."""
        evaluation, begun = line.evaluation, line.begun
        assert evaluation is not None
        if time.monotonic() > begun.due and (evaluation.stage > 0 or not begun.wait):
            line.drop()
            return
        try:
            logits = evaluation.step()
            if logits is None:
                return
            stage = evaluation.stage
            line.channel.logits(stage, line.size).copy_(logits)
        except Exception as error:
            self._fail(line, error)
            return
        self._tell(line, Message(LOGITS, begun.number, line.size, stage, at=time.monotonic()))
        if stage == self.session.num_stages:
            line.drop()
        elif not begun.on:
            line.running = False  # until asked: some images may leave here

    def _fail(self, line: _Line, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        stage = line.evaluation.stage + 1 if line.evaluation else 1
        line.drop()
        self._tell(line, Message(ERROR, line.begun.number, height=stage, text=text))

    def _tell(self, line: _Line, message: Message) -> None:
        try:
            line.channel.send(message)
        except OSError:  # nobody listens any more
            line.drop()
