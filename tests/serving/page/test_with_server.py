"""The page on a real server: guard, service, metrics and a network."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from anynest import create_model
from anynest.serving.http.app import create_app
from anynest.serving.page import routes
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.serving.telemetry.metrics import Metrics, metrics_route
from anynest.store import WeightsInfo

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TOKEN = "a token of a test"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def application() -> Any:
    """A small network with random weights, served."""
    info = WeightsInfo("tiny", {}, NAMES, (0.5,), (0.25,), 16, "none", "0", "whole")
    network = create_model("width_nested_resnet10", in_channels=1, base_width=2).eval()
    repository, metrics = Repository(), Metrics()
    repository.add(network, "digits", info=info)
    service = Service(repository, Settings(max_batch=4, token=TOKEN), observer=metrics)
    metrics.watch(service)
    app = create_app(service, extra_routes=[metrics_route(metrics), *routes()])

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app.router.lifespan_context = lifespan
    return app


@pytest.fixture
def shown(watch: Any, serve: Callable[[Any], str]) -> Any:
    """The page of a server that runs, with the token given."""
    page = watch().open(serve(application()))
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#facts")).to_have_text("16 × 16 grey · 10 classes · 3 stages")
    return page


@pytest.mark.slow
def test_draw_shed_and_load(shown: Any) -> None:
    slider, status = shown.get_by_role("slider"), shown.locator("#status")
    slider.press("End")
    shown.locator("#pad").click()
    expect(status).to_have_text(re.compile(r"^\d+ % sure\. All 3 stages in .*, of 1 s\.$"))
    assert shown.locator("#label").inner_text() in NAMES
    assert shown.locator("tbody th").all_inner_texts() == list(NAMES)
    for stage, head in enumerate(shown.locator("thead th .when").all_inner_texts()):
        cells = shown.locator(f"tbody td:nth-of-type({stage + 1}) i")
        widths = cells.evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
        assert sum(widths) == pytest.approx(0 if head == "skipped" else 100, abs=0.01)

    slider.press("Home")  # nothing can be sent within 1 ms: the server needs some of it to wake
    expect(status).to_have_text(re.compile("^No answer in time: .*1 ms"))
    slider.press("End")
    expect(status).to_contain_text("All 3 stages")

    shown.locator("#send").click()
    counts = shown.locator("#counts")
    expect(counts).to_contain_text(re.compile(r"stage [123] [1-9]"))
    depth, refused = shown.locator("#chart-depth .now"), shown.locator("#chart-refused .now")
    expect(depth).to_have_text(re.compile(r"^[123]\.\d$"))
    expect(refused).to_have_text(re.compile(r"^\d"))
    expect(shown.locator("#chart-load .now")).to_have_text(re.compile(r"^\d+.* % \(stage 1: \d+\)"))
    shown.locator("#send").click()
    expect(shown.locator("#result")).to_have_attribute("data-done", re.compile(r"^[1-9]"))
    assert "failed" not in counts.inner_text()
