"""Flags of ``anynest predict``."""

from argparse import Namespace

from ...training.errors import ConfigError
from ..durations import parse_duration
from ..flags import (
    BACKENDS,
    add_device_flag,
    add_import_flag,
    add_json_flag,
    add_policy_flag,
    add_threads_flag,
)
from ..parser import Parser, integer, probability

DESCRIPTION = (
    "Classify pictures with a trained network. The answer is shown as it improves from stage to "
    "stage, until the deadline or the last stage."
)
EXAMPLES = """examples:
  anynest predict runs/a cat.png dog.jpg --deadline 10ms
  anynest predict runs/a pictures/ --confidence 0.9 --json
  find . -name '*.png' | anynest predict runs/a - --deadline 5ms

The deadline counts from the moment the picture is decoded. A picture that
cannot be read gets one line, and the others are answered; the exit status is
then 1."""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "source", metavar="RUN", help="a run's folder, a weights file or an exported folder"
    )
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="+",
        help="a file, a folder (with all below it), or - for paths on standard input, one a line",
    )
    parser.add_argument(
        "--deadline", type=parse_duration, metavar="TIME", help="such as 10ms (default: none)"
    )
    parser.add_argument(
        "--confidence",
        type=probability,
        metavar="P",
        help="stop at a probability of at least P (default: by --policy)",
    )
    add_policy_flag(
        parser,
        "a policy of anynest calibrate, which stops early; none; or saved: the one in the run's "
        "folder (default: saved, where there is one)",
        default=None,
    )
    parser.add_argument(
        "--on-timeout",
        choices=("raise", "wait", "guess"),
        default="raise",
        help="if no stage is ready in time: fail (raise), wait for stage 1, or guess at random",
    )
    parser.add_argument(
        "--min-completion-probability",
        type=probability,
        metavar="P",
        help="skip a stage that is ready in time with a probability below P, by the profile "
        "(default: never)",
    )
    parser.add_argument("--profile", metavar="FILE", help="default: the run's profile.json")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: onnxruntime on the CPU, else torch"
    )
    add_threads_flag(parser)
    add_device_flag(parser, default="cpu")
    parser.add_argument("--top", type=integer(), default=3, metavar="N", help="classes shown")
    add_json_flag(parser, "print one line of JSON per picture")
    add_import_flag(parser)


def check(arguments: Namespace) -> None:
    """Raise ConfigError for flags that exclude one another, or that another must accompany."""
    if arguments.confidence is not None and arguments.policy is not None:
        raise ConfigError("--confidence and --policy both stop early: give one of them")
    if arguments.min_completion_probability is not None and arguments.deadline is None:
        raise ConfigError("--min-completion-probability needs a deadline: give --deadline too")
    if arguments.profile is not None and arguments.min_completion_probability is None:
        raise ConfigError("--profile is read for --min-completion-probability alone: give that too")
