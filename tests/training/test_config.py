"""A config is read back exactly, or refused in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from anynest.training import (
    RECIPES,
    ConfigError,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    read_config,
    recipe,
)
from anynest.training.config.optimizer import OptimizerConfig, optimizers

EVERYTHING: dict[str, Any] = {
    "model": {"name": "a", "growth": [[1, 1], [2, 1]], "options": {"exit": "linear", "n": 2}},
    "data": {"source": "x", "holdout": 0.1, "image_size": 28, "augment": "none"},
    "method": {"name": "osgd", "priority": [1, 0, 2], "label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 1e-3, "options": {"betas": [0.8, 0.9]}, "clip": 1},
    "schedule": {"epochs": 7, "milestones": [1 / 3, 5], "factor": 0.1, "warmup_epochs": 0.5},
    "run": {"seed": 3, "precision": "bf16", "threads": 2, "deterministic": True},
}


@pytest.mark.parametrize("data", [{}, EVERYTHING, *RECIPES.values()])
def test_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    config = TrainConfig.from_json(data)
    path = tmp_path / "config.json"
    path.write_text(config.dumps())
    assert read_config(path) == config
    assert read_config(path).dumps() == config.dumps()


@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_takes_what_networks_have(name: str) -> None:
    parameters = [torch.nn.Parameter(torch.ones([2] * rank)) for rank in (1, 2, 4)]
    optimizer = OptimizerConfig(name=name, lr=0.1, weight_decay=0.0).build(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(bool((parameter < 1).all()) for parameter in parameters)


def test_types_survive() -> None:
    config = TrainConfig.from_json(EVERYTHING)
    assert config.model.growth == ((1, 1), (2, 1))
    assert config.optimizer.clip == 1.0
    assert type(config.optimizer.clip) is float
    assert config.optimizer.options["betas"] == (0.8, 0.9)
    assert type(TrainConfig.from_json({"data": {"holdout": 5}}).data.holdout) is int
    with pytest.raises(FrozenInstanceError):
        config.run.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"schedule": {"epohcs": 3}}, ["schedule", "'epohcs'", "near matches: epochs"]),
        ({"shedule": {}}, ["'shedule'", "near matches: schedule"]),
        ({"schedule": {"epochs": "3"}}, ["schedule.epochs", "whole number", '"3"']),
        ({"schedule": {"epochs": 3.0}}, ["schedule.epochs", "whole number", "3.0"]),
        ({"schedule": {"epochs": True}}, ["schedule.epochs", "true"]),
        ({"schedule": {"epochs": 0}}, ["schedule.epochs", "at least 1", "found 0"]),
        ({"schedule": {"shape": "step"}}, ["schedule.shape", "near matches: steps"]),
        ({"schedule": {"milestones": [0.6, 0.3]}}, ["milestones", "rise"]),
        ({"schedule": 3}, ["schedule must be an object", "3"]),
        ({"optimizer": {"lr": float("nan")}}, ["optimizer.lr", "finite"]),
        ({"optimizer": {"lr": -1}}, ["optimizer.lr", "at least 0", "-1"]),
        ({"optimizer": {"name": "adamv"}}, ["'adamv'", "adamw"]),
        ({"optimizer": {"name": "lbfgs"}}, ["'lbfgs'", "closure"]),
        ({"optimizer": {"name": "Muon"}}, ["'Muon'", "takes matrices alone", "adamw"]),
        (
            {"optimizer": {"name": "rprop", "weight_decay": 0.5}},
            ["rprop has no weight decay", "0.5"],
        ),
        ({"optimizer": {"options": {"momntum": 1}}}, ["'momntum'", "momentum"]),
        ({"optimizer": {"options": {"lr": 0.05}}}, ["optimizer.lr (--lr)", "0.05"]),
        ({"optimizer": {"options": {"weight_decay": 0}}}, ["optimizer.weight_decay", "(--weight-"]),
        ({"optimizer": {"clip": 0}}, ["optimizer.clip", "above 0"]),
        ({"method": {"name": "osdg"}}, ["'osdg'", "near matches: osgd"]),
        ({"method": {"name": "gredy"}}, ["'gredy'", "greedy"]),
        ({"method": {"name": "greedy", "priority": [0]}}, ["priority", "greedy"]),
        ({"method": {"priority": [0, 0]}}, ["priority", "permutation"]),
        ({"method": {"label_smoothing": 1}}, ["label_smoothing"]),
        ({"model": {"growth": [[1, 1, 1]]}}, ["model.growth[0]"]),
        ({"model": {"options": {"stem": "cifar"}}}, ["model.options", "'stem'"]),
        ({"data": {"on_corrupt": "sikp"}}, ["data.on_corrupt", "near matches: skip"]),
        ({"data": {"batch_size": 0}}, ["data.batch_size", "at least 1"]),
        ({"run": {"threads": 0}}, ["run.threads"]),
        ({"data": {"augment": "cfar"}}, ["data.augment", "cifar"]),
    ],
)
def test_refused_in_one_line(data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        TrainConfig.from_json(data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_damaged_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(path)


def test_every_field_has_a_flag_and_help() -> None:
    flags = []
    for kind in get_type_hints(TrainConfig).values():
        for field in fields(kind):
            assert field.metadata["help"]
            flags.append(field.metadata["flag"])
    assert len(flags) == len(set(flags))
    assert all(flag.startswith("--") for flag in flags)


def test_recipes_are_the_papers() -> None:
    cifar = TrainConfig.from_json(recipe("paper-cifar"))
    rates = [0.1 * cifar.schedule.rate(e * 391, 391) for e in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    assert (cifar.schedule.epochs, cifar.data.batch_size, cifar.data.holdout) == (200, 128, 0)
    assert cifar.optimizer.weight_decay == 5e-4
    imagenet = TrainConfig.from_json(recipe("paper-imagenet"))
    rates = [0.1 * imagenet.schedule.rate(e * 100, 100) for e in (0, 29, 30, 59, 60, 79, 80, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    with pytest.raises(ConfigError, match="near matches: paper-cifar"):
        recipe("paper-cfar")


def test_recipe_is_a_copy() -> None:
    recipe("paper-cifar")["data"]["batch_size"] = 1
    assert recipe("paper-cifar")["data"]["batch_size"] == 128


def test_json_is_plain(tiny: Callable[..., TrainConfig]) -> None:
    assert json.loads(tiny().dumps()) == tiny().to_json()


def test_the_config_needs_no_torch() -> None:
    """Nor does an error in one section, whatever the other sections hold."""
    code = """
import sys
from anynest.training import ConfigError, TrainConfig
from anynest.training.output import reporting
try:
    TrainConfig.from_json({"method": {"name": "osgd"}, "schedule": {"epochs": 0}})
except ConfigError as error:
    print(error)
print([name for name in ("torch", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "schedule.epochs must be at least 1, found 0\n[]\n"


def test_numpy_scalars_become_plain_numbers() -> None:
    data = DataConfig(image_size=np.int64(32), holdout=np.float32(0.25), batch_size=np.uint8(4))
    assert (data.image_size, data.holdout, data.batch_size) == (32, 0.25, 4)
    config = TrainConfig(
        data=data,
        model=ModelConfig(growth=((np.int64(1), np.int64(1)),)),
        run=RunConfig(compile=np.bool_(True)),
    )
    assert TrainConfig.from_json(json.loads(config.dumps())) == config
    assert config.run.compile is True
    assert config.model.growth == ((1, 1),)
    with pytest.raises(ConfigError, match=r"data\.batch_size must be a whole number, found 2.5"):
        DataConfig(batch_size=np.float32(2.5))


@pytest.mark.parametrize(
    "data",
    [
        {"run": {"seed": 2**63}},
        {"data": {"image_size": 10**5000}},
        {"data": {"holdout": -(10**400), "limit": 1}},
        {"data": {"limit": -(2**63) - 1}},
        {"optimizer": {"lr": 10**30}},
        {"optimizer": {"options": {"momentum": 2**64}}},
        {"model": {"growth": [[1, 2**70]]}},
        {"method": {"priority": [0, 2**65]}},
    ],
)
def test_numbers_beyond_64_bits(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must fit in 64 bits, found .{1,60}: take a smaller"):
        TrainConfig.from_json(data)
