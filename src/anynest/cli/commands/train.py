"""``anynest train``."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from ...data.locate import SOURCES
from ...nets.registry import describe
from ...training.config.data_config import DataConfig
from ...training.config.model import ModelConfig
from ...training.config.recipes import recipe
from ...training.config.train_config import TrainConfig, read_config, read_object
from ...training.errors import ConfigError
from ..flags import typed_settings
from ..interrupts import exit_on_interrupt

Settings = dict[str, dict[str, Any]]


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the summary."""
    folder = find_folder(arguments) or new_folder(given_settings(arguments))
    resumes = bool(arguments.resume) and (folder / "config.json").is_file()
    base = read_config(folder / "config.json").to_json() if resumes else {}
    settings = overlay(base, given_settings(arguments))
    if model := typed_name(settings, "model", "name"):
        describe(model)  # raises for an unknown name
    with exit_on_interrupt():
        config = TrainConfig.from_json(settings)  # once every section is valid, imports torch
        require_steps(typed_settings(arguments), config)

        from ...training import train
        from ...training.output.reporting import ConsoleReporter, NullReporter, Reporter
        from ...training.output.summary import summary_table
        from ..console import Console, print_json

    console = Console(stderr=arguments.json)
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    is_quiet = arguments.quiet or not is_rank_zero
    reporter: Reporter = NullReporter() if is_quiet else ConsoleReporter(console)
    if not (arguments.out or arguments.resume):
        reporter.say(f"run folder: {folder}")
    if arguments.resume is True and not resumes:
        reporter.say(f"{folder} has no run: a new one is started")
    resume = resumes or isinstance(arguments.resume, str)
    result = train(config, folder, resume=resume, reporter=reporter)
    if not is_rank_zero:
        return 0
    if arguments.json:
        print_json({"folder": str(result.folder), **result.summary})
        return 0
    console.print(summary_table(result.summary))
    for name in ("weights.safetensors", "curves.png", "metrics.jsonl"):
        console.print(str(result.folder / name))
    return 0


def find_folder(arguments: argparse.Namespace) -> Path | None:
    """The run folder that ``--out`` and ``--resume`` name; None for a new one."""
    named = arguments.resume if isinstance(arguments.resume, str) else None
    if named and arguments.out and Path(named) != Path(arguments.out):
        raise ConfigError(f"--resume {named} and --out {arguments.out} differ: give one of them")
    if named or arguments.out:
        return Path(named or arguments.out)
    if arguments.resume or not given_settings(arguments):
        raise ConfigError(
            "train needs data or a run folder: give --data SOURCE, --out FOLDER, or --resume FOLDER"
        )
    return None


def new_folder(settings: Settings) -> Path:
    """``runs/MODEL-DATA``, with a number where it is there already."""
    model = typed_name(settings, "model", "name") or ModelConfig().name
    source = Path(typed_name(settings, "data", "source") or DataConfig().source).name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}-{source}").strip("-.")
    number = 1
    while (folder := Path("runs", f"{stem}-{number}" if number > 1 else stem)).exists():
        number += 1
    return folder


def typed_name(settings: Settings, section: str, key: str) -> str | None:
    """A setting that is a text; None for anything else, which the config refuses later."""
    values = settings.get(section)
    found = values.get(key) if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def given_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the recipe, the config file and the flags, the later over the earlier."""
    settings: Settings = recipe(arguments.recipe) if arguments.recipe else {}
    if arguments.config:
        settings = overlay(settings, read_object(Path(arguments.config)))
    settings = overlay(settings, typed_settings(arguments))
    data = settings.get("data", {})
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        data["source"] = absolute(data["source"])
    return settings


def require_steps(typed: Settings, config: TrainConfig) -> None:
    """Refuse flags of the step schedule that have no effect.

    Only typed flags are checked: a recipe or a config file may hold settings of other schedules.

    Raises:
        ConfigError: another schedule, or a milestone after the last epoch.
    """
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
                f"--milestones must come before the end of the run, {epochs} "
                f"epoch{'' if epochs == 1 else 's'}, found {milestone:g}, which is never reached: "
                "give fractions of the run, below 1, or more --epochs"
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
    """A data path as an absolute one, so that a run resumes from any folder; names stay."""
    if source in SOURCES or source.startswith("hub:") or not os.path.exists(source):
        return source
    return os.path.abspath(source)
