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
import random
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..engines.session import Session
from ..nets import AnytimeNetwork
from ..profiling import Profile
from ..store import WeightsInfo
from .in_flight import CLOSED, Job, Terms
from .inputs import ImageReader, needs_decoding
from .monotonicity import find_rule
from .opening import open_source
from .options import Policies, Request
from .policies import check_fit
from .prediction import Prediction
from .scheduler import Worker
from .streams import AsyncStream, Stream, Tell, threadsafe

JOIN_TIMEOUT = 5.0  # seconds that close() waits for the step under way
WARM_UPS = 2


class AnytimePredictor:
    """A trained network behind a deadline. Safe to use from several threads at once.

    Args:
        source: a network, the folder of a finished run, a weights file, an exported folder, or an
            open ``Session`` (which stays the caller's to close).
        backend: ``"torch"`` or ``"onnxruntime"``; None is the latter for an exported folder.
        profile: a ``Profile`` of this network or its file; ``save_work`` needs it, and a budget of
            multiply-adds where the source does not tell the costs.
        threads: of one kernel; None is the backend's own choice.
        device: where torch computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.
        monotone: ``"product"``, ``"support"`` or ``"caching"``: later answers grow surer
            (predict/monotonicity.py); None takes every stage as it is.
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
        backend: str | None = None,
        profile: Profile | str | Path | None = None,
        threads: int | None = None,
        *,
        device: str | torch.device = "cpu",
        monotone: str | None = None,
        info: WeightsInfo | None = None,
        warm_up: bool = True,
        seed: int = 0,
    ) -> None:
        self._rule = find_rule(monotone)
        self._opened = opened = open_source(
            source,
            backend=backend,
            threads=threads,
            device=device,
            info=info,
            profile=profile,
        )
        self.session, self.profile, self.info = opened.session, opened.profile, opened.info
        self.classes = opened.info.classes if opened.info else None
        self._way = (opened.session.backend, opened.device, threads or torch.get_num_threads())
        self._random = random.Random(seed)
        self._random_lock = threading.Lock()
        self._images = ImageReader(opened.session.in_channels, opened.info)
        self._worker = Worker(opened.session)
        self._closed = False
        self._finalizer = weakref.finalize(
            self, _shut, self._worker, opened.session if opened.owned else None
        )
        if warm_up and opened.image_size is not None:
            blank = torch.zeros(opened.session.in_channels, *[opened.image_size] * 2)
            for _ in range(WARM_UPS):
                self.predict(blank, deadline=None)

    @property
    def num_stages(self) -> int:
        """S, how many answers there are at most."""
        return self.session.num_stages

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Of one image of this size, up to each stage; None where the source does not tell."""
        return self._opened.multiply_adds(height, width)

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
            x: an image or a batch, raw or normalised (predict/inputs.py lists the forms).
            deadline: seconds; None runs to the last stage. A ``Deadline`` in the policy holds as well.
            policy: when to stop although there is time (predict/policies.py).
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
        request = Request.of(deadline, policy, when_nothing, save_work)
        job = self._start(request, self._images(x))
        try:
            ended = job.wait(job.terms.due)
            if not ended and job.terms.wait and job.answer is None:
                ended = job.wait(math.inf)
            return self._conclude(request, job, ended)
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
        request = Request.of(deadline, policy, when_nothing, save_work)
        over = asyncio.Event()
        tell = threadsafe(lambda answer: over.set() if answer is None else None)
        job = self._start(request, await self._decoded(x), tell)
        try:
            left = job.terms.due - time.monotonic()
            try:
                async with asyncio.timeout(None if math.isinf(left) else left):
                    await over.wait()
            except TimeoutError:
                if job.terms.wait and job.answer is None:
                    await over.wait()
            return self._conclude(request, job, over.is_set())
        finally:
            job.leave()

    def stream(self, x: Any, deadline: float | None = None, *, policy: Policies = None) -> Stream:
        """Each stage's prediction as it comes, until the last, the deadline or the policy.

        Computing begins with the call. Closing the stream cancels what is left. It is empty where no
        stage is finished by the deadline.

        Example:
            ``for prediction in predictor.stream(image): print(prediction.stage, prediction.label)``
        """
        request = Request.of(deadline, policy)
        return Stream(
            lambda tell: self._start(request, self._images(x), tell),
            lambda answer: request.present(answer, self.classes),
        )

    def astream(
        self, x: Any, deadline: float | None = None, *, policy: Policies = None
    ) -> AsyncStream:
        """``stream`` for ``async for``. Cancelling the task that reads it cancels the work.

        The deadline counts from the call; computing begins when the first prediction is awaited.
        """
        request = Request.of(deadline, policy)

        async def start(tell: Tell) -> Job:
            return self._start(request, await self._decoded(x), tell)

        return AsyncStream(start, lambda answer: request.present(answer, self.classes))

    # -- closing --------------------------------------------------------------------------------------
    def close(self) -> None:
        """End the worker and free the network; a second call does nothing.

        Waits for the step under way. Predictions that others wait for raise RuntimeError.
        """
        self._closed = True
        self._worker.stop()
        self._worker.join(JOIN_TIMEOUT)
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what they are made of ------------------------------------------------------------------------
    def _start(
        self, request: Request, images: tuple[Tensor, bool], tell: Tell | None = None
    ) -> Job:
        """Hand a batch to the worker."""
        x, single = images
        costs = None
        if request.policy is not None:
            costs = self.multiply_adds(int(x.shape[2]), int(x.shape[3]))
            check_fit(request.policy, self.num_stages, costs is not None)
        latencies = None
        if request.save_work is not None:
            if self.profile is None:
                raise ValueError("save_work needs the latencies of this machine: give profile=")
            latencies = self.profile.stages(*self._way, len(x))
        terms = Terms(
            called=request.called,
            due=request.due,
            policy=request.policy,
            rule=self._rule,
            wait=request.when_nothing == "wait",
            single=single,
            costs=costs,
            latencies=latencies,
            sureness=request.save_work or 0.0,
        )
        job = Job(x, terms, tell)
        if self._closed:
            raise RuntimeError(CLOSED)
        self._worker.submit(job)
        return job

    async def _decoded(self, x: Any) -> tuple[Tensor, bool]:
        """The batch; files are read in a thread, so that the event loop goes on."""
        if needs_decoding(x):
            return await asyncio.to_thread(self._images, x)
        return self._images(x)

    def _conclude(self, request: Request, job: Job, ended: bool) -> Prediction:
        """The answer of a job that has ended, or whose time is up."""
        answer = job.answer
        if ended and job.error is not None:
            raise job.error
        if answer is not None:
            answer = replace(answer, ended=job.ended if ended else "deadline")
            return request.present(answer, self.classes, time.monotonic())
        if request.when_nothing != "guess":
            raise request.nothing()
        with self._random_lock:
            drawn = tuple(self._random.randrange(self.num_classes) for _ in range(job.size))
        return request.guess(drawn, self.num_classes, job.terms.single, self.classes)


def _shut(worker: Worker, session: Session | None) -> None:
    worker.stop()
    if session is not None:
        session.close()
