"""A real headless Chromium, and a server whose answers a test writes itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from anynest.serving.page import routes

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # ms until a wait fails; no test is expected to need it
MODEL = "/v2/models/{name}/versions/{version}"


@dataclass
class Model:
    """What the scripted server says of a model."""

    channels: int = 1
    size: int = 8
    classes: int = 10
    stages: int = 3
    labels: list[str] | None = None
    datatypes: str = "FP32,UINT8,BYTES"

    def metadata(self, name: str) -> dict[str, Any]:
        shape = [-1, self.channels, self.size, self.size]
        outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, self.classes]}]
        inputs = [{"name": "input", "datatype": "FP32", "shape": shape}]
        return {"name": name, "versions": ["1"], "inputs": inputs, "outputs": outputs}

    def config(self, name: str) -> dict[str, Any]:
        texts = {"stages": str(self.stages), "input_datatypes": self.datatypes}
        if self.labels is not None:
            texts["labels"] = json.dumps(self.labels)
        parameters = {key: {"string_value": text} for key, text in texts.items()}
        return {"name": name, "max_batch_size": 32, "parameters": parameters}


@dataclass
class Received:
    """A request for inference."""

    path: str
    header: dict[str, Any]
    data: bytes
    authorization: str | None

    @property
    def rows(self) -> int:
        return int(self.header["inputs"][0]["shape"][0])


@dataclass
class ScriptedServer:
    """Speaks the protocol, and answers what a test says.

    Attributes:
        models: by name.
        done: stages that are done in time.
        skipped: stages that a stream does not show.
        reason: why the last of them is the last; empty: complete, or the deadline.
        refusal: status and line of an error instead of answers.
        token: that requests must have.
        metrics: text of ``/metrics``, or a function that makes it; None: there is no such path.
        gate: cleared by a test to hold back answers, and every stage of a stream but the first.
        received: requests for inference.
    """

    models: dict[str, Model] = field(default_factory=lambda: {"digits": Model()})
    done: int = 3
    skipped: tuple[int, ...] = ()
    reason: str = ""
    refusal: tuple[int, str] | None = None
    token: str | None = None
    metrics: Any = ""
    gate: threading.Event = field(default_factory=threading.Event)
    received: list[Received] = field(default_factory=list)
    polls: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def app(self) -> Starlette:
        async def index(request: Request) -> Response:
            return JSONResponse([{"name": name, "version": "1"} for name in self.models])

        async def metadata(request: Request) -> Response:
            name = request.path_params["name"]
            return JSONResponse(self.models[name].metadata(name))

        async def config(request: Request) -> Response:
            name = request.path_params["name"]
            return JSONResponse(self.models[name].config(name))

        async def metrics(request: Request) -> Response:
            self.polls += 1
            if self.metrics is None:
                return JSONResponse({"error": "no such path"}, 404)
            return PlainTextResponse(self.metrics() if callable(self.metrics) else self.metrics)

        async def infer(request: Request) -> Response:
            model = self.models[request.path_params["name"]]
            await self._receive(request)
            await asyncio.to_thread(self.gate.wait, PATIENCE / 1000)
            if self.refusal is not None:
                return self._refuse()
            return JSONResponse(self._answer(model, self.done))

        async def stream(request: Request) -> Response:
            model = self.models[request.path_params["name"]]
            await self._receive(request)
            if self.refusal is not None:
                return self._refuse()
            return StreamingResponse(self._stream(model), media_type="application/x-ndjson")

        def guarded(endpoint: Any) -> Any:
            async def check(request: Request) -> Response:
                if self.token not in (None, request.headers.get("authorization", "")[7:]):
                    return JSONResponse({"error": "a token is needed"}, 401)
                return await endpoint(request)

            return check

        paths = [
            Route("/v2/repository/index", guarded(index), methods=["POST"]),
            Route(MODEL, guarded(metadata)),
            Route(f"{MODEL}/config", guarded(config)),
            Route(f"{MODEL}/infer", guarded(infer), methods=["POST"]),
            Route(f"{MODEL}/infer_stream", guarded(stream), methods=["POST"]),
            Route("/metrics", guarded(metrics)),
        ]
        return Starlette(routes=[*routes(), *paths])

    async def _receive(self, request: Request) -> None:
        body, length = await request.body(), int(request.headers["inference-header-content-length"])
        authorization = request.headers.get("authorization")
        header, data = json.loads(body[:length]), body[length:]
        self.received.append(Received(request.url.path, header, data, authorization))

    def _refuse(self) -> Response:
        assert self.refusal is not None
        status, line = self.refusal
        return JSONResponse({"error": line}, status)

    async def _stream(self, model: Model) -> AsyncIterator[str]:
        for stage in range(1, self.done + 1):
            if stage in self.skipped:
                continue
            yield json.dumps(self._answer(model, stage)) + "\n"
            await asyncio.to_thread(self.gate.wait, PATIENCE / 1000)
        if self.done < model.stages or self.reason:  # time is up: the newest stage again
            answer = self._answer(model, self.done)
            answer["parameters"].update(elapsed_us=49_000, stop_reason=self.reason or "deadline")
            yield json.dumps(answer) + "\n"

    def _answer(self, model: Model, stage: int) -> dict[str, Any]:
        """Class 7 is the most probable one, more so with each stage."""
        sure = 0.4 + 0.5 * stage / model.stages
        rest = (1 - sure) / (model.classes - 1)
        data = [sure if number == 7 else rest for number in range(model.classes)]
        parameters = {
            **{"stage": stage, "stages": model.stages, "elapsed_us": 2500 * stage},
            **{"deadline_met": True, "stop_reason": "complete" if stage == model.stages else ""},
        }
        shape = [1, model.classes]
        output = {"name": "probabilities", "datatype": "FP32", "shape": shape, "data": data}
        return {
            "model_name": "m",
            "model_version": "1",
            "parameters": parameters,
            "outputs": [output],
        }


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that uvicorn runs in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # whoever comes before the application has started waits
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Runs applications until the pages that use them are closed."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(running(app))


@pytest.fixture
def server(serve: Callable[[Any], str]) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.url = serve(scripted.app())
    yield scripted
    scripted.gate.set()


@pytest.fixture(scope="module")  # its event loop must end before tests that run their own
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(CHROMIUMS)} is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, the requests that it made and what it complained of."""

    def __init__(self, page: Any) -> None:
        self.page, self.origin = page, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def open(self, url: str) -> Any:
        """The page, once it says what to do."""
        self.origin = url
        self.page.goto(url)
        return self.page

    def check(self) -> None:
        """Every request went to the server, and nothing was wrong but documented refusals."""
        foreign = [url for url in self.requests if not url.startswith((self.origin, "data:"))]
        assert not foreign
        refusals = tuple(f"status of {status}" for status in (401, 404, 429, 503, 504))
        assert not [text for text in self.complaints if not any(r in text for r in refusals)]


@pytest.fixture
def watch(browser: Any, serve: Any) -> Iterator[Any]:
    """Makes pages, whose requests and complaints are checked at the end."""
    contexts, pages = [], []

    def make(**options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        playwright.expect.set_options(timeout=PATIENCE)
        contexts.append(context)
        pages.append(Watched(context.new_page()))
        return pages[-1]

    yield make
    for context in contexts:
        context.close()
    for page in pages:
        page.check()
