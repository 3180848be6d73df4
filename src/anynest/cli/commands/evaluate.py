"""``anynest evaluate``."""

import argparse
from typing import Any

import torch
from rich.table import Table

from ...data import AnySplit
from ...engines.model_source import Source
from ...predict.early_stopping.calibration import CalibrationReport, simulate
from ...store import WeightsInfo, load, local_source, read_info
from ...training.environment import find_device
from ...training.evaluation import Evaluation
from ...training.output.reporting import percent
from ..console import Console, make_table, print_json
from ..held_out import collect
from ..policy_choice import read_policy
from ..run_data import open_data
from . import deadlines


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print a table or JSON."""
    named = arguments.weights  # a repository's policy is fetched by the name of the repository
    arguments.weights = str(local_source(named))
    info = read_info(arguments.weights)
    device = find_device(arguments.device)
    model = load(arguments.weights).to(device)
    chosen = read_policy(arguments.policy, named, model.num_stages)
    config, data = open_data(
        arguments.weights, info, arguments.data, arguments.batch_size, arguments.workers
    )
    if arguments.deadlines is not None:
        return deadlines.run(arguments, info, model, config, data, device)
    split: AnySplit = getattr(data, arguments.split)
    console = Console(stderr=arguments.json)
    loader = config.evaluation_loader(split, data, device)
    result = deadlines.evaluate_stages(console, model, loader, split.name)
    report: dict[str, Any] = {"model": info.model, "data": data.label, **result.to_json()}
    stopped = None
    if chosen is not None:
        saved, file = chosen
        held_out = collect(
            arguments.weights,
            Source(network=model, info=info),
            config.evaluation_loader(split, data, torch.device("cpu")),
            console,
            device=device,
        )
        stopped = simulate(saved.policy, held_out)
        report["policy"] = {"file": str(file), **stopped.to_dict()}
    if arguments.json:
        print_json(report)
        return 0
    console.print(result_table(info, data.label, result, stopped))
    if chosen is not None and stopped is not None:
        console.print(f"stopped by {chosen[1]}: {stopped}")
    return 0


def result_table(
    info: WeightsInfo, label: str, result: Evaluation, stopped: CalibrationReport | None = None
) -> Table:
    """One row per stage."""
    title = f"{info.model}, {label}\n{result.split} split, {result.images} images"
    columns = ["stage", "loss", "error %"] + (["top-5 error %"] if result.top5_error else [])
    columns += ["stopped here %"] if stopped else []
    rows = []
    for index, (loss, error) in enumerate(zip(result.loss, result.error, strict=True)):
        row = [str(index + 1), f"{loss:.4f}", percent(error)]
        row += [percent(result.top5_error[index])] if result.top5_error else []
        rows.append(row + ([percent(stopped.exit_rates[index])] if stopped else []))
    return make_table(title, columns, rows, min_width=40)
