"""Parse, call, print. Exit status: 0 success, 1 failure, 2 wrong usage or input, 130 Ctrl-C.

A user's mistake prints one line on standard error; ANYNEST_TRACEBACK=1 shows the traceback.
Nothing here imports torch: a command's flags are read from ``usage/``, and only a command that is
called is imported from ``commands/``.
"""

import contextlib
import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches

from .._version import __version__
from ..training.errors import ConfigError, Interrupted, RunError
from .flags import import_modules
from .interrupts import exit_on_interrupt
from .parser import Parser, did_you_mean

COMMANDS = {
    "train": "train a network",
    "evaluate": "the error of every stage on a split",
    "calibrate": "when to stop early, chosen on held-out images",
    "predict": "classes of pictures, as good as a deadline allows",
    "serve": "answer requests over HTTP and gRPC, each by its deadline",
    "profile": "parameters, multiply-adds and latency of each stage",
    "export": "ONNX files of a trained network, one per stage",
    "push": "share a trained network on the Hugging Face Hub",
    "reproduce": "re-run the paper's tables and figures",
    "report": "results as one HTML page and a Markdown file",
    "models": "the networks and the cost of each stage",
    "completion": "completion of commands and flags in bash, zsh and fish",
    "doctor": "versions, devices and a self-check",
    "demo": "a nested network answers by deadlines, in a minute",
}
# torch raises RuntimeError: words of its message -> what they mean
TORCH_ERRORS = {
    "can't allocate memory": "out of memory",
    "out of memory": "out of memory",
    "storage size calculation overflowed": "out of memory",
    "overflow": "a number is too large",
    "too large to convert": "a number is too large",
}
MAX_MESSAGE = 1000  # characters; torch appends a C++ stack to some
HELP = """\
usage: anynest COMMAND ...

Train nested anytime networks with Orthogonalized SGD, and use them.

commands:
{commands}

options:
  --help     show this help, or that of a command: anynest COMMAND --help
  --version  show the version

example: anynest train --model width_nested_resnet10 --data digits --out runs/a
"""


def dispatch(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; see the module for the statuses."""
    _open_standard_streams()
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Interrupted as error:
        return _fail(error, 128 + error.signal_number)
    except KeyboardInterrupt as error:
        return _fail(error, 130, "stopped")
    except (RunError, MemoryError) as error:
        return _fail(error, 1)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except (OverflowError, RuntimeError) as error:
        for words, text in TORCH_ERRORS.items():
            if words in str(error).lower():
                return _fail(error, 1, f"{text}: {error}")
        raise


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else None
    if first in ("--version", "-V"):
        print(f"anynest {__version__}")
    elif first in ("--help", "-h"):
        print(_help(), end="")
    elif first is None:
        print(_help(), end="", file=sys.stderr)
        return 2
    else:
        try:
            parsed = parse(arguments)
        except SystemExit:  # argparse has printed the help
            return 0
        with exit_on_interrupt():
            command = importlib.import_module(f"{__package__}.commands.{first}")
        status: int = command.run(parsed)
        return status
    return 0


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse a command and its flags.

    Raises:
        ConfigError: an unknown command, flag or value.
        SystemExit: the help was printed.
    """
    name = arguments[0]
    if name not in COMMANDS:
        if name.startswith("-"):
            raise ConfigError(f"unknown flag {name.partition('=')[0]}{flag_remedy(name)}")
        remedy = did_you_mean(name, COMMANDS) or "; see `anynest --help`"
        raise ConfigError(f"unknown command {name!r}{remedy}")
    usage = importlib.import_module(f"{__package__}.usage.{name}")
    parser = parser_of(name)
    parsed: Namespace = parser.parse_args(arguments[1:])
    if hasattr(usage, "check"):
        usage.check(parsed)
    with exit_on_interrupt():
        import_modules(getattr(parsed, "modules", []))
    return parsed


def parser_of(name: str) -> Parser:
    """The parser of a command."""
    usage = importlib.import_module(f"{__package__}.usage.{name}")
    parser = Parser(f"anynest {name}", usage.DESCRIPTION, usage.EXAMPLES)
    usage.add_flags(parser)
    return parser


def flag_remedy(text: str) -> str:
    """The nearest flag, with the first command that has it, where a flag stands for a command."""
    flags = {"--help": "", "--version": ""}
    for name in COMMANDS:
        for flag in parser_of(name)._option_string_actions:
            flags.setdefault(flag, f"{name} ")
    near = get_close_matches(text.partition("=")[0], flags, n=1, cutoff=0.75)
    if not near:
        return ": a command comes first; see `anynest --help`"
    return f": did you mean `anynest {flags[near[0]]}{near[0]}`?"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


def _open_standard_streams() -> None:
    """Open the null device for streams that were closed, so that no file takes their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _fail(error: BaseException, status: int, text: str | None = None) -> int:
    if os.environ.get("ANYNEST_TRACEBACK"):
        raise error
    message = " ".join((text or str(error)).split()) or type(error).__name__
    message = message.split(" Exception raised from ")[0][:MAX_MESSAGE]
    rank = os.environ.get("RANK")
    several = rank is not None and os.environ.get("WORLD_SIZE", "1") != "1"
    with contextlib.suppress(OSError):  # standard error may be closed too
        print(f"anynest: {f'rank {rank}: ' if several else ''}{message}", file=sys.stderr)
    return status
