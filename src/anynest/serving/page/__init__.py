"""The page at ``/``: one file that draws, asks and shows each stage as it comes.

It loads nothing else and has no data of its own, so it needs no token; its requests carry the one
that is typed into it. Its policy allows the script and the style of the file by their digests, and
requests to this server alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def page() -> str:
    """The text of the page."""
    return files(__name__).joinpath("index.html").read_text(encoding="utf-8")


def content_security_policy(text: str) -> str:
    """The policy that lets a page run its own inline script and style, and nothing else.

    Args:
        text: a page with inline ``<script>`` and ``<style>`` elements without attributes.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digests('script', text)}",
            f"style-src {_digests('style', text)}",
            "connect-src 'self'",
            "img-src data:",  # the icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _digests(element: str, text: str) -> str:
    """Sources of the inline elements of one kind; ``'none'`` where there are none."""
    found = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in found)
    return " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"


def routes() -> list[Route]:
    """The route of the page."""
    text = page()
    headers = {
        "content-security-policy": content_security_policy(text),
        "cache-control": "no-cache",
    }

    async def index(request: Request) -> Response:
        return Response(text, media_type="text/html; charset=utf-8", headers=headers)

    return [Route("/", index)]
