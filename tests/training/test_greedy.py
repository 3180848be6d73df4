"""Algorithm 1: each stage alone, what came before it frozen to the last bit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.training import TrainConfig, train
from anynest.training import trainer as loop
from anynest.training.training_phases import Phase, make_phase

Tiny = Callable[..., TrainConfig]


def snapshot(model: Any, stage: int) -> dict[str, Tensor]:
    """Weights and batch-norm statistics of what is born at a stage."""
    modules = model.stage_modules(stage)
    return {
        f"{number}.{name}": tensor.clone()
        for number, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def test_each_phase_moves_its_own_stage_alone(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        model={"growth": [[1, 1], [2, 1], [3, 1]]},
        method={"name": "greedy"},
        schedule={"epochs": 1},
    )
    seen: list[list[dict[str, Tensor]]] = []
    real = loop.Trainer.start_phase

    def watched(self: loop.Trainer, index: int) -> None:
        seen.append([snapshot(self.model, stage) for stage in (1, 2, 3)])
        real(self, index)

    monkeypatch.setattr(loop.Trainer, "start_phase", watched)
    data = config.data.load()
    torch.manual_seed(0)
    model = config.model.build(data.num_classes, data.in_channels)
    train(config, tmp_path / "run", model=model, data=data)
    seen.append([snapshot(model, stage) for stage in (1, 2, 3)])
    for phase, (before, after) in enumerate(pairwise(seen), start=1):
        for stage in (1, 2, 3):
            untouched = same(before[stage - 1], after[stage - 1])
            assert untouched == (stage != phase), (phase, stage)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_a_phase_holds_exactly_its_stages_weights(tiny: Tiny, shared: bool) -> None:
    network: dict[str, Any] = {"growth": [[1, 1], [2, 1], [3, 1]]}
    if shared:
        network = {
            "name": "simultaneous_nested_sparse_resnet26",
            "growth": [[1, 1], [2, 2], [4, 4]],
            "options": {"head": "shared", "norm": "shared"},
        }
    config = tiny(model=network, method={"name": "greedy"})
    model = config.model.build(10, 1)
    phases: list[Phase] = []
    for index in range(3):
        phase = make_phase(config, model, index)
        phase.train_mode()
        phases.append(phase)
        wanted = {id(p) for p in model.parameters() if p.requires_grad}
        assert wanted == {id(p) for p in phase.parameters}
        assert len(phase.network(torch.randn(2, 1, 8, 8))) == 1
        frozen = [m for s in range(1, index + 1) for m in model.stage_modules(s)]
        assert not any(part.training for module in frozen for part in module.modules())
        assert all(part.training for m in model.stage_modules(index + 1) for part in m.modules())
    held = [id(p) for phase in phases for p in phase.parameters]
    assert len(held) == len(set(held)) == len(list(model.parameters()))


def test_first_stage_is_plain_training_of_it(tmp_path: Path, tiny: Tiny) -> None:
    """Greedy's stage 1 ends as it would have, trained without the others."""
    config = tiny(method={"name": "greedy"}, schedule={"epochs": 1})
    data = config.data.load()
    torch.manual_seed(0)
    nested = config.model.build(data.num_classes, data.in_channels)
    alone = config.model.build(data.num_classes, data.in_channels)
    alone.load_state_dict(nested.state_dict())
    train(config, tmp_path / "greedy", model=nested, data=data)
    plain = tiny(method={"name": "sgd-mean"}, schedule={"epochs": 1})
    train(plain, tmp_path / "alone", model=alone.subnetwork(1), data=data)
    assert same(snapshot(alone, 1), snapshot(nested, 1))
