"""Parse, call, print; exit status 0 (done), 1 (it failed), 2 (wrong usage or input).

A user's mistake ends in one line on standard error; ANYNEST_TRACEBACK=1 shows where it arose.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from .._version import __version__
from ..training import Interrupted, RunError
from .commands import (
    demo,
    doctor,
    evaluate,
    export,
    models,
    predict,
    profile,
    report,
    reproduce,
    train,
)

COMMANDS = (train, evaluate, predict, profile, export, reproduce, report, models, doctor, demo)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="anynest",
        description="Train nested anytime networks with Orthogonalized SGD, and use them.",
        epilog="example: anynest train --model width_nested_resnet10 --data digits --out runs/a",
    )
    parser.add_argument("--version", action="version", version=f"anynest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.call(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader of our output has gone, as `head` does; nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Interrupted as error:
        return _fail(error, 128 + error.signal_number)
    except KeyboardInterrupt as error:
        return _fail(error, 130, "stopped")
    except (RunError, MemoryError, torch.OutOfMemoryError) as error:
        return _fail(error, 1)
    except (ValueError, OSError) as error:
        return _fail(error, 2)


def _fail(error: BaseException, status: int, text: str | None = None) -> int:
    if os.environ.get("ANYNEST_TRACEBACK"):
        raise error
    message = text or " ".join(str(error).split()) or type(error).__name__
    rank = os.environ.get("RANK")
    several = rank is not None and os.environ.get("WORLD_SIZE", "1") != "1"
    print(f"anynest: {f'rank {rank}: ' if several else ''}{message}", file=sys.stderr)
    return status
