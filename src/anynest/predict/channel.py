"""Between a caller and the compute process: one channel for each prediction under way.

A channel is a pair of sockets for short messages, and two pieces of shared memory for tensors. The caller
writes the images and says BEGIN; the compute process writes each stage's logits and says LOGITS, with the
time at which they were finished. Messages of an earlier evaluation are told by its number.

Images lie in a memory of their own: the compute process may still write an earlier evaluation's logits, laid
out by its shapes, when the caller already writes the next one's images. Logits of the two never meet, since
the compute process does one after the other; nor do rows, of which it has read the earlier ones before it
says anything of the later evaluation.

Memory: images float32 ``[B, C, H, W]``; logits float32 ``[S, B, K]``, then rows int64 ``[B]``.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import select
import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

# to the compute process
BEGIN, STEP, KEEP, CANCEL = b"B", b"S", b"K", b"X"
# and back
LOGITS, ERROR = b"L", b"E"

_MESSAGE = struct.Struct("<cqqqqdd??i")  # and so many bytes of text
_PAGE = mmap.ALLOCATIONGRANULARITY
_TEXT = 4000  # bytes of an error's text
_LONGEST = 1e6  # seconds of one sleep


@dataclass(frozen=True)
class Message:
    """One message. ``number``: of the evaluation. BEGIN has the batch's size, height and width, the
    deadline, whether stage 1 is wanted after it, and whether to go on unasked; KEEP the rows' count in
    ``size``; LOGITS the stage, the rows' count and ``at``, when it was; ERROR a text."""

    kind: bytes
    number: int
    size: int = 0
    height: int = 0  # for LOGITS: the stage
    width: int = 0
    due: float = math.inf
    at: float = 0.0
    wait: bool = False
    text: str = ""
    on: bool = False

    def pack(self) -> bytes:
        text = self.text.encode()[:_TEXT]
        sizes = (self.size, self.height, self.width)
        numbers = (self.number, *sizes, self.due, self.at, self.wait, self.on, len(text))
        return _MESSAGE.pack(self.kind, *numbers) + text

    @staticmethod
    def unpack(data: bytearray) -> Message | None:
        """Take the first message out of ``data``; None where it is not whole yet."""
        if len(data) < _MESSAGE.size:
            return None
        kind, number, size, height, width, due, at, wait, on, length = _MESSAGE.unpack_from(data)
        end = _MESSAGE.size + length
        if len(data) < end:
            return None
        text = data[_MESSAGE.size : end].decode(errors="replace")
        del data[:end]
        return Message(kind, number, size, height, width, due, at, wait, text, on)


@dataclass(frozen=True)
class Layout:
    """Where the tensors lie; a function of the shapes, so that both sides agree."""

    batch: int
    channels: int
    height: int
    width: int
    stages: int
    classes: int

    @property
    def pixels(self) -> int:
        return self.batch * self.channels * self.height * self.width

    @property
    def rows(self) -> int:
        """Byte at which they begin."""
        return -(-4 * self.stages * self.batch * self.classes // 8) * 8

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the two pieces of memory, whole pages."""
        needed = 4 * self.pixels, self.rows + 8 * self.batch
        return -(-needed[0] // _PAGE) * _PAGE, -(-needed[1] // _PAGE) * _PAGE


def shared_file() -> BinaryIO:
    """Memory with a handle: on Linux of no file system, elsewhere a nameless temporary file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("anynest", os.MFD_CLOEXEC), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class Channel:
    """One end of a channel. ``files``: the memory of the images, and that of logits and rows."""

    def __init__(self, end: socket.socket, files: Sequence[BinaryIO]) -> None:
        self.socket, self.files = end, tuple(files)
        self.layout = Layout(0, 0, 0, 0, 0, 0)
        self._memory: list[mmap.mmap | None] = [None, None]
        self._received = bytearray()
        end.setblocking(False)
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def arrange(self, layout: Layout) -> None:
        """Have memory for these shapes; what was in it is lost."""
        self.layout = layout
        for i, (file, size) in enumerate(zip(self.files, layout.sizes, strict=True)):
            memory = self._memory[i]
            if memory is None or len(memory) < size:
                if os.fstat(file.fileno()).st_size < size:
                    file.truncate(size)
                self._memory[i] = mmap.mmap(file.fileno(), size)

    def images(self) -> Tensor:
        """The batch, in the shared memory itself."""
        shape = (self.layout.batch, self.layout.channels, self.layout.height, self.layout.width)
        return self._view(0, 0, self.layout.pixels, torch.float32).view(shape)

    def logits(self, stage: int, size: int) -> Tensor:
        """Those of a stage, ``[size, K]``, in the shared memory itself."""
        layout = self.layout
        start = 4 * (stage - 1) * layout.batch * layout.classes
        flat = self._view(1, start, size * layout.classes, torch.float32)
        return flat.view(size, layout.classes)

    def rows(self, size: int) -> Tensor:
        """int64 ``[size]``, in the shared memory itself."""
        return self._view(1, self.layout.rows, size, torch.int64)

    def _view(self, piece: int, start: int, count: int, dtype: torch.dtype) -> Tensor:
        memory = self._memory[piece]
        assert memory is not None
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)

    def send(self, message: Message, until: float = -math.inf) -> None:
        """Send, and wait until that time for the other side to take what it was sent before.

        BlockingIOError where it has not by then; another OSError where it is gone.
        """
        data = message.pack()
        while True:
            try:
                sent = self.socket.send(data)
                break
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0:
                    raise
                poll = select.poll()
                poll.register(self.socket, select.POLLOUT)
                poll.poll(math.ceil(1000 * min(left, _LONGEST)))
        if sent < len(data):
            raise BrokenPipeError("the other side does not read")

    def receive(self) -> Message | None:
        """The next message, None where there is none yet. EOFError where the other side is gone."""
        while (message := Message.unpack(self._received)) is None:
            try:
                data = self.socket.recv(_MESSAGE.size + _TEXT)
            except BlockingIOError:
                return None
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._received += data
        return message

    def wait(self, until: float) -> bool:
        """Sleep until there is a message, or until that time; whether there is one."""
        if self._received:
            return True
        left = max(0.0, until - time.monotonic())
        try:  # to the microsecond, but for the first 1024 handles of a process only
            return bool(select.select([self.socket], [], [], min(left, _LONGEST))[0])
        except ValueError:
            return bool(self._poll.poll(math.ceil(1000 * min(left, _LONGEST))))

    def close(self) -> None:
        self._memory = [None, None]
        with contextlib.suppress(OSError):
            self.socket.close()
        for file in self.files:
            file.close()
