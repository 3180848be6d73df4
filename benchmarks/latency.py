"""What it costs to be anytime: nested networks beside the plain ones of each stage's size.

    python benchmarks/latency.py                            # two networks, both backends, one thread
    python benchmarks/latency.py --rounds 200 --json latency.json
    python benchmarks/latency.py --models width_nested_resnet10 --backends torch --cold

For each stage s: the nested network stopped after s; every stage in one run, as s is passed; the plain
network of s's size in the same engine, with the same optimisations; and that plain network as people run it
(eager PyTorch in inference mode; a standard graph in ONNX Runtime). Each round takes every entry once, in an
order rotated from round to round, in one process. An entry runs twice and its second run counts, as in a
service that has just answered; with ``--cold`` it runs once, after all the others have had the caches.
Times are of the call as a whole, the copy of the image included. Medians and quartiles; ratios are taken
within a round. Weights are random: times do not depend on them. earlyon's ResNet-56 with exits stands beside
it where that package can be imported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import _earlyon
import torch
from _report import ranged, surroundings, write_json
from _rounds import interleave, ratios, spread

from anynest.engines.open import open_session
from anynest.engines.session import Session
from anynest.nets import AnytimeNetwork, create_model

MODELS = ["width_nested_resnet42", "depth_nested_sparse_resnet98"]
FULL, PART = 1.0, 1.1  # the goals: every stage, and stopping after one, as a multiple of the plain


@dataclass(frozen=True)
class Ways:
    """One network in one backend.

    Attributes:
        nested: the network.
        plain: the plain network of each stage's size, in the same engine.
        usual: runs those once, as people run them.
    """

    nested: Session
    plain: list[Session]
    usual: list[Callable[[], object]]


def build(name: str, backend: str, threads: int, x: torch.Tensor) -> Ways:
    network = create_model(name, in_channels=x.shape[1]).eval()
    alone = [
        create_model(name, in_channels=x.shape[1], independent=stage).eval()
        for stage in network.outputs
    ]
    sessions = [open_session(net, backend=backend, threads=threads) for net in (network, *alone)]
    usual = [as_usual(net, backend, threads, x) for net in alone]
    return Ways(sessions[0], sessions[1:], usual)


def as_usual(
    network: AnytimeNetwork, backend: str, threads: int, x: torch.Tensor
) -> Callable[[], object]:
    if backend == "torch":
        return lambda: network(x)
    from anynest.engines.onnx.session import OnnxSession

    session = OnnxSession.open(network, threads=threads, layout="standard")
    return lambda: drive(session, x, 1)


def drive(session: Session, x: torch.Tensor, stage: int) -> list[float]:
    """Run to a stage: the seconds from the call to each stage's logits."""
    marks = []
    start = time.perf_counter()
    evaluation = session.begin(x)
    while evaluation.stage < stage:
        if evaluation.step() is not None:
            marks.append(time.perf_counter() - start)
    evaluation.close()
    return marks


def timed(run: Callable[[], object]) -> list[float]:
    start = time.perf_counter()
    with torch.inference_mode():
        run()
    return [time.perf_counter() - start]


def entries(ways: Ways, x: torch.Tensor, cold: bool) -> dict[Any, Callable[[], list[float]]]:
    """By (what, stage): one turn, which gives the seconds to each stage."""
    runs: dict[Any, Callable[[], list[float]]] = {}
    for stage in range(1, ways.nested.num_stages + 1):
        runs["nested", stage] = lambda stage=stage: drive(ways.nested, x, stage)
        runs["plain", stage] = lambda session=ways.plain[stage - 1]: drive(session, x, 1)
        runs["usual", stage] = lambda run=ways.usual[stage - 1]: timed(run)
    return runs if cold else {key: lambda run=run: (run(), run())[1] for key, run in runs.items()}


def measure(name: str, backend: str, x: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """One table's numbers."""
    ways = build(name, backend, args.threads, x)
    stages = ways.nested.num_stages
    found = interleave(entries(ways, x, args.cold), args.rounds)
    whole = found["nested", stages]
    rows = []
    for stage in range(1, stages + 1):
        stopped, plain, usual = (
            [marks[-1] for marks in found[what, stage]] for what in ("nested", "plain", "usual")
        )
        passed = [marks[stage - 1] for marks in whole]
        rows.append(
            {
                "stage": stage,
                "stopped": spread(stopped),
                "passed": spread(passed),
                "plain": spread(plain),
                "usual": spread(usual),
                "ratio": spread(ratios(stopped, plain)),
                "ratio_passed": spread(ratios(passed, plain)),
                "ratio_usual": spread(ratios(stopped, usual)),
                "least": {"stopped": min(stopped), "plain": min(plain), "usual": min(usual)},
            }
        )
    return {
        "model": name,
        "backend": backend,
        "threads": args.threads,
        "image": list(x.shape),
        "cold": args.cold,
        "rounds": args.rounds,
        "rows": rows,
    }


def goals(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What was to be reached, the most that it may cost, and the median that was found."""
    rows = result["rows"]
    found = [("every stage", FULL, rows[-1]["ratio"]["median"])]
    found += [
        (f"stopping after stage {row['stage']}", PART, row["ratio"]["median"]) for row in rows[:-1]
    ]
    return found


def show(result: dict[str, Any]) -> None:
    usual = "eager" if result["backend"] == "torch" else "standard"
    print(
        f"{result['model']}, {result['backend']}, {result['threads']} thread(s), "
        f"images {result['image']}, {result['rounds']} rounds{', cold' if result['cold'] else ''}\n"
        f"  stage{'ms':>9}{'plain':>9}{'of plain':>22}{usual:>10}{'of ' + usual:>22}"
    )
    for row in result["rows"]:
        nested, plain, people = (
            f"{1e3 * row[what]['median']:.2f}" for what in ("stopped", "plain", "usual")
        )
        print(
            f"  {row['stage']:5d}{nested:>9}{plain:>9}{ranged(row['ratio']):>22}"
            f"{people:>10}{ranged(row['ratio_usual']):>22}"
        )
    passed = ", ".join(ranged(row["ratio_passed"]) for row in result["rows"])
    print(f"  passed in one run: {passed} of plain")
    for what, goal, ratio in goals(result):
        print(
            f"  {what}: {ratio:.3f} of plain, goal {goal}: {'met' if ratio <= goal else 'NOT MET'}"
        )
    print(flush=True)


def measure_earlyon(rounds: int) -> dict[str, Any] | None:
    """earlyon's own network, for orientation; one line where it is absent."""
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
    print(
        f"earlyon ResNet-56, eager PyTorch, batch 1\n  {'leaves at':26}{'ms':>9}{'of no exits':>22}"
    )
    for name, row in result.items():
        print(f"  {name:26}{1e3 * row['seconds']['median']:9.2f}{ranged(row['ratio']):>22}")
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
    parser.add_argument("--backends", nargs="+", default=["torch", "onnxruntime"])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument(
        "--cold", action="store_true", help="no run just before the one that counts"
    )
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = surroundings("cpu")
    report["versions"] |= versions()
    x = torch.randn(args.batch, 3, args.image_size, args.image_size)
    report["results"] = []
    for name in args.models:
        for backend in args.backends:
            report["results"].append(measure(name, backend, x, args))
            show(report["results"][-1])
    report["earlyon"] = measure_earlyon(args.rounds)
    if args.json:
        write_json(args.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
