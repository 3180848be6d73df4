"""Flags of ``anynest completion``."""

from ..parser import Parser

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = (
    "Print a script by which a shell completes commands, flags, values and paths with the "
    "tabulator key. Print it again after an update."
)
EXAMPLES = """examples, each once:
  echo 'eval "$(anynest completion bash)"' >> ~/.bashrc
  echo 'eval "$(anynest completion zsh)"' >> ~/.zshrc    # after compinit
  anynest completion fish > ~/.config/fish/completions/anynest.fish"""


def add_flags(parser: Parser) -> None:
    """Add the argument."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
