"""A long run with bad clients, and what happens when something is killed under load.

*Lost* is a request that the server had accepted and did not answer. A request that a client sends
while the server closes its connection, or refuses new ones, was never accepted: clients send such a
request again, and get 503 or no connection.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from _serve_arrivals import arrival_times
from _serve_load import MALFORMED, REFUSED, RESET, VANISH
from _serve_network import predicted_labels
from _serve_processes import Load, Server, Traffic, start_load, summarise

if TYPE_CHECKING:
    from serve import Bench

VANISHING, WRONG = 0.05, 0.01
DEADLINE = 0.05
PATIENT = 30.0  # seconds, enough for the last stage
CHECKED = 50  # images whose answers are compared afterwards


def soak(bench: Bench, minutes: float) -> None:
    """1.5 C with clients that vanish and malformed requests; memory, handles and queue over time."""
    seconds = 60 * minutes
    every = max(0.2, min(10.0, seconds / 60))
    with bench.ours() as server:
        traffic = bench.traffic(server)
        bench.warm(server, traffic)
        started, samples = time.monotonic(), [sample(server, 0.0)]
        load = start(bench, server, traffic, 1.5, seconds, vanish=VANISHING, malformed=WRONG)
        while load.process.poll() is None:
            time.sleep(every)
            samples.append(sample(server, time.monotonic() - started))
        outcome = load.outcome()
        time.sleep(1.0)  # the last connections are closed
        samples.append(sample(server, time.monotonic() - started))
        right = next_answers_right(bench, server, traffic)
    found = summarise(outcome, bench.labels, DEADLINE)
    wrong = outcome["status"][outcome["kind"] == MALFORMED]
    early, last = samples[1 + len(samples) // 5], samples[-1]
    flat = last["memory"] <= 1.05 * early["memory"] and last["files"] <= samples[0]["files"] + 2
    # a malformed request may be refused for its deadline before it is read
    rejected = bool(((wrong >= 400) & ((wrong < 500) | (wrong == 503) | (wrong == 504))).all())
    passed = flat and right and rejected and last["in_flight"] == 0 and found["lost"] == 0
    bench.record(
        "soak",
        minutes=minutes,
        samples=samples,
        malformed=int((outcome["kind"] == MALFORMED).sum()),
        malformed_status={int(s): int((wrong == s).sum()) for s in np.unique(wrong)},
        vanished=int((outcome["kind"] == VANISH).sum()),
        next_right=right,
        passed=passed,
        **found,
    )
    grown = (last["memory"] - early["memory"]) / 2**20
    print(
        f"{minutes:g} minutes at 1.5 C: memory {grown:+.1f} MiB after the first fifth, handles "
        f"{samples[0]['files']:.0f} to {last['files']:.0f}, in flight {last['in_flight']}, "
        f"{100 * found['in_time']:.2f} % in time, next answers {'right' if right else 'WRONG'}: "
        f"{'passed' if passed else 'FAILED'}",
        flush=True,
    )


def sample(server: Server, at: float) -> dict[str, Any]:
    """Memory, handles and threads of the server, and its requests in flight."""
    return {"at": at, **server.usage(), "in_flight": server.metric("anynest_in_flight")}


def next_answers_right(bench: Bench, server: Server, traffic: Traffic) -> bool:
    """Whether answers are those of the network, computed here."""
    times = [0.05 * n for n in range(CHECKED)]
    load = start_load(
        bench.folder,
        server.port,
        times,
        bench.images,
        traffic,
        PATIENT,
        patience=PATIENT,
        timer=False,
    )
    labels = load.outcome()["label"]
    expected = predicted_labels(bench.run, bench.images[:CHECKED])
    return bool((labels == expected).all())


def start(
    bench: Bench, server: Server, traffic: Traffic, load: float, seconds: float, **more: Any
) -> Load:
    times = arrival_times("poisson", bench.rate_of(load), seconds)
    return start_load(
        bench.folder, server.port, times, bench.images, traffic, DEADLINE, timer=False, **more
    )


# -- faults -----------------------------------------------------------------------------------------
def faults(bench: Bench) -> None:
    """SIGTERM of the server, SIGKILL of a client, and a reload, each under load."""
    seconds = 1.5 if bench.options.quick else 6.0
    for part in (terminate, kill_client, reload):
        with bench.ours() as server:
            traffic = bench.traffic(server)
            bench.warm(server, traffic)
            values = part(bench, server, traffic, seconds)
        bench.record("fault", fault=part.__name__, **values)
        print(f"{values['goal']}: {values['shown']}: {'passed' if values['passed'] else 'FAILED'}")


def terminate(bench: Bench, server: Server, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """SIGTERM in the middle: what was accepted is answered, and the server exits with 0."""
    load = start(bench, server, traffic, 1.5, seconds, patience=1.0)
    time.sleep(0.5 + seconds / 2)
    at = time.monotonic()
    status = server.stop(signal.SIGTERM)
    took = time.monotonic() - at
    outcome = load.outcome()
    before = outcome["sent"] < at - 0.005
    lost = int((before & np.isin(outcome["status"], (RESET, 0))).sum())
    resent = int((before & (outcome["retried"] > 0) & (outcome["done"] > at)).sum())
    after = outcome["status"][~before]
    other = int(((after != REFUSED) & (after != 503) & (after != 200) & (after != 504)).sum())
    return {
        "goal": "SIGTERM under load: nothing lost that was accepted",
        "shown": f"{int(before.sum())} sent before, {lost + resent} of them lost; exit status "
        f"{status} after {took:.2f} s; later: {int((after == 503).sum())} times 503, "
        f"{int((after == REFUSED).sum())} no connection, {other} connections closed unread",
        "passed": lost + resent == 0 and status == 0,
        "exit": status,
        "took": took,
    }


def kill_client(bench: Bench, server: Server, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """SIGKILL of one of two clients: the other notices nothing, and no connection is left."""
    files = server.usage()["files"]
    survivor = start(bench, server, traffic, 0.6, seconds, seed=1)
    victim = start(bench, server, traffic, 0.6, seconds, connections=8)
    time.sleep(0.5 + seconds / 2)
    victim.process.kill()
    victim.process.wait()
    found = summarise(survivor.outcome(), bench.labels, DEADLINE)
    time.sleep(1.0)
    left = server.usage()["files"] - files
    right = next_answers_right(bench, server, traffic)
    good = found["lost"] == found["gave_up"] == found["errors"] == 0
    return {
        "goal": "SIGKILL of a client under load: the other's requests are answered",
        "shown": f"{100 * found['answered']:.2f} % answered, {100 * found['in_time']:.2f} % in "
        f"time, {100 * found['refused']:.2f} % refused, {left:+.0f} handles a second later, next "
        f"answers {'right' if right else 'wrong'}",
        "passed": good and right and left <= 2,
    }


def reload(bench: Bench, server: Server, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """The model is loaded again in the middle: no request is lost."""
    load = start(bench, server, traffic, 0.8, seconds)
    time.sleep(0.5 + seconds / 3)
    name = traffic.path.split("/")[3]
    at = time.monotonic()
    status, body = server.get(f"/v2/repository/models/{name}/load", "POST")
    took = time.monotonic() - at
    found = summarise(load.outcome(), bench.labels, DEADLINE)
    right = next_answers_right(bench, server, traffic)
    good = found["lost"] == found["gave_up"] == found["errors"] == 0
    return {
        "goal": "reload under load: nothing lost",
        "shown": f"reload: {status} in {took:.1f} s; {found['lost'] + found['gave_up']} of "
        f"{found['requests']} lost, {100 * found['in_time']:.2f} % in time, {found['timeouts']} "
        f"times 504, {100 * found['refused']:.2f} % refused; next answers "
        f"{'right' if right else 'wrong'}",
        "passed": good and right and status == 200,
        "body": body.decode(errors="replace")[:200],
    }
