"""Flags of ``anynest models``."""

from ..flags import add_image_size_flag, add_import_flag, add_json_flag
from ..parser import Parser, integer

DESCRIPTION = (
    "List the networks, or print parameters and multiply-adds per stage: of the nested network "
    "and of the plain network of the same size (independent)."
)
EXAMPLES = """examples:
  anynest models
  anynest models 'width*'
  anynest models width_nested_resnet10 --image-size 32 --json"""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="or shell pattern (default: a list of all)"
    )
    add_image_size_flag(parser, "32, with ImageNet's stem 224")
    parser.add_argument("--num-classes", type=integer(), default=10, help="logits of a stage")
    parser.add_argument("--in-channels", type=integer(), default=3, help="of the images")
    add_import_flag(parser)
    add_json_flag(parser)
