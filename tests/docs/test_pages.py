"""The examples on the pages that lead into the site run."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["index", "train", "anytime", "deadline"])
def test_examples_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (FOLDER / f"{page}.md").read_text(), re.DOTALL)
    exec(compile(example, f"{page}.md", "exec"), {})
    assert capsys.readouterr().out
