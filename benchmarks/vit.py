"""Nested vision transformers beside the plain ones of the same sizes: training and inference.

    python benchmarks/vit.py --threads 1 --rounds 9 --docs docs/transformers.md
    python benchmarks/vit.py --models width_nested_vit_tiny --batches 8 --rounds 3 --skip-onnx

Training: forward and backward pass on the sum of all losses over that of the plain transformer of
full width; OSGD's exact step over the nested network's own step on the sum. Inference: all stages
one after the other over the plain transformer of full width; the first stage over the plain one of
its size. Every variant runs once a round, in an order that is rotated each round; ratios are taken
within a round. Prints Markdown: medians with quartiles.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _report import ranged, surroundings, write_json
from _rounds import interleave, ratios, spread
from torch import Tensor

from anynest import create_model, make_combiner
from anynest.nets.transformer.network import NestedTransformer
from anynest.store import write_whole

MODELS = ("width_nested_vit_tiny", "even_width_vit_s16", "width_nested_vit_s16")
Timed = Callable[[], float]


def timed(run: Callable[[], Any]) -> Timed:
    """Seconds that one call takes."""

    def measured() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measured


def training(nested: NestedTransformer, plain: NestedTransformer, x: Tensor) -> dict[str, Timed]:
    y = torch.randint(nested.num_classes, (len(x),))
    osgd = make_combiner("osgd")

    def losses(model: NestedTransformer) -> list[Tensor]:
        model.zero_grad()
        return [F.cross_entropy(logits, y) for logits in model(x)]

    return {
        "plain": timed(lambda: torch.stack(losses(plain)).sum().backward()),
        "nested": timed(lambda: torch.stack(losses(nested)).sum().backward()),
        "nested, OSGD": timed(lambda: osgd.backward(losses(nested), nested.parameters())),
    }


def no_gradients(run: Callable[[], Any]) -> Callable[[], Any]:
    def wrapped() -> None:
        with torch.inference_mode():
            run()

    return wrapped


def inference(
    nested: NestedTransformer, plain: NestedTransformer, first: NestedTransformer, x: Tensor
) -> dict[str, Timed]:
    return {
        "plain": timed(no_gradients(lambda: plain(x))),
        "all stages": timed(no_gradients(lambda: list(nested.stages(x)))),
        "plain, stage 1": timed(no_gradients(lambda: first(x))),
        "first stage": timed(no_gradients(lambda: next(nested.stages(x)))),
    }


class WithoutPassed(torch.nn.Module):
    """A segment that gives its logits and the state that it adds, not the state that it passes on."""

    def __init__(self, segment: torch.nn.Module) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, *state: Tensor) -> tuple[Tensor, ...]:
        logits, *after = self.segment(*state)
        return (logits, *after[len(state) :])


class OnnxChain:
    """The segments of a network in ONNX Runtime, one session each; the state stays in place."""

    def __init__(self, model: NestedTransformer, x: Tensor, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.sessions = []
        state: tuple[Tensor, ...] = (x,)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for segment in model.segments():
                path = Path(folder) / "segment.onnx"
                part = WithoutPassed(segment).eval()
                torch.onnx.export(part, state, path, dynamo=True, verbose=False)
                session = onnxruntime.InferenceSession(str(path), options)
                inputs = [found.name for found in session.get_inputs()]
                outputs = [found.name for found in session.get_outputs()]
                self.sessions.append((session, inputs, outputs))
                state = segment(*state)[1:]

    def run(self, x: Any, stages: int) -> Any:
        state = [x]
        for session, inputs, outputs in self.sessions[:stages]:
            given = dict(zip(inputs, state, strict=True))
            output, *new = session.run_with_ort_values(outputs, given)
            state += new
        return output


def onnx_inference(
    nested: NestedTransformer,
    plain: NestedTransformer,
    first: NestedTransformer,
    x: Tensor,
    threads: int,
) -> dict[str, Timed]:
    from onnxruntime import OrtValue

    value = OrtValue.ortvalue_from_numpy(x.numpy())
    chains = {
        "plain": (OnnxChain(plain, x, threads), 1),
        "all stages": (OnnxChain(nested, x, threads), nested.num_stages),
        "plain, stage 1": (OnnxChain(first, x, threads), 1),
    }
    chains["first stage"] = (chains["all stages"][0], 1)
    return {
        label: timed(lambda chain=chain, stages=stages: chain.run(value, stages))
        for label, (chain, stages) in chains.items()
    }


def measure(name: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    nested = create_model(name)
    plain = create_model(name, independent=nested.num_stages)
    first = create_model(name, independent=1)
    side = nested.plan.image_size
    x = torch.randn(batch, nested.in_channels, side, side)
    row: dict[str, Any] = {"model": name, "batch": batch}
    pairs = {"train": ("nested", "plain"), "osgd": ("nested, OSGD", "nested")}
    found = interleave(training(nested, plain, x), args.rounds)
    seconds = {"training": found}
    for key, (a, b) in pairs.items():
        row[key] = spread(ratios(found[a], found[b]))
    nested.zero_grad()
    engines = {"torch": lambda: inference(nested, plain, first, x)}
    if not args.skip_onnx:
        engines["onnx"] = lambda: onnx_inference(nested, plain, first, x, args.threads)
    for engine, entries in engines.items():
        found = interleave(entries(), args.rounds)
        seconds[engine] = found
        row[f"{engine}, all"] = spread(ratios(found["all stages"], found["plain"]))
        row[f"{engine}, first"] = spread(ratios(found["first stage"], found["plain, stage 1"]))
    row["seconds"] = {
        engine: {label: spread(values) for label, values in found.items()}
        for engine, found in seconds.items()
    }
    return row


HEADS = {
    "train": "SGD over plain",
    "osgd": "OSGD over SGD",
    "torch, all": "PyTorch: all over plain",
    "torch, first": "first over plain",
    "onnx, all": "ONNX Runtime: all over plain",
    "onnx, first": "first over plain",
}


def markdown(report: dict[str, Any]) -> str:
    rows = report["rows"]
    keys = [key for key in HEADS if any(key in row for row in rows)]
    lines = [
        f"    {report['command']}",
        "",
        f"| model | batch | {' | '.join(HEADS[key] for key in keys)} |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for row in rows:
        cells = [ranged(row[key], 2) if key in row else "" for key in keys]
        lines.append(f"| {row['model']} | {row['batch']} | {' | '.join(cells)} |")
    environment = report["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v)
    where = environment["accelerator"] or environment["processor"]
    lines += ["", f"Median [quartiles] of {report['rounds']} rounds; {where}, "]
    lines[-1] += f"{report['threads']} threads; Python {environment['python']}, {versions}."
    return "\n".join(lines)


def write_into(page: Path, table: str) -> None:
    """Replace what stands between the page's marks."""
    begin, end = (f"<!-- vit.py: {mark} -->" for mark in ("begin", "end"))
    before, _, rest = page.read_text(encoding="utf-8").partition(f"{begin}\n")
    after = rest.partition(end)[2]
    write_whole(page, f"{before}{begin}\n{table}\n{end}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--largest-batch", type=int, default=8, help="of images of 224 pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-onnx", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--docs", metavar="FILE", help="put the table between this page's marks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    report = surroundings("cpu") | {"rounds": args.rounds, "threads": args.threads, "rows": []}
    for name in args.models:
        large = create_model(name, layers=1).plan.image_size > 100
        for batch in args.batches:
            if not large or batch <= args.largest_batch:
                report["rows"].append(measure(name, batch, args))
    print(markdown(report))
    if args.docs:
        write_into(Path(args.docs).resolve(), markdown(report))
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
