"""Names, plans and costs of networks, and the store, do not import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import anynest
from anynest.nets import create_architecture, create_model, list_models
from anynest.nets.nested.cost import stage_costs
from anynest.nets.nested.wiring import build_plan
from anynest.nets.registry import registered_costs

# the package's own face is replaced: only the modules named below are under test
CODE = """
import json, sys, types
face = types.ModuleType("anynest"); face.__path__ = [sys.argv[1]]; sys.modules["anynest"] = face
from anynest import nets, store
from anynest.nets.registry import registered_costs
from anynest.nets.nested.cost import stage_costs
from anynest.nets.nested.wiring import build_plan
from anynest.store import figures, hardware
hardware.usable_cores(), hardware.processor()
found = {}
for name in nets.list_models():
    costs = registered_costs(name)
    if costs is None:
        costs = stage_costs(build_plan(nets.create_architecture(name)), (32, 32))
    found[name] = [nets.describe(name), costs[-1].parameters]
for call in (lambda: nets.create_model("nothing"), lambda: store.load("nothing")):
    try: call()
    except ValueError: pass
    else: raise SystemExit("no error")
print(json.dumps([found, [m for m in ("torch", "matplotlib") if m in sys.modules]]))
"""


def test_names_plans_costs_and_the_store_need_no_torch() -> None:
    root = str(Path(anynest.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", CODE, root], capture_output=True, text=True, check=True
    )
    found, loaded = json.loads(done.stdout)
    assert loaded == []
    assert list(found) == list_models()
    assert all(description for description, _ in found.values())
    for name, (_, parameters) in found.items():
        rows = registered_costs(name)
        if rows is None:
            rows = stage_costs(build_plan(create_architecture(name)), (32, 32))
        assert parameters == rows[-1].parameters


@pytest.mark.parametrize("independent", [None, 2])
def test_the_architecture_is_the_models(independent: int | None) -> None:
    options = {"num_classes": 3, "growth": [[1, 1], [2, 1]], "independent": independent}
    architecture = create_architecture("width_nested_resnet10", **options)
    assert create_model("width_nested_resnet10", **options).architecture == architecture
