"""``anynest profile``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...engines.onnx.manifest import FILE as MANIFEST
from ...engines.onnx.manifest import Manifest, read_manifest
from ...nets import AnytimeNetwork, create_model, list_models
from ...profiling import Profile
from ...profiling.picture import draw_profile
from ...profiling.profile import FILE, describe_way
from ...profiling.profiler import profile_network
from ...store import RunFolderError, load, read_info
from ...training import ConfigError
from ...training.environment import find_device
from ...training.errors import near_matches
from ...training.output.reporting import ProgressBar
from ...training.output.run_folder import RunFolder
from ...training.output.summary import read_result
from ..console import Console
from ..flags import Commands, add_import_flag, import_modules
from .models import SIZES

EXAMPLES = """examples:
  anynest profile runs/a
  anynest profile runs/a --backend torch,onnxruntime --threads 1,2 --batch-sizes 1,8
  anynest profile width_nested_resnet42 --json

The profile of a run folder is saved in it as profile.json, which predictions read, and drawn as
profile.png: error against latency and against multiply-adds."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "profile",
        help="what each stage costs: parameters, multiply-adds, latency on this machine",
        description="Count and measure what every stage of a network costs, beside the plain "
        "network of each stage's size. Everything is timed in turn, in one interleaved run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run's folder, a weights file, an exported folder or a network's name",
    )
    parser.add_argument(
        "--backend",
        metavar="NAMES",
        help="torch,onnxruntime (default: torch; of an exported folder, onnxruntime)",
    )
    parser.add_argument("--threads", default="1", metavar="NUMBERS", help="default: 1")
    parser.add_argument("--batch-sizes", default="1", metavar="NUMBERS", help="default: 1")
    parser.add_argument(
        "--image-size", type=int, help="pixels a side (default: as trained; else 32, or 224)"
    )
    parser.add_argument("--device", default="auto", help="of torch: auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--rounds", type=int, default=40, help="of 5 runs each (default: 40, that is 200 runs)"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain networks")
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes (default: the run)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_import_flag(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, draw and print."""
    import_modules(arguments)
    console = Console(stderr=arguments.json, highlight=False)
    threads = numbers(arguments.threads, "--threads")
    batch_sizes = numbers(arguments.batch_sizes, "--batch-sizes")
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, found {arguments.rounds}")
    found = find_network(arguments.source)
    out = Path(arguments.out) if arguments.out else found.folder and found.folder / FILE
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out} must lie in a folder that exists: make {out.parent} first")
    backend = arguments.backend or ("onnxruntime" if found.export else "torch")
    quantised = found.export is not None and found.export.quantised is not None
    with ProgressBar(console, "profiling") as bar:
        profile = profile_network(
            found.network,
            image_size=found.size if arguments.image_size is None else arguments.image_size,
            export=found.folder if found.export else None,
            backends=[name.strip() for name in backend.split(",")],
            threads=threads,
            batch_sizes=batch_sizes,
            device=str(find_device(arguments.device)),
            rounds=arguments.rounds,
            plain=not (arguments.no_plain or quantised),  # 8 bits beside 32 would compare nothing
            report=bar.report,
        )
    written = save(profile, out, found.folder)
    if arguments.json:
        sys.stdout.write(profile.dumps())
        return 0
    show(console, profile)
    for path in written:
        console.print(str(path), soft_wrap=True)
    return 0


@dataclass(frozen=True)
class Found:
    """What is to be profiled.

    Attributes:
        network: with weights or, of an export, as it is built.
        size: side of its images in pixels.
        folder: of the run or export, where there is one.
        export: the manifest, where it is an export.
    """

    network: AnytimeNetwork
    size: int
    folder: Path | None = None
    export: Manifest | None = None


def find_network(source: str) -> Found:
    """What ``source`` names: a run, weights, an export, or a network by its name."""
    path = Path(source)
    if path.is_dir() and (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        network = create_model(manifest.model, **manifest.arguments).eval()
        return Found(network, manifest.image_size[0], path, manifest)
    if path.exists():
        return Found(load(path), read_info(path).image_size, path if path.is_dir() else None)
    if source in list_models():
        network = create_model(source).eval()
        return Found(network, SIZES[network.architecture.stem])
    raise RunFolderError(
        f"{source} is no run folder, weights file, exported folder or network's name"
        f"{near_matches(source, list_models())}"
    )


def numbers(text: str, flag: str) -> list[int]:
    """Whole numbers from 1, between commas.

    >>> numbers("1, 8", "--threads")
    [1, 8]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"{flag} must be whole numbers from 1, such as 1,8, found {text!r}")
    return [int(part) for part in dict.fromkeys(parts)]


def save(profile: Profile, out: Path | None, folder: Path | None) -> list[Path]:
    """Write what there is to write; the paths."""
    written = []
    if out is not None:
        profile.save(out)
        written.append(out)
    if folder is not None and (errors := measured_errors(folder)) is not None:
        picture = folder / "profile.png"
        draw_profile(profile, *errors, picture)
        written.append(picture)
    return written


def measured_errors(folder: Path) -> tuple[list[float], str] | None:
    """Every stage's error in the run's summary and the name of the split, where there is one."""
    run = RunFolder(folder)
    if not run.finished:
        return None
    result = read_result(run)
    return result.test_error, f"the {result.summary['test']['split']} split"


def show(console: Console, profile: Profile) -> None:
    """The costs, then a table of latencies for every way to run the network."""
    console.print(cost_table(profile))
    for way in profile.ways:
        console.print(latency_table(profile, way))
    machine = profile.environment
    runs = profile.rows[0].runs
    console.print(
        f"{runs} runs each, interleaved, on {machine.get('accelerator') or machine['processor']}, "
        f"{machine['cores']} cores, torch {machine['torch']}",
        soft_wrap=True,
    )


def cost_table(profile: Profile) -> Table:
    """Parameters and multiply-adds; a stage's own are what it adds to those before it."""
    size = profile.image_size
    table = Table(
        title=f"{profile.model}, images {size}x{size}: millions",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    names = ["stage", "parameters:\nown", "up to it", "multiply-\nadds: own", "up to it"]
    names += ["plain:\nparameters", "multiply-\nadds"] if profile.plain_costs else []
    for name in names:
        table.add_column(name, justify="right", vertical="bottom")
    for index, cost in enumerate(profile.costs):
        counts = [
            cost.own_parameters, cost.parameters, cost.own_multiply_adds, cost.multiply_adds
        ]  # fmt: skip
        if profile.plain_costs:
            alone = profile.plain_costs[index]
            counts += [alone.parameters, alone.multiply_adds]
        table.add_row(str(cost.stage), *(f"{count / 1e6:.3f}" for count in counts))
    return table


def latency_table(profile: Profile, way: tuple[str, str, int, int]) -> Table:
    """Milliseconds from the call to each stage's logits, and the plain network's beside."""
    rows = [row for row in profile.rows if row.way == way]
    plain: Sequence[Any] = [row for row in profile.plain if row.way == way]
    table = Table(
        title=f"latency in ms: {describe_way(way)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        min_width=60,
    )
    names = ["stage", "p50", "p95", "p99", "mean"]
    names += ["plain: p50", "p95", "p99", "ratio"] if plain else []
    for name in names:
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        cells = [row.p50, row.p95, row.p99, row.mean]
        shown = [f"{1e3 * seconds:.3f}" for seconds in cells]
        if plain:
            alone = plain[index]
            shown += [f"{1e3 * seconds:.3f}" for seconds in (alone.p50, alone.p95, alone.p99)]
            shown.append(f"{row.p50 / alone.p50:.2f}")
        table.add_row(str(row.stage), *shown)
    return table
