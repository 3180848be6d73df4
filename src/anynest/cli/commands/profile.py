"""``anynest profile``."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ...engines.inputs import InputSpec
from ...engines.model_source import resolve
from ...engines.onnx.manifest import FILE as MANIFEST
from ...engines.onnx.manifest import Manifest, read_manifest
from ...nets import AnytimeNetwork, create_model, list_models
from ...nets.registry import option_defaults
from ...profiling import Profile
from ...profiling.picture import draw_profile
from ...profiling.profile import FILE, describe_way
from ...profiling.profiler import profile_network
from ...store import RunFolderError, load, local_source, read_info
from ...training import ConfigError
from ...training.environment import find_device
from ...training.errors import near_matches
from ...training.output.reporting import ProgressBar
from ...training.output.run_folder import RunFolder
from ...training.output.summary import read_result
from ..backend import find_backend
from ..console import Console, make_table
from .models import IMAGE_SIZES


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, draw and print."""
    found = find_network(arguments.source)
    out = Path(arguments.out) if arguments.out else found.folder and found.folder / FILE
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out} must lie in a folder that exists: make {out.parent} first")
    device = find_device(arguments.device)
    for backend in arguments.backend or ():
        find_backend(resolve(found.network), backend, "auto" if backend == "torch" else "cpu")
    is_quantised = found.export is not None and found.export.quantised is not None
    console = Console(stderr=arguments.json)
    with ProgressBar(console, "profiling") as bar:
        profile = profile_network(
            found.network,
            **example_of(found, arguments.image_size),
            export=found.folder if found.export else None,
            backends=arguments.backend or (["onnxruntime"] if found.export else None),
            threads=arguments.threads,
            batch_sizes=arguments.batch_sizes,
            device=str(device),
            rounds=arguments.rounds,
            plain=not (arguments.no_plain or is_quantised),  # 8 bits beside 32 compare nothing
            report=bar.report,
        )
    written = save(profile, out, found.folder)
    if arguments.json:
        sys.stdout.write(profile.dumps())
        return 0
    show(console, profile)
    for path in written:
        console.print(str(path))
    return 0


@dataclass(frozen=True)
class Found:
    """A network to profile.

    Attributes:
        network: with weights; randomly initialised for an export.
        size: height and width of its images in pixels; None where unknown.
        folder: of the run or export, if any.
        export: the manifest of an export.
        channels: of its images, where the network does not tell.
    """

    network: Any
    size: int | None
    folder: Path | None = None
    export: Manifest | None = None
    channels: int = 0


def example_of(found: Found, size: int | None) -> dict[str, Any]:
    """What the network is measured on: ``image_size``, or ``example`` if it tells no channels.

    Raises:
        ConfigError: the size of the images, or the number of their channels, is not known.
    """
    size = size or found.size
    if size is None:
        raise ConfigError("the size of the network's images is not known: give --image-size")
    if InputSpec.of(found.network).channels is not None:
        return {"image_size": size}
    if not found.channels:
        raise ConfigError(
            f"the number of channels of {type(found.network).__name__} is not known: give the "
            "network in_channels, or profile a run of it"
        )
    return {"example": torch.zeros(1, found.channels, size, size)}


def find_network(source: str) -> Found:
    """Open a run, weights, an export, or a network by its name."""
    path = Path(local_source(source))
    if path.is_dir() and (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if manifest.image_size is None:
            raise RunFolderError(f"{path} must be an export of a network of images, to profile it")
        network = create_model(manifest.model, **manifest.arguments).eval()
        return Found(network, manifest.image_size[0], path, manifest)
    if path.exists():
        info = read_info(path)
        folder = path if path.is_dir() else None
        return Found(load(path), info.image_size, folder, channels=len(info.mean))
    if source in list_models():
        return find_registered(source)
    raise RunFolderError(
        f"{source} must be a run folder, weights file, exported folder or network's name"
        f"{near_matches(source, list_models())}"
    )


def find_registered(name: str) -> Found:
    """A network with its default options."""
    try:
        network = create_model(name).eval()
    except TypeError as error:  # the function that makes it
        raise ConfigError(str(error)) from error
    if isinstance(network, AnytimeNetwork):
        return Found(network, IMAGE_SIZES[network.architecture.stem])
    return Found(network, option_defaults(name).get("image_size"))


def save(profile: Profile, out: Path | None, folder: Path | None) -> list[Path]:
    """Write the profile and, if errors are known, its picture; returns the paths."""
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
    """Every stage's test error in the run's summary, and the split's name; None without one."""
    run = RunFolder(folder)
    if not run.finished:
        return None
    result = read_result(run)
    return result.test_error, f"the {result.summary['test']['split']} split"


def show(console: Console, profile: Profile) -> None:
    """Print the costs, then a table of latencies for each way to run the network."""
    console.print(cost_table(profile))
    for way in profile.ways:
        console.print(latency_table(profile, way))
    machine = profile.environment
    runs = profile.rows[0].runs
    console.print(
        f"{runs} runs each, interleaved, on {machine.get('accelerator') or machine['processor']}, "
        f"{machine['cores']} cores, torch {machine['torch']}"
    )


def cost_table(profile: Profile) -> Table:
    """Parameters and multiply-adds; a stage's own are those it adds to the stages before it."""
    names = ["stage", "parameters:\nown", "up to it", "multiply-\nadds: own", "up to it"]
    names += ["plain:\nparameters", "multiply-\nadds"] if profile.plain_costs else []
    rows = []
    for index, cost in enumerate(profile.costs):
        counts = [cost.own_parameters, cost.parameters]
        counts += [cost.own_multiply_adds, cost.multiply_adds]
        if profile.plain_costs:
            plain = profile.plain_costs[index]
            counts += [plain.parameters, plain.multiply_adds]
        rows.append([str(cost.stage), *(f"{count / 1e6:.3f}" for count in counts)])
    return make_table(f"{profile.model}, {profile.on}: millions", names, rows, padding=(0, 1, 0, 0))


def latency_table(profile: Profile, way: tuple[str, str, int, int]) -> Table:
    """Milliseconds from the call to each stage's logits, and to the plain network's."""
    plain = [row for row in profile.plain if row.way == way]
    names = ["stage", "p50", "p95", "p99", "mean"]
    names += ["plain: p50", "p95", "p99", "ratio"] if plain else []
    rows = []
    for index, row in enumerate(row for row in profile.rows if row.way == way):
        times = [row.p50, row.p95, row.p99, row.mean]
        if plain:
            times += [plain[index].p50, plain[index].p95, plain[index].p99]
        cells = [f"{1e3 * seconds:.3f}" for seconds in times]
        cells += [f"{row.p50 / plain[index].p50:.2f}"] if plain else []
        rows.append([str(row.stage), *cells])
    return make_table(f"latency in ms: {describe_way(way)}", names, rows, min_width=60)
