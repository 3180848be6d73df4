"""``anynest train``."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ...data.locate import SOURCES
from ...training import RECIPES, ConfigError, TrainConfig, read_config, recipe, train
from ...training.config.train_config import read_object
from ...training.output.reporting import ConsoleReporter, NullReporter, Reporter, counted
from ...training.output.run_folder import RunFolder
from ...training.output.summary import summary_table
from ..console import Console
from ..flags import Commands, add_config_flags, add_import_flag, import_modules, typed_settings

Settings = dict[str, dict[str, Any]]
EXAMPLES = """examples:
  anynest train --model width_nested_resnet10 --data digits --method osgd --epochs 3 --out runs/a
  anynest train --resume runs/a
  anynest train --recipe paper-cifar --model width_nested_resnet42 --data DIR --out runs/b
  torchrun --nproc-per-node 2 --max-restarts 3 -m anynest train --data digits --out runs/c

Settings are taken from the flags, then --config, then --recipe, then the defaults. Ctrl-C saves."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train",
        help="train a network",
        description="Train a nested anytime network into a run folder, or go on with a run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="FOLDER", help="run folder, empty or new")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="go on with the run in FOLDER (default: --out)",
    )
    parser.add_argument("--recipe", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--config", metavar="FILE", help="a config.json, whole or in part")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_import_flag(parser)
    add_config_flags(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the summary."""
    import_modules(arguments)
    console = Console(stderr=arguments.json)
    leads = os.environ.get("RANK", "0") == "0"  # of several processes, the one that speaks
    reporter: Reporter = (
        NullReporter() if arguments.quiet or not leads else ConsoleReporter(console)
    )
    folder = RunFolder(find_folder(arguments))
    settings = given_settings(arguments)
    resume = bool(arguments.resume)
    if arguments.resume is True and not folder.started:
        reporter.say(f"{folder.path} holds no run yet: starting one")
        resume = False
    base = read_config(folder.config).to_json() if resume and folder.started else {}
    config = TrainConfig.from_json(overlay(base, settings))
    require_steps(typed_settings(arguments), config)
    result = train(config, folder.path, resume=resume, reporter=reporter)
    if not leads:
        return 0
    if arguments.json:
        print(json.dumps({"folder": str(result.folder), **result.summary}, indent=2))
        return 0
    console.print(summary_table(result.summary))
    for name in ("weights.safetensors", "curves.png", "metrics.jsonl"):
        console.print(str(result.folder / name), highlight=False, soft_wrap=True)
    return 0


def find_folder(arguments: argparse.Namespace) -> Path:
    """The run folder that ``--out`` and ``--resume`` name."""
    named = arguments.resume if isinstance(arguments.resume, str) else None
    if named and arguments.out and Path(named) != Path(arguments.out):
        raise ConfigError(f"--resume {named} and --out {arguments.out} differ: give one of them")
    if not (named or arguments.out):
        raise ConfigError("train needs a run folder: give --out FOLDER, or --resume FOLDER")
    return Path(named or arguments.out)


def given_settings(arguments: argparse.Namespace) -> Settings:
    """What the recipe, the config file and the flags set, the later over the earlier."""
    settings: Settings = recipe(arguments.recipe) if arguments.recipe else {}
    if arguments.config:
        settings = overlay(settings, read_object(Path(arguments.config)))
    settings = overlay(settings, typed_settings(arguments))
    data = settings.get("data", {})
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        data["source"] = absolute(data["source"])
    return settings


def require_steps(typed: Settings, config: TrainConfig) -> None:
    """ConfigError for a typed flag of the stepwise schedule beside another one, or for a step that
    is never taken. What a recipe or a config file holds is not meant so, and is passed over."""
    for key, flag in (("milestones", "--milestones"), ("factor", "--lr-factor")):
        if key in typed.get("schedule", {}) and config.schedule.shape != "steps":
            raise ConfigError(
                f"{flag} has no meaning for --schedule {config.schedule.shape}, which has no "
                "steps: leave it out, or take --schedule steps"
            )
    epochs = config.schedule.epochs
    for milestone in typed.get("schedule", {}).get("milestones", ()):
        if milestone >= epochs:
            raise ConfigError(
                f"--milestones must come before the end of {counted(epochs, 'epoch')}, found "
                f"{milestone:g}, which is never reached: give fractions of the run, below 1, or "
                "more --epochs"
            )


def overlay(base: Settings, over: Settings) -> Settings:
    """``over``'s settings on top of ``base``'s, section by section."""
    result = {**base}
    for section, values in over.items():
        before = result.get(section)
        both = isinstance(before, dict) and isinstance(values, dict)
        result[section] = {**(before or {}), **values} if both else values
    return result


def absolute(source: str) -> str:
    """A data path that holds in any working folder, so that a run resumes from anywhere."""
    if source in SOURCES or source.startswith("hub:") or not os.path.exists(source):
        return source
    return os.path.abspath(source)
