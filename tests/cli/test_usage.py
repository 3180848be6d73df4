"""Help and errors of usage: at once, without importing torch, one line for a mistake."""

import json
import os
import re
import subprocess
import sys
from argparse import SUPPRESS, _StoreFalseAction, _StoreTrueAction
from importlib import import_module
from typing import Any

import pytest

from anynest import __version__, list_models
from anynest.cli import flags
from anynest.cli.dispatch import COMMANDS, parse
from anynest.cli.parser import Parser
from anynest.data.locate import SOURCES
from anynest.engines import checks, session
from anynest.store import weights
from anynest.training import ConfigError

Result = dict[str, Any]
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "PIL",
    "pyarrow",
)
HELP = ["--help", *(f"{name} --help" for name in COMMANDS)]
PRINTED = [*HELP, "--version", "models", "models width_nested_resnet10", "models w*10 --json"]
TRAIN = "train --out no_such_folder"
# command line -> words of its one line
ERRORS = {
    "frobnicate": "unknown command 'frobnicate'; see `anynest --help`",
    "trian": "unknown command 'trian': did you mean train?",
    "--frobnicate": "unknown flag --frobnicate: a command comes first; see `anynest --help`",
    "--modle x": "unknown flag --modle: did you mean `anynest train --model`?",
    "--versoin": "unknown flag --versoin: did you mean `anynest --version`?",
    "train": "train needs data or a run folder: give --data SOURCE, --out FOLDER, or --resume",
    "train --resume": "train needs data or a run folder",
    "train --frobnicate": "unknown flag --frobnicate; see `anynest train --help`",
    "train --modle x": "unknown flag --modle: did you mean --model?",
    "train --epohcs=3": "unknown flag --epohcs: did you mean --epochs?",
    "train x": "unknown argument 'x'",
    "train --out": "--out: expected one argument",
    "train --out ''": "--out must not be empty, found ''",
    "train --resume ''": "--resume must not be empty, found ''",
    f"{TRAIN} --data ''": "--data must not be empty, found ''",
    f"{TRAIN} --precision int4": "--precision must be one of float32, bf16, float16, found 'int4'",
    f"{TRAIN} --precision float": "did you mean float32?",
    f"{TRAIN} --model width_nested_resnet01": "near matches: width_nested_resnet",
    f"{TRAIN} --method osdg": "near matches: osgd",
    f"{TRAIN} --recipe paper-cfar": "near matches: paper-cifar",
    f"{TRAIN} --model-option blocks": "--model-option must be KEY=VALUE, found 'blocks'",
    f"{TRAIN} --priority 0,x": "--priority must be a whole number, found 'x'",
    f"{TRAIN} --growth 1x1,2": "--growth must be width x depth of each stage",
    f"{TRAIN} --growth 1x1,foo": "--growth must be width x depth of each stage, such as 1x1,2x1",
    f"{TRAIN} --lr fast": "--lr must be a finite number, found 'fast'",
    f"{TRAIN} --lr nan": "--lr must be a finite number, found",
    f"{TRAIN} --epochs 2.5": "--epochs must be a whole number, found '2.5'",
    f"{TRAIN} --epochs 0": "--epochs must be at least 1, found 0",
    f"{TRAIN} --epochs {10**30}": "--epochs must fit in 64 bits",
    f"{TRAIN} --seed {'9' * 5000}": "--seed must be a whole number, found '99999",
    f"{TRAIN} --threads 100000": "--threads must be at most 1024, found 100000",
    f"{TRAIN} --workers 100000": "--workers must be at most 256, found 100000",
    f"{TRAIN} --image-size 100000": "--image-size must be at most 4096, found 100000",
    f"{TRAIN} --config no_such_file": "cannot read",
    f"{TRAIN} --resume another": "differ: give one of them",
    f"{TRAIN} --import no_such_module": "--import no_such_module failed",
    "evaluate": "the following arguments are required: PATH",
    "evaluate ''": "PATH must not be empty, found ''",
    "evaluate r --split tst": "--split must be one of train, validation, test, found 'tst'",
    "evaluate r --batch-size 0": "--batch-size must be at least 1, found 0",
    f"evaluate r --batch-size {2**63}": "--batch-size must be at most 9223372036854775807, found",
    "evaluate r --deadlines 20": "--deadlines must be a duration with its unit",
    "evaluate r --deadlines 5ms,,": "--deadlines must be a duration with its unit",
    "evaluate r --deadlines 0s": "--deadlines must be positive and finite, found '0s'",
    "evaluate r --samples 5": "--samples is read for --deadlines alone",
    "evaluate r --backend torch": "--backend is read for --deadlines alone",
    "evaluate r --threads 1": "--threads is read for --deadlines alone",
    "evaluate r --deadlines auto --threads 0": "--threads must be at least 1, found 0",
    "evaluate r --deadlines auto --samples 0": "--samples must be at least 1, found 0",
    "predict r": "the following arguments are required: PICTURE",
    "predict r x.png ''": "PICTURE must not be empty, found ''",
    "predict r x.png --deadline 20": "--deadline must be a duration with its unit",
    "predict r x.png --deadline soon": "such as 10ms, 0.01s, 250us or 2m, found 'soon'",
    "predict r x.png --deadline 0ms": "--deadline must be positive and finite",
    "predict r x.png --confidence 2": "--confidence must be above 0 and at most 1, found 2.0",
    "predict r x.png --confidence nan": "--confidence must be above 0 and at most 1, found nan",
    "predict r x.png --threads 0": "--threads must be at least 1, found 0",
    "predict r x.png --threads 100000": "--threads must be at most 1024, found 100000",
    "predict r x.png --top 0": "--top must be at least 1, found 0",
    "predict r x.png --import no_such_module": "--import no_such_module failed",
    "predict r x.png --policy saved --confidence 1": "give one of them",
    "evaluate r --deadlines auto --policy saved": "--policy is measured without deadlines",
    "calibrate": "the following arguments are required: RUN",
    "calibrate r --budget 1 --max-drop 0.1": "--max-drop: not allowed with argument --budget",
    "calibrate r --budget lots": "--budget must be a number of multiply-adds or a share such as",
    "calibrate r --budget 0%": "--budget must be a number of multiply-adds or a share such as",
    "calibrate r --target-accuracy 95": "--target-accuracy must be above 0 and at most 1",
    "calibrate r --max-drop -1": "--max-drop must be from 0 to below 1, found '-1'",
    "serve r --policy auto": "--policy must be one of none, saved, found 'auto'",
    "serve": "the following arguments are required: RUN",
    "serve ''": "RUN must not be empty, found ''",
    "serve r --port 65536": "--port must be at most 65535, found 65536",
    "serve r --grpc-port off": "--grpc-port must be a whole number, found 'off'",
    "serve r --deadline 50": "--deadline must be none or a duration with its unit, such as 50ms",
    "serve r --deadline 0ms": "--deadline must be positive and finite, found '0ms'",
    "serve r --max-deadline none": "--max-deadline must be a duration with its unit",
    "serve r --max-batch 0": "--max-batch must be at least 1, found 0",
    "serve r --drain 0s": "--drain must be positive and finite, found '0s'",
    "serve r --name a --name b": "--name must be given at most once for each RUN, found 2 names",
    "serve r --host 0.0.0.0": "so it must have a token: give --token-file FILE, or --insecure",
    "serve r --host ::": "--host :: is reachable from other machines",
    "serve r --host example.org": "--host example.org is reachable from other machines",
    "serve r --json --access-log -": "share standard output: give the log a file",
    "serve r --import no_such_module": "--import no_such_module failed",
    "profile r --threads 0": "--threads must be at least 1, found 0",
    "profile r --threads 1,100000": "--threads must be at most 1024, found 100000",
    "profile r --threads 1;2": "--threads must be a whole number, found '1;2'",
    "profile r --batch-sizes 1,": "--batch-sizes must be a whole number, found ''",
    "profile r --rounds 0": "--rounds must be at least 1, found 0",
    "profile r --image-size 0": "--image-size must be at least 1, found 0",
    "export r --calibration-images 0": "--calibration-images must be at least 1, found 0",
    "export r --calibration-images 5": "--calibration-images is read for --int8 alone",
    "export r --data digits": "--data is read for --int8 alone",
    "export r --split test": "--split is read for --int8 alone",
    "export r --workers 0": "--workers is read for --int8 alone",
    "export r --image-size 0": "--image-size must be at least 1, found 0",
    "export r --format tensorrt": "--format must be one of onnx, found 'tensorrt'",
    "reproduce table1": "the following arguments are required: --protocol, --data, --out",
    "reproduce table1 --protocol micro --data d --out o --seeds 0": "--seeds must be at least 1",
    "reproduce table1 --protocol micro --data d --out o --jobs 0": "--jobs must be at least 1",
    "reproduce table1 --protocol micro --data d --out o --run-option x": "must be KEY=VALUE",
    "report --seeds 0": "--seeds must be at least 1, found 0",
    "models nope_resnet": "no model named 'nope_resnet'",
    "models nope*": "no model matches 'nope*'",
    "models --image-size 0": "--image-size must be at least 1, found 0",
    "models --import no_such_module": "--import no_such_module failed",
    "demo --epochs 0": "--epochs must be at least 1, found 0",
}
RUNNER = """
import contextlib, io, json, shlex, sys
from anynest.cli import main
results = {}
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(shlex.split(line))
    heavy = [name for name in HEAVY if name in sys.modules]
    results[line] = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every command line run in one new process, in an empty folder."""
    folder = tmp_path_factory.mktemp("usage")
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{RUNNER}"],
        input=json.dumps([*PRINTED, *ERRORS]),
        capture_output=True, text=True, cwd=folder, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    found: dict[str, Result] = json.loads(done.stdout)
    return found


def test_nothing_heavy_is_imported(results: dict[str, Result]) -> None:
    loaded = {line: result["heavy"] for line, result in results.items() if result["heavy"]}
    assert not loaded, next(iter(loaded.items()))


@pytest.mark.parametrize("line", PRINTED)
def test_printed(line: str, results: dict[str, Result]) -> None:
    assert results[line]["status"] == 0
    assert results[line]["out"]
    assert results[line]["err"] == ""


@pytest.mark.parametrize("line", ERRORS)
def test_mistakes_end_in_one_line(line: str, results: dict[str, Result]) -> None:
    result = results[line]
    assert result["status"] == 2
    assert result["out"] == ""
    assert result["err"].startswith("anynest: ")
    assert result["err"].count("\n") == 1
    assert ERRORS[line] in result["err"]
    assert result["err"].count("near matches") + result["err"].count("did you mean") <= 1
    assert len(result["err"]) < 400


@pytest.mark.parametrize("line", HELP)
def test_help_fits_80_columns_and_shows_an_example(line: str, results: dict[str, Result]) -> None:
    text = results[line]["out"]
    assert max(map(len, text.splitlines())) <= 80
    name = line.removesuffix("--help")
    examples = re.findall(rf"^ *(?:example:)? *anynest {name}.*$", text, re.MULTILINE)
    assert examples


def test_version(results: dict[str, Result]) -> None:
    assert results["--version"]["out"] == f"anynest {__version__}\n"


def test_help_lists_every_command(results: dict[str, Result]) -> None:
    listed = re.findall(r"^  (\w+)  ", results["--help"]["out"], re.MULTILINE)
    assert listed == list(COMMANDS)


def test_the_models_are_listed(results: dict[str, Result]) -> None:
    lines = results["models"]["out"].splitlines()
    models = lines[1 : lines.index("")]  # trained weights stand below
    assert [line.split()[0] for line in models] == list_models()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_shows_its_default(name: str) -> None:
    usage = import_module(f"anynest.cli.usage.{name}")
    parser = Parser(f"anynest {name}", usage.DESCRIPTION, usage.EXAMPLES)
    usage.add_flags(parser)
    for action in parser._actions:
        is_switch = isinstance(action, _StoreTrueAction | _StoreFalseAction)
        if action.required or is_switch or (action.default == SUPPRESS and action.dest == "help"):
            continue
        help = parser._get_formatter()._expand_help(action)  # type: ignore[attr-defined]
        assert "default" in help or "repeated" in help, action.option_strings


def test_help_of_train_shows_the_config_s_defaults(results: dict[str, Result]) -> None:
    text = " ".join(results["train --help"]["out"].split())
    for words in (
        "(default: 10)", "(default: 128)", "(default: 0.3,0.6,0.8)", "(default: off)",
        "(default: width_nested_resnet10)", "(default: osgd)", *SOURCES,
    ):  # fmt: skip
        assert words in text


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    from anynest.cli import main

    assert main([]) == 2
    assert "usage: anynest COMMAND" in capsys.readouterr().err


def test_limits_are_the_engines_own() -> None:
    from anynest.cli import flags

    assert flags.BACKENDS == session.BACKENDS
    assert flags.MAX_THREADS == checks.MAX_THREADS


def test_a_default_that_is_typed_is_parsed() -> None:
    assert parse(["profile", "r"]).threads == [1]
    assert parse(["profile", "r", "--threads", "2, 1,2"]).threads == [2, 1]
    assert parse(["predict", "r", "x", "--deadline", "20ms"]).deadline == 0.02
    assert parse(["train", "--model-option", "a=1", "--model-option", "b=x"])
    with pytest.raises(ConfigError):
        parse(["predict", "r", "x", "--deadline", "20"])


def test_the_bound_of_a_network_s_images_is_that_of_its_files() -> None:
    """The flags do not import torch, which ``store.weights`` does."""
    assert flags.MAX_SIDE == weights.MAX_SIDE
