"""Flags of ``anynest train``."""

from ...training.config.recipes import RECIPES
from ..flags import add_config_flags, add_import_flag, add_json_flag
from ..parser import Parser

DESCRIPTION = "Train an anytime network into a run folder, or resume a run."
EXAMPLES = """examples:
  anynest train --data digits --epochs 3 --out runs/a
  anynest train --model width_nested_resnet10 --data PICTURES
  anynest train --model width_nested_resnet42 --data DIR --out runs/b
  anynest train --recipe paper-cifar --data DIR --out runs/c
  anynest train --resume runs/a
  torchrun --nproc-per-node 2 -m anynest train --data digits --out runs/d

Flags override --config, which overrides --recipe, which overrides the defaults.
Ctrl-C saves a checkpoint and stops."""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--out", metavar="FOLDER", help="run folder, empty or new (default: runs/MODEL-DATA)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="resume the run in FOLDER (default: --out)",
    )
    recipes = ", ".join(RECIPES)
    parser.add_argument("--recipe", metavar="NAME", help=f"{recipes} (default: none)")
    parser.add_argument(
        "--config", metavar="FILE", help="a config.json, complete or in part (default: none)"
    )
    add_json_flag(parser, "print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_import_flag(parser)
    add_config_flags(parser)
