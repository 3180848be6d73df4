"""The cost of being anytime: nested networks beside the plain networks of each stage's size.

    python benchmarks/latency.py                            # two networks, one thread, batch 1
    python benchmarks/latency.py --rounds 101 --json latency.json
    python benchmarks/latency.py --models width_nested_resnet10 --engines block torch --cold

Engines: ``block`` (ONNX Runtime, graphs in its block layout; docs/nchwc.md), ``standard`` (ONNX
Runtime, the standard graphs of an export) and ``torch`` (ordinary convolutions in PyTorch). The
first one is compared with the others. Per engine and stage s: the nested network stopped after s,
and the plain network of stage s's size. Stopping after the last stage computes all stages one
after another.

Each round runs every entry once in one process, in an order rotated from round to round. An entry
runs twice and its second run is timed, as in a service that has just answered; with ``--cold`` it
runs once, after the other entries have used the caches. Times are of whole calls, the copy of the
image included. Medians and quartiles; ratios are taken within a round. Weights are random, as times
do not depend on them. Results are printed as Markdown. earlyon's ResNet-56 with exits is measured
where that package can be imported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import _earlyon
import torch
from _report import ranged, surroundings, write_json
from _rounds import interleave, ratios, spread

from anynest.engines.folding import FoldedNetwork
from anynest.engines.onnx.nchwc.block_size import block_size
from anynest.engines.onnx.session import OnnxSession
from anynest.engines.session import Session
from anynest.engines.torch_engine import TorchSession
from anynest.nets import AnytimeNetwork, create_model

MODELS = ["width_nested_resnet42", "depth_nested_sparse_resnet98"]
ALL_STAGES = {  # model -> (limit, goal) of all stages one after another, as a multiple of the plain
    "width_nested_resnet42": (1.02, 1.0),
    "depth_nested_sparse_resnet98": (1.12, 1.05),
}
STOPPING = 1.1  # limit of stopping after a stage, as a multiple of the plain network

Run = Callable[[], list[float]]


def open_onnx(layout: str) -> Callable[[AnytimeNetwork, int], Session]:
    return lambda network, threads: OnnxSession.open(network, threads=threads, layout=layout)


def open_torch(network: AnytimeNetwork, threads: int) -> Session:
    return TorchSession(FoldedNetwork.of(network), threads=threads)


ENGINES: dict[str, Callable[[AnytimeNetwork, int], Session]] = {
    "block": open_onnx("auto"),
    "standard": open_onnx("standard"),
    "torch": open_torch,
}


@dataclass(frozen=True)
class Pair:
    """A nested network and the plain networks of its stages' sizes, in one engine."""

    nested: Session
    plain: list[Session]


def build(name: str, engine: str, threads: int, channels: int = 3) -> Pair:
    nested = create_model(name, in_channels=channels).eval()
    plain = [
        create_model(name, in_channels=channels, independent=stage).eval()
        for stage in nested.outputs
    ]
    first, *others = [ENGINES[engine](network, threads) for network in (nested, *plain)]
    return Pair(first, others)


def drive(session: Session, x: torch.Tensor, stage: int) -> list[float]:
    """Run up to a stage; the seconds from the call to each stage's logits."""
    marks = []
    start = time.perf_counter()
    evaluation = session.begin(x)
    while evaluation.stage < stage:
        if evaluation.step() is not None:
            marks.append(time.perf_counter() - start)
    evaluation.close()
    return marks


def entries(pairs: dict[str, Pair], x: torch.Tensor, cold: bool) -> dict[Any, Run]:
    """By (engine, nested or plain, stage): one timed run."""
    runs: dict[Any, Run] = {}
    for engine, pair in pairs.items():
        for stage, plain in enumerate(pair.plain, 1):
            runs[engine, "nested", stage] = lambda p=pair, s=stage: drive(p.nested, x, s)
            runs[engine, "plain", stage] = lambda p=plain: drive(p, x, 1)
    return runs if cold else {key: lambda run=run: (run(), run())[1] for key, run in runs.items()}


def measure(name: str, x: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """One network in all engines, in one interleaved run."""
    pairs = {engine: build(name, engine, args.threads, x.shape[1]) for engine in args.engines}
    found = interleave(entries(pairs, x, args.cold), args.rounds)
    first = args.engines[0]
    rows = []
    for stage in range(1, pairs[first].nested.num_stages + 1):
        seconds = {
            (engine, what): [marks[-1] for marks in found[engine, what, stage]]
            for engine in args.engines
            for what in ("nested", "plain")
        }
        row: dict[str, Any] = {"stage": stage, "engines": {}}
        for engine in args.engines:
            nested, plain = seconds[engine, "nested"], seconds[engine, "plain"]
            row["engines"][engine] = {
                "nested": spread(nested),
                "plain": spread(plain),
                "of_plain": spread(ratios(nested, plain)),
                "of_first": spread(ratios(nested, seconds[first, "nested"])),
                "least": {"nested": min(nested), "plain": min(plain)},
            }
        rows.append(row)
    return {
        "model": name,
        "engines": args.engines,
        "threads": args.threads,
        "image": list(x.shape),
        "cold": args.cold,
        "rounds": args.rounds,
        "rows": rows,
    }


def judge(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is limited, its limit, and the median found in the first engine."""
    first = result["engines"][0]
    medians = [row["engines"][first]["of_plain"]["median"] for row in result["rows"]]
    limit, _ = ALL_STAGES.get(result["model"], (STOPPING, 1.0))
    judged = [("all stages", limit, medians[-1])]
    judged += [(f"stopping after {s}", STOPPING, m) for s, m in enumerate(medians[:-1], 1)]
    return judged


def table(result: dict[str, Any]) -> list[str]:
    """The result as Markdown: a row per stage."""
    engines: Sequence[str] = result["engines"]
    heads = ["stage"]
    for engine in engines:
        heads += [f"{engine}, ms", f"plain, {engine}, ms", f"{engine} / plain"]
    heads += [f"{engine} / {engines[0]}" for engine in engines[1:]]
    shape = "x".join(map(str, result["image"]))
    lines = [
        f"**{result['model']}**, images {shape}, {result['threads']} thread(s), "
        f"{result['rounds']} rounds{', cold' if result['cold'] else ''}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in result["rows"]:
        cells = [str(row["stage"])]
        for engine in engines:
            found = row["engines"][engine]
            cells += [f"{1e3 * found[what]['median']:.2f}" for what in ("nested", "plain")]
            cells.append(ranged(found["of_plain"]))
        cells += [ranged(row["engines"][engine]["of_first"]) for engine in engines[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *(
            f"- {what}: {found:.3f} of plain, limit {limit}: "
            f"{'met' if found <= limit else 'NOT MET'}"
            for what, limit, found in judge(result)
        ),
    ]
    if result["model"] in ALL_STAGES:
        lines.append(f"- goal of all stages: {ALL_STAGES[result['model']][1]} of plain")
    return [*lines, ""]


def measure_earlyon(rounds: int) -> dict[str, Any] | None:
    """earlyon's own network, for comparison; one line if it is absent."""
    try:
        model = _earlyon.build()
    except _earlyon.Absent as reason:
        print(reason)
        return None
    found = interleave(_earlyon.entries(model, torch.randn(1, 3, 32, 32)), rounds)
    base = found["the network without exits"]
    result = {
        name: {"seconds": spread(values), "ratio": spread(ratios(values, base))}
        for name, values in found.items()
    }
    print("**earlyon ResNet-56**, eager PyTorch, batch 1\n")
    print("| leaves at | ms | of no exits |\n|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {1e3 * row['seconds']['median']:.2f} | {ranged(row['ratio'])} |")
    return result


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("numpy", "onnx", "onnxruntime", "earlyon", "torchvision"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--engines", nargs="+", choices=sorted(ENGINES), default=["block", "standard"]
    )
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--cold", action="store_true", help="no run just before the timed one")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = surroundings("cpu")
    report["versions"] |= versions()
    report["block_size"] = block_size()
    environment = report["environment"]
    print(
        f"    {report['command']}\n\n{environment['processor']}, {environment['cores']} cores, "
        f"blocks of {report['block_size']} channels, onnxruntime "
        f"{report['versions']['onnxruntime']}. Medians; ratios with quartiles.\n"
    )
    x = torch.randn(args.batch, 3, args.image_size, args.image_size)
    report["results"] = []
    for name in args.models:
        report["results"].append(measure(name, x, args))
        print("\n".join(table(report["results"][-1])), flush=True)
    report["earlyon"] = measure_earlyon(args.rounds)
    if args.json:
        write_json(args.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
