"""The best answer there is when the deadline comes.

    with AnytimePredictor("runs/a") as predictor:
        prediction = predictor.predict(image, deadline=0.010)
    print(prediction.label, prediction.stage, prediction.elapsed)

One worker thread computes step by step; the caller sleeps until the deadline and takes the newest finished
stage, whatever kernel is still running. docs/runtime.md says what is promised, and how to check it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..nets import AnytimeNetwork, StageCost
from ..profiling import Profile
from ..store import WeightsInfo
from .images import ImageReader, needs_decoding
from .isolated import IsolatedSession
from .job import Job, Terms
from .monotone import find_rule
from .policy import Policy, as_policy, check_fit
from .prediction import Answer, DeadlineError, Prediction, uniform
from .session import Session, open_session
from .source import resolve
from .stream import AsyncStream, Stream, Tell, attach, threadsafe
from .worker import CLOSED, Worker

WHEN_NOTHING = ("raise", "wait", "guess")
JOIN_TIMEOUT = 5.0  # seconds that close() waits for the step under way
WARM_UPS = 2
KNOWN_SIZES = 64  # of images, whose costs are kept

Policies = Policy | Sequence[Policy] | None


class AnytimePredictor:
    """A trained network behind a deadline. Safe to use from several threads at once.

    Args:
        source: a network, the folder of a finished run, a weights file, an exported folder, or an
            open ``Session`` (which stays the caller's to close).
        backend: ``"torch"`` or ``"onnxruntime"`` (an exported folder).
        profile: a ``Profile`` of this network or its file; ``save_work`` needs it, and a budget of
            multiply-adds where the source does not tell the costs.
        threads: of one kernel; None is the backend's own choice.
        device: where torch computes.
        isolated: compute in a process of its own rather than in a thread, so that callers are served
            in time on a busy machine as well; it takes seconds to start and a second copy of the
            weights (runtime/isolated.py). None: for ``torch``, where the system can.
        monotone: ``"product"``, ``"support"`` or ``"caching"``: later answers grow surer
            (runtime/monotone.py); None takes every stage as it is.
        info: classes and preprocessing, where the source does not know them.
        warm_up: run the network when it is opened, on an image of the known size (of ``info`` or the
            profile): first runs are slow, and no caller should meet one.
        seed: of the random classes of guesses.

    Raises:
        ValueError: a source, a profile or an option that does not fit, in one line.

    Example:
        ``AnytimePredictor("runs/a").predict("cat.png", deadline=0.010).names``
    """

    def __init__(
        self,
        source: AnytimeNetwork | str | Path | Session,
        backend: str = "torch",
        profile: Profile | str | Path | None = None,
        threads: int | None = None,
        *,
        device: str = "cpu",
        isolated: bool | None = None,
        monotone: str | None = None,
        info: WeightsInfo | None = None,
        warm_up: bool = True,
        seed: int = 0,
    ) -> None:
        self._rule = find_rule(monotone)
        network: AnytimeNetwork | None = None
        owned = isinstance(source, AnytimeNetwork | str | Path)
        if isinstance(source, AnytimeNetwork | str | Path):
            found = resolve(source)
            network, info = found.network, info or found.info
            opened = found.network or found.export
            assert opened is not None
            if isolated is None:
                isolated = backend == "torch" and os.name == "posix"
            make = IsolatedSession.open if isolated else open_session
            self.session: Session = make(opened, backend=backend, threads=threads, device=device)
        else:
            self.session = source
        self.info = info
        self.classes = info.classes if info else None
        self._network = network
        self._costs: dict[tuple[int, int], tuple[int, ...] | None] = {}
        self._random = random.Random(seed)
        self._random_lock = threading.Lock()
        self._images = ImageReader(self.session.in_channels, info)
        self._threads, self._device = threads, device
        self.profile = self._read_profile(profile)
        self._closed = False
        apart = isinstance(self.session, IsolatedSession)  # which needs nobody to drive it
        self._worker = None if apart else Worker(self.session)
        self._finalizer = weakref.finalize(
            self, _shut, self._worker, self.session if owned else None
        )
        if warm_up:
            self._warm_up()

    def _read_profile(self, profile: Profile | str | Path | None) -> Profile | None:
        read = Profile.read(profile) if isinstance(profile, str | Path) else profile
        if read is not None and read.num_stages != self.num_stages:
            raise ValueError(
                f"the profile must be of this network of {self.num_stages} stages, found one of "
                f"{read.num_stages}: profile the network again"
            )
        return read

    @property
    def num_stages(self) -> int:
        """S, how many answers there are at most."""
        return self.session.num_stages

    @property
    def num_classes(self) -> int:
        """K, the length of an answer."""
        return self.session.num_classes

    # -- predictions ----------------------------------------------------------------------------------
    def predict(
        self,
        x: Any,
        deadline: float | None = 0.010,
        *,
        policy: Policies = None,
        when_nothing: str = "raise",
        save_work: float | None = None,
    ) -> Prediction:
        """The newest stage that is finished ``deadline`` seconds after the call.

        Waiting for other predictions and decoding the image count. It returns earlier where there is
        nothing left to gain: after the last stage, or when the policy says so.

        Args:
            x: an image or a batch, raw or normalised (runtime/images.py lists the forms).
            deadline: seconds; None runs to the last stage. A ``Deadline`` in the policy holds as well.
            policy: when to stop although there is time (runtime/policy.py).
            when_nothing: what to do where no stage is finished by the deadline: ``"raise"``,
                ``"wait"`` for stage 1, or ``"guess"`` at random.
            save_work: a probability: a stage after the first that would be in time with less than it,
                by the profile, is not begun, and the answer is returned at once.

        Raises:
            DeadlineError: nothing is finished by the deadline, and ``when_nothing`` is ``"raise"``.
            NetworkError: the network failed; its own error is the ``__cause__``.
            ValueError: an image or an option that does not fit.
            RuntimeError: the predictor is closed.
        """
        ask = self._ask(deadline, policy, when_nothing, save_work)
        job = self._start(ask, self._images(x))
        try:
            ended = job.wait(job.terms.due)
            if not ended and job.terms.wait and job.answer is None:
                ended = job.wait(math.inf)
            return self._conclude(ask, job, ended)
        finally:
            job.leave()

    async def apredict(
        self,
        x: Any,
        deadline: float | None = 0.010,
        *,
        policy: Policies = None,
        when_nothing: str = "raise",
        save_work: float | None = None,
    ) -> Prediction:
        """``predict`` for asyncio: the event loop is free meanwhile. Cancelling it cancels the work.

        The event loop's own clock is coarser than a thread's: on Linux it wakes up to 1 ms late.
        """
        ask = self._ask(deadline, policy, when_nothing, save_work)
        over = asyncio.Event()
        tell = threadsafe(lambda answer: over.set() if answer is None else None)
        job = self._start(ask, await self._decoded(x), tell)
        detach = attach(job)
        try:
            left = job.terms.due - time.monotonic()
            try:
                async with asyncio.timeout(None if math.isinf(left) else left):
                    await over.wait()
            except TimeoutError:
                if job.terms.wait and job.answer is None:
                    await over.wait()
            job.take_in_all()  # what was finished in time, and is not read yet
            return self._conclude(ask, job, over.is_set())
        finally:
            detach()
            job.leave()

    def stream(self, x: Any, deadline: float | None = None, *, policy: Policies = None) -> Stream:
        """Each stage's prediction as it comes, until the last, the deadline or the policy.

        Computing begins with the call. Closing the stream cancels what is left. It is empty where no
        stage is finished by the deadline.

        Example:
            ``for prediction in predictor.stream(image): print(prediction.stage, prediction.label)``
        """
        ask = self._ask(deadline, policy, "raise", None)
        return Stream(
            lambda tell: self._start(ask, self._images(x), tell),
            lambda job, answer: self._present(ask, job, answer, answer.at),
        )

    def astream(
        self, x: Any, deadline: float | None = None, *, policy: Policies = None
    ) -> AsyncStream:
        """``stream`` for ``async for``. Cancelling the task that reads it cancels the work.

        The deadline counts from the call; computing begins when the first prediction is awaited.
        """
        ask = self._ask(deadline, policy, "raise", None)

        async def start(tell: Tell) -> Job:
            return self._start(ask, await self._decoded(x), tell)

        return AsyncStream(start, lambda job, answer: self._present(ask, job, answer, answer.at))

    # -- closing --------------------------------------------------------------------------------------
    def close(self) -> None:
        """End the worker and free the network; a second call does nothing.

        Waits for the step under way. Predictions that others wait for raise RuntimeError.
        """
        self._closed = True
        if self._worker is not None:
            self._worker.stop()
            self._worker.join(JOIN_TIMEOUT)
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what they are made of ------------------------------------------------------------------------
    def _ask(
        self,
        deadline: float | None,
        policy: Policies,
        when_nothing: str,
        save_work: float | None,
    ) -> Ask:
        """What is wanted, checked. The deadline counts from here."""
        called = time.monotonic()
        if self._closed:
            raise RuntimeError(CLOSED)
        if deadline is not None and not deadline >= 0:
            raise ValueError(f"deadline must be seconds from 0, or None, got {deadline!r}")
        if when_nothing not in WHEN_NOTHING:
            raise ValueError(
                f"when_nothing must be one of {', '.join(WHEN_NOTHING)}, got {when_nothing!r}"
            )
        if save_work is not None and not 0 < save_work <= 1:
            raise ValueError(f"save_work must be a probability above 0, got {save_work!r}")
        if save_work is not None and self.profile is None:
            raise ValueError("save_work needs the latencies of this machine: give profile=")
        chosen = as_policy(policy)
        limit = min(
            math.inf if deadline is None else deadline, chosen.limit() if chosen else math.inf
        )
        return Ask(called, limit, chosen, when_nothing, save_work)

    def _start(self, ask: Ask, images: tuple[Tensor, bool], tell: Tell | None = None) -> Job:
        """Hand a batch to the worker."""
        x, single = images
        costs = None
        if ask.policy is not None:
            costs = self.multiply_adds(int(x.shape[2]), int(x.shape[3]))
            check_fit(ask.policy, self.num_stages, costs is not None)
        latencies = None
        if ask.save_work is not None:
            assert self.profile is not None
            latencies = self.profile.stages(
                self.session.backend,
                self._device,
                self._threads or torch.get_num_threads(),
                len(x),
            )
        terms = Terms(
            called=ask.called,
            due=ask.called + ask.limit,
            policy=ask.policy,
            rule=self._rule,
            wait=ask.when_nothing == "wait",
            single=single,
            costs=costs,
            latencies=latencies,
            sureness=ask.save_work or 0.0,
        )
        job = Job(x, terms, tell)
        if isinstance(self.session, IsolatedSession):
            job.start_apart(self.session)
        else:
            assert self._worker is not None
            self._worker.submit(job)
        return job

    async def _decoded(self, x: Any) -> tuple[Tensor, bool]:
        """The batch; files are read in a thread, so that the event loop goes on."""
        if needs_decoding(x):
            return await asyncio.to_thread(self._images, x)
        return self._images(x)

    def _conclude(self, ask: Ask, job: Job, ended: bool) -> Prediction:
        """The answer of a job that has ended, or whose time is up."""
        answer = job.answer
        if ended and job.error is not None:
            raise job.error
        if answer is not None:
            reason = job.ended if ended else "deadline"
            return self._present(ask, job, replace(answer, ended=reason), time.monotonic())
        if ask.when_nothing == "guess":
            with self._random_lock:
                drawn = tuple(self._random.randrange(self.num_classes) for _ in range(job.size))
            elapsed = time.monotonic() - ask.called
            guess = uniform(drawn, self.num_classes, job.terms.single, elapsed, ask.limit)
            return replace(guess, classes=self.classes)
        raise DeadlineError(
            f"no stage was finished within {ask.limit * 1000:g} ms of the call: give a longer deadline, "
            "or say when_nothing='wait' or 'guess'"
        )

    def _present(self, ask: Ask, job: Job, answer: Answer, at: float) -> Prediction:
        return Prediction(
            logits=answer.logits,
            probabilities=answer.probabilities,
            stage=max(answer.stages),
            stages=answer.stages,
            confidence=answer.confidence,
            elapsed=at - ask.called,
            deadline=None if math.isinf(ask.limit) else ask.limit,
            deadline_met=answer.at <= job.terms.due,
            ended=answer.ended,
            classes=self.classes,
        )

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Up to each stage, for images of this size; None where nobody knows."""
        size = (height, width)
        if size not in self._costs:
            if len(self._costs) >= KNOWN_SIZES:
                self._costs.clear()
            rows: Sequence[StageCost] = ()
            if self._network is not None:
                rows = self._network.cost(size)
            elif self.profile is not None and size == (self.profile.image_size,) * 2:
                rows = self.profile.costs
            self._costs[size] = tuple(row.multiply_adds for row in rows) or None
        return self._costs[size]

    def _warm_up(self) -> None:
        size = self.info.image_size if self.info else None
        if size is None and self.profile is not None:
            size = self.profile.image_size
        if size is not None:
            for _ in range(WARM_UPS):
                self.predict(torch.zeros(self.session.in_channels, size, size), deadline=None)


@dataclass(frozen=True)
class Ask:
    """One call's wishes: when it came, how long it may take, and the rest as in ``predict``."""

    called: float
    limit: float
    policy: Policy | None
    when_nothing: str
    save_work: float | None


def _shut(worker: Worker | None, session: Session | None) -> None:
    if worker is not None:
        worker.stop()
    if session is not None:
        session.close()
