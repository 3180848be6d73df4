"""No import runs up a floor or sideways on the ground floor (docs/layout.md)."""

import ast
from pathlib import Path

import pytest

import anynest

ROOT = Path(anynest.__file__).parent

# room -> the rooms that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "nets": set(),
    "multitask": set(),
    "data": set(),
    "store": {"nets"},
    "training": {"nets", "multitask", "data", "store"},
    "profiling": {"nets", "data", "store"},
    "runtime": {"nets", "data", "store", "profiling"},
    "serving": {"nets", "data", "store", "profiling", "runtime"},
    "experiments": {"nets", "multitask", "data", "store", "training", "profiling", "runtime"},
    "cli": {
        "nets",
        "multitask",
        "data",
        "store",
        "training",
        "profiling",
        "runtime",
        "serving",
        "experiments",
    },
}
# `import anynest` alone must need torch alone
NEEDS_TORCH_ALONE = ("nets", "multitask")
THIRD_PARTY = {"torch", "anynest"}


def imported_rooms(path: Path) -> set[str]:
    """The rooms of anynest that a file imports, wherever in the file the import stands."""
    rooms: set[str] = set()
    package = ["anynest", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "anynest":
                rooms.add(parts[1] if len(parts) > 1 else "")
    return rooms


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if len(parts) == 1:
        return  # the package's front door and the command line see every floor
    room = parts[0]
    assert room in MAY_IMPORT, f"{room}/ has no floor: give it one in MAY_IMPORT"
    wrong = (imported_rooms(path) & set(MAY_IMPORT)) - MAY_IMPORT[room] - {room}
    assert not wrong, (
        f"{'/'.join(parts)} imports {sorted(wrong)}: an arrow that runs up or sideways"
    )


@pytest.mark.parametrize("room", NEEDS_TORCH_ALONE)
def test_core_needs_torch_alone(room: str) -> None:
    import sys

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


def test_import_loads_nothing_but_torch() -> None:
    """What torch itself brings along is not ours to judge: our own extras must stay out."""
    import subprocess
    import sys

    ours = ("rich", "PIL", "sklearn", "safetensors", "matplotlib", "pyarrow", "anynest.training")
    code = f"import sys, anynest; print([m for m in {ours!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
