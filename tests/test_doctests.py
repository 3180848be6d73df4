"""Every example in a docstring runs and says what it prints."""

import doctest
import importlib
import pkgutil

import pytest

import anynest
from anynest.nets import registry

MODULES = [module.name for module in pkgutil.walk_packages(anynest.__path__, "anynest.")]


@pytest.mark.parametrize("name", ["anynest", *MODULES])
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    registered = dict(registry._FACTORIES)  # an example registers a model of its own
    monkeypatch.setattr(registry, "_FACTORIES", registered)
    assert doctest.testmod(module).failed == 0
