"""The structure of the package: arrows point down, files form no circles, folders stay small.

Each check reads every import statement of every file, wherever in the file it stands.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import anynest

ROOT = Path(anynest.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES_PER_FOLDER = 16

# room -> the rooms that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "nets": set(),
    "multitask": set(),
    "data": set(),
    "store": {"nets"},
    "training": {"nets", "multitask", "data", "store"},
    "engines": {"nets", "store"},
    "profiling": {"nets", "data", "store", "engines"},
    "predict": {"nets", "data", "store", "engines", "profiling"},
    "serving": {"nets", "data", "store", "engines", "profiling", "predict"},
    "sharing": {"nets", "data", "store", "training", "engines", "profiling", "predict"},
    "experiments": {
        *("nets", "multitask", "data", "store"),
        *("training", "engines", "profiling", "predict"),
    },
    "cli": {
        *("nets", "multitask", "data", "store"),
        *("training", "engines", "profiling", "predict", "serving", "experiments"),
        "sharing",
    },
}
# folders within a room that must not import their neighbours
INNER = {"nets/nested": {"nets/zoo", "nets/registry.py", "nets/exits"}}
# `import anynest`, networks and combiners need torch alone
NEEDS_TORCH_ALONE = ("nets", "multitask")
THIRD_PARTY = {"torch", "anynest"}


def module_file(dotted: list[str]) -> Path | None:
    """The file of a module of this package, None for anything else."""
    if not dotted or dotted[0] != "anynest":
        return None
    stem = ROOT.joinpath(*dotted[1:])
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def imports(path: Path) -> set[Path]:
    """The files of this package that a file imports; the package's own face counts as a file.

    ``from .. import X`` is an import of module X where there is one, else of the package.
    """
    package = ["anynest", *path.relative_to(ROOT).parts[:-1]]
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                found.add(module_file([*stem, alias.name]) or module_file(stem))
    return {file for file in found if file is not None}


def room_of(path: Path) -> str:
    """The first folder below the package; "" for files that lie beside the rooms."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    if not room:
        return  # the package's face sees every floor
    assert room in MAY_IMPORT, f"{room}/ has no floor: give it one in MAY_IMPORT"
    face = ROOT / "__init__.py"
    assert face not in imports(path), f"{name_of(path)} imports the package's face"
    rooms = {room_of(file) for file in imports(path)} - {""}
    wrong = rooms - MAY_IMPORT[room] - {room}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}: an arrow up or sideways"
    for inner, barred in INNER.items():
        if name_of(path).startswith(f"{inner}/"):
            seen = {name_of(file) for file in imports(path)}
            bad = [s for s in seen if any(s == b or s.startswith(f"{b}/") for b in barred)]
            assert not bad, f"{name_of(path)} imports {bad}"


def test_files_form_no_circle() -> None:
    """A package's face imports its files, and files import faces of other rooms only."""
    graph = {path: imports(path) - {path} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(name_of(path) for path in error.args[1])
        pytest.fail(f"these files import one another in a circle: {circle}")


def test_folders_stay_small() -> None:
    counts: dict[str, int] = {}
    for path in FILES:
        if path.name != "__init__.py":
            counts[name_of(path.parent)] = counts.get(name_of(path.parent), 0) + 1
    crowded = {folder: count for folder, count in counts.items() if count > MODULES_PER_FOLDER}
    assert not crowded, f"folders of more than {MODULES_PER_FOLDER} modules: {crowded}"


@pytest.mark.parametrize("room", NEEDS_TORCH_ALONE)
def test_core_needs_torch_alone(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in THIRD_PARTY or top in sys.stdlib_module_names, f"{path}: {name}"


def test_import_loads_no_other_package() -> None:
    """Names are imported on first use, and listed before."""
    code = """
import sys
before = {name.split(".")[0] for name in sys.modules}
import anynest
loaded = {name.split(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
assert loaded == {"anynest"}, loaded
assert set(anynest.__all__) | {"data", "training"} <= set(dir(anynest))
for name in anynest.__all__:
    assert getattr(anynest, name) is getattr(anynest, name), name
assert anynest.data.load and anynest.nets.create_model is anynest.create_model
assert "torch" in sys.modules
try:
    anynest.OSDG
except AttributeError as error:
    assert "'OSDG'" in str(error)
else:
    raise AssertionError("an unknown name was found")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_networks_and_combiners_load_nothing_but_torch() -> None:
    """What torch itself brings along is not ours to judge."""
    ours = ("rich", "PIL", "sklearn", "safetensors", "matplotlib", "pyarrow", "anynest.training")
    code = f"""
import sys, anynest
anynest.OSGD, anynest.create_model
print([name for name in {ours!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
