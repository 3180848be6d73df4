"""Public names of a package that are imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package's ``__init__``.

    Args:
        package: the package's ``__name__``.
        modules: relative module -> the public names that it defines.
    """
    origin = {name: module for module, names in modules.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(origin[name], package), name)

    return getattr_
