"""Closing, garbage collection, forks, interpreter exit, and many predictions."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest import create_model
from anynest.predict.predictor import JOIN_TIMEOUT, AnytimePredictor
from anynest.predict.scheduler import EXIT_TIMEOUT

from .conftest import PATIENCE, settle

ROOT = Path(__file__).parents[2]

Image = Callable[[float], Tensor]


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "anynest-predictor"]


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def tiny() -> Any:
    torch.manual_seed(0)
    return create_model("width_nested_resnet10", in_channels=1, base_width=2).eval()


# -- closing ---------------------------------------------------------------------------------------
def test_closed_is_closed(make_session: Any, make_image: Image) -> None:
    predictor = AnytimePredictor(make_session())
    predictor.close()
    predictor.close()
    for ask in (predictor.predict, predictor.stream):
        with pytest.raises(RuntimeError, match="the predictor is closed; open another"):
            ask(make_image(1.0))
    assert not threads()


def test_closing_ends_what_others_wait_for(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(2)
    session = make_session(on_step=gate)
    predictor = AnytimePredictor(session)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(predictor.predict, make_image(1.0), None) for _ in range(2)]
        assert gate.reached.wait(PATIENCE)
        threading.Timer(0.02, gate.opened.set).start()
        predictor.close()
        for future in waiting:
            with pytest.raises(RuntimeError, match="the predictor is closed"):
                future.result(PATIENCE)
    assert not session.open
    assert not threads()
    assert not session.closed  # it is the caller's


def test_closing_interrupts_the_running_step(make_session: Any, make_image: Image) -> None:
    """An engine that stops within a step reports it as an error, which the caller does not see."""
    reached = threading.Event()

    def on_step(stage: int, node: int) -> None:
        if stage == 2:
            reached.set()
            settle(lambda: session.cancels > 0)
            raise RuntimeError("interrupted")

    session = make_session(on_step=on_step)
    predictor = AnytimePredictor(session)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predictor.predict, make_image(1.0), None)
        assert reached.wait(PATIENCE)
        predictor.close()
        with pytest.raises(RuntimeError, match="the predictor is closed"):
            waiting.result(PATIENCE)
    assert not session.open


def test_opened_sessions_are_closed_with_it() -> None:
    predictor = AnytimePredictor(tiny())
    predictor.close()
    with pytest.raises(RuntimeError, match="closed"):
        predictor.session.begin(torch.zeros(1, 1, 8, 8))


def test_a_dropped_predictor_ends_its_thread(make_session: Any, make_image: Image) -> None:
    predictor = AnytimePredictor(make_session())
    predictor.predict(make_image(1.0), None)
    (thread,) = threads()
    gone = weakref.ref(predictor)
    stream = predictor.stream(make_image(1.0))
    del predictor
    gc.collect()
    assert gone() is not None  # a stream keeps it
    assert len(list(stream)) == 3
    del stream
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE)
    assert not thread.is_alive()


# -- forks and exits -------------------------------------------------------------------------------
HEAD = """
import sys, threading, time, os
import torch
torch.set_num_threads(1)
from anynest import AnytimePredictor, create_model
model = create_model("width_nested_resnet10", base_width=16).eval()
big = torch.randn(8, 3, 32, 32)
"""
SCRIPTS = {
    "running": """
predictor = AnytimePredictor(model)
predictor.predict(big, None)  # graphs are made for a first size
def ask():
    try:
        while True:
            predictor.predict(big, None)
    except RuntimeError:  # the predictor is closed
        pass
threading.Thread(target=ask, daemon=True).start()
time.sleep(0.2)
""",
    "stuck": """
class Stuck:
    backend, num_stages, num_classes, in_channels = "torch", 2, 2, 3
    def begin(self, x): return self
    stage = 0
    def step(self): time.sleep(3600)
    def cancel(self): pass
    def close(self): pass
import anynest.predict.scheduler
anynest.predict.scheduler.EXIT_TIMEOUT = 0.5  # for a step that never ends
stuck = AnytimePredictor(Stuck())
stuck.predict(big[:1], 0.05, on_timeout="guess")
""",
    "fork": """
predictor = AnytimePredictor(model)
x = big[0]
assert predictor.predict(x, None).stage == 3
pid = os.fork()
if pid == 0:
    try:
        predictor.predict(x, None)
    except RuntimeError as error:
        assert "os.fork" in str(error), error
        sys.exit(0)  # runs atexit handlers
    sys.exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert predictor.predict(x, None).stage == 3  # unchanged by the child
stream = predictor.stream(big[:2])
next(stream)
left = predictor.stream(big)
sys.exit(7)
""",
}


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_exits_never_hang() -> None:
    """In parallel, because each is mostly imports; a forked child exits too."""
    started = {name: start(script) for name, script in SCRIPTS.items()}
    try:
        for name, running in started.items():
            out, err = running.communicate(timeout=120)
            assert running.returncode == (7 if name == "fork" else 0), (name, err)
            assert (out, err) == ("", ""), name
    finally:
        for running in started.values():
            running.kill()
            running.communicate()


# -- a long life -----------------------------------------------------------------------------------
def live(predictor: AnytimePredictor, x: Tensor, count: int) -> None:
    """Predictions of every kind."""
    for number in range(count):
        kind = number % 5
        if kind == 0:
            predictor.predict(x, None)
        elif kind == 1:
            predictor.predict(x, 0.0, on_timeout="guess")
        elif kind == 2:
            next(predictor.stream(x))
        elif kind == 3:
            predictor.predict(x.expand(2, *x.shape), None)
        else:
            with pytest.raises(ValueError, match="finite"):
                predictor.predict(x * float("nan"), None)


def held() -> tuple[int, int, int]:
    """Threads, handles, and objects tracked by the garbage collector."""
    gc.collect()
    return threading.active_count(), handles(), len(gc.get_objects())


def test_nothing_piles_up() -> None:
    x = torch.randn(1, 8, 8)
    with AnytimePredictor(tiny(), threads=1) as predictor:
        live(predictor, x, 200)
        before = held()
        live(predictor, x, 1000)
        settle(lambda: predictor._scheduler._inbox.empty())
        after = held()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 60  # one object per prediction would be 1000


def test_the_docs_say_how_long_an_exit_may_take() -> None:
    assert EXIT_TIMEOUT == JOIN_TIMEOUT
    told = f"finishes its step first ({EXIT_TIMEOUT:g} seconds at most)"
    assert told in (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
