"""The tutorials run, from top to bottom, and come out as they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torchvision_operators

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"


def run(name: str) -> dict[str, Any]:
    """The names that a tutorial's code leaves behind."""
    page = f"{name}.md"
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / page).read_text(), re.DOTALL)
    assert len(blocks) > 2
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def test_every_tutorial_is_tested() -> None:
    here = Path(__file__).read_text()
    pages = list(FOLDER.glob("*.md"))
    assert pages
    for page in pages:
        assert f'run("{page.stem}")' in here


@pytest.mark.slow
def test_two_tasks() -> None:
    names = run("two_tasks")
    for errors in names["table"].values():
        assert errors[0] < 20  # % of digits; chance is 90
        assert errors[1] < 0.3  # the mean alone has 1
    assert set(names["stats"]["digit"].cosines) == {"ink"}


@pytest.mark.slow
def test_a_nested_network_by_a_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("nested_deadline")
    assert len(names["wrong"]) == 3
    assert names["wrong"][-1] < 15
    assert names["report"].reached
    assert 1 <= sum(names["easy"].stages) / len(names["easy"].stages) <= 3
    assert "deadline none: " in capsys.readouterr().out


@pytest.mark.slow
def test_exits_for_a_transformer() -> None:
    torchvision_operators.define()
    pytest.importorskip("transformers")
    names = run("exits_transformer")
    assert names["model"].num_stages == 3
    assert (names["predicted"] == names["truth"]).double().mean() > 0.7
    assert set(names["stages"]) <= {1, 2, 3}
