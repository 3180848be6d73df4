"""Every public name of the package must be in the API reference, with a docstring.

A name is public if ``__all__`` of ``anynest`` or of one of its subpackages has it. What is missing
is a warning, and so ends a build with ``-W``.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def public_names(package: ModuleType) -> dict[str, object]:
    """Objects by full name: those in ``__all__`` of the package and of its direct subpackages."""
    found = {}
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg]
    for module in (package, *(importlib.import_module(f"{package.__name__}.{n}") for n in names)):
        if module.__name__ != f"{package.__name__}.cli":  # a program, described as such
            for name in getattr(module, "__all__", ()):
                found[f"{module.__name__}.{name}"] = getattr(module, name)
    return found


def undocumented(public: dict[str, object], documented: Iterable[str]) -> list[str]:
    """The public names that the reference lacks, also under another name of the same object."""
    names = set(documented)
    objects = {id(value) for value in map(_resolve, names) if value is not None}
    return sorted(n for n, value in public.items() if n not in names and id(value) not in objects)


def _resolve(name: str) -> object | None:
    """The object of a dotted name; None where it is not to be had, as a field without a value."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def without_docstring(public: dict[str, object]) -> Iterator[str]:
    """Public classes and functions, and public methods of such classes, that say nothing."""
    for name, value in public.items():
        if not inspect.isclass(value):
            if inspect.isroutine(value) and not inspect.getdoc(value):
                yield name
            continue
        if not value.__doc__:
            yield name
        for member, found in vars(value).items():
            is_method = inspect.isroutine(found) or isinstance(found, property | cached_property)
            inherited = getattr(value, member, None) if inspect.isroutine(found) else found
            if is_method and not member.startswith("_") and not inspect.getdoc(inherited):
                yield f"{name}.{member}"


def check(app: Sphinx, env: BuildEnvironment) -> None:
    public = public_names(importlib.import_module(app.config.public_package))
    for name in undocumented(public, env.get_domain("py").objects):
        logger.warning("public name %s is not in the API reference (docs/api)", name)
    for name in without_docstring(public):
        logger.warning("public name %s has no docstring", name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("public_package", "", "env", str)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
