"""The serving benchmark: its arrivals, its load generator, its counts, its tables."""

from __future__ import annotations

import base64
import itertools
import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules, which are in no package."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        import _serve_arrivals
        import _serve_load
        import _serve_network
        import _serve_plan
        import _serve_processes
        import _serve_report
        import _simulation

        yield SimpleNamespace(
            arrivals=_serve_arrivals,
            load=_serve_load,
            network=_serve_network,
            plan=_serve_plan,
            processes=_serve_processes,
            report=_serve_report,
            simulation=_simulation,
        )
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


# -- arrivals ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["poisson", "gamma", "code", "conv"])
def test_arrivals_have_their_rate_and_burstiness(bench: Any, kind: str) -> None:
    times = bench.arrivals.arrival_times(kind, rate=400, seconds=10)
    assert len(times) == 4000
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 10
    assert bench.arrivals.cv2_of(times) == pytest.approx(bench.arrivals.CV2[kind], rel=0.1)
    assert times == bench.arrivals.arrival_times(kind, rate=400, seconds=10)
    assert times != bench.arrivals.arrival_times(kind, rate=400, seconds=10, seed=1)


def test_square_bursts(bench: Any) -> None:
    module = bench.arrivals
    times = np.array(module.arrival_times("square", rate=2000, seconds=20))
    assert len(times) == pytest.approx(40_000, rel=0.03)
    high = times % module.PERIOD < module.SHARE * module.PERIOD
    assert high.mean() == pytest.approx(module.SHARE * module.PEAK, rel=0.03)


# -- generator --------------------------------------------------------------------------------------
Handler = Callable[[int, bytes, bytes], "bytes | None"]


@contextmanager
def stub(handler: Handler, delay: float = 0.0) -> Iterator[int]:
    """A server on loopback: ``handler(number, head, body)`` gives a response, or None to close."""
    count = itertools.count(1)
    ended = threading.Event()

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = self.rfile.readline()
                    if not line:
                        return
                    head += line
                lines = head.lower().split(b"\r\n")
                (size,) = (int(x[15:]) for x in lines if x.startswith(b"content-length:"))
                answer = handler(next(count), head, self.rfile.read(size))
                if ended.wait(delay) or answer is None:
                    return
                try:
                    self.wfile.write(answer)
                except OSError:
                    return  # the client has gone

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 64
        daemon_threads = True

    with Server(("127.0.0.1", 0), Connection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def response(body: bytes, status: int = 200, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def generate(bench: Any, port: int, count: int = 10, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"deadline": 30.0, "patience": 60.0, "spin": False} | more
    plan = bench.load.Plan(
        port=port,
        times=[0.002 * n for n in range(count)],
        bodies=[bytes([n]) * 12 for n in range(5)],
        **options,
    )
    outcome: dict[str, Any] = bench.load.Generator(plan).run()
    return outcome


def test_raw_requests_are_answered_and_timed(bench: Any) -> None:
    def handler(number: int, head: bytes, body: bytes) -> bytes:
        return response(b'{"label": %d}' % body[0])

    with stub(handler, delay=0.05) as port:
        outcome = generate(bench, port)
    assert outcome["status"].tolist() == [200] * 10
    assert outcome["label"].tolist() == [n % 5 for n in range(10)]
    assert (outcome["done"] - outcome["scheduled"] >= 0.05).all()
    assert (outcome["sent"] >= outcome["scheduled"]).all()
    # open loop: nobody waited for the first answer
    assert np.allclose(np.diff(outcome["scheduled"]), 0.002)


def test_latency_counts_from_the_scheduled_send(bench: Any) -> None:
    with stub(lambda *_: response(b'{"label": 1}')) as port:
        plan = bench.load.Plan(port=port, times=[0.0], bodies=[b"x"], deadline=1.0, spin=False)
        generator = bench.load.Generator(plan)
        original = generator.send

        def slow(number: int) -> None:
            time.sleep(0.2)
            original(number)

        generator.send = slow
        outcome = generator.run()
    assert outcome["done"][0] - outcome["scheduled"][0] >= 0.2
    assert outcome["sent"][0] - outcome["scheduled"][0] >= 0.2


def test_v2_requests_state_what_is_left_of_the_deadline(bench: Any) -> None:
    seen: list[Any] = []
    left: list[float] = []  # milliseconds

    def handler(number: int, head: bytes, body: bytes) -> bytes:
        lines = dict(
            line.split(b": ") for line in head.lower().strip().split(b"\r\n")[1:] if b": " in line
        )
        length = int(lines[b"inference-header-content-length"])
        header = json.loads(body[:length])
        seen.append((header, body[length:]))
        left.append(float(lines[b"anynest-timeout-ms"]))
        parameters = {"stage": 2, "elapsed_us": 1500}
        answer = {"outputs": [{"name": "label", "data": ["dog"]}], "parameters": parameters}
        return response(json.dumps(answer).encode())

    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 2, 2]}
    with stub(handler) as port:
        classes = ["cat", "dog"]
        outcome = generate(bench, port, dialect="v2", tensor=tensor, stages=2, classes=classes)
    assert outcome["label"].tolist() == [1] * 10
    assert outcome["stage"].tolist() == [2] * 10
    assert np.allclose(outcome["elapsed"], 0.0015)
    assert sorted(pixels for _, pixels in seen) == sorted(bytes([n % 5]) * 12 for n in range(10))
    for header, pixels in seen:
        (given,) = header["inputs"]
        assert given["parameters"]["binary_data_size"] == len(pixels) == 12
        assert header["parameters"]["stages"] == 2
    assert all(20_000 < one <= 30_000 for one in left)


def test_base64_requests_are_json_alone(bench: Any) -> None:
    def handler(number: int, head: bytes, body: bytes) -> bytes:
        (given,) = json.loads(body)["inputs"]
        pixels = base64.b64decode(given["data"][0])
        assert b"inference-header" not in head.lower()
        return response(b'{"outputs": [{"data": [%d]}], "parameters": {}}' % pixels[-1])

    with stub(handler) as port:
        outcome = generate(bench, port, dialect="base64", tensor={"name": "image"})
    assert outcome["label"].tolist() == [n % 5 for n in range(10)]


def test_statuses_closed_connections_and_chunks(bench: Any) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b'5\r\n{"lab\r\n8\r\nel": 4}\n\r\n0\r\n\r\n'
    answers = {
        0: response(b"{}", 503),
        1: response(b'{"label": 3}', more="Connection: close\r\n"),
        2: chunked,
        3: None,  # closes without an answer
        4: response(b"{}", 504),
    }
    with stub(lambda number, head, body: answers[body[0]]) as port:
        outcome = generate(bench, port)
    assert outcome["status"].tolist() == [503, 200, 200, bench.load.RESET, 504] * 2
    assert outcome["label"].tolist() == [-1, 3, 4, -1, -1] * 2
    assert not outcome["retried"][[0, 1, 2, 4]].any()


def test_requests_on_a_connection_that_the_server_closes_are_sent_again(bench: Any) -> None:
    answers = {1: None, 2: response(b'{"label": 3}')}
    with stub(lambda number, *_: answers[number]) as port:
        plan = bench.load.Plan(
            port=port, times=[0.0], bodies=[b"x"], deadline=30.0, patience=60.0, spin=False
        )
        generator = bench.load.Generator(plan)
        original = generator.connect

        def connect() -> Any:
            connection = original()
            connection.fresh = False  # as if it had carried a request before
            return connection

        generator.connect = connect
        outcome = generator.run()
    assert outcome["status"].tolist() == [200]
    assert outcome["retried"].tolist() == [1]


def test_clients_give_up_vanish_and_err(bench: Any) -> None:
    wrong: list[bytes] = []

    def handler(number: int, head: bytes, body: bytes) -> bytes:
        wrong.append(body)
        return response(b'{"error": "x"}', 400)

    with stub(lambda *_: response(b"{}"), delay=20.0) as port:
        outcome = generate(bench, port, patience=0.1)
        assert outcome["status"].tolist() == [bench.load.GAVE_UP] * 10
        assert (outcome["done"] - outcome["scheduled"] >= 0.1).all()
        outcome = generate(bench, port, vanish=1.0, deadline=0.1)
        assert outcome["status"].tolist() == [bench.load.VANISHED] * 10
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 2, 2]}
    with stub(handler) as port:
        outcome = generate(bench, port, dialect="v2", tensor=tensor, malformed=1.0)
    assert outcome["status"].tolist() == [400] * 10
    assert len({bytes(body) for body in wrong}) == 4  # two differ in their headers alone
    with stub(handler) as port:
        pass
    plan = bench.load.Plan(
        port=port, times=[0.0], bodies=[b"x"], deadline=1.0, spin=False, connections=0
    )
    assert bench.load.Generator(plan).run()["status"].tolist() == [bench.load.REFUSED]


# -- counts -----------------------------------------------------------------------------------------
def test_late_and_refused_answers_are_wrong(bench: Any) -> None:
    scheduled = 100 + np.arange(6.0)
    latency = np.array([0.01, 0.03, 0.01, 0.002, 0.02, 0.01])
    outcome = {
        "kind": np.array([0, 0, 0, 0, 0, 2]),
        "status": np.array([200, 200, 200, 503, 504, 400]),
        "scheduled": scheduled,
        "sent": scheduled + 0.001,
        "done": scheduled + latency,
        "stage": np.array([3, 3, 1, 0, 0, 0]),
        "label": np.array([0, 1, 9, -1, -1, -1]),
        "busy": np.array(1.0),
        "wall": np.array(5.0),
        "start": np.array(100.0),
        "bare": np.array([0.0001, 0.0002]),
    }
    found = bench.processes.summarise(outcome, np.array([0, 1, 2]), 0.02)
    assert found["requests"] == 5
    assert found["in_time"] == 2 / 5  # the second is late
    assert found["in_time_of_accepted"] == 2 / 4
    assert found["accuracy"] == 1 / 5  # the third is wrong
    assert found["mean_stage"] == 2.0
    assert found["stages"] == [0, 1, 0, 1]
    assert (found["refused"], found["timeouts"], found["errors"]) == (1 / 5, 1, 0)
    assert found["refusal"]["p99"] == pytest.approx(0.001)
    assert found["overshoot"]["p99.9"] == pytest.approx(0.01, rel=0.01)
    assert found["lag"]["max"] == pytest.approx(0.001)
    assert found["in_time_per_second"] == 2 / 4
    assert bench.processes.summarise(outcome, np.array([0, 1, 2]), 0.02, 2)["mean_stage"] == 2.0


def test_capacity_is_that_of_the_best_batch(bench: Any) -> None:
    seconds = [[0.001, 0.0018, 0.004], [0.003, 0.0042, 0.012]]
    facts = bench.network.Facts("m", 1, [0.5, 0.6], [], [], [1, 2, 4], seconds, seconds, "")
    assert facts.capacity == pytest.approx(2 / 0.006)
    assert facts.first == pytest.approx(2 / 0.0018)


# -- simulation -------------------------------------------------------------------------------------
def test_overheads_delay_steps_and_answers(bench: Any) -> None:
    from anynest.serving.estimates import StepTimes
    from anynest.serving.scheduler import Scheduler

    cost = bench.simulation.Overheads(transit=0.001, receive=0.0003, answer=0.0002, step=1e-5)

    def run(arrivals: list[Any], **more: Any) -> Any:
        times = StepTimes([[0.002], [0.003]], [1])
        return bench.simulation.simulate(arrivals, lambda: Scheduler(times), **more)[0]

    arrivals = [bench.simulation.Arrival(0.0, 0.1)]
    (plain,) = run(arrivals)
    assert plain.answered == pytest.approx(0.005)
    (one,) = run(arrivals, overheads=cost)
    assert one.answered == pytest.approx(0.001 + 0.0003 + 0.00502 + 0.0002 + 0.001)
    # a second arrival in the first step makes that step longer
    arrivals.append(bench.simulation.Arrival(0.001, 0.1))
    first, second = run(arrivals, overheads=cost)
    assert second.answered > first.answered
    total = 2 * (0.00502 + 0.0003 + 0.0002) + 0.002
    assert max(first.answered, second.answered) == pytest.approx(total)
    # steps that really take twice as long
    slow = StepTimes([[0.004], [0.006]], [1])
    (late,) = run(arrivals[:1], real=slow)
    assert late.answered == pytest.approx(0.010)


def test_confidences_decide_who_is_refined(bench: Any) -> None:
    from anynest.serving.estimates import Gains, StepTimes
    from anynest.serving.scheduler import Scheduler

    gains = Gains.of_errors([0.5, 0.1])
    arrivals = [bench.simulation.Arrival(0.0, 0.009) for _ in range(2)]
    for confidences, stages in (((0.9, 0.1), [1, 2]), ((0.1, 0.9), [2, 1])):
        times = StepTimes([[0.002, 0.002], [0.004, 0.008]], [1, 2])
        outcomes, _ = bench.simulation.simulate(
            arrivals, lambda t=times: Scheduler(t, gains), confidences=[confidences, confidences]
        )
        assert [outcome.stage for outcome in outcomes] == stages
    assert bench.plan.result(outcomes, ["11", "01"]) == {
        **{"in_time": 1.0, "mean_stage": 1.5, "refused": 0.0, "accuracy": 0.5}
    }


def records(bench: Any) -> list[dict[str, Any]]:
    seconds = [[0.001, 0.006], [0.002, 0.012]]
    right = ["10" * 50, "1011101101" * 10]
    confidence = [[0.5] * 100, [0.7] * 100]
    facts = bench.network.Facts(
        "net", 100, [0.5, 0.7], right, confidence, [1, 8], seconds, seconds, ""
    )
    environment = {"processor": "p", "cores": 2, "python": "3"}
    found = [
        {"kind": "facts", **facts.to_json(), "environment": environment, "versions": {"x": "1"}},
        {"kind": "overheads", "transit": 1e-4, "receive": 1e-4, "answer": 1e-4, "step": 1e-4},
    ]
    quantiles = {"p50": 0.0, "p90": 0.0, "p99": 0.001, "p99.9": 0.002}
    for server, accuracy in (("anynest", 0.69), ("static 1", 0.5), ("static 2", 0.66)):
        for arrivals, load in (("poisson", 0.6), ("poisson", 1.5), ("gamma", 1.5), ("code", 1.5)):
            found.append(
                {
                    **{"kind": "load", "server": server, "arrivals": arrivals, "load": load},
                    **{"deadline": 0.025, "rate": load * facts.capacity, "seconds": 1.0},
                    **{"requests": 100, "in_time": 1.0, "mean_stage": 1.95, "timeouts": 0},
                    **{"refused": 0.0, "accuracy": accuracy, "in_time_per_second": 1.0},
                    **{"refusal": quantiles, "overshoot": quantiles, "bare": quantiles},
                    **{"lag": quantiles, "generator": {"busy": 0.1, "limit": 9000.0}},
                    **{"memory": [2**27, 2**27], "command": "python serve.py"},
                }
            )
    return found


def test_predictions_stand_beside_what_was_measured(bench: Any) -> None:
    found = bench.plan.predictions(records(bench), seed=1)
    assert [r["server"] for r in found].count("anynest") == 4
    ours = found[0]
    assert ours["predicted"]["in_time"] == pytest.approx(1.0, abs=0.05)
    assert 1.5 < ours["predicted"]["mean_stage"] <= 2
    assert ours["measured"]["accuracy"] == 0.69
    by_server = {r["server"]: r["predicted"]["accuracy"] for r in found if r["load"] == 0.6}
    assert by_server["static 1"] == pytest.approx(0.5, abs=0.02)
    assert by_server["static 2"] == pytest.approx(0.7, abs=0.02)
    same = dict.fromkeys(bench.plan.COMPARED, 0.5)
    assert bench.plan.error(same, same) == 0
    assert bench.plan.error(same | {"accuracy": 0.55}, same) == pytest.approx(0.1)


def test_plans_of_many_replicas(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.plan, "REQUESTS", 1500)
    found: list[Any] = []
    bench.plan.plans(records(bench), (1, 8), found.append)
    assert len(found) == 2 * len(bench.plan.PLANNED) * len(bench.plan.FRONTS)
    by = {(r["load"], r["replicas"], r["front"]): r["mean_stage"] for r in found}
    assert by[0.6, 8, "least-loaded"] >= by[0.6, 8, "round-robin"] >= by[1.5, 8, "round-robin"]


def test_goals_and_tables(bench: Any, tmp_path: Path) -> None:
    rows = records(bench)
    text = bench.report.markdown(rows)
    assert "| 0.6 C, Poisson, 25 ms: 99.9 % in time, mean stage 2.9 |" in text
    assert "mean stage 1.950 | **no** |" in text
    assert "| +3.0 to +3.0 points | yes |" in text
    assert "+3.0 |" in text
    rows[-1]["accuracy"] = 0.68  # the best static network on bursts
    text = bench.report.markdown(rows)
    assert "| +1.0 to +3.0 points | **no** |" in text
    assert "| +1.0 points at least | yes |" in text
    rows[-2]["accuracy"] = 0.70
    assert "| -1.0 points at least | **no** |" in bench.report.markdown(rows)
    rows[-2]["accuracy"] = 0.66
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- serve.py: begin -->\nold\n<!-- serve.py: end -->\nafter\n")
    for _ in range(2):
        bench.report.write_into(page, rows)
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert written.count(text) == 1
    assert "old" not in written
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the marks"):
        bench.report.write_into(page, rows)


def test_later_records_replace_earlier_ones(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    rows = records(bench)
    again = rows[2] | {"accuracy": 0.1}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, again]))
    found = bench.report.read_records(file)
    assert len(found) == len(rows)
    assert found[2]["accuracy"] == 0.1
    bench.report.draw(found, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_rounds_of_a_load_are_one_record(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    (load,) = [row for row in records(bench) if row["kind"] == "load"][:1]
    rounds = [
        load | {"round": number, "in_time": share, "requests": 10, "overshoot": {"p99.9": worst}}
        for number, (share, worst) in enumerate([(0.9, 0.3), (0.5, 0.1), (0.8, 0.2)])
    ]
    replaced = rounds[1] | {"in_time": 0.1}
    file.write_text("".join(json.dumps(row) + "\n" for row in [replaced, *rounds]))
    (found,) = bench.report.read_records(file)
    assert (found["in_time"], found["requests"], found["rounds"]) == (0.8, 30, 3)
    assert found["spread"]["in_time"] == [0.5, 0.9]
    assert found["overshoot"] == {"p99.9": 0.3}
    assert bench.report.ranged(found, "in_time", bench.report.percent) == "80.00 (50.00 to 90.00)"


def test_one_c_for_all_records_of_a_network(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    out, digest = tmp_path / "out.jsonl", bench.network.digest_of(tmp_path)
    assert bench.network.known_facts(out, tmp_path) is None
    facts = bench.network.Facts("m", 1, [0.5], [], [], [1], [[0.1]], [[0.1]], digest)
    out.write_text(json.dumps({"kind": "facts", **facts.to_json()}) + "\n")
    assert bench.network.known_facts(out, tmp_path) == facts
    (tmp_path / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(SystemExit, match="must hold records of this network"):
        bench.network.known_facts(out, tmp_path)


@pytest.mark.slow
def test_quick_run(tmp_path: Path, bench: Any) -> None:
    """All of our own parts with a real server, then the simulation and the page."""
    out = tmp_path / "out.jsonl"

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, FOLDER / "serve.py", "--quick", "--out", out, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("--part", "ours", "--part", "soak", "--minutes", "0.05", "--run", tmp_path / "run")
    kinds = [record["kind"] for record in bench.report.read_records(out)]
    assert set(kinds) == {"facts", "idle", "overheads", "load", "soak"}
    assert "predicted / measured" in run("--simulate")
    found = bench.report.read_records(out)
    for record in bench.report.of_kind(found, "load"):
        assert record["requests"] > 0
        assert record["errors"] == record["lost"] == 0
        assert sum(record["stages"]) == pytest.approx(record["in_time"] * record["requests"])
    (soak,) = bench.report.of_kind(found, "soak")
    assert soak["next_right"]
    assert all(400 <= int(status) < 500 for status in soak["malformed_status"])
    assert bench.report.of_kind(found, "predicted")
    assert bench.report.markdown(found)
