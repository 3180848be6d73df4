"""Who is refused, and what every response carries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from anynest.serving.http.guard import Guard
from anynest.serving.settings import Settings

from .asgi import Reply, call

TOKEN = "a-long-secret"


def ask(
    path: str = "/v2", settings: Settings | None = None, csp: str = "", **headers: str
) -> Reply:
    given = {"content-security-policy": csp} if csp else {}
    guarded = Guard(PlainTextResponse("in", headers=given), settings or Settings())
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(guarded, path, headers=names, method="GET"))


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"]
)
def test_its_own_names(host: str) -> None:
    assert ask(host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "", "127.0.0.2", "[::2]:8000", "::1", "[::1"]
)
def test_foreign_names(host: str) -> None:
    reply = ask(host=host)
    assert reply.status == 403
    assert reply.error.startswith("Host must be one of")


def test_one_host() -> None:
    two = [("host", "localhost"), ("host", "evil.com")]
    reply = asyncio.run(call(Guard(PlainTextResponse("in"), Settings()), "/v2", headers=two))
    assert reply.status == 403


def test_any_name_where_told() -> None:
    assert ask(settings=Settings(hosts=("*",)), host="evil.com").status == 200
    assert ask(settings=Settings(hosts=("My.Host",)), host="my.host:80").status == 200


@pytest.mark.parametrize("origin", ["http://localhost:8000", "https://LOCALHOST:8000"])
def test_its_own_page(origin: str) -> None:
    assert ask(host="localhost:8000", origin=origin).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "", "http://localhost:8001", "localhost:8000", "http://"]
)
@pytest.mark.parametrize("hosts", [("localhost",), ("*",)])
def test_foreign_pages(origin: str, hosts: tuple[str, ...]) -> None:
    reply = ask(settings=Settings(hosts=hosts), host="localhost:8000", origin=origin)
    assert reply.status == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "header", ["", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer \xff", "bearer x"]
)
def test_a_wrong_token(header: str) -> None:
    given: dict[str, Any] = {"authorization": header} if header else {}
    reply = ask(settings=Settings(token=TOKEN), **given)
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in reply.error


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
def test_the_token(header: str) -> None:
    assert ask(settings=Settings(token=TOKEN), authorization=header).status == 200


def test_what_needs_no_token() -> None:
    settings = Settings(token=TOKEN)
    assert ask("/", settings).status == 200
    assert ask("/", settings, host="evil.com").status == 403
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert ask(path, settings, host="10.0.0.7:8000").status == 200
    for path in ("/metrics", "/v2/health", "/v2/health/live/", "//", "/openapi.json"):
        assert ask(path, settings).status == 401


@pytest.mark.parametrize("host", ["localhost", "evil.com"])
def test_security_headers(host: str) -> None:
    headers = ask(host=host).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_route_may_have_its_own_policy() -> None:
    assert ask(csp="default-src 'self'").headers["content-security-policy"] == "default-src 'self'"
