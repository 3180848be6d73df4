"""Puts a run's trained weights and their card into the package.

    python benchmarks/keep_weights.py runs/mini --name cifar10-jpeg75-16px

Trains nothing: of the finished runs in the folders it takes the one of --model with the lowest error
on the held-out images, averaged over the stages, and replaces the files of that name in
``src/anynest/nets/pretrained``. ``anynest.load(NAME)`` then gives that network. The test split chooses
nothing. A results file (``*.jsonl``) beside the runs adds protocol and commit to the card.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from anynest.nets.pretrained import FOLDER, MAX_BYTES, MAX_FILES, SUFFIX
from anynest.store import load, read_info, write_whole
from anynest.training import read_config
from anynest.training.output.run_folder import RunFolder

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def finished_runs(places: list[Path], model: str) -> list[tuple[float, Path, dict[str, Any]]]:
    """Held-out error, folder and summary of each finished run of a network, best first."""
    found = []
    for place in places:
        for path in sorted(place.rglob("summary.json")):
            summary = json.loads(path.read_text(encoding="utf-8"))
            held_out = summary["validation"]
            if summary["model"] == model and held_out["split"] != summary["test"]["split"]:
                found.append((statistics.mean(held_out["error"]), path.parent, summary))
    return sorted(found, key=lambda run: (run[0], str(run[1])))


def record_of(folder: Path, places: list[Path]) -> dict[str, Any]:
    """The run's record in a results file in one of the places; empty without one."""
    for place in places:
        for path in sorted(place.glob("*.jsonl")):
            for row in path.read_text(encoding="utf-8").splitlines():
                record: dict[str, Any] = json.loads(row)
                if folder.name.endswith(f"-{record.get('key', '?')[:8]}"):
                    return record
    return {}


def card_of(name: str, folder: Path, summary: dict[str, Any], places: list[Path]) -> dict[str, Any]:
    """What somebody who takes the weights should know."""
    config, info = read_config(RunFolder(folder).config), read_info(folder)
    record = record_of(folder, places)
    costs = load(folder).cost(info.image_size)
    return {
        "name": name,
        "model": info.model,
        "arguments": info.arguments,
        "data": info.data,
        "image_size": info.image_size,
        "classes": list(info.classes),
        "protocol": record.get("protocol"),
        "method": summary["method"],
        "lr": config.optimizer.lr,
        "epochs": summary["epochs"],
        "seed": summary["seed"],
        "error": summary["test"]["error"],
        "test_images": summary["test"]["images"],
        "held_out_error": summary["validation"]["error"],
        "held_out_images": summary["validation"]["images"],
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "limits": "One run of a small network, trained for a first look and for tests; confidences "
        "are not calibrated.",
        "anynest": summary["anynest"],
        "revision": record.get("revision"),
        "environment": summary["environment"],
    }


def keep(places: list[Path], name: str, model: str, into: Path = FOLDER) -> Path:
    """Writes the two files; the path of the weights.

    Raises:
        SystemExit: There is no such run, or the file is too large, or one too many.
    """
    if not NAME.fullmatch(name):
        raise SystemExit(f"--name must be of a-z, 0-9 and '-', found {name!r}")
    runs = finished_runs(places, model)
    if not runs:
        where = ", ".join(map(str, places))
        raise SystemExit(f"there is no finished run of {model} with held-out images in {where}")
    _, folder, summary = runs[0]
    data = RunFolder(folder).weights.read_bytes()
    if len(data) > MAX_BYTES:
        raise SystemExit(f"weights must have at most {MAX_BYTES:,} bytes, found {len(data):,}")
    names = {path.stem for path in into.glob(f"*{SUFFIX}")} | {name}
    if len(names) > MAX_FILES:
        raise SystemExit(
            f"at most {MAX_FILES} weights come with the package, found {len(names)}: remove one"
        )
    card = card_of(name, folder, summary, places)
    write_whole(into / f"{name}.json", (json.dumps(card, indent=1) + "\n").encode())
    write_whole(into / f"{name}{SUFFIX}", data)
    errors = " / ".join(f"{100 * error:.2f}" for error in card["error"])
    print(f"{name}: {folder}, {card['method']} at {card['lr']:g}, test error {errors} %")
    return into / f"{name}{SUFFIX}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders with run folders")
    parser.add_argument("--name", required=True, help="name of the weights")
    parser.add_argument("--model", default="width_nested_resnet10")
    args = parser.parse_args()
    keep(args.runs, args.name, args.model)


if __name__ == "__main__":
    main()
