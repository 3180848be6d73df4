"""Every example runs as a user would run it, and does what its text says."""

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_operators

FOLDER = Path(__file__).parents[1] / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The example's names, after it was run from a shell's point of view."""
    monkeypatch.setattr("sys.argv", [f"examples/{name}.py"])
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, list[list[float]]]:
    """The numbers in what two ranks of each distributed example print, line by line."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    running = {
        name: subprocess.Popen(
            [sys.executable, *command, FOLDER / f"{name}.py"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("distributed_loop", "fsdp_loop", "accelerate_loop")
    }
    found = {}
    for name, process in running.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found[name] = [numbers(line) for line in out.splitlines() if line]
    return found


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.replace(",", "").split() if "." in word]


def test_every_example_is_tested_and_listed() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    here = Path(__file__).read_text()
    listed = (FOLDER / "README.md").read_text()
    assert names
    for name in names:
        assert f'"{name}"' in here, f"no test runs {name}.py"
        assert f"`{name}.py`" in listed, f"README.md does not name {name}.py"


def test_plain_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("plain_loop", monkeypatch)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-2:])
    for task in ("regression", "classification"):
        first, last = map(float, lines[task].split(" -> "))
        assert last < first / 5


def test_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    example = run("accumulation", monkeypatch)
    assert example["difference"](4) < 1e-6
    # and it is not what projecting each micro-batch alone would give
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    net, combiner = example["network"](), example["OSGD"]()
    for part, label in zip(x.chunk(4), y.chunk(4), strict=True):
        combiner.backward(
            [loss / 4 for loss in example["losses_of"](net, part, label)], net.parameters()
        )
    apart = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    combiner.backward(example["losses_of"](net, x, y), net.parameters())
    assert (
        max((a - p.grad).abs().max() for a, p in zip(apart, net.parameters(), strict=True)) > 1e-4
    )


def test_torchjd_weighting(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchjd")
    example = run("torchjd_weighting", monkeypatch)
    ours = example["gradient"]("anynest")
    for engine in ("autojac", "autogram"):
        torch.testing.assert_close(example["gradient"](engine), ours, rtol=1e-5, atol=1e-7)
    # the weighting is of the Gram matrix alone: unit L of G = L D L^T, L^T w = 1
    gramian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert example["OSGDWeighting"]()(gramian).tolist() == [0.5, 1.0]


def test_accelerate_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    example = run("accelerate_loop", monkeypatch)
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, closure: None = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    found = {}
    for micro_batches in (1, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        norms.clear()
        means = example["train"](epochs=2, precision="no", micro_batches=micro_batches)
        assert len(norms) == 2 * 8 // micro_batches
        assert all(last < first for first, last in zip(means[0], means[-1], strict=True))
        found[micro_batches] = norms[0]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert found[4] == pytest.approx(found[1], rel=0.6)  # a mean of micro-batches, not their sum


@pytest.mark.slow
def test_accelerate_loop_on_two_ranks(two_ranks: dict[str, list[list[float]]]) -> None:
    first, last = two_ranks["accelerate_loop"]  # each printed once, for both
    assert all(b < a for a, b in zip(first, last, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("distributed_loop", 3), ("fsdp_loop", 2)])
def test_two_ranks_and_one_process_end_alike(
    name: str,
    count: int,
    two_ranks: dict[str, list[list[float]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    run(name, monkeypatch)
    alone = numbers(capsys.readouterr().out)
    assert len(alone) == count
    (ranks,) = two_ranks[name]
    assert ranks == pytest.approx(alone, abs=2e-4)


@pytest.mark.slow
def test_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_operators.define()
    pytest.importorskip("transformers")
    example = run("any_network", monkeypatch)
    assert example["report"].reached
    assert example["model"].num_stages == 3
    assert example["accuracy"] > 0.7
    assert len(example["predicted"]) == len(example["data"].test)


# Lightning and transformers import torchvision, whose wheel for another torch lacks two operators.
# Runs in a process of its own, as the frameworks change global state.
# Each rank prints into a file of its own, since lines of several ranks may mix in a pipe.
FRAMEWORK = """
import os, runpy, sys, torchvision_operators
sys.stdout = open("rank" + os.environ.get("RANK", "0"), "w")
torchvision_operators.define()
example = runpy.run_path(sys.argv[1], run_name="example")
"""


def framework(name: str, code: str, folder: Path, *launcher: str) -> list[str]:
    """The lines that ``code`` prints about an example, each rank's."""
    script = folder / "run.py"
    script.write_text(FRAMEWORK + code)
    path = [str(Path(torchvision_operators.__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *launcher, script, FOLDER / f"{name}.py"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed = [path.read_text() for path in sorted(folder.glob("rank*"))]
    return "".join(printed).splitlines()


LIGHTNING = """
clips, clip = [], example["TwoTasks"].clip_gradients
def watched(self, optimizer, *rest):
    clips.append(rest)
    clip(self, optimizer, *rest)
example["TwoTasks"].clip_gradients = watched
module, trainer = example["train"]()
logged = sorted(trainer.callback_metrics)
sums = sum(p.double().abs().sum() for p in module.parameters()).item()
print("RESULT", trainer.global_step, len(module.seen), len(clips), trainer.num_training_batches, sums)
print("LOGGED", *logged)
print("MODULE", trainer.strategy.model is module)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_lightning_loop(ranks: int, tmp_path: Path) -> None:
    if not find_spec("pytorch_lightning"):
        pytest.skip("needs pytorch-lightning")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    lines = framework("lightning_loop", LIGHTNING, tmp_path, *(launcher if ranks == 2 else ()))
    first, last = (numbers(line) for line in lines if line.startswith("losses"))  # printed once
    assert all(b < a / 2 for a, b in zip(first, last, strict=True))
    results = [line.split()[1:] for line in lines if line.startswith("RESULT")]
    assert len(results) == ranks
    steps = 4 * 1024 // 32 // 2 // ranks
    assert results[0][:4] == [str(n) for n in (steps, steps, steps, 32 // ranks)]
    assert len({tuple(result) for result in results}) == 1  # the ranks' weights are equal
    assert sum(line == "MODULE True" for line in lines) == ranks
    logged = next(line for line in lines if line.startswith("LOGGED"))
    assert "train/loss/value" in logged
    assert "train/cosine/label/value" in logged


TRAINER = """
import json
print("RESULT", json.dumps(example["train"]()))
"""


@pytest.mark.slow
def test_transformers_trainer(tmp_path: Path) -> None:
    if not find_spec("transformers"):
        pytest.skip("needs transformers")
    lines = framework("transformers_trainer", TRAINER, tmp_path)
    log = json.loads(next(line for line in lines if line.startswith("RESULT"))[7:])[:-1]
    assert [entry["step"] for entry in log] == [10, 20, 30]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    assert all(entry["train/loss_weight/token"] == 1 for entry in log)  # the last one's
    assert all("train/cosine/token/count" in entry for entry in log)
    # a step's losses are means over its micro-batches, and so is what the Trainer reports
    both = log[-1]["train/loss/token"] + log[-1]["train/loss/count"]
    assert log[-1]["loss"] == pytest.approx(both, rel=0.5)
    assert all(entry["grad_norm"] > 0 for entry in log)


# Ray Serve with two replicas, of which one is killed while two clients send requests.
REPLICAS = """
import http.client, json, os, psutil, ray, runpy, signal, socket, sys, tempfile, threading, time
from ray import serve

example = runpy.run_path(sys.argv[1], run_name="example")
body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}]}
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]

def replicas():
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            pass
    return found

def ask():
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"anynest-timeout-ms": "30000"}
    try:
        connection.request("POST", "/v2/models/run/infer", json.dumps(body), headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()

statuses = []
with tempfile.TemporaryDirectory(prefix="ray") as folder:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(example["Anynest"].bind(sys.argv[2]))
    before = replicas()
    clients = [
        threading.Thread(target=lambda: statuses.extend(ask() for _ in range(50)), daemon=True)
        for _ in range(2)
    ]
    assert ask() == 200
    for client in clients:
        client.start()
    os.kill(min(before), signal.SIGKILL)
    for client in clients:
        client.join()
    end = time.monotonic() + 120
    while len(replicas() - {min(before)}) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    after = replicas()
    last = [ask() for _ in range(10)]
    print("RESULT", json.dumps([len(before), len(after), len(after - before), statuses, last]))
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray_serve"])
def test_ray_serve(name: str, tmp_path: Path) -> None:
    """What a killed replica was answering is lost, and nothing else."""
    for module in ("ray", "fastapi", "psutil", "uvicorn", "prometheus_client"):
        if not find_spec(module):
            pytest.skip("needs ray[serve] and anynest[serve]")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    tiny = "--base-width 2 --growth 1x1,2x1 --data digits --batch-size 256 --epochs 1 --device cpu"
    train = [sys.executable, "-m", "anynest", "train", *tiny.split(), "--out", tmp_path / "run"]
    subprocess.run(train, env=environment, check=True, capture_output=True, timeout=300)
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, FOLDER / f"{name}.py", tmp_path / "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    before, after, new, statuses, last = json.loads(line[7:])
    assert (before, after, new) == (2, 2, 1)
    assert len(statuses) == 100
    assert statuses.count(200) > 80
    assert last == [200] * 10
