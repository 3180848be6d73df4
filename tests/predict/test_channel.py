"""What a caller and the compute process share: memory laid out alike, messages that arrive as sent."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anynest.predict.channel import BEGIN, CANCEL, ERROR, Channel, Layout, Message, shared_file
from anynest.predict.isolated import IsolatedEvaluation, IsolatedSession

Pair = tuple[Channel, Channel]


def memory() -> tuple[BinaryIO, BinaryIO]:
    return shared_file(), shared_file()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    files = memory()
    others = [os.fdopen(os.dup(file.fileno()), "r+b", buffering=0) for file in files]
    channels = Channel(ours, files), Channel(theirs, others)
    yield channels
    for channel in channels:
        channel.close()


numbers = st.integers(0, 2**40)


@given(
    messages=st.lists(
        st.builds(
            Message,
            st.sampled_from([BEGIN, ERROR]),
            numbers,
            numbers,
            numbers,
            numbers,
            st.floats(allow_nan=False),
            st.floats(allow_nan=False),
            st.booleans(),
            st.text(st.characters(max_codepoint=0x2000, exclude_categories=["Cs"]), max_size=50),
            st.booleans(),
        ),
        max_size=4,
    ),
    cut=st.integers(1, 200),
)
def test_messages_arrive_as_sent_however_they_are_cut(messages: list[Message], cut: int) -> None:
    data = b"".join(message.pack() for message in messages)
    received, found = bytearray(), []
    for start in range(0, len(data), cut):
        received += data[start : start + cut]
        while (message := Message.unpack(received)) is not None:
            found.append(message)
    assert found == messages
    assert not received


def test_long_texts_are_cut(pair: Pair) -> None:
    pair[0].send(Message(ERROR, 1, text="é" * 100_000))
    assert pair[1].wait(time.monotonic() + 5)
    message = pair[1].receive()
    assert message is not None
    assert message.text.startswith("éé")
    assert len(message.text) <= 4000
    assert pair[1].receive() is None


@given(
    st.tuples(*[st.integers(1, 5)] * 6),
)
def test_tensors_do_not_overlap(shape: tuple[int, ...]) -> None:
    layout = Layout(*shape)
    batch, channels, height, width, stages, classes = shape
    assert layout.pixels == batch * channels * height * width
    images, results = layout.sizes
    assert 4 * layout.pixels <= images
    assert 4 * stages * batch * classes <= layout.rows
    assert layout.rows + 8 * batch <= results
    assert layout.rows % 8 == 0


def test_both_sides_see_the_same(pair: Pair) -> None:
    for layout in (Layout(1, 1, 2, 2, 2, 3), Layout(3, 2, 70, 70, 3, 5), Layout(2, 1, 3, 3, 2, 4)):
        for channel in pair:
            channel.arrange(layout)
        ours, theirs = pair
        x = torch.randn(layout.batch, layout.channels, layout.height, layout.width)
        ours.images().copy_(x)
        assert torch.equal(theirs.images(), x)
        logits = [torch.randn(layout.batch, layout.classes) for _ in range(layout.stages)]
        for stage, row in enumerate(logits, 1):
            theirs.logits(stage, layout.batch).copy_(row)
        rows = torch.arange(layout.batch) + 7
        ours.rows(layout.batch).copy_(rows)
        for stage, row in enumerate(logits, 1):
            assert torch.equal(ours.logits(stage, layout.batch), row)
        assert torch.equal(theirs.rows(layout.batch), rows)
        assert torch.equal(theirs.images(), x)


@pytest.mark.parametrize("many_handles", [False, True])
def test_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch, many_handles: bool) -> None:
    if many_handles:  # what select() does for a handle above 1023

        def refuse(*_: Any) -> None:
            raise ValueError("filedescriptor out of range in select()")

        monkeypatch.setattr(select, "select", refuse)
    ours, theirs = pair
    start = time.monotonic()
    assert not ours.wait(start + 0.03)
    assert time.monotonic() - start >= 0.03
    assert not ours.wait(start)  # the past
    timer = threading.Timer(0.02, theirs.send, [Message(BEGIN, 1)])
    timer.start()
    assert ours.wait(math.inf)
    timer.join()
    assert ours.wait(start)
    assert ours.receive() == Message(BEGIN, 1)
    assert ours.receive() is None
    theirs.close()
    assert ours.wait(math.inf)
    with pytest.raises(EOFError):
        ours.receive()


def fill(channel: Channel) -> int:
    """Messages until the other side, which does not read, takes no more."""
    for number in range(1_000_000):
        try:
            channel.send(Message(CANCEL, number))
        except BlockingIOError:
            return number
    raise AssertionError("the socket takes everything")


def test_a_full_channel_is_waited_for_and_no_longer_than_until() -> None:
    ours, theirs = socket.socketpair()
    near, far = Channel(ours, memory()), Channel(theirs, memory())
    sent = fill(near)
    begun = time.monotonic()
    with pytest.raises(BlockingIOError):
        near.send(Message(CANCEL, sent), until=begun + 0.05)
    assert 0.05 <= time.monotonic() - begun < 2.0

    def read() -> None:
        time.sleep(0.05)
        while far.receive() is not None:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    near.send(Message(CANCEL, sent), until=math.inf)
    reader.join()
    near.close()
    far.close()


def test_a_process_that_is_behind_costs_answers_and_no_error() -> None:
    """A starved process reads nothing for many deadlines: each has no answer, and none fails."""
    ours, theirs = socket.socketpair()
    channel, stuck = Channel(ours, memory()), Channel(theirs, memory())
    fill(channel)
    session = SimpleNamespace(in_channels=1, num_stages=2, num_classes=3, give_back=lambda _: None)
    for _ in range(3):
        due = time.monotonic() + 0.02
        evaluation = IsolatedEvaluation(
            cast(IsolatedSession, session), channel, 1, torch.zeros(1, 1, 2, 2), due, False
        )
        assert not evaluation.ready(due)
        evaluation.close()
    channel.close()
    stuck.close()
