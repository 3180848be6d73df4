"""Timing: what is included, in which order."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from anynest.profiling import ProfileError
from anynest.profiling.profiler import Subject, measure, time_once


@dataclass
class Clock:
    """A clock that only the fakes move."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake:
    """A network whose begin takes 1 s and whose stages take 2 steps of ``steps[stage]`` seconds.

    The first run after another subject's takes ten times as long.
    """

    name: str
    clock: Clock
    log: list[str]
    steps: tuple[float, ...]
    open: int = 0
    threads: set[int] = field(default_factory=set)
    fail: bool = False

    def begin(self, images: Tensor) -> "FakeEvaluation":
        slow = 1 if self.log and self.log[-1] == self.name else 10
        self.log.append(self.name)
        self.threads.add(torch.get_num_threads())
        self.clock.now += slow
        self.open += 1
        return FakeEvaluation(self, slow)


class FakeEvaluation:
    def __init__(self, net: Fake, slow: int) -> None:
        self.net, self.slow = net, slow
        self.stage, self.half = 0, False
        self.num_stages = len(net.steps)

    def step(self) -> Tensor | None:
        if self.net.fail:
            raise RuntimeError("broken")
        self.net.clock.now += self.slow * self.net.steps[self.stage]
        self.half = not self.half
        if self.half:
            return None
        self.stage += 1
        return torch.zeros(1, 2)

    def close(self) -> None:
        self.net.open -= 1


def subject(net: Fake, threads: int = 1, plain: int | None = None) -> Subject:
    return Subject(net.begin, torch.zeros(1, 3, 4, 4), ("torch", "cpu", threads, 1), plain)


def test_times_are_those_of_the_clock_without_the_first_run() -> None:
    clock, log = Clock(), list[str]()
    nested, plain = Fake("n", clock, log, (0.5, 2.0, 4.0)), Fake("p", clock, log, (3.0,))
    rows, alone = measure(
        [subject(nested), subject(plain, plain=2)], rounds=3, repeats=2, clock=clock
    )
    assert [row.stage for row in rows] == [1, 2, 3]
    assert [row.mean for row in rows] == [2.0, 6.0, 14.0]  # 1 to begin, then twice each step
    assert [row.p99 for row in rows] == [2.0, 6.0, 14.0]
    assert [row.step_quantiles[0] for row in rows] == [2.0, 4.0, 8.0]
    assert {row.runs for row in rows} == {6}
    assert [(row.stage, row.mean) for row in alone] == [(2, 7.0)]
    assert nested.open == plain.open == 0


def test_rounds_are_interleaved_and_start_with_another_each_time() -> None:
    clock, log = Clock(), list[str]()
    nets = [Fake(name, clock, log, (1.0,)) for name in "abc"]
    seen = []
    measure(
        [subject(net) for net in nets],
        rounds=3,
        repeats=1,
        clock=clock,
        report=lambda done, total: seen.append((done, total)),
    )
    assert "".join(log[::2]) == "abcbcacab"
    assert log[::2] == log[1::2]
    assert seen == [(i, 9) for i in range(1, 10)]


def test_threads_are_set_for_each_and_put_back() -> None:
    clock, log = Clock(), list[str]()
    one, two = Fake("1", clock, log, (1.0,)), Fake("2", clock, log, (1.0,))
    measure([subject(one, 1), subject(two, 2)], rounds=2, repeats=1, clock=clock)
    assert (one.threads, two.threads) == ({1}, {2})
    assert torch.get_num_threads() == 1

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([subject(two, 2)], rounds=2, repeats=1, clock=clock, report=stop)
    assert torch.get_num_threads() == 1


def test_a_failing_network_is_closed() -> None:
    net = Fake("n", Clock(), [], (1.0,), fail=True)
    with pytest.raises(RuntimeError, match="broken"):
        time_once(subject(net))
    assert net.open == 0


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"repeats": 0}, {"rounds": 1.5}])
def test_bad_counts(wrong: dict[str, int]) -> None:
    with pytest.raises(ProfileError, match="must be a whole number from 1"):
        measure([], **wrong)


def test_real_time_passes() -> None:
    """With the real clock and a network that sleeps."""
    import time

    class Sleeper(FakeEvaluation):
        def step(self) -> Tensor | None:
            time.sleep(0.001)
            return super().step()

    net = Fake("s", Clock(), [], (0.0, 0.0))
    rows = measure(
        [Subject(lambda _: Sleeper(net, 1), torch.zeros(1), ("torch", "cpu", 1, 1))],
        rounds=1,
        repeats=3,
    )[0]
    assert rows[0].quantiles[0] >= 0.002
    assert rows[1].quantiles[0] >= 0.004
    assert rows[1].step_quantiles[0] >= 0.002
