"""Compiled training: in regions that leave each loss its own part of the graph."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest import create_model, list_models
from anynest.multitask import compile_for_tasks, task_gradients
from anynest.nets.nested.node import NestedNode
from anynest.nets.registry import is_nested
from anynest.training import TrainConfig
from anynest.training import step as step_module
from anynest.training.step import TrainStep
from anynest.training.training_phases import make_phase

# torch looks at .grad of what it traces, and warns of it where that is no leaf
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

Tiny = Callable[..., TrainConfig]
SMALL = [
    name for name in filter(is_nested, list_models()) if not name.endswith(("42", "50", "66", "98"))
]
DEPTH = {"name": "depth_nested_sparse_resnet14", "growth": [[1, 1], [1, 2]], "base_width": 2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's tracing and its autograd, without inductor's compiler."""
    torch.compiler.reset()
    monkeypatch.setattr(
        step_module,
        "compile_for_tasks",
        functools.partial(compile_for_tasks, backend="aot_eager"),
    )


def make_step(config: TrainConfig) -> TrainStep:
    torch.manual_seed(0)
    network = config.model.build(10, 1).double()
    step = TrainStep(config, make_phase(config, network, 0), torch.device("cpu"))
    step.phase.train_mode()
    return step


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (8,), generator=generator)


@pytest.mark.parametrize("name", SMALL)
def test_called_nodes_are_the_modules_that_training_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(name, base_width=2).train()
    called, forward = [], NestedNode.forward

    def counted(node: NestedNode, *args: Any) -> Any:  # a hook would keep nodes from being fused
        called.append(node)
        return forward(node, *args)

    monkeypatch.setattr(NestedNode, "forward", counted)
    model(torch.randn(2, 3, 16, 16))
    assert len(called) == len(set(called))
    assert set(called) == set(model.called_nodes())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["osgd", "sgd-mean"])
def test_a_compiled_run_takes_the_same_steps(tiny: Tiny, method: str) -> None:
    """And one pass per loss runs only through what the loss reads."""
    weights, sizes = [], []
    for on in (False, True):
        step = make_step(tiny(model=DEPTH, method={"name": method}, run={"compile": on}))
        images, labels = batch()
        for _ in range(3):
            step(images, labels, measure=True)
        weights.append([p.detach().clone() for p in step.phase.parameters])
        logits = step.phase.network(images)
        losses = [torch.nn.functional.cross_entropy(out, labels) for out in logits]
        sizes.append(task_gradients(losses, step.phase.parameters).sizes)
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert sizes[0][0] < sizes[0][1]
    assert method != "osgd" or sizes[1] == sizes[0]


def test_what_is_compiled_is_told(tiny: Tiny) -> None:
    nodes = len(create_model(**DEPTH).called_nodes())
    for sections, told in (
        ({"model": DEPTH}, f"compiled: each of {nodes} nodes by itself"),
        ({"model": DEPTH, "method": {"name": "sgd-sum"}}, "compiled: the network as a whole"),
        ({"model": DEPTH, "method": {"name": "sgd-participants"}}, f"each of {nodes} nodes"),
        ({}, "compiled: 0 of 14 nodes by themselves; others run in fused kernels"),
    ):
        step = make_step(tiny(**sections, run={"compile": True}))
        assert told in step.remark
    assert make_step(tiny()).remark == ""


def test_the_documented_call_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()
    _, example, *_ = page.replace("```python\n", "```").split("```")
    names: dict[str, Any] = {}
    exec(compile(example, "steps.md", "exec"), names)
    assert "compile_for_tasks" in example
    assert names["model"].num_stages == 2
