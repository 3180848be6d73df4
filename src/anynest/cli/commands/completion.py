"""``anynest completion``: the flags of all commands as a script of shtab's, without torch."""

import argparse
import sys
from importlib import import_module
from typing import Any, cast

import shtab

from ...data.locate import SOURCES
from ...multitask.registry import list_methods
from ...nets.registry import list_models
from ...training.config.recipes import RECIPES
from ..dispatch import COMMANDS
from ..parser import Parser

PATHS = ("FILE", "FOLDER", "RUN", "RUN_OR_MODEL", "PATH", "PICTURE", "RESULTS", "SOURCE")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(shtab.complete(every_command(), arguments.shell))
    return 0


def every_command() -> argparse.ArgumentParser:
    """One parser with a subparser for each command, as shtab reads it; it is not used to parse."""
    root = argparse.ArgumentParser("anynest")
    root.add_argument("--version", action="store_true", help="show the version")
    commands = root.add_subparsers()
    for name, text in COMMANDS.items():
        parser = commands.add_parser(name, help=text, description=text)
        import_module(f"anynest.cli.usage.{name}").add_flags(cast(Parser, parser))
        for action in parser._actions:
            suggest(action)
    return root


def suggest(action: argparse.Action) -> None:
    """Add the values to complete where the parser knows none: names, and paths by the metavar."""
    values = known_values()
    for flag in action.option_strings:
        if action.choices is None and flag in values:
            action.choices = values[flag]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices is None and metavar in PATHS:
        cast(Any, action).complete = shtab.DIRECTORY if metavar == "FOLDER" else shtab.FILE
    if action.dest in ("names", "source") and metavar in ("NAME", "RUN_OR_MODEL"):
        action.choices = list_models()


def known_values() -> dict[str, list[str]]:
    """Names that a flag takes beside others."""
    return {
        "--model": list_models(),
        "--data": list(SOURCES),
        "--method": [*list_methods(), "greedy"],
        "--recipe": list(RECIPES),
        "--policy": ["none", "saved"],
        "--device": ["auto", "cpu", "cuda", "mps"],
    }
