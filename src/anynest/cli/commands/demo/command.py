"""``anynest demo``: a nested network answers by real deadlines, in about a minute on two cores.

The network grows from 4 channels to 32 and from 1 block a group to 4, so that its last stage takes
several times as long as its first.

It trains one nested network with OSGD on scikit-learn's digits, and beside it the plain networks of
its stages' sizes, each alone. Then it uses them: the same pictures under several deadlines, with an
answer that comes late or not at all counted as wrong.
"""

import argparse
import importlib.util
import shlex
import signal
import statistics
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ....data import Split, load
from ....predict.deadline_evaluation import mean_latency, measure_deadlines
from ....predict.prediction import Prediction
from ....predict.predictor import AnytimePredictor
from ....store.hardware import describe_environment
from ....training import Interrupted, train
from ....training.output.reporting import ConsoleReporter, ProgressBar, clock, counted
from ....training.output.run_folder import RunFolder
from ...console import Console, make_table, print_json
from ...durations import show_duration
from ...worker_processes import processes
from . import compare
from .compare import MODEL, demo_config
from .picture import draw

NESTED = "nested"
SIDE = 16  # pixels: at 8, a stage takes less time than a thread needs to wake
GROWTH = [[1, 1], [2, 2], [8, 4]]  # (width, depth) of the stages
TIMED = 60  # pictures whose median is the latency of each stage
ASKED = 180  # test pictures that are answered under every deadline
SCALE = 8  # pixels of the saved picture for one of the data
BAR = 20  # characters of the longest bar


def run(arguments: argparse.Namespace) -> int:
    """Train, use, draw and print."""
    console = Console(stderr=arguments.json)
    folder = Path(arguments.out or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    RunFolder(folder).require_unused()
    try:
        if arguments.compare:
            report = compare.run(console, folder, arguments.epochs or 16, arguments.seeds)
        else:
            report = show_deadlines(console, folder, arguments.epochs or 12)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            f"stopped; finished runs remain in {folder}, but a demo does not resume: the next one "
            "needs another folder",
            signal.SIGINT,
        ) from error
    if arguments.json:
        print_json(report)
    return 0


def show_deadlines(console: Console, folder: Path, epochs: int) -> dict[str, Any]:
    """The demo; returns its report."""
    began = time.monotonic()
    nested = train_networks(console, folder, epochs)
    stages = len(nested["test"]["error"])
    names = [NESTED, *(f"plain-{stage}" for stage in range(1, stages + 1))]
    report: dict[str, Any] = {
        "model": MODEL,
        "epochs": epochs,
        "error": nested["test"]["error"],
        "networks": {},
        "environment": describe_environment(torch.device("cpu")),
    }
    test = load("digits", image_size=SIDE).test
    assert isinstance(test, Split)
    images = [image[None] for image in test.images[:ASKED]]
    pairs = list(zip(images, test.labels[:ASKED].tolist(), strict=True))
    report["images"] = len(pairs)
    report["latency"] = stage_latencies(folder / NESTED, images[:TIMED])
    deadlines = choose_deadlines(report["latency"])
    with ProgressBar(console, "predicting by deadlines") as bar:
        for number, name in enumerate(names):
            with AnytimePredictor(folder / name) as predictor:

                def predict(
                    x: Tensor, deadline: float | None, by: AnytimePredictor = predictor
                ) -> Prediction:
                    return by.predict(x[0], deadline, on_timeout="guess")

                mean_latency(predict, images[:TIMED])  # first calls are slow
                results, finished = measure_deadlines(
                    predict,
                    pairs,
                    deadlines,
                    predictor.num_stages,
                    report=lambda done, n=number: bar.report(  # type: ignore[misc]
                        n * len(pairs) + done, len(names) * len(pairs)
                    ),
                )
            if not finished:
                raise KeyboardInterrupt
            report["networks"][name] = [result.to_json() for result in results]
    report["example"] = example(folder, test.images, test.labels.tolist())
    for stage, latency in zip(report["example"]["stages"], report["latency"], strict=True):
        stage["elapsed"] = latency  # the usual one: a single answer's says more of the machine
    report["seconds"] = time.monotonic() - began
    report["picture"] = str(folder / "demo.png")
    draw(report, Path(report["picture"]))
    show(console, report, folder)
    return report


def train_networks(console: Console, folder: Path, epochs: int) -> dict[str, Any]:
    """Train the nested network here and the plain ones beside it; returns the nested summary."""
    console.print(
        f"Training {MODEL} with OSGD on scikit-learn's digits, {counted(epochs, 'epoch')}, into "
        f"{folder}; beside it the plain networks of its stages' sizes, each alone."
    )
    stages = 3
    with processes(1) as pool:  # the plain networks together cost what the nested one does
        plain = [pool.submit(train_plain, folder, stage, epochs) for stage in range(stages, 0, -1)]
        nested = train(
            demo_config("osgd", 0, epochs, image_size=SIDE, growth=GROWTH),
            folder / NESTED,
            reporter=ConsoleReporter(console),
        ).summary
        with ProgressBar(console, "training the plain networks") as bar:
            for number, job in enumerate(plain, start=1):
                job.result()
                bar.report(number, stages)
    return nested


def train_plain(folder: Path, stage: int, epochs: int) -> None:
    """Train the plain network of a stage's size; called in a process of its own."""
    config = demo_config("sgd-sum", 0, epochs, independent=stage, image_size=SIDE, growth=GROWTH)
    train(config, folder / f"plain-{stage}")


def stage_latencies(run: Path, images: Sequence[Tensor]) -> list[float]:
    """Median seconds until each stage's answer, one image at a time."""
    with AnytimePredictor(run) as predictor:
        for x in images[:10]:  # first calls are slow
            predictor.predict(x[0], None)
        times = [[one.elapsed for one in predictor.stream(x[0])] for x in images]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def choose_deadlines(latency: Sequence[float]) -> list[float]:
    """Deadlines from before the first stage to after the last, three for each stage.

    They have two significant digits.

    >>> [f"{1000 * d:g}" for d in choose_deadlines([0.001, 0.002, 0.008])]
    ['0.7', '1.1', '1.4', '1.7', '2.6', '4.4', '6.2', '8.8', '16']
    """
    parts = (0.1, 0.4, 0.7)  # of the way from one stage to the next
    between = [a + max(0.1 * a, part * (b - a)) for a, b in pairwise(latency) for part in parts]
    all_of_them = [0.7 * latency[0], *between, 1.1 * latency[-1], 2 * latency[-1]]
    return sorted({float(f"{one:.2g}") for one in all_of_them})


# -- one picture ------------------------------------------------------------------------------------
def example(folder: Path, images: Tensor, labels: Sequence[int]) -> dict[str, Any]:
    """The test picture whose answer changes most from the first stage to the last.

    Of the pictures that the last stage recognises, the one to whose class the first stage gave the
    smallest probability. It is saved as a PNG file.
    """
    with AnytimePredictor(folder / NESTED) as predictor:
        given = [list(predictor.stream(image)) for image in images]
    right = [n for n, answers in enumerate(given) if answers[-1].label == labels[n]]
    chosen = min(
        right or range(len(given)), key=lambda n: float(given[n][0].probabilities[labels[n]])
    )
    path = folder / "digit.png"
    pixels = images[chosen][0].numpy()
    whole = Image.fromarray(pixels).resize((SCALE * pixels.shape[1], SCALE * pixels.shape[0]), 0)
    whole.save(path)
    return {
        "file": str(path),
        "label": labels[chosen],
        "pixels": pixels.tolist(),
        "stages": [
            {"elapsed": one.elapsed, "probabilities": one.probabilities.tolist()}
            for one in given[chosen]
        ],
    }


# -- the terminal -----------------------------------------------------------------------------------
def show(console: Console, report: dict[str, Any], folder: Path) -> None:
    """Print the table, the picture's answers, the conditions and what to do next."""
    stages = range(1, len(report["error"]) + 1)
    rows = []
    for number, nested in enumerate(report["networks"][NESTED]):
        plain = [report["networks"][f"plain-{stage}"][number] for stage in stages]
        shares = [nested["guessed"], *nested["stages"]]
        mix = " ".join(f"{100 * share / nested['images']:3.0f}" for share in shares)
        accuracies = [f"{100 * one['accuracy']:.1f}" for one in (nested, *plain)]
        rows.append([show_duration(nested["deadline"]), *accuracies[:1], mix, *accuracies[1:]])
    answered = "\n".join(["answered by stage", " ".join(f"{x:>3}" for x in ("-", *stages))])
    names = ["deadline", "nested", answered, *(f"plain\nsize {stage}" for stage in stages)]
    console.print()
    console.print(
        make_table(
            f"Accuracy (%) of {report['images']} pictures by deadline",
            names,
            rows,
        )
    )
    console.print(
        'Answered by stage: % of the pictures without an answer in time ("-": a random guess), and '
        "answered\nby stage 1, 2, 3. A plain network has one answer: it comes in time or not."
    )
    console.print()
    for line in picture_lines(report["example"]):
        console.print(line)
    environment = report["environment"]
    errors = ", ".join(f"{100 * error:.1f}" for error in report["error"])
    console.print(
        f"\nA reduced run: {SIDE}x{SIDE} pictures, a small network, one seed, "
        f"{counted(report['epochs'], 'epoch')}. Test error without deadlines, by stage: {errors} %. "
        f"{clock(report['seconds'])} on "
        f"{environment['processor']}, {counted(environment['cores'], 'core')}, "
        f"torch {environment['torch']}."
    )
    console.print(f"picture: {report['picture']}")
    console.print("\nNext:")
    run = folder / NESTED
    for command, what in next_commands(run, report):
        console.print(f"  {command}\n      {what}")


def picture_lines(shown: dict[str, Any]) -> list[str]:
    """The picture in blocks, and each stage's three most probable classes as bars.

    >>> shown = {"label": 1, "pixels": [[0, 255]], "stages": [
    ...     {"elapsed": 0.001, "probabilities": [0.25, 0.75]}]}
    >>> print("\\n".join(picture_lines(shown)))
    One picture, a 1, as its answer grows:
        ##
    stage 1, after 1 ms
        1  ###############        75 %
        0  #####                  25 %
    """
    lines = [f"One picture, a {shown['label']}, as its answer grows:"]
    shades = " .:+#"
    for row in shown["pixels"]:
        text = "".join(2 * shades[value * (len(shades) - 1) // 255] for value in row)
        lines.append(f"  {text}".rstrip() if text.strip() else "")
    for number, stage in enumerate(shown["stages"], start=1):
        lines.append(f"stage {number}, after {show_duration(stage['elapsed'])}")
        ranked = sorted(enumerate(stage["probabilities"]), key=lambda pair: -pair[1])
        for label, share in ranked[:3]:
            lines.append(f"    {label}  {'#' * round(BAR * share):{BAR}}  {100 * share:3.0f} %")
    return lines


def next_commands(run: Path, report: dict[str, Any]) -> list[tuple[str, str]]:
    """What to type next, and what it does."""
    weights = shlex.quote(str(run))
    deadline = f"{max(5, round(2e3 * report['latency'][1]))}ms"  # seldom missed
    picture = shlex.quote(report["example"]["file"])
    missing = [n for n in ("starlette", "uvicorn") if importlib.util.find_spec(n) is None]
    install = "; first: pip install '.[serve]'" if missing else ""
    return [
        (f"anynest predict {weights} {picture} --deadline {deadline}", "one picture, one deadline"),
        (f"anynest profile {weights}", "what each stage costs on this machine"),
        (
            f"anynest serve {weights} --deadline 50ms",
            f"a server, with a page to draw on at http://127.0.0.1:8000/{install}",
        ),
    ]
