"""What the README says must run: its Python examples, its commands' flags, its links, its models."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from anynest import list_methods, list_models
from anynest.cli.dispatch import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.split("#")[0] for line in re.findall(r"^    (anynest .*)$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.split("\n")[0])
def test_examples_run(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_examples_and_commands() -> None:
    assert len(EXAMPLES) == 3
    assert len(COMMANDS) >= 5


def test_it_is_one_page() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100


def test_the_control_stands_beside_osgd() -> None:
    """That the plain sum does as well is said where OSGD is shown, not only under the limits."""
    section = TEXT.split("anynest.OSGD(", 1)[1].split("\n## ", 1)[0]
    assert "*sum*" in section
    assert 'WeightedSGD(reduction="sum")' in section


def test_both_pictures_are_there() -> None:
    pictures = re.findall(r'src(?:set)?="([^"]+)"', TEXT)
    assert [path.rpartition("-")[2] for path in pictures] == ["dark.png", "light.png"]
    for path in pictures:
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    assert parse(shlex.split(command)[1:])


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_names_exist() -> None:
    named = set(re.findall(r"`([a-z_]+_(?:resnet|nested)[a-z_0-9]*\d)`", TEXT))
    assert named
    assert named <= set(list_models())
    methods = set(re.findall(r"`((?:sgd|osgd|normsgd)[a-z-]*)`", TEXT))
    assert methods <= set(list_methods())
