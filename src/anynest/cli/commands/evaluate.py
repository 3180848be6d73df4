"""``anynest evaluate``."""

import argparse

from rich.table import Table

from ...data import AnySplit
from ...store import WeightsInfo, load, local_source, read_info
from ...training.environment import find_device
from ...training.evaluation import Evaluation, evaluate
from ...training.output.reporting import percent
from ..console import Console, make_table, print_json
from ..run_data import open_data
from . import deadlines


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print a table or JSON."""
    arguments.weights = str(local_source(arguments.weights))
    info = read_info(arguments.weights)
    device = find_device(arguments.device)
    model = load(arguments.weights).to(device)
    config, data = open_data(
        arguments.weights, info, arguments.data, arguments.batch_size, arguments.workers
    )
    if arguments.deadlines is not None:
        return deadlines.run(arguments, info, model, config, data, device)
    split: AnySplit = getattr(data, arguments.split)
    result = evaluate(model, config.evaluation_loader(split, data, device), split=split.name)
    if arguments.json:
        print_json({"model": info.model, "data": data.label, **result.to_json()})
    else:
        Console().print(result_table(info, data.label, result))
    return 0


def result_table(info: WeightsInfo, label: str, result: Evaluation) -> Table:
    """One row per stage."""
    title = f"{info.model}, {label}\n{result.split} split, {result.images} images"
    columns = ["stage", "loss", "error %"] + (["top-5 error %"] if result.top5_error else [])
    rows = []
    for index, (loss, error) in enumerate(zip(result.loss, result.error, strict=True)):
        row = [str(index + 1), f"{loss:.4f}", percent(error)]
        rows.append(row + ([percent(result.top5_error[index])] if result.top5_error else []))
    return make_table(title, columns, rows, min_width=40)
