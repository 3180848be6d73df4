"""Flags of ``anynest push``."""

from ..flags import add_import_flag
from ..parser import Parser

DESCRIPTION = (
    "Upload a trained network to the Hugging Face Hub: its weights file, the policy of `anynest "
    "calibrate` if there is one, and a model card made from the run's summary. `hf://OWNER/NAME` "
    "then stands for it wherever a run folder does."
)
EXAMPLES = """examples:
  anynest push runs/a user/name
  anynest push runs/a user/name --dry-run
  anynest predict hf://user/name picture.png --deadline 10ms"""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("source", metavar="RUN", help="finished run folder or weights file")
    parser.add_argument("repository", metavar="OWNER/NAME", help="created where it is missing")
    parser.add_argument(
        "--private", action="store_true", help="a new repository is private, not public"
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: one of anynest)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the model card and upload nothing"
    )
    add_import_flag(parser)
