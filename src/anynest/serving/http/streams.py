"""Streams of answers: server-sent events, or one JSON object on each line.

Server-sent events carry one response each in ``data``; an error after the first of them comes as
the event ``error``. In NDJSON it is a line like any error's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.inference import write_object

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")


@dataclass(frozen=True)
class StreamFormat:
    """How one kind of stream frames its JSON texts.

    Attributes:
        media_type: of the response.
        events: whether they are framed as server-sent events.
    """

    media_type: str
    events: bool

    def answer(self, text: bytes) -> bytes:
        """The frame of a response."""
        return b"data: " + text + b"\n\n" if self.events else text + b"\n"

    def error(self, message: str) -> bytes:
        """The frame of an error that ends the stream."""
        text = write_object({"error": message})
        return b"event: error\ndata: " + text + b"\n\n" if self.events else text + b"\n"


def stream_format(accept: str) -> StreamFormat:
    """By the request's ``Accept``: NDJSON where it is named, server-sent events otherwise."""
    named = {item.partition(";")[0].strip().lower() for item in accept.split(",")}
    if named.intersection(NDJSON_TYPES):
        return StreamFormat("application/x-ndjson", events=False)
    return StreamFormat("text/event-stream", events=True)
