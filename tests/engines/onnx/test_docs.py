"""The examples of docs/export.md run without this package and without torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anynest.engines.onnx.export.export import export
from anynest.nets import create_model
from anynest.store import WeightsInfo

PAGE = Path(__file__).parents[3] / "docs" / "export.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("anynest", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("known", [True, False], ids=["info", "bare"])
def test_examples_run_without_us(known: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10", num_classes=2).eval()
    info = WeightsInfo("", {}, ("a", "b"), (0.5,) * 3, (0.2,) * 3, 8, "", "") if known else None
    export(network, tmp_path / "a-onnx", info=info)
    export(network, tmp_path / "a-single", info=info, single_file=True)
    for example, lines in zip(EXAMPLES, (3, 1), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT + example],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert not done.returncode, done.stderr
        assert len(done.stdout.splitlines()) == lines
