"""From opening to the end: closing, being forgotten, forks, the interpreter's exit, and a long life."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest import create_model
from anynest.predict.in_flight import CLOSED
from anynest.predict.isolated import IsolatedSession
from anynest.predict.prediction import NetworkError
from anynest.predict.predictor import AnytimePredictor
from anynest.predict.scheduler import EXIT_TIMEOUT
from anynest.store import RunError

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


@pytest.fixture(scope="module")
def process() -> Iterator[AnytimePredictor]:
    """A predictor whose network is in a real process of its own."""
    with AnytimePredictor(tiny(), threads=1) as predictor:
        yield predictor


# -- closing ------------------------------------------------------------------------------------------
def test_closed_is_closed(open_predictor: Any, make_session: Any, make_image: Image) -> None:
    predictor = open_predictor(make_session())
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


def test_opened_sessions_are_closed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = AnytimePredictor(tiny(), isolated=False)
    predictor.close()
    with pytest.raises(RuntimeError, match="closed"):
        predictor.session.begin(torch.zeros(1, 1, 8, 8))


def test_a_forgotten_predictor_ends_its_thread(make_session: Any, make_image: Image) -> None:
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


# -- a real process -----------------------------------------------------------------------------------
def test_the_same_answers_as_the_network(process: AnytimePredictor) -> None:
    model = tiny()
    for size in ((1, 8, 8), (5, 12, 9), (1, 4, 4), (3, 16, 16)):
        x = torch.randn(size[0], 1, *size[1:])
        with torch.no_grad():
            expected = model(x)
        found = [p.logits for p in process.stream(x)]
        assert len(found) == 3
        for logits, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-5)


def test_from_several_threads(process: AnytimePredictor) -> None:
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        expected = tiny()(images)[-1]

    def ask(number: int) -> None:
        logits = process.predict(images[number % 8], None).logits
        torch.testing.assert_close(logits, expected[number % 8], rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(120)))
    assert isinstance(process.session, IsolatedSession)
    assert len(process.session._all) <= 6


def test_closing_ends_what_others_wait_for_in_a_process() -> None:
    """All of them, also in the event loop that closes it; and no handle is left."""
    x = torch.zeros(1, 8, 8)
    predictor = AnytimePredictor(tiny(), threads=1, isolated=True)
    assert isinstance(predictor.session, IsolatedSession)
    predictor.predict(x, None)
    os.kill(predictor.session.process.pid, signal.SIGSTOP)

    async def main() -> list[BaseException | object]:
        under_way = [predictor.apredict(x, None), anext(predictor.astream(x))]
        tasks = [asyncio.ensure_future(call) for call in under_way]
        await asyncio.sleep(0.05)
        predictor.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(predictor.predict, x, None),
            pool.submit(predictor.predict, x, PATIENCE),
            pool.submit(next, predictor.stream(x)),
        ]
        found = asyncio.run(asyncio.wait_for(main(), PATIENCE))
        found += [future.exception(PATIENCE) for future in waiting]
    assert [(type(error), str(error)) for error in found] == [(RuntimeError, CLOSED)] * 5
    assert all(channel.socket.fileno() == -1 for channel in predictor.session._all)


def test_a_forgotten_process_ends() -> None:
    before = handles()
    part, x = tiny().subnetwork(2), torch.randn(1, 8, 8)
    for module in part.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.1  # in no state_dict
    predictor = AnytimePredictor(part, threads=1)
    assert isinstance(predictor.session, IsolatedSession)
    pid = predictor.session.process.pid
    logits = predictor.predict(x, None).logits
    with torch.no_grad():
        torch.testing.assert_close(logits, part(x.unsqueeze(0))[0][0], rtol=1e-4, atol=1e-5)
    del predictor
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # neither running nor a zombie
    assert handles() == before


def test_what_a_process_cannot_open(tmp_path: Any) -> None:
    before = handles()
    with pytest.raises(ValueError, match=r"^backend must be one of"):
        IsolatedSession.open(tiny(), backend="abacus")
    gc.collect()
    assert handles() == before


# -- forks and exits ----------------------------------------------------------------------------------
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
predictor = AnytimePredictor(model, isolated=ISOLATED)
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
import anynest.runtime.worker
anynest.predict.scheduler.EXIT_TIMEOUT = 0.5  # patience for a step that never ends
stuck = AnytimePredictor(Stuck())
stuck.predict(big[:1], 0.05, when_nothing="guess")
""",
    "fork": """
predictor = AnytimePredictor(model, isolated=ISOLATED)
x = big[0]
assert predictor.predict(x, None).stage == 3
pid = os.fork()
if pid == 0:
    try:
        predictor.predict(x, None)
    except RuntimeError as error:
        assert "os.fork" in str(error), error
        sys.exit(0)  # with all that an exit runs
    sys.exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert predictor.predict(x, None).stage == 3  # the child has left the parent's alone
stream = predictor.stream(big[:2])
next(stream)
left = predictor.stream(big)
sys.exit(7)
""",
}
ORPHAN = """
predictor = AnytimePredictor(model, isolated=True)
def ask():
    while True:
        predictor.predict(big, None)
threading.Thread(target=ask, daemon=True).start()
print(predictor.session.process.pid, flush=True)
time.sleep(3600)
"""
WAYS = [(name, way) for name in SCRIPTS for way in (False, True) if (name, way) != ("stuck", True)]


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_exits_never_hang() -> None:
    """All at once, for each is mostly imports; in a fork's child as well."""
    started = [start(SCRIPTS[name].replace("ISOLATED", str(way))) for name, way in WAYS]
    orphaned = start(ORPHAN)
    try:
        for (name, way), running in zip(WAYS, started, strict=True):
            out, err = running.communicate(timeout=120)
            assert running.returncode == (7 if name == "fork" else 0), (name, way, err)
            assert (out, err) == ("", ""), (name, way)
        assert orphaned.stdout is not None
        pid = int(orphaned.stdout.readline())
        orphaned.kill()
        settle(lambda: not os.path.exists(f"/proc/{pid}/exe"))  # a zombie's is gone
    finally:
        for running in (*started, orphaned):
            running.kill()
            running.communicate()


# -- a long life --------------------------------------------------------------------------------------
def live(predictor: AnytimePredictor, x: Tensor, count: int) -> None:
    """Predictions of every kind."""
    for number in range(count):
        kind = number % 5
        if kind == 0:
            predictor.predict(x, None)
        elif kind == 1:
            predictor.predict(x, 0.0, when_nothing="guess")
        elif kind == 2:
            next(predictor.stream(x))
        elif kind == 3:
            predictor.predict(x.expand(2, *x.shape), None)
        else:
            with pytest.raises(ValueError, match="finite"):
                predictor.predict(x * float("nan"), None)


def held() -> tuple[int, int, int]:
    """Threads, handles, objects that the garbage collector knows."""
    gc.collect()
    return threading.active_count(), handles(), len(gc.get_objects())


@pytest.mark.parametrize("way", ["thread", "process"])
def test_nothing_piles_up(way: str, request: pytest.FixtureRequest) -> None:
    x = torch.randn(1, 8, 8)
    if way == "process":
        predictor = request.getfixturevalue("process")
    else:
        predictor = AnytimePredictor(tiny(), isolated=False, threads=1)
    live(predictor, x, 200)
    before = held()
    live(predictor, x, 1000)
    if predictor._worker is not None:
        settle(lambda: predictor._worker._inbox.empty())
    after = held()
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 60  # an object a prediction would be a thousand
    if way == "thread":
        predictor.close()


def test_no_time_is_lost_on_the_way(process: AnytimePredictor) -> None:
    """A deadline among many, on whatever machine this is: most are kept to a few milliseconds."""
    x = torch.randn(64, 1, 16, 16)
    late, bare = [], []
    for _ in range(60):
        event = threading.Event()
        start = time.monotonic()
        event.wait(0.005)
        bare.append(time.monotonic() - start - 0.005)
        prediction = process.predict(x, 0.005, when_nothing="guess")
        late.append(prediction.overshoot)
    assert sorted(late)[30] < sorted(bare)[45] + 0.005


def test_a_process_that_is_killed(process: AnytimePredictor) -> None:
    """Last, for it is everybody's."""
    x = torch.zeros(1, 8, 8)
    assert isinstance(process.session, IsolatedSession)
    assert process.predict(x, None).stage == 3
    os.kill(process.session.process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises((NetworkError, RunError), match="compute process has ended, status -9"):
            process.predict(x, None)


def test_the_docs_say_how_long_an_exit_may_take() -> None:
    told = f"finishes its node first ({EXIT_TIMEOUT:g} second at most)"
    assert told in (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
