"""Who may ask: a layer round the whole application.

A page of another site that runs in a browser on this machine reaches a server on loopback. It can
neither read nor send anything here: no response has CORS headers, a foreign ``Origin`` is refused,
and so is a ``Host`` that is not this server's (DNS rebinding gives a foreign page our address under
its own name, but not our name).
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..authorization import check_token
from ..protocol.errors import ProtocolError
from ..settings import Settings
from .responses import SECURITY, error_response
from .scope import ARRIVED

PROBES = frozenset({"/v2/health/live", "/v2/health/ready"})
WITHOUT_TOKEN = PROBES | {"/"}  # the page has no data of its own: its requests carry the token


class Guard:
    """Refuses strangers with one line, and adds the headers of ``SECURITY`` to responses.

    Probes may come under any host name and need no token. A host of ``"*"`` allows every name.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._token = settings.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault(ARRIVED, time.monotonic())

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message["headers"]
                given = {name for name, _ in own}
                more = [pair for pair in SECURITY.items() if pair[0] not in given]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        try:
            self.check(Headers(scope=scope), scope["path"])
        except ProtocolError as error:
            await error_response(error)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def check(self, headers: Headers, path: str) -> None:
        """Raise a ProtocolError, 401 or 403, unless the request may be served."""
        if path not in PROBES:
            self._check_host(headers)
        if path not in WITHOUT_TOKEN:
            check_token(headers.get("authorization", ""), self._token)

    def _check_host(self, headers: Headers) -> None:
        hosts = [host.lower() for host in headers.getlist("host")]
        host = hosts[0] if len(hosts) == 1 else ""
        if "*" not in self._hosts and host_name(host) not in self._hosts:
            raise ProtocolError(
                403,
                f"Host must be one of {', '.join(sorted(self._hosts))}, found {host[:80]!r}; "
                f"allow it when the server is started",
            )
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise ProtocolError(
                    403, f"Origin must be the server's own, found {origin[:80]!r}; omit it"
                )


def host_name(host: str) -> str:
    """The name in a ``Host`` header.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
