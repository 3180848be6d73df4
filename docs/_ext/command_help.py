"""``.. command-help::`` shows what ``anynest --help`` prints, and a section for each command."""

import contextlib
import io

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from anynest.cli import main
from anynest.cli.dispatch import COMMANDS


class CommandHelp(SphinxDirective):
    """Literal blocks of the help."""

    def run(self) -> list[nodes.Node]:
        return [self._help(), *map(self._section, COMMANDS)]

    def _help(self, *command: str) -> nodes.literal_block:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = main([*command, "--help"])
        if status:
            raise self.error(f"anynest {' '.join(command)} --help ended with status {status}")
        text = printed.getvalue()
        return nodes.literal_block(text, text, language="text")

    def _section(self, command: str) -> nodes.section:
        title = f"anynest {command}"
        section = nodes.section("", nodes.title(title, title), self._help(command))
        section["ids"] = [nodes.make_id(title)]
        section["names"] = [title]
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
