"""docs/predict.md: the example of networks of one's own runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()


def test_networks_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    section = TEXT.split("## Networks of your own")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(example, "docs/predict.md", "exec"), {})
    first, *streamed = capsys.readouterr().out.splitlines()
    assert first.endswith("(2, 2, 2)")
    assert streamed == ["1 torch.Size([2, 7, 5])", "2 torch.Size([2, 7, 5])"]
