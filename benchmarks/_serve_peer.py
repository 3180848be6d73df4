"""Other servers, each with one static network in ONNX Runtime, one thread, and its own batching.

    python _serve_peer.py starlette --model stage1.onnx --port 9000 --batch 32 --wait 0.002 ...

Runs in the peer's own environment: it needs numpy, onnxruntime and the peer, not this package.
Requests are ``POST`` with the raw UINT8 pixels of one image; answers are ``{"label": 3}``. MLServer
speaks the Open Inference Protocol, with the pixels as base64. ``--batch`` is the most requests
computed together, ``--wait`` how long a batch waits for more, in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _serve_ports import free_port


class Network:
    """A static network: images in, labels out."""

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(options["model"], settings)
        (given,) = [i for i in self.session.get_inputs() if len(i.shape) == 4]
        self.name, self.shape = given.name, tuple(given.shape[1:])
        self.output = next(o.name for o in self.session.get_outputs() if "logits" in o.name)
        mean, std = (np.array(options[key], np.float32)[:, None, None] for key in ("mean", "std"))
        self.scale, self.shift = 1 / (255 * std), -mean / std
        for size in sorted({1, 2, options["batch"]}):
            self.labels([bytes(int(np.prod(self.shape)))] * size)

    def labels(self, bodies: list[bytes]) -> list[int]:
        pixels = np.frombuffer(b"".join(bodies), np.uint8).reshape(-1, *self.shape)
        images = pixels * self.scale + self.shift
        (logits,) = self.session.run([self.output], {self.name: images.astype(np.float32)})
        return [int(label) for label in logits.argmax(1)]


# -- plain Starlette: a queue, and a batch of whatever waits -----------------------------------------
def starlette(options: dict[str, Any]) -> None:
    import contextlib
    from concurrent.futures import ThreadPoolExecutor

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    network, size, wait = Network(options), options["batch"], options["wait"]
    queue: asyncio.Queue[tuple[bytes, asyncio.Future[int]]] = asyncio.Queue()
    thread = ThreadPoolExecutor(1)

    async def compute() -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            until = loop.time() + wait
            while len(batch) < size:
                try:
                    batch.append(queue.get_nowait())
                except asyncio.QueueEmpty:
                    if (left := until - loop.time()) <= 0:
                        break
                    with contextlib.suppress(TimeoutError):
                        batch.append(await asyncio.wait_for(queue.get(), left))
            bodies = [body for body, _ in batch]
            labels = await loop.run_in_executor(thread, network.labels, bodies)
            for (_, future), label in zip(batch, labels, strict=True):
                if not future.done():
                    future.set_result(label)

    async def infer(request: Request) -> Response:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queue.put_nowait((await request.body(), future))
        return JSONResponse({"label": await future})

    async def ready(_: Request) -> Response:
        return Response("ready")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        task = asyncio.create_task(compute())
        yield
        task.cancel()

    routes = [Route("/infer", infer, methods=["POST"]), Route("/ready", ready)]
    app = Starlette(routes=routes, lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=options["port"], log_level="warning", access_log=False)


# -- LitServe ----------------------------------------------------------------------------------------
def litserve(options: dict[str, Any]) -> None:
    import litserve as ls
    from _serve_litserve import API

    api = API(
        options, max_batch_size=options["batch"], batch_timeout=options["wait"], api_path="/infer"
    )
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=options["port"],
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


# -- MLServer ----------------------------------------------------------------------------------------
def mlserver(options: dict[str, Any]) -> None:
    """MLServer reads a folder of settings; the model's class is ``_serve_mlserver.Model``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "host": "127.0.0.1",
            "http_port": options["port"],
            "grpc_port": free_port(),
            "metrics_port": free_port(),
            "parallel_workers": 0,
            "debug": False,
        }
        model = {
            "name": "network",
            "implementation": "_serve_mlserver.Model",
            "max_batch_size": options["batch"],
            "max_batch_time": options["wait"],
            "parameters": {"extra": options},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        sys.path.insert(0, here)
        from mlserver.cli import main

        sys.argv = ["mlserver", "start", str(folder)]
        main()


# -- Ray Serve ---------------------------------------------------------------------------------------
def ray(options: dict[str, Any]) -> None:
    import time

    from ray import init, serve
    from starlette.requests import Request

    init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": options["port"]})

    @serve.deployment(num_replicas=1, max_ongoing_requests=1000)
    class Served:
        def __init__(self) -> None:
            self.network = Network(options)

        @serve.batch(max_batch_size=options["batch"], batch_wait_timeout_s=options["wait"])
        async def labels(self, bodies: list[bytes]) -> list[int]:
            return self.network.labels(bodies)

        async def __call__(self, request: Request) -> dict[str, Any]:
            if request.method == "GET":
                return {"ready": True}
            return {"label": await self.labels(await request.body())}

    serve.run(Served.bind(), route_prefix="/")
    while True:
        time.sleep(60)


PEERS = {"starlette": starlette, "litserve": litserve, "mlserver": mlserver, "ray": ray}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--mean", type=json.loads, required=True)
    parser.add_argument("--std", type=json.loads, required=True)
    options = vars(parser.parse_args())
    PEERS[options.pop("peer")](options)


if __name__ == "__main__":
    main()
