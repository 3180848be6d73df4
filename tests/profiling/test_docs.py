"""docs/profile.md: its commands parse, and it names every key of the file."""

import json
import re
import shlex
from pathlib import Path

from anynest.cli.dispatch import parse
from anynest.nets import create_model
from anynest.profiling import Profile, StageLatency

TEXT = (Path(__file__).parents[2] / "docs" / "profile.md").read_text()


def test_commands_parse() -> None:
    commands = re.findall(r"^    (?:find .* \| )?(anynest .*)$", TEXT, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        assert parse(shlex.split(command.split("#")[0])[1:])


def test_every_key_is_documented() -> None:
    model = create_model("width_nested_resnet10")
    costs = model.cost(8)
    rows = tuple(StageLatency.of(s, ("torch", "cpu", 1, 1), [1.0], [1.0]) for s in (1, 2, 3))
    data = json.loads(Profile("m", {}, 8, costs, rows, costs, rows, {}).dumps())
    for keys in (data, data["rows"][0], data["costs"][0]):
        for key in keys:
            assert f"`{key}`" in TEXT, key
