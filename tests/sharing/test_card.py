"""The model card: every number is the summary's or the network's, texts from files are escaped."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import anynest
from anynest.cli.dispatch import parse
from anynest.cli.flags import typed_settings
from anynest.sharing import model_card
from anynest.sharing.card import escape
from anynest.sharing.command import train_command
from anynest.sharing.push import front_matter
from anynest.store import RunFolderError, WeightsInfo, save_weights
from anynest.training import TrainConfig


def write_run(folder: Path, **changes: Any) -> dict[str, Any]:
    """A finished run with an invented summary, which is returned."""
    folder.mkdir()
    model = anynest.create_model(
        "width_nested_resnet10", in_channels=1, growth=[[1, 1], [2, 1]], base_width=2
    )
    info = WeightsInfo(
        model=model.name,
        arguments=model.arguments,
        classes=(*"012345678", "<b>|nine"),
        mean=(0.25,),
        std=(0.5,),
        image_size=16,
        data="digits_*of* mine",
        anynest="9.9",
    )
    save_weights(folder / "weights.safetensors", model, info)
    config = TrainConfig.from_json({"data": {"source": "/home/me/private/set"}, "run": {"seed": 7}})
    (folder / "config.json").write_text(config.dumps())
    part = {"split": "test", "images": 321, "loss": [1.25, 1.5], "error": [0.125, 0.25]}
    summary = {
        **{"model": model.name, "arguments": model.arguments, "method": "osgd", "seed": 7},
        **{"data": "digits", "epochs": 3, "steps": 33, "skipped": 0, "ranks": 2},
        "train": {"loss": [1.0, 1.0], "error": [0.5, 0.5]},
        "validation": {**part, "split": "validation", "images": 123, "error": [0.2, 0.1]},
        "test": part,
        **{"training_seconds": 12.3, "anynest": "9.9"},
        "environment": {
            **{"python": "3.99", "torch": "2.99", "processor": "A | processor", "cores": 4},
            **{"accelerator": None},
        },
        **changes,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def rows(card: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    assert set(lines[1]) <= set("| -:")
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines[:1] + lines[2:]]


def test_errors_say_what_they_were_measured_on(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    card = model_card(tmp_path / "run", "user/name")
    assert rows(card, "Errors") == [
        ["stage", "test error %", "test loss", "validation error %", "validation loss"],
        ["1", "12.50", "1.2500", "20.00", "1.2500"],
        ["2", "25.00", "1.5000", "10.00", "1.5000"],
    ]
    assert "321 images of the test split, 123 images of the validation split" in card
    assert "seed 7" in card
    assert "Stage 2 has a higher test error than stage 1." in card
    for words in ("3 epochs, 33 steps", "processes: 2", "12 s", "9.9", "2.99", "3.99", "4 cores"):
        assert words in card


def test_a_split_that_serves_twice_is_shown_once(tmp_path: Path) -> None:
    part = {"split": "test", "images": 5, "loss": [1.0, 1.0], "error": [0.5, 0.25]}
    part["top5_error"] = [0.25, 0.125]
    write_run(tmp_path / "run", test=part, validation=part)
    card = model_card(tmp_path / "run", "user/name")
    assert rows(card, "Errors") == [
        ["stage", "test error %", "test loss", "test top-5 error %"],
        ["1", "50.00", "1.0000", "25.00"],
        ["2", "25.00", "1.0000", "12.50"],
    ]
    assert "has a higher test error" not in card


def test_costs_are_the_networks(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    costs = anynest.load(tmp_path / "run").cost(16)
    assert rows(model_card(tmp_path / "run", "user/name"), "Cost")[1:] == [
        [str(row.stage), f"{row.parameters:,}", f"{row.multiply_adds:,}"] for row in costs
    ]


def test_nothing_private_and_no_markup_from_files(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    card = model_card(tmp_path / "run", "user/name")
    assert "/home" not in card
    assert "private" not in card
    assert "--data FOLDER" in card
    assert "stands for the place of the data" in card
    assert r"digits\_\*of\* mine" in card
    assert r"\<b\>\|nine" in card
    assert "<" not in re.sub(r"\\<", "", card)
    assert "licen" not in card.split("---\n")[1]


def test_the_examples_name_the_repository_and_the_python_is_valid(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    card = model_card(tmp_path / "run", "user/name")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert code.count('"hf://user/name"') == 1
    commands = re.findall(r"^    (anynest .*)$", card, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert parse(shlex.split(command)[1:])


def test_a_weights_file_alone_has_no_errors(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    card = model_card(tmp_path / "run" / "weights.safetensors", "user/name")
    assert "## Errors" not in card
    assert "## Training" not in card
    assert "which holds no errors: `anynest evaluate hf://user/name --data FOLDER`" in card
    assert rows(card, "Cost")


def test_a_damaged_summary_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", environment={"python": 1})
    with pytest.raises(RunFolderError, match="must be a finished run's, found none for a card"):
        model_card(tmp_path / "run", "user/name")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": {"name": "cascade_sparse_resnet26", "growth": [[1, 1], [2, 2]], "stem": "cifar"}},
        {"model": {"options": {"a": "3", "b": 3, "c": "x y", "d": 0.5, "e": True, "f": "True"}}},
        {"data": {"holdout": 0.25, "augment": "none", "limit": 10}, "run": {"compile": True}},
        {"schedule": {"milestones": [0.5, 0.75], "epochs": 9}, "run": {"sync_batch_norm": False}},
        {"method": {"name": "osgd", "priority": [1, 0], "refresh": 4}, "optimizer": {"ema": 0.99}},
    ],
)
def test_the_command_gives_the_same_config(settings: dict[str, Any]) -> None:
    config = TrainConfig.from_json(settings)
    words = shlex.split(train_command(config))
    assert words[:2] == ["anynest", "train"]
    parsed = parse([*words[1:], "--out", "run"])
    assert TrainConfig.from_json(typed_settings(parsed)) == config


def test_the_command_names_the_module_of_the_network() -> None:
    assert train_command(TrainConfig(), "mine.nets") == "anynest train --import mine.nets"


@pytest.mark.parametrize(
    ("card", "block"),
    [
        ("", ""),
        ("# Title\n---\na: b\n---\n", ""),
        ("---\na: b\nc:\n- d\n---\ntext\n---\n", "a: b\nc:\n- d"),
        ("---\nnever closed", ""),
        ("---\n---\n", ""),
    ],
)
def test_front_matter(card: str, block: str) -> None:
    assert front_matter(card) == block


def test_escaped_text_is_one_line() -> None:
    assert "\n" not in escape("a\nb\u2028c\r")
    assert escape("plain text, 3.5") == "plain text, 3.5"
    assert escape("`x`") == r"\`x\`"
