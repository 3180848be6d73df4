"""docs/serve.md says what there is: commands, flags, metrics, headers, statuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anynest.cli.dispatch import parse
from anynest.cli.parser import Parser
from anynest.cli.usage import serve

TEXT = (Path(__file__).parents[3] / "docs/serve.md").read_text()
COMMANDS = re.findall(r"^(anynest .*?)(?: &)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    assert parse(shlex.split(command)[1:])


def test_flags_exist_and_have_the_defaults_that_are_named() -> None:
    parser = Parser("anynest serve", serve.DESCRIPTION, serve.EXAMPLES)
    serve.add_flags(parser)
    named = set(re.findall(r"`(--[a-z-]+)", TEXT))
    assert named
    assert named <= set(parser._option_string_actions)
    defaults = parse(["serve", "r"])
    assert (defaults.deadline, defaults.max_deadline, defaults.drain) == (0.05, 60, 30)
    for words in ("`--deadline` (50 ms)", "`--max-deadline` (60 s)", "`--drain`\n  (30 s)"):
        assert words in TEXT


def test_defaults_are_those_of_the_settings() -> None:
    """The command line starts without torch, so its defaults are written twice."""
    from anynest.serving.settings import Settings

    typed, settings = parse(["serve", "r"]), Settings()
    assert typed.deadline == settings.default_deadline
    assert typed.drain == settings.drain_seconds
    for name in ("max_deadline", "max_batch", "max_waiting", "client_limit", "threads", "device"):
        assert getattr(typed, name) == getattr(settings, name)
    assert f"{settings.max_body >> 20} MiB" in TEXT
    assert f"{settings.max_bytes_in_flight >> 20} MiB" in TEXT
    assert f"time for headers and body ({settings.receive_seconds:g} s)" in TEXT


def test_every_metric_is_in_the_table() -> None:
    pytest.importorskip("prometheus_client")
    from anynest.serving.telemetry.metrics import Metrics

    load = SimpleNamespace(waiting_rows=0, held_rows=0, mandatory=0.0)
    service: Any = SimpleNamespace(
        **{"observers": [], "ready": True, "draining": False, "in_flight": 0},
        **{"bytes_in_flight": 0, "reply": 0.0, "load": lambda: load},
    )
    metrics = Metrics()
    metrics.watch(service)
    found = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in metrics.registry.collect()
    }
    assert set(found) == set(re.findall(r"^\|.*?`(anynest_\w+)`", TEXT, re.MULTILINE)) | {
        "anynest_draining"
    }
    for line in re.findall(r"^\| `anynest_.*$", TEXT, re.MULTILINE):
        names, labels, _ = (cell.strip() for cell in line.strip("|").split("|"))
        name = re.findall(r"`(\w+)`", names)[0]
        metric = metrics.registry._names_to_collectors.get(name)  # none for a gauge
        assert getattr(metric, "_labelnames", ()) == tuple(filter(None, labels.split(", ")))


def test_keep_alive_is_the_server_s() -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("grpc")
    from anynest.serving.server import KEEP_ALIVE

    assert f"Keep-alive is {KEEP_ALIVE} s" in TEXT
    assert KEEP_ALIVE > 600
