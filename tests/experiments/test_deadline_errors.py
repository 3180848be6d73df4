"""Errors at deadlines, against the definition input by input."""

import numpy as np
import pytest

from anynest.experiments.results.deadline_errors import (
    SHARES,
    Timed,
    anytime_error,
    deadlines_of,
    oracle_all_error,
    oracle_each_error,
)

CLASSES = 10


def made(stages: int, seed: int, slow: float = 1.0) -> Timed:
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.uniform(0.5, 1.5, (200, stages)), 1) * slow
    return Timed(f"{seed}", seconds, random.random((200, stages)) < 0.5 / (1 + np.arange(stages)))


def test_anytime_is_the_newest_stage_in_time() -> None:
    network = made(4, 0)
    for deadline in (0.1, 1.0, 2.2, 3.0, 99.0):
        wanted = []
        for times, wrong in zip(network.seconds, network.wrong, strict=True):
            ready = [w for t, w in zip(times, wrong, strict=True) if t <= deadline]
            wanted.append(float(ready[-1]) if ready else 0.9)
        assert anytime_error(network, deadline, CLASSES) == pytest.approx(np.mean(wanted))
    assert anytime_error(network, None, CLASSES) == network.error
    assert anytime_error(network, 0.0, CLASSES) == pytest.approx(0.9)
    assert anytime_error(network, 0.0, 2) == pytest.approx(0.5)


def members() -> list[Timed]:
    """Of growing latency; the slowest is the best, the middle one the worst."""
    errors = (0.3, 0.6, 0.1)
    found = []
    for number, error in enumerate(errors):
        base = made(1, number, slow=1.0 + number)
        wrong = np.zeros((200, 1), bool)
        wrong[np.random.default_rng(9 + number).permutation(200)[: round(200 * error)]] = True
        found.append(Timed(str(number), base.seconds, wrong))
    return found


def test_oracle_all_needs_every_input() -> None:
    fast, middle, best = members()
    longest = [float(m.seconds.max()) for m in (fast, middle, best)]
    everyone = [fast, middle, best]
    assert oracle_all_error(everyone, longest[0] - 1e-6, CLASSES) == pytest.approx(0.9)
    assert oracle_all_error(everyone, longest[0], CLASSES) == pytest.approx(0.3)
    assert oracle_all_error(everyone, longest[1], CLASSES) == pytest.approx(0.3)  # not the worse
    assert oracle_all_error(everyone, longest[2], CLASSES) == pytest.approx(0.1)
    assert oracle_all_error(everyone, None, CLASSES) == pytest.approx(0.1)


def test_oracle_each_takes_the_most_accurate_that_each_input_allows() -> None:
    everyone = members()
    for deadline in (0.6, 1.2, 2.5, 4.0):
        wanted = []
        for i in range(200):
            ready = [m for m in everyone if m.seconds[i, 0] <= deadline]
            best = min(ready, key=lambda m: m.error, default=None)
            wanted.append(0.9 if best is None else float(best.wrong[i, 0]))
        assert oracle_each_error(everyone, deadline, CLASSES) == pytest.approx(np.mean(wanted))
    assert oracle_each_error(everyone, None, CLASSES) == pytest.approx(0.1)
    for deadline in (1.0, 2.0, 3.0):
        each = oracle_each_error(everyone, deadline, CLASSES)
        assert each <= oracle_all_error(everyone, deadline, CLASSES) + 1e-12


def test_seven_deadlines_and_none() -> None:
    network = made(2, 5)
    found = deadlines_of(network)
    mean = float(network.seconds[:, 1].mean())
    assert found[-1] is None
    assert found[:-1] == pytest.approx([0.5 * mean + i * mean / 12 for i in range(7)])
    assert (SHARES[0], SHARES[-1], len(SHARES)) == (0.5, 1.0, 7)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"must both be \[N, S\]"):
        Timed("x", np.ones((3, 2)), np.ones((3, 1), bool))
