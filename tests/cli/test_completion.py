"""``anynest completion``: scripts that the shells accept, and that complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anynest import list_models
from anynest.cli import main
from anynest.cli.commands.completion import every_command
from anynest.cli.dispatch import COMMANDS
from anynest.cli.usage.completion import SHELLS

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By shell."""
    folder = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "anynest", "completion", shell],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[shell] = folder / shell
        found[shell].write_text(done.stdout)
    return found


def complete(script: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    line = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
function=$(complete -p anynest | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", line, "bash", str(script), *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_the_script(shell: str, scripts: dict[str, Path]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True, capture_output=True)


@needs_bash
def test_bash_completes_commands_flags_and_values(scripts: dict[str, Path]) -> None:
    script = scripts["bash"]
    assert complete(script, "anynest", "tra") == ["train"]
    assert set(complete(script, "anynest", "")) == set(COMMANDS)
    assert complete(script, "anynest", "predict", "--dead") == ["--deadline"]
    assert complete(script, "anynest", "train", "--epo") == ["--epochs"]
    assert complete(script, "anynest", "predict", "--epo") == []
    assert complete(script, "anynest", "train", "--schedule", "co") == ["cosine", "constant"]
    assert complete(script, "anynest", "train", "--method", "gre") == ["greedy"]
    assert set(complete(script, "anynest", "train", "--model", "")) == set(list_models())
    assert complete(script, "anynest", "completion", "z") == ["zsh"]


@needs_bash
def test_bash_completes_paths(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert complete(scripts["bash"], "anynest", "evaluate", f"{tmp_path}/fo") == [
        f"{tmp_path}/folder"
    ]
    assert complete(scripts["bash"], "anynest", "train", "--out", f"{tmp_path}/f") == [
        f"{tmp_path}/folder"
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_the_commands_and_flags(shell: str, scripts: dict[str, Path]) -> None:
    text = scripts[shell].read_text()
    for word in (*COMMANDS, "min-completion-probability", "label-smoothing", "cosine"):
        assert word in text


def test_fish_completes(scripts: dict[str, Path]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    line = f"source {scripts['fish']}; complete -C 'anynest predict --dead'"
    done = subprocess.run(["fish", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--deadline\t")


def test_it_imports_nothing_heavy() -> None:
    code = """
import sys
from anynest.cli import main
assert main(["completion", "bash"]) == 0
print([name for name in ("torch", "numpy", "onnx", "PIL") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_every_flag_is_there() -> None:
    """The scripts are made from the parsers themselves."""
    (commands,) = (a for a in every_command()._actions if a.choices is not None)
    assert commands.choices is not None
    assert list(commands.choices) == list(COMMANDS)


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "SHELL must be one of bash, zsh, fish, found 'csh'" in capsys.readouterr().err
