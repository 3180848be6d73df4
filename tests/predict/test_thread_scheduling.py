"""Linux scheduling of the computing thread: no other thread changes, and nothing raises."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest
import torch

from anynest.predict import thread_scheduling
from anynest.predict.predictor import AnytimePredictor
from anynest.predict.thread_scheduling import (
    BEHIND_NICE,
    NICE,
    SCHEDULING,
    SLICE,
    read_slice,
    schedule_thread,
)

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have no scheduling of their own"
)
State = tuple[str, int, int | None]  # what took effect, nice value, slice


def nice_value() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_thread(scheduling: str) -> State:
    """Schedule a new thread, and read back its state."""
    found: list[State] = []

    def run() -> None:
        found.append((schedule_thread(scheduling), nice_value(), read_slice()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@linux
def test_each_way_changes_its_own_thread_alone() -> None:
    nice, length = nice_value(), read_slice()
    expected = {
        "none": ("none", nice, length),
        "nice": ("nice", min(19, nice + NICE), length),
        "slice": ("slice", nice, SLICE) if length else ("none", nice, None),
    }
    expected["auto"] = expected["slice" if length else "nice"]
    behind = SLICE if length else None
    expected["behind"] = ("behind", min(19, nice + BEHIND_NICE), behind)
    if nice == 19:  # already the largest
        expected["nice"], expected["behind"] = ("none", nice, length), ("none", nice, behind)
    assert {way: in_thread(way) for way in SCHEDULING} == expected
    assert (nice_value(), read_slice()) == (nice, length)


@linux
@pytest.mark.parametrize("kernel", ["without the call", "without the field"])
def test_an_older_kernel_has_nice_values(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if nice_value() == 19:
        pytest.skip("no nice value is left")
    code = -1 if kernel == "without the call" else 0
    monkeypatch.setattr(thread_scheduling, "_syscall", lambda *_: code)
    assert [in_thread(way)[0] for way in ("auto", "slice", "nice", "behind")] == [
        "nice",
        "none",
        "nice",
        "behind",
    ]


@pytest.mark.parametrize("error", [PermissionError, AttributeError])
def test_what_the_system_refuses_is_left_as_it_is(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise error("refused")

    monkeypatch.setattr(thread_scheduling, "_syscall", refuse)
    monkeypatch.setattr(os, "setpriority", refuse)
    assert [schedule_thread(way) for way in SCHEDULING] == ["none"] * len(SCHEDULING)


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems the nice value is the process's, so it must not change."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "setpriority", lambda *_: pytest.fail("changed the process"))
    assert [schedule_thread(way) for way in SCHEDULING] == ["none"] * len(SCHEDULING)


def test_processors_whose_call_numbers_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_scheduling.platform, "machine", lambda: "abacus")
    assert read_slice() is None


@linux
def test_a_predictor_changes_its_computing_thread_alone(make_session: Any) -> None:
    seen: set[State] = set()
    session = make_session(on_step=lambda *_: seen.add(("", nice_value(), read_slice())))
    before = nice_value(), read_slice()
    for way in SCHEDULING:
        seen.clear()
        with AnytimePredictor(session, scheduling=way) as predictor:
            predictor.predict(torch.zeros(1, 2, 2), None)
            assert seen == {("", *in_thread(way)[1:])}
        assert (nice_value(), read_slice()) == before
    with pytest.raises(
        ValueError, match="scheduling must be one of auto, slice, nice, behind, none, found"
    ):
        AnytimePredictor(session, scheduling="fifo")
