"""``.. command-help:: train`` shows what ``anynest train --help`` prints."""

import contextlib
import io

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from anynest.cli import main


class CommandHelp(SphinxDirective):
    """A literal block of the help of one command, or of all without an argument."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = main([*self.arguments, "--help"])
        if status:
            raise self.error(
                f"anynest {' '.join(self.arguments)} --help ended with status {status}"
            )
        text = printed.getvalue()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
