"""Fuzz the command line: random commands, flags and hostile values, run in this process.

Every command line must end with status 0, 1, 2 or 130 (stopped after ``--seconds``), never with a
traceback. Prints each command line that does not, and counts.

    python benchmarks/fuzz_cli.py --minutes 5 --seed 0
"""

import argparse
import contextlib
import io
import os
import random
import resource
import shlex
import signal
import tempfile
import time
import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path

from PIL import Image

from anynest.cli import interrupts, main
from anynest.cli.dispatch import COMMANDS
from anynest.cli.parser import Parser
from anynest.experiments.catalog.experiments import ALL, EXPERIMENTS
from anynest.nets.registry import list_models

TINY = "--base-width 2 --growth 1x1,2x1 --data digits --batch-size 256 --device cpu --threads 1"
NUMBERS = ["0", "1", "2", "3", "7", "64", "-1", "-0", "1.5", "1e3", "1e308", "1e999", "nan", "inf"]
NUMBERS += ["-inf", "0x10", "1_000", "١٠", "", " ", "100000", str(2**31), str(2**62), str(2**63)]
NUMBERS += [str(2**64), "-" + str(2**63), "9" * 5000, "0.1", "0.5", "1e-300", "+3", "3 ", "½"]
DURATIONS = ["5ms", "0.1s", "20", "0ms", "-5ms", "1e-9us", "1e99m", "none", "auto", "5ms,none", ","]
LISTS = ["1,2", "0,1", "1,0", "1x1", "1x1,2x1", "2x1,1x1", "1x", "x", ",,", "1,1", "0.3,0.6", "a,b"]
LISTS += [f"{2**40}x1", f"1x{2**40}", f"{2**62}x1", "1x1," * 50, f"1,{2**63}", "-1,0"]
TEXTS = [
    "digits",
    "mnist",
    "/",
    "/dev/null",
    "/dev/zero",
    "/proc",
    "~",
    ".",
    "..",
    "a/../b",
    "[/x]",
]
TEXTS += ["[red]", ":smile:", "%s", "%(default)s", "{x}", "$HOME", "\udcff", "é" * 200, "x" * 5000]
TEXTS += ["a\nb", "a\tb", "--", "-", "-x", "@file", "width_nested_resnet10", "even*", "*", "[a-"]
TEXTS += ["osgd", "sgd-sum", "greedy", "normsgd", "adamw", "sgd", "lbfgs", "cuda:99", "meta", "mps"]
TEXTS += ["auto", "cpu", "torch", "onnxruntime", "torch,onnxruntime", "none", "test", "cosine"]
PAIRS = [
    "a=1",
    "momentum=0.9",
    "momentum=nan",
    "lr=1e308",
    "betas=[0.9,0.99]",
    "betas=1",
    "=1",
    "a",
]
PAIRS += ["nesterov=True", "exit=linear", "blocks=[1,1]", "blocks=0", "norm=null", "a={}", "a=[[[["]
PAIRS += [
    f"momentum={2**70}",
    "foreach=true",
    "stem=1",
    "num_classes=3",
    "seed=1",
    "precision=bf16",
]
SKIPPED = {"--ray-address", "--launcher", "--help", "--compile", "--cuda-graph", "--tensorboard"}


def flags_of(name: str) -> list[argparse.Action]:
    """The actions of a command's parser."""
    usage = import_module(f"anynest.cli.usage.{name}")
    parser = Parser(f"anynest {name}", usage.DESCRIPTION, usage.EXAMPLES)
    usage.add_flags(parser)
    return [action for action in parser._actions if not SKIPPED & set(action.option_strings)]


def draw_value(draw: random.Random, action: argparse.Action, places: list[str]) -> str:
    """A value for a flag, in two cases of three one that its parser takes."""
    if action.choices and draw.random() < 0.8:
        return str(draw.choice(list(action.choices)))
    values = [draw.choice(draw.choice([NUMBERS, DURATIONS, LISTS, TEXTS, PAIRS, places]))]
    if callable(action.type) and draw.random() < 0.67:
        values += [draw.choice(kind) for kind in (NUMBERS, DURATIONS, LISTS, PAIRS) * 8]
        for value in values:
            with contextlib.suppress(ValueError, argparse.ArgumentTypeError):
                action.type(value)
                return value
    return values[0]


def draw_line(
    draw: random.Random, actions: dict[str, list[argparse.Action]], places: list[str], out: str
) -> list[str]:
    """One command line."""
    name = draw.choice([*COMMANDS, *("train", "evaluate", "predict", "profile", "export") * 2])
    if draw.random() < 0.02:
        name = draw.choice(TEXTS + NUMBERS)
    line = [name]
    flags = [action for action in actions.get(name, []) if action.option_strings]
    for action in actions.get(name, []):
        if not action.option_strings and draw.random() < 0.95:
            count = 1 if action.nargs is None else draw.randint(1, 3)
            mostly = places[:4] if draw.random() < 0.7 else draw.choice([places, TEXTS])
            mostly = {"reproduce": [*EXPERIMENTS, ALL], "models": list_models()}.get(name, mostly)
            line += [draw.choice(mostly) for _ in range(count)]
    if name == "train":
        line += [*TINY.split(), "--epochs", draw.choice("12"), "--quiet"]
    if name == "profile":
        line += ["--rounds", "1"]
    if name in ("train", "reproduce", "export", "demo", "report") and draw.random() < 0.9:
        line += ["--out", draw.choice([out, out, out + "_[/x]", *places])]
    if name == "reproduce":
        line += ["--dry-run", "--protocol", "micro", "--data", "digits"]
    for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 5])):
        if not flags:
            break
        action = draw.choice(flags)
        flag = draw.choice(action.option_strings)
        if draw.random() < 0.03:
            flag = flag[: draw.randint(2, len(flag))] + draw.choice(["", "x", "="])
        line.append(flag)
        if action.nargs != 0:
            line.append(draw_value(draw, action, places))
    if name == "demo":  # each run takes processes: errors alone
        line += ["--seeds", draw.choice(["0", "-1", "1001", "x"])]
    return line


def run(line: list[str], seconds: float) -> tuple[int | None, str]:
    """The status of a command line, None for an exception, and what was wrong."""
    out, err = io.StringIO(), io.StringIO()
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(line)
    except BaseException:
        return None, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    wrong = ""
    if status not in (0, 1, 2, 130):
        wrong = f"status {status}"
    # Python drops a KeyboardInterrupt that is raised in a finalizer, and says so.
    is_dropped = "Exception ignored" in err.getvalue() and "KeyboardInterrupt" in err.getvalue()
    if "Traceback" in err.getvalue() and not is_dropped:
        wrong = err.getvalue()
    if status == 2 and err.getvalue().count("\n") != 1 and line[0] != "predict":
        wrong = f"not one line: {err.getvalue()!r}"
    if status == 2 and len(err.getvalue()) > 1000 + 2 * len(" ".join(line)):
        wrong = f"a long line: {err.getvalue()!r}"
    return status, wrong


def interrupt(*_: object) -> None:
    """Stop a command as Ctrl-C does, unless that ends this process (during imports)."""
    if getattr(signal.getsignal(signal.SIGINT), "__module__", "") != interrupts.__name__:
        signal.raise_signal(signal.SIGINT)


def prepare(folder: Path) -> list[str]:
    """A trained run, its export and pictures; the paths that command lines may name."""
    os.chdir(folder)
    assert main(["train", *TINY.split(), "--epochs", "1", "--out", "run", "--quiet"]) == 0
    assert main(["export", "run", "--out", "exported"]) == 0
    Image.new("L", (8, 8)).save("picture.png")
    Path("empty").mkdir()
    Path("text.txt").write_text("no picture")
    return ["run", "run/weights.safetensors", "exported", "picture.png", "empty", "text.txt",
            "no/such", "run/config.json", "run/summary.json", "run/curves.png"]  # fmt: skip


def fuzz(minutes: float, seed: int, seconds: float) -> int:
    """Run random command lines; the number that fell."""
    draw = random.Random(seed)
    actions = {name: flags_of(name) for name in COMMANDS}
    counts: Counter[str] = Counter()
    fallen = 0
    signal.signal(signal.SIGALRM, interrupt)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            places = prepare(Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.RLIM_INFINITY))
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            line = draw_line(draw, actions, places, f"out{sum(counts.values())}")
            status, wrong = run(line, seconds)
            counts[f"{line[0] if line[0] in COMMANDS else 'other'} {status}"] += 1
            if wrong:
                fallen += 1
                print(f"FELL: {shlex.join(line)[:600]!r}\n{wrong[-1500:]}", flush=True)
        os.chdir("/")
    for key, count in sorted(counts.items()):
        print(f"{key:>20} {count:6d}")
    print(f"{sum(counts.values())} command lines, {fallen} fell (seed {seed})")
    return fallen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="longest time of one command")
    options = parser.parse_args()
    raise SystemExit(1 if fuzz(options.minutes, options.seed, options.seconds) else 0)
