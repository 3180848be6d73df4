"""The protocol of anytime networks: what a network lacks is named in one line."""

import pytest
import torch
from torch import nn

from anynest import create_model
from anynest.nets.staged import Staged, require_staged


class Two(nn.Module):
    num_stages = 2

    def forward(self, x):
        return [output for _, output in self.stages(x)]

    def stages(self, x):
        yield 1, x.mean(1)
        yield 2, x.sum(1)


class NoForward(nn.Module):
    num_stages = 2
    stages = Two.stages


class NoNumber(nn.Module):
    forward, stages = Two.forward, Two.stages


class NoStages(nn.Module):
    num_stages = 2

    def forward(self, x):
        return [x, x]


class SubmoduleNamedStages(NoStages):
    """As the networks of other libraries have it."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (NoNumber, "num_stages"),
        (NoForward, "forward"),
        (NoStages, "stages"),
        (SubmoduleNamedStages, "stages"),
    ],
)
def test_the_missing_member_and_its_purpose_are_named(kind, missing):
    with pytest.raises(TypeError, match=rf"^a predictor needs a network with {missing} \(") as info:
        require_staged(kind(), "a predictor")
    assert kind.__name__ in str(info.value)
    assert "\n" not in str(info.value)


def test_a_staged_module_is_returned_itself():
    module = Two()
    assert require_staged(module, "a predictor") is module
    assert isinstance(module, Staged)
    nested = create_model("width_nested_resnet10")
    assert require_staged(nested, "a predictor") is nested


@pytest.mark.parametrize("found", [torch.zeros(1), "model", Two, None])
def test_what_is_no_module_is_refused(found):
    with pytest.raises(TypeError, match=r"^a predictor needs a torch.nn.Module, found "):
        require_staged(found, "a predictor")


@pytest.mark.parametrize("number", [0, -1, 2.0, "2"])
def test_num_stages_must_be_a_positive_int(number):
    module = Two()
    module.num_stages = number
    with pytest.raises(ValueError, match="num_stages of Two must be an int of at least 1"):
        require_staged(module, "a predictor")
