"""``anynest predict``."""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...data import DataError
from ...data.readers.image_reader import ImageFileReader
from ...engines.model_source import resolve
from ...predict.early_stopping.policies import Confidence
from ...predict.prediction import DeadlineError, NetworkError, Prediction
from ...predict.predictor import AnytimePredictor
from ...profiling import Profile
from ...store import local_source
from ...training import ConfigError
from ...training.output.reporting import ProgressBar
from ..backend import find_backend
from ..console import Console
from ..durations import show_duration
from ..picture_files import STDIN, find_pictures
from ..policy_choice import stopping


def run(arguments: argparse.Namespace) -> int:
    """Predict every picture; 1 where one of them failed, else 0."""
    failed = False
    named = arguments.source  # a repository's policy is fetched by the name of the repository
    with opened(arguments) as (predictor, reader):
        policy, told = stopping(arguments.policy, arguments.confidence, named, predictor.num_stages)
        if told:
            print(f"anynest: {told}", file=sys.stderr, flush=True)
        answers = Answers(predictor, arguments, policy)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a path may be any bytes
        for found in counted_pictures(arguments):
            try:
                if isinstance(found, DataError):
                    raise found
                answers.answer(found, reader(found))
            except (DataError, DeadlineError, NetworkError) as error:
                failed = True
                answers.fail(found, error)
            sys.stdout.flush()
    return 1 if failed else 0


def counted_pictures(arguments: argparse.Namespace) -> Iterator[str | DataError]:
    """The pictures, with a progress bar where the answers do not go to the terminal themselves.

    Paths on standard input are not counted before they are asked for.
    """
    pictures = find_pictures(arguments.pictures, sys.stdin)
    console = Console(stderr=True)
    if STDIN in arguments.pictures or sys.stdout.isatty() or not console.is_terminal:
        yield from pictures
        return
    listed = list(pictures)
    with ProgressBar(console, "pictures") as bar:
        for done, found in enumerate(listed):
            bar.report(done, len(listed))
            yield found


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[AnytimePredictor, ImageFileReader]]:
    """Open the predictor and the reader of its pictures."""
    arguments.source = str(local_source(arguments.source))
    source = resolve(arguments.source)
    if source.info is None:
        raise ConfigError(
            f"{arguments.source} must hold the classes and the preparation of pictures, found "
            "neither: export it from a run"
        )
    info = source.info
    reader = ImageFileReader(info.image_size, info.mean, info.std, info.fit)
    profile = None
    if arguments.min_completion_probability is not None:
        profile = Profile.read(arguments.profile or arguments.source)
    backend, device = find_backend(source, arguments.backend, arguments.device)
    with AnytimePredictor(
        arguments.source, backend, profile, arguments.threads, device=device, info=info
    ) as predictor:
        yield predictor, reader


class Answers:
    """Predicts pictures with the options of the command line, and prints the answers."""

    def __init__(
        self,
        predictor: AnytimePredictor,
        arguments: argparse.Namespace,
        policy: Confidence | None = None,
    ) -> None:
        self.predictor, self.deadline = predictor, arguments.deadline
        self.on_timeout = arguments.on_timeout
        self.min_completion_probability = arguments.min_completion_probability
        self.policy = policy
        self.json, self.top = arguments.json, arguments.top
        self.classes = predictor.classes or ()

    def answer(self, path: str, x: Tensor) -> None:
        """Predict one picture ``[1, C, H, W]`` and print the answer."""
        if self.json:
            found = self.predict(x)
            print(json.dumps(self.to_json(path, found)))
            return
        print(printable(path))
        if self.min_completion_probability is not None:
            found = self.predict(x)
            print(self.line(found))
        else:
            found = self.improve(x)
        print(f"  {self.summary(found)}")

    def predict(self, x: Tensor) -> Prediction:
        """Predict without intermediate answers."""
        return self.predictor.predict(
            x[0],
            self.deadline,
            policy=self.policy,
            on_timeout=self.on_timeout,
            min_completion_probability=self.min_completion_probability,
        )

    def improve(self, x: Tensor) -> Prediction:
        """Predict, and print every stage's answer as soon as it is ready."""
        called = time.monotonic()
        found: Prediction | None = None
        with self.predictor.stream(x[0], self.deadline, policy=self.policy) as stream:
            for found in stream:
                sys.stdout.write(self.line(found) + "\n")  # cheaper than rich
                sys.stdout.flush()
        if found is None:
            found = self.late(x, called)
            print(self.line(found))
        return found

    def late(self, x: Tensor, called: float) -> Prediction:
        """Apply ``--on-timeout``: no stage was ready by the deadline."""
        deadline = self.deadline or 0.0
        if self.on_timeout == "raise":
            raise DeadlineError(
                f"no stage was ready within {show_duration(deadline)}: give a longer --deadline, or "
                "--on-timeout wait or guess"
            )
        found = self.predictor.predict(x[0], 0.0, on_timeout=self.on_timeout)
        elapsed = time.monotonic() - called
        return replace(found, elapsed=elapsed, deadline=deadline, deadline_met=False)

    def fail(self, found: str | DataError, error: Exception) -> None:
        """Print one line for a picture without an answer."""
        text = " ".join(str(error).split())
        path = None if isinstance(found, DataError) else found
        if self.json:
            print(json.dumps({"path": path, "error": text}))
            return
        sys.stdout.flush()
        line = text if path is None or path in text else f"{path}: {text}"
        print(f"anynest: {printable(line)}", file=sys.stderr)

    def best(self, found: Prediction) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities; empty for a guess."""
        if found.guessed:
            return []
        values, places = found.probabilities.flatten().topk(min(self.top, len(self.classes)))
        pairs = zip(places.tolist(), values.tolist(), strict=True)
        return [(self.classes[place], value) for place, value in pairs]

    def line(self, found: Prediction) -> str:
        """One stage's answer."""
        if found.guessed:
            return f"  guess    {1e3 * found.elapsed:8.3f} ms"
        shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.best(found))
        return f"  stage {found.stage}  {1e3 * found.elapsed:8.3f} ms  {shown}"

    def summary(self, found: Prediction) -> str:
        """The last answer, and whether it met the deadline."""
        name = self.classes[found.label]
        if found.guessed:
            where = "a random guess: no stage was ready in time"
        else:
            where = f"stage {found.stage} of {self.predictor.num_stages}"
        if self.deadline is None:
            return f"{name} ({where})"
        met = "met" if found.deadline_met else "missed"
        return f"{name} ({where}, deadline {show_duration(self.deadline)} {met})"

    def to_json(self, path: str, found: Prediction) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": path,
            "class": self.classes[found.label],
            "label": found.label,
            "confidence": found.confidence,
            "stage": found.stage,
            "stages": self.predictor.num_stages,
            "elapsed": found.elapsed,
            "deadline": found.deadline,
            "deadline_met": found.deadline_met,
            "guessed": found.guessed,
            "stop_reason": found.stop_reason,
            "top": [{"class": name, "probability": share} for name, share in self.best(found)],
        }


def printable(text: str) -> str:
    """A path for a terminal: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
