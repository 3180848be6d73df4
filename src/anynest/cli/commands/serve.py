"""``anynest serve``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...store.hub import is_hub, parse_source
from ...training.errors import ConfigError, RunError
from ..durations import show_duration

if TYPE_CHECKING:
    from ...serving.repository import Repository
    from ...serving.server import Addresses
    from ...serving.settings import Settings

NEEDED = ("starlette", "uvicorn", "httptools", "grpc", "prometheus_client", "uvloop")
NEEDED_BY_TRACES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it; RunError if accepted requests were left without an answer."""
    require("serve", NEEDED)
    if arguments.trace:
        require("otel", NEEDED_BY_TRACES)
    import uvloop

    from ...serving import page
    from ...serving.http.app import create_app
    from ...serving.server import Server, listen
    from ...serving.service import Service
    from ...serving.telemetry.access_log import AccessLog
    from ...serving.telemetry.metrics import Metrics, metrics_route
    from ...serving.telemetry.records import RecordingObserver, Sink

    settings = read_settings(arguments)
    with ExitStack() as stack:
        stack.enter_context(shown_logs())
        listener = stack.enter_context(listen(arguments.host, arguments.port))
        sinks: list[Sink] = []
        log = None
        if arguments.access_log is not None:
            log = stack.enter_context(AccessLog(arguments.access_log))
            sinks.append(log)
        if arguments.trace:
            from ...serving.telemetry.tracing import Tracing

            sinks.append(stack.enter_context(Tracing()))
        metrics = Metrics()
        repository = find_models(arguments.sources, arguments.names)
        service = Service(repository, settings)
        metrics.watch(service)
        service.observers.append(RecordingObserver(sinks))
        server = Server(
            service,
            create_app(service, extra_routes=[metrics_route(metrics), *page.routes()]),
            listener,
            None if arguments.grpc_port is None else (arguments.host, arguments.grpc_port),
            sinks=sinks,
            on_ready=lambda addresses: announce(arguments, settings, repository, addresses),
            on_reload=lambda: None if log is None else log.reopen(),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            left = runner.run(server.run())
    if left:
        were = "request was" if left == 1 else "requests were"
        raise RunError(
            f"{left} accepted {were} not answered within --drain {show_duration(arguments.drain)}: "
            "give more time"
        )
    return 0


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The server's bounds, as the flags say."""
    from ...serving.settings import Settings

    return Settings(
        default_deadline=arguments.deadline,
        max_deadline=arguments.max_deadline,
        max_batch=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        drain_seconds=arguments.drain,
        client_limit=arguments.client_limit,
        token=read_token(arguments.token_file),
        hosts=(*Settings().hosts, *arguments.hosts),
        threads=arguments.threads,
        backend=arguments.backend,
        device=arguments.device,
        saved_policy=arguments.policy == "saved",
    )


def find_models(sources: list[str], names: list[str]) -> Repository:
    """The models to serve; they are loaded, and downloaded from the Hub, when the server starts."""
    from ...serving.repository import Repository

    repository = Repository()
    for number, source in enumerate(sources):
        name, _, version = (names[number] if number < len(names) else "").partition(":")
        repository.add(source, name or default_name(source), version or None)
    return repository


def default_name(source: str) -> str:
    """The folder's name; of a file, that of its folder.

    >>> default_name("runs/digits"), default_name("hf://someone/digits")
    ('digits', 'digits')
    """
    if is_hub(source):
        return parse_source(source).repository.rpartition("/")[2]
    path = Path(source).resolve()
    return path.parent.name if path.is_file() else path.name


def announce(
    arguments: argparse.Namespace,
    settings: Settings,
    repository: Repository,
    addresses: Addresses,
) -> None:
    """Print where the server listens, now that it is ready."""
    models = [
        {"name": model.name, "version": model.version, "stages": model.num_stages}
        for model in repository.loaded()
    ]
    if arguments.json:
        print(json.dumps({"http": addresses.http, "grpc": addresses.grpc, "models": models}))
    else:
        for line in describe(models, settings, addresses):
            print(line)
    sys.stdout.flush()


def describe(
    models: list[dict[str, Any]], settings: Settings, addresses: Addresses
) -> Iterator[str]:
    """The lines of a server that is ready."""
    for model in models:
        yield f"{model['name']} version {model['version']}, {model['stages']} stages"
    deadline = settings.default_deadline
    shown = "none" if deadline is None else show_duration(deadline)
    yield f"deadline of requests that give none: {shown}"
    if settings.saved_policy:
        yield "requests that give no confidence stop early by their model's saved policy"
    yield f"HTTP: {addresses.http}" + (f"  gRPC: {addresses.grpc}" if addresses.grpc else "")


def require(extra: str, modules: tuple[str, ...]) -> None:
    """Raise ConfigError if an extra is not installed."""
    for name in modules:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(f"{name} is missing: pip install 'anynest[{extra}]'")


def read_token(path: str | None) -> str | None:
    """The token in a file, without the white space round it."""
    if path is None:
        return None
    token = Path(path).read_text(encoding="utf-8").strip()
    if not token:
        raise ConfigError(f"--token-file {path} must hold a token, found nothing")
    return token


@contextmanager
def shown_logs() -> Iterator[None]:
    """Logs go to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = []
    for name, level in (("anynest", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagates in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
