"""The best prediction available at a deadline.

    with AnytimePredictor("runs/a") as predictor:
        prediction = predictor.predict(image, deadline=0.010)
    print(prediction.label, prediction.stage, prediction.elapsed)

A scheduler's thread computes step by step. The caller sleeps until the deadline and takes the
newest finished stage, whatever kernel is still running. docs/predict.md has the guarantees.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
import random
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import nn

from ..engines.inputs import Inputs
from ..engines.session import Session
from ..profiling import Profile
from ..profiling.input_size import IMAGES, as_named
from ..store import WeightsInfo
from .early_stopping.policies import check_fit, reads_costs
from .in_flight import CLOSED, InFlight, OnResult, batch_size
from .inputs import ImageReader, needs_decoding
from .monotonicity import find_rule
from .opening import Opened, open_source
from .options import Policies, PredictOptions
from .prediction import DeadlineError, NetworkError, Prediction, random_guess
from .scheduler import Scheduler
from .stage_results import StageResult, StageResults
from .streams import AsyncStream, Stream, call_in_loop
from .tensor_inputs import TensorReader
from .thread_scheduling import check_scheduling

JOIN_TIMEOUT = 5.0  # seconds that close() waits for the running step
WARM_UPS = 2

Reader = ImageReader | TensorReader


class AnytimePredictor:
    """A trained network that predicts by a deadline. Thread-safe.

    Args:
        source: a network (any module that satisfies ``anynest.nets.Staged``), a run folder, a
            weights file, an exported folder, or an open ``Session``, which the caller closes.
        backend: ``"onnxruntime"`` or ``"torch"``; None is ONNX Runtime on a CPU for networks that
            it can run, else torch.
        profile: a ``Profile`` of this network or its file; needed for
            ``min_completion_probability``, and for budgets of multiply-adds where the source does
            not tell the costs.
        threads: within one kernel; None leaves it to the backend. Of a ``Session``, threads and
            device are those that it was opened with; they choose the profile's times.
        device: of torch: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.
        scheduling: how Linux schedules the computing thread, so that callers wake on time:
            ``"slice"``, ``"nice"``, ``"auto"``, ``"behind"`` or ``"none"`` (docs/thread_scheduling.md).
        monotone: ``"product"``, ``"support"`` or ``"caching"``: confidence grows from stage to
            stage (docs/early_stopping.md); None uses each stage's softmax.
        info: classes and preprocessing, where the source does not have them.
        warm_up: run the network when it is opened, because first runs are slow: on a blank image
            of the size in ``info`` or ``profile``; other networks on the example of
            ``add_exits`` or inputs of the profile's sizes.
        seed: of random guesses.

    Raises:
        ValueError: a source, a profile or an option that does not fit, in one line.

    Example:
        ``AnytimePredictor("runs/a").predict("cat.png", deadline=0.010).names``
    """

    def __init__(
        self,
        source: nn.Module | str | Path | Session,
        backend: str | None = None,
        profile: Profile | str | Path | None = None,
        threads: int | None = 1,
        *,
        device: str | torch.device = "cpu",
        scheduling: str = "auto",
        monotone: str | None = None,
        info: WeightsInfo | None = None,
        warm_up: bool = True,
        seed: int = 0,
    ) -> None:
        check_scheduling(scheduling)
        self._rule = find_rule(monotone)
        self._random = random.Random(operator.index(seed))
        self._random_lock = threading.Lock()
        self._opened = opened = open_source(
            source, backend=backend, threads=threads, device=device, info=info, profile=profile
        )
        self.session, self.profile, self.info = opened.session, opened.profile, opened.info
        self.classes = opened.info.classes if opened.info else None
        self._inputs = _reader(opened)
        self._scheduler = Scheduler(opened.session, scheduling)
        self._closed = False
        self._finalizer = weakref.finalize(
            self, _shut, self._scheduler, opened.session if opened.owned else None
        )
        if warm_up:
            self._warm_up()

    @property
    def num_stages(self) -> int:
        """S."""
        return self.session.num_stages

    @property
    def num_classes(self) -> int | None:
        """K, where the network tells it."""
        return self.session.num_classes

    def multiply_adds(self, height: int, width: int) -> tuple[int, ...] | None:
        """Multiply-adds of one image up to each stage; None where the source does not tell."""
        channels = self.session.in_channels
        if channels is None:
            raise ValueError("this network takes no images: use multiply_adds_of(inputs)")
        return self.multiply_adds_of(torch.zeros(1, channels, height, width))

    def multiply_adds_of(self, x: Any) -> tuple[int, ...] | None:
        """The same for one sample of inputs like ``x``, in the forms that ``predict`` takes.

        Where the network has no method ``cost``, its stages run once for each new size, to count.
        """
        return self._opened.multiply_adds(as_named(self._inputs(x)[0]))

    def _warm_up(self) -> None:
        """Predict a blank sample. Inputs that are no images may not suit the network so."""
        blank = self._opened.blank()
        if blank is None:
            return
        x = blank[IMAGES] if self.session.in_channels is not None else blank
        with contextlib.suppress(*(() if self.session.in_channels else (NetworkError,))):
            for _ in range(WARM_UPS):
                self.predict(x, deadline=None)

    # -- predictions ------------------------------------------------------------------------------
    def predict(
        self,
        x: Any,
        deadline: float | None = 0.010,
        *,
        policy: Policies = None,
        on_timeout: str = "raise",
        min_completion_probability: float | None = None,
    ) -> Prediction:
        """The newest stage that is finished ``deadline`` seconds after the call.

        Decoding the image and waiting for other predictions count. Returns earlier after the last
        stage, or when the policy stops.

        Args:
            x: an image or a batch, raw or normalised (docs/predict.md lists the forms); for
                networks without ``in_channels`` a batch: a tensor, or a dict of named tensors.
            deadline: seconds; None runs to the last stage. 0 or less has passed already. A
                ``Deadline`` in the policy holds too.
            policy: early stopping (docs/early_stopping.md); for logits ``[B, K]``.
            on_timeout: where no stage meets the deadline: ``"raise"``, ``"wait"`` for stage 1, or
                ``"guess"`` at random.
            min_completion_probability: a stage after the first that, by the profile, finishes in
                time with a smaller probability is not started; returns at once instead.

        Raises:
            DeadlineError: no stage meets the deadline, and ``on_timeout`` is ``"raise"``.
            NetworkError: the network failed; the original error is the ``__cause__``.
            ValueError: an input or an option that does not fit.
            RuntimeError: the predictor is closed.
        """
        options = PredictOptions.create(deadline, policy, on_timeout, min_completion_probability)
        request = self._submit(options, self._inputs(x))
        try:
            if not request.wait(options.due) and request.must_wait:
                request.wait(math.inf)
            return self._conclude(request)
        finally:
            request.cancel()

    async def apredict(
        self,
        x: Any,
        deadline: float | None = 0.010,
        *,
        policy: Policies = None,
        on_timeout: str = "raise",
        min_completion_probability: float | None = None,
    ) -> Prediction:
        """``predict`` for asyncio. Cancelling it cancels the computation.

        The event loop's clock is coarser than a thread's: on Linux it wakes up to 1 ms late.
        """
        options = PredictOptions.create(deadline, policy, on_timeout, min_completion_probability)
        over = asyncio.Event()
        wake = call_in_loop(over.set)
        request = self._submit(
            options, await self._decoded(x), lambda result: wake() if result is None else None
        )
        try:
            left = options.due - time.monotonic()
            try:
                async with asyncio.timeout(left if left < math.inf else None):
                    await over.wait()
            except TimeoutError:
                if request.must_wait:
                    await over.wait()
            return self._conclude(request)
        finally:
            request.cancel()

    def stream(self, x: Any, deadline: float | None = None, *, policy: Policies = None) -> Stream:
        """Each stage's prediction when it is finished, to the last, the deadline or the policy.

        Computing starts with the call. Closing the stream cancels the rest. It is empty where no
        stage meets the deadline.

        Example:
            ``for prediction in predictor.stream(image): print(prediction.stage, prediction.label)``
        """
        options = PredictOptions.create(deadline, policy)
        return Stream(
            lambda on_result: self._submit(options, self._inputs(x), on_result),
            lambda result: self._prediction(options, result, result.at),
        )

    def astream(
        self, x: Any, deadline: float | None = None, *, policy: Policies = None
    ) -> AsyncStream:
        """``stream`` for ``async for``. Cancelling the reading task cancels the computation.

        The deadline counts from the call; computing starts when the first prediction is awaited.
        """
        options = PredictOptions.create(deadline, policy)

        async def start(on_result: OnResult) -> InFlight:
            return self._submit(options, await self._decoded(x), on_result)

        return AsyncStream(start, lambda result: self._prediction(options, result, result.at))

    # -- closing ----------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the thread and free the network; idempotent.

        Waits for the running step. Predictions in flight raise RuntimeError in their callers.
        """
        self._closed = True
        self._scheduler.stop()
        self._scheduler.join(JOIN_TIMEOUT)
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AnytimePredictor cannot be pickled or copied, because it owns a thread: pass on "
            "its source, and open another predictor there"
        )

    # -- parts ------------------------------------------------------------------------------------
    def _submit(
        self,
        options: PredictOptions,
        inputs: tuple[Inputs, bool],
        on_result: OnResult | None = None,
    ) -> InFlight:
        """Queue a batch."""
        x, single = inputs
        costs = latencies = None
        if options.policy is not None:
            if reads_costs(options.policy):
                costs = self._opened.multiply_adds(as_named(x))
            check_fit(options.policy, self.num_stages, costs is not None)
        if options.on_timeout == "guess" and self.num_classes is None:
            raise ValueError(
                "on_timeout='guess' draws a class, which needs a network with num_classes, found "
                "none: use 'raise' or 'wait'"
            )
        if options.min_completion_probability is not None:
            if self.profile is None:
                raise ValueError(
                    "min_completion_probability needs the latencies of this machine: pass profile="
                )
            latencies = self.profile.stages(*self._opened.way, batch_size(x))
        results = StageResults(
            options, rule=self._rule, single=single, costs=costs, latencies=latencies
        )
        request = InFlight(x, options, results, on_result)
        if self._closed:
            raise RuntimeError(CLOSED)
        self._scheduler.submit(request)
        return request

    async def _decoded(self, x: Any) -> tuple[Inputs, bool]:
        """The batch; files are read in a thread, beside the event loop."""
        if needs_decoding(x):
            return await asyncio.to_thread(self._inputs, x)
        return self._inputs(x)

    def _conclude(self, request: InFlight) -> Prediction:
        """The prediction of a request that has ended, or whose time is up."""
        options, result = request.options, request.result
        if request.error is not None:
            raise request.error
        if result is not None:
            result = replace(result, stop_reason=result.stop_reason or "deadline")
            return self._prediction(options, result, time.monotonic())
        if options.on_timeout != "guess":
            raise _deadline_error(options)
        classes = self.num_classes
        assert classes is not None
        with self._random_lock:
            drawn = tuple(self._random.randrange(classes) for _ in range(request.size))
        elapsed = time.monotonic() - options.called
        return random_guess(drawn, classes, request.single, elapsed, options.deadline, self.classes)

    def _prediction(self, options: PredictOptions, result: StageResult, at: float) -> Prediction:
        """A stage's result as the caller gets it at time ``at``."""
        return Prediction(
            output=result.output,
            class_probabilities=result.probabilities,
            stage=max(result.stages),
            stages=result.stages,
            elapsed=at - options.called,
            deadline=options.deadline,
            deadline_met=result.at <= options.due,
            stop_reason=result.stop_reason,
            classes=self.classes,
        )


def _reader(opened: Opened) -> Reader:
    """Converts the inputs that callers pass."""
    session = opened.session
    if session.in_channels is None:
        return TensorReader(session)
    (name,) = getattr(session, "input_names", ("x",))
    return ImageReader(session.in_channels, opened.info, name)


def _deadline_error(options: PredictOptions) -> DeadlineError:
    if options.seconds < 0:
        when = f"the deadline had passed {-1000 * options.seconds:g} ms before the call"
    else:
        when = f"no stage was finished within {1000 * options.seconds:g} ms of the call"
    return DeadlineError(
        f"{when}: give a longer deadline, or pass on_timeout='wait' or on_timeout='guess'"
    )


def _shut(scheduler: Scheduler, session: Session | None) -> None:
    scheduler.stop()
    if session is not None:
        session.close()
