"""Random gRPC requests, sound, odd and hostile, against a real service of a small network.

    python benchmarks/fuzz_grpc.py --minutes 5 --seed 0

Each case is a call to a server on loopback: one request, or a stream of some. The outcome must be a
status that is documented, with one line, or an answer with tensors of the right shapes; INTERNAL,
UNKNOWN and UNIMPLEMENTED are failures, and so is a line that tells of a fault of the server. Every
``BASELINE`` cases the service must be as it was: no request or byte left, and the next answer right.
A case is reproduced by its number: ``--first 1234 --cases 1``. Ends with status 1 if any case fell.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import torch
from grpc import aio
from PIL import Image

from anynest import create_model
from anynest.serving.grpc.inference import CONTENTS
from anynest.serving.grpc.messages import SERVICE, message_class
from anynest.serving.grpc.server import start_grpc
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.store import WeightsInfo

Code = grpc.StatusCode
ALLOWED = {
    *(Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED),
    *(Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.CANCELLED),
}
FAULT = "the server's log says why"
BASELINE = 200  # cases
AT_ONCE = 8  # calls
PATIENCE = 60.0  # seconds; a call that takes longer has fallen
SIZE, CLASSES, INPUT = 8, 4, "x"
OUTPUTS = {
    "probabilities": (CLASSES,),
    "logits": (CLASSES,),
    "label": (),
    "confidence": (),
    "stage": (),
}
Draw = np.random.Generator
Request = message_class("ModelInferRequest")

ODD_TEXTS = ("", "x", "é" * 300, "\0", "\n", "FP32", "FP16", "BYTES", "bool", "1", "-1", "net")
ODD_NUMBERS = (0, -1, 1, 2, 7, 255, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
ODD_HEADERS = ("", "0", "-1", "1", "1.5", "9" * 30, "abc", "60000")


# -- requests -------------------------------------------------------------------------------------
def sound(draw: Draw) -> Any:
    """A request that the network can answer."""
    rows = int(draw.integers(1, 4))
    request = Request(model_name="net", id=str(draw.integers(9)))
    kind = draw.choice(["raw", "typed", "pixels", "pictures"])
    if kind in ("raw", "typed"):
        array = draw.standard_normal((rows, 3, SIZE, SIZE)).astype(np.float32)
        tensor = request.inputs.add(name=INPUT, datatype="FP32", shape=array.shape)
    else:
        array = draw.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8)
        tensor = request.inputs.add(name=INPUT, datatype="UINT8", shape=array.shape)
    if kind == "typed":
        tensor.contents.fp32_contents.extend(array.ravel().tolist())
    elif kind == "pictures":
        tensor.datatype, tensor.shape[:] = "BYTES", [rows]
        files = [encode(picture) for picture in array]
        request.raw_input_contents.append(
            b"".join(len(file).to_bytes(4, "little") + file for file in files)
        )
    else:
        request.raw_input_contents.append(array.tobytes())
    request.parameters["timeout"].int64_param = int(1e6 * PATIENCE)
    if draw.random() < 0.3:
        request.parameters["stages"].int64_param = int(draw.integers(1, 4))
    if draw.random() < 0.3:
        request.outputs.add(name=str(draw.choice(list(OUTPUTS))))
    return request


def encode(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def with_odd_fields(request: Any, draw: Draw) -> bytes:
    """Some fields of other values: names, types, shapes, contents, parameters, outputs."""

    def text() -> str:
        return str(draw.choice(ODD_TEXTS))

    def number() -> int:
        return int(ODD_NUMBERS[draw.integers(len(ODD_NUMBERS))])

    def parameter(fields: Any) -> None:
        name = draw.choice(["timeout", "priority", "stages", "confidence", "classification", "x"])
        found = fields[str(name)]
        kind = draw.integers(6)
        if kind == 0:
            found.bool_param = True
        elif kind == 1:
            found.int64_param = number()
        elif kind == 2:
            found.uint64_param = abs(number())
        elif kind == 3:
            found.double_param = float(draw.choice([0.5, -1.0, np.nan, np.inf, 1e300]))
        elif kind == 4:
            found.string_param = text()

    def contents(tensor: Any) -> None:
        field = str(draw.choice(sorted(set(CONTENTS.values()))))
        value = {"bytes_contents": b"\0x", "bool_contents": True}.get(field, 1)
        getattr(tensor.contents, field).extend([value] * int(draw.integers(1, 9)))

    tensor = request.inputs[0]
    changes: tuple[Callable[[], object], ...] = (
        lambda: setattr(request, "model_name", text()),
        lambda: setattr(request, "model_version", text()),
        lambda: setattr(request, "id", text() * 50),
        lambda: setattr(tensor, "name", text()),
        lambda: setattr(tensor, "datatype", text()),
        lambda: tensor.shape.append(number()),
        lambda: tensor.shape.insert(0, number()),
        lambda: tensor.ClearField("shape"),
        lambda: contents(tensor),
        lambda: request.ClearField("raw_input_contents"),
        lambda: request.raw_input_contents.append(draw.bytes(8)),
        lambda: request.inputs.extend([tensor] * int(draw.choice([1, 70]))),
        lambda: request.ClearField("inputs"),
        lambda: parameter(request.parameters),
        lambda: parameter(tensor.parameters),
        lambda: parameter(request.outputs.add(name=str(draw.choice(list(OUTPUTS)))).parameters),
        lambda: request.outputs.add(name=text()),
    )
    for _ in range(int(draw.integers(1, 4))):
        if request.inputs or not changes:
            changes[draw.integers(len(changes))]()
    return bytes(request.SerializeToString())


def with_odd_bytes(request: Any, draw: Draw) -> bytes:
    """Bytes that are changed, cut, repeated or put in."""
    data = bytearray(request.SerializeToString())
    for _ in range(int(draw.integers(1, 5))):
        # the first bytes hold the fields, the rest is mostly numbers
        place = int(draw.integers(min(len(data), 120) if draw.random() < 0.8 else len(data)))
        kind = draw.integers(4)
        if kind == 0:
            data[place] = int(draw.integers(256))
        elif kind == 1:
            del data[place + 1 :]
        elif kind == 2:
            data[place:place] = data[place : place + int(draw.integers(1, 60))]
        else:
            data[place:place] = draw.bytes(int(draw.integers(1, 9)))
    return bytes(data)


def compressed(request: Any, draw: Draw) -> bytes:
    """Well, cut short, damaged, or a bomb."""
    data = bytes(request.SerializeToString())
    if draw.random() < 0.2:
        data = Request(id="0" * 10_000_000).SerializeToString()
    pack = gzip.compress if draw.random() < 0.5 else zlib.compress
    packed = bytearray(pack(data))
    if draw.random() < 0.3:
        del packed[int(draw.integers(1, len(packed))) :]
    if draw.random() < 0.3:
        packed[int(draw.integers(len(packed)))] ^= 1 << int(draw.integers(8))
    return bytes(packed)


MUTATIONS: dict[str, Callable[[Any, Draw], bytes]] = {
    "sound": lambda request, draw: bytes(request.SerializeToString()),
    "fields": with_odd_fields,
    "bytes": with_odd_bytes,
    "compressed": compressed,
    "noise": lambda request, draw: draw.bytes(int(draw.integers(0, 200))),
}


# -- one case -------------------------------------------------------------------------------------
async def run_case(channel: aio.Channel, seed: int, number: int) -> tuple[str, str]:
    """Send one case. Returns what it was and its status, and what is wrong with that, or ""."""
    draw = np.random.default_rng([seed, number])
    name = str(draw.choice(list(MUTATIONS), p=[0.1, 0.4, 0.3, 0.15, 0.05]))
    stream, vanish = bool(draw.random() < 0.3), bool(draw.random() < 0.1)
    metadata, timeout = [], PATIENCE
    if draw.random() < 0.1:
        metadata.append(("anynest-timeout-ms", str(draw.choice(ODD_HEADERS))))
    if draw.random() < 0.05:
        timeout = float(draw.choice([0.001, 0.01]))
    count = int(draw.integers(1, 4)) if stream else 1
    data = [MUTATIONS[name](sound(draw), draw) for _ in range(count)]
    sending = _stream if stream else _single
    call = asyncio.ensure_future(sending(channel, data, metadata, timeout))
    if vanish:
        await asyncio.wait({call}, timeout=float(draw.random() * 0.02))
        call.cancel()
        await asyncio.wait({call})
        return f"{name} vanished", ""
    try:
        code, wrong = await call
    except aio.AioRpcError as error:
        code = error.code()
        wrong = wrong_line(error.details() or "")
        # what grpc.aio's client says if it is writing while its own deadline passes
        own = timeout < PATIENCE and error.details() == "Internal error from Core"
        if code not in ALLOWED and not own:
            wrong = f"status {code}: {error.details()}"
    except asyncio.CancelledError:  # the same while it opens a stream
        if timeout == PATIENCE:
            raise
        code, wrong = grpc.StatusCode.CANCELLED, ""
    return f"{name} {'stream' if stream else 'single'} {code.name}", wrong


async def _single(
    channel: aio.Channel, data: list[bytes], metadata: Any, timeout: float
) -> tuple[grpc.StatusCode, str]:
    answer = message_class("ModelInferResponse").FromString
    method = channel.unary_unary(f"/{SERVICE}/ModelInfer", None, answer)
    response = await method(data[0], metadata=metadata, timeout=timeout)
    return Code.OK, wrong_answer(response)


async def _stream(
    channel: aio.Channel, data: list[bytes], metadata: Any, timeout: float
) -> tuple[grpc.StatusCode, str]:
    """Each request has one final response."""
    answer = message_class("ModelStreamInferResponse").FromString
    method = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", None, answer)
    call = method(iter(data), metadata=metadata, timeout=timeout)
    finals, wrong = 0, ""
    async for response in call:
        found = response.infer_response
        finals += found.parameters["triton_final_response"].bool_param
        line = response.error_message
        wrong = wrong or (wrong_line(line) if line else wrong_answer(found))
    if finals != len(data):
        wrong = wrong or f"{finals} final responses to {len(data)} requests"
    return Code.OK, wrong


def wrong_line(line: str) -> str:
    if not line or "\n" in line or len(line) > 700:
        return f"no line: {line[:200]!r}"
    return f"a fault: {line}" if FAULT in line else ""


def wrong_answer(response: Any) -> str:
    if not response.parameters["stage"].int64_param:
        return "no stage"
    if not response.outputs:
        return "no outputs"
    rows = {tensor.shape[0] for tensor in response.outputs}
    for tensor in response.outputs:
        if len(rows) != 1 or tuple(tensor.shape[1:]) != OUTPUTS.get(tensor.name):
            return f"{tensor.name} of shape {list(tensor.shape)}"
    return ""


# -- the server -----------------------------------------------------------------------------------
@asynccontextmanager
async def serving(network: torch.nn.Module) -> AsyncIterator[tuple[Service, aio.Channel]]:
    info = WeightsInfo("", {}, ("a", "b", "c", "d"), (0.5,) * 3, (0.5,) * 3, SIZE, "", "0")
    repository = Repository()
    repository.add(network, name="net", info=info)
    service = Service(repository, Settings(max_batch=8, max_body=1 << 16, receive_seconds=5.0))
    server = None
    try:
        await service.start()
        server, port = await start_grpc(service, "127.0.0.1:0")
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield service, channel
    finally:
        if server is not None:
            await server.stop(0)
        await service.stop(0)


async def baseline(service: Service, channel: aio.Channel, network: torch.nn.Module) -> str:
    """What is not as before: "" if nothing is left and the next answer is right."""
    until = time.monotonic() + PATIENCE
    while service.in_flight or service.bytes_in_flight:
        if time.monotonic() > until:
            return f"{service.in_flight} requests, {service.bytes_in_flight} bytes left"
        await asyncio.sleep(0.01)
    images = torch.linspace(-1, 1, 3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)
    request = Request(model_name="net", raw_input_contents=[images.numpy().tobytes()])
    request.inputs.add(name=INPUT, datatype="FP32", shape=images.shape)
    request.outputs.add(name="logits")
    request.parameters["timeout"].int64_param = int(1e6 * PATIENCE)
    answer = message_class("ModelInferResponse").FromString
    method = channel.unary_unary(f"/{SERVICE}/ModelInfer", None, answer)
    response = await method(request.SerializeToString())
    found = np.frombuffer(response.raw_output_contents[0], "<f4")
    with torch.no_grad():
        wanted = list(network(images))[response.parameters["stage"].int64_param - 1]
    return "" if np.allclose(found, wanted[0], rtol=1e-3, atol=1e-4) else "the answer is wrong"


async def fuzz(
    seed: int, first: int, cases: int, until: float, show: Callable[[str], None]
) -> tuple[Counter[str], int]:
    """Run cases until their number or the time ends.

    Args:
        seed: of all cases.
        first: number of the first case.
        cases: how many.
        until: when to stop, on ``time.monotonic``.
        show: called with a line for each case that fell.

    Returns:
        how often each kind met each status, and how many cases fell.
    """
    torch.manual_seed(0)
    network = create_model("width_nested_resnet10", num_classes=CLASSES, base_width=2).eval()
    counts: Counter[str] = Counter()
    fell = 0
    async with serving(network) as (service, channel):
        number = first
        while number < first + cases and time.monotonic() < until:
            last = min(number + AT_ONCE, first + cases)
            group = range(number, last)
            results = await asyncio.gather(
                *(run_case(channel, seed, one) for one in group), return_exceptions=True
            )
            for one, result in zip(group, results, strict=True):
                key, wrong = result if isinstance(result, tuple) else ("raised", repr(result))
                counts[key] += 1
                counts["cases"] += 1
                if wrong:
                    fell += 1
                    show(f"case {one} ({key}): {wrong}")
            if last // BASELINE > number // BASELINE or last == first + cases:
                wrong = await baseline(service, channel, network)
                if wrong:
                    fell += 1
                    show(f"after case {last - 1}: {wrong}")
            number = last
    return counts, fell


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=1 << 40)
    parser.add_argument("--minutes", type=float, default=1.0)
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    counts, fell = asyncio.run(fuzz(given.seed, given.first, given.cases, until, print))
    for key, count in sorted(counts.items()):
        print(f"{count:9,} {key}")
    print(f"{fell:9,} fell")
    sys.exit(bool(fell))


if __name__ == "__main__":
    main()
