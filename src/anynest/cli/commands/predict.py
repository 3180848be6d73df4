"""``anynest predict``."""

import argparse
import io
import json
import random
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
from ...engines.session import BACKENDS
from ...predict.policies import Confidence
from ...predict.prediction import DeadlineError, NetworkError, Prediction, uniform
from ...predict.predictor import AnytimePredictor
from ...profiling import Profile
from ...training import ConfigError
from ...training.environment import find_device
from ..durations import parse_duration, show_duration
from ..flags import Commands, add_import_flag, import_modules
from ..picture_files import find_pictures

EXAMPLES = """examples:
  anynest predict runs/a cat.png dog.jpg --deadline 10ms
  anynest predict runs/a pictures/ --confidence 0.9 --json
  find . -name '*.png' | anynest predict runs/a - --deadline 5ms --when-nothing guess

The deadline counts from the moment the picture is decoded. A picture that cannot be read gets one
line, the others go on; the exit status is then 1."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "predict",
        help="the classes of pictures, as good as a deadline allows",
        description="Classify pictures with a trained network; show the answer as it improves from "
        "stage to stage, until the deadline or the last stage.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="RUN", help="a run's folder, a weights file or an exported folder"
    )
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="+",
        help="a file, a folder (with all below it), or - for paths on standard input, one a line",
    )
    parser.add_argument("--deadline", metavar="TIME", help="such as 10ms (default: none)")
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="stop at a probability of at least P"
    )
    parser.add_argument(
        "--when-nothing",
        choices=("raise", "wait", "guess"),
        default="raise",
        help="where no stage is ready in time: fail (raise, the default), wait for stage 1, or "
        "guess at random",
    )
    parser.add_argument(
        "--save-work",
        type=float,
        metavar="P",
        help="do not begin a stage that is in time with less probability than P, by the profile",
    )
    parser.add_argument("--profile", metavar="FILE", help="default: the run's profile.json")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: torch; of an exported folder, onnxruntime"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the kernels (default: 1)")
    parser.add_argument("--device", default="cpu", help="of torch: cpu (default), cuda, auto, ...")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes shown: 3")
    parser.add_argument("--json", action="store_true", help="one line of JSON a picture")
    add_import_flag(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict every picture; 1 where one of them failed, else 0."""
    import_modules(arguments)
    deadline = None
    if arguments.deadline is not None:
        deadline = parse_duration(arguments.deadline, "--deadline")
    check(arguments)
    failed = False
    with opened(arguments) as (predictor, reader):
        asked = Asked(predictor, arguments, deadline)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a path may be any bytes
        for found in find_pictures(arguments.pictures, sys.stdin):
            try:
                if isinstance(found, DataError):
                    raise found
                asked.answer(found, reader(found))
            except (DataError, DeadlineError, NetworkError) as error:
                failed = True
                asked.fail(found, error)
            sys.stdout.flush()
    return 1 if failed else 0


def check(arguments: argparse.Namespace) -> None:
    """ConfigError for a flag out of range, before anything is opened."""
    for name in ("confidence", "save_work"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value <= 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} must be above 0 and at most 1, found {value}")
    for name in ("threads", "top"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, found {getattr(arguments, name)}")
    if arguments.save_work is not None and arguments.deadline is None:
        raise ConfigError("--save-work has a meaning with a deadline alone: give --deadline too")
    if arguments.profile is not None and arguments.save_work is None:
        raise ConfigError("--profile is read for --save-work alone: give that too")


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[AnytimePredictor, ImageFileReader]]:
    """The predictor, and the reader of its pictures."""
    source = resolve(arguments.source)
    if source.info is None:
        raise ConfigError(
            f"{arguments.source} does not say how pictures are prepared and what the classes are: "
            "export it from a run"
        )
    info = source.info
    reader = ImageFileReader(info.image_size, info.mean, info.std, info.fit)
    profile = None
    if arguments.save_work is not None:
        profile = Profile.read(arguments.profile or arguments.source)
    backend = arguments.backend or ("torch" if source.export is None else "onnxruntime")
    with AnytimePredictor(
        arguments.source,
        backend,
        profile,
        arguments.threads,
        device=place(backend, arguments.device),
        info=info,
    ) as predictor:
        yield predictor, reader


def place(backend: str, device: str) -> str:
    """Where to compute: ``auto`` is the CPU for a backend that knows no other."""
    return device if backend != "torch" and device == "auto" else str(find_device(device))


class Asked:
    """What every picture is asked, and how the answers are shown."""

    def __init__(
        self, predictor: AnytimePredictor, arguments: argparse.Namespace, deadline: float | None
    ) -> None:
        self.predictor, self.deadline = predictor, deadline
        self.when_nothing, self.save_work = arguments.when_nothing, arguments.save_work
        self.policy = None if arguments.confidence is None else Confidence(arguments.confidence)
        self.json, self.top = arguments.json, arguments.top
        self.classes = predictor.classes or ()

    def answer(self, path: str, x: Tensor) -> None:
        """Predict one picture ``[1, C, H, W]`` and show what comes of it."""
        if self.json:
            found = self.predict(x)
            print(json.dumps(self.to_json(path, found)))
            return
        print(printable(path))
        if self.save_work is not None:
            found = self.predict(x)
            print(self.line(found))
        else:
            found = self.improve(x)
        print(f"  {self.summary(found)}")

    def predict(self, x: Tensor) -> Prediction:
        """The last answer alone."""
        return self.predictor.predict(
            x[0],
            self.deadline,
            policy=self.policy,
            when_nothing=self.when_nothing,
            save_work=self.save_work,
        )

    def improve(self, x: Tensor) -> Prediction:
        """The last answer; each one is shown as soon as it is there."""
        called = time.monotonic()
        found: Prediction | None = None
        with self.predictor.stream(x[0], self.deadline, policy=self.policy) as stream:
            for found in stream:
                sys.stdout.write(self.line(found) + "\n")  # plain: no time is to be lost here
                sys.stdout.flush()
        if found is None:
            found = self.late(x, called)
            print(self.line(found))
        return found

    def late(self, x: Tensor, called: float) -> Prediction:
        """What there is to say where no stage was ready by the deadline."""
        deadline = self.deadline or 0.0
        if self.when_nothing == "raise":
            raise DeadlineError(
                f"no stage was ready within {show_duration(deadline)}: give a longer --deadline, or "
                "--when-nothing wait or guess"
            )
        if self.when_nothing == "guess":
            drawn = random.randrange(self.predictor.num_classes)
            elapsed = time.monotonic() - called
            return uniform((drawn,), self.predictor.num_classes, True, elapsed, deadline)
        found = self.predictor.predict(x[0], 0.0, when_nothing="wait")
        elapsed = time.monotonic() - called
        return replace(found, elapsed=elapsed, deadline=deadline, deadline_met=False)

    def fail(self, found: str | DataError, error: Exception) -> None:
        """One line for a picture that has no answer."""
        text = " ".join(str(error).split())
        path = None if isinstance(found, DataError) else found
        if self.json:
            print(json.dumps({"path": path, "error": text}))
            return
        sys.stdout.flush()
        line = text if path is None or path in text else f"{path}: {text}"
        print(f"anynest: {printable(line)}", file=sys.stderr)

    def best(self, found: Prediction) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities; none of a guess, which knows nothing."""
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
        """The last answer, and how it stands with the deadline."""
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
            "ended": found.ended,
            "top": [{"class": name, "probability": share} for name, share in self.best(found)],
        }


def printable(text: str) -> str:
    """A path as a terminal takes it: what is no text becomes a question mark in a diamond."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
