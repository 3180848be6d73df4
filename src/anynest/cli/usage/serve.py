"""Flags of ``anynest serve``."""

import ipaddress
from argparse import ArgumentTypeError, Namespace

from ...training.errors import ConfigError
from ..durations import parse_duration
from ..flags import BACKENDS, add_device_flag, add_import_flag, add_json_flag, add_threads_flag
from ..parser import Parser, integer, shorten

DESCRIPTION = (
    "Serve trained networks over the Open Inference Protocol v2, by HTTP and gRPC. A request's "
    "deadline covers the computation: the answer is the best stage that is ready by then."
)
EXAMPLES = """examples:
  anynest serve runs/a
  anynest serve runs/a runs/b --deadline 20ms --port 9000 --grpc-port none
  anynest serve runs/a --policy saved    # after anynest calibrate runs/a
  anynest serve runs/a --host 0.0.0.0 --token-file token --allow-host anynest

SIGTERM and Ctrl-C refuse new requests, answer those that were accepted, and
exit; a second one exits at once. SIGHUP loads the networks again. The metrics
are at /metrics, a page to try the networks at /."""
MAX_PORT = 65535
MAX_BATCH = 1024
MAX_WAITING = 1 << 20
MAX_CLIENT_LIMIT = 1 << 20


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "sources",
        metavar="RUN",
        nargs="+",
        help="a run's folder, a weights file, an exported folder, or hf://USER/NAME",
    )
    parser.add_argument(
        "--name",
        dest="names",
        action="append",
        default=[],
        metavar="NAME[:VERSION]",
        help="of each RUN in turn, may be repeated (default: the folder's name, version 1)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen")
    parser.add_argument(
        "--port", type=integer(0, MAX_PORT), default=8000, help="of HTTP; 0: any that is free"
    )
    parser.add_argument(
        "--grpc-port",
        type=parse_port,
        default=8001,
        metavar="PORT",
        help="of gRPC; 0: any that is free; none: no gRPC",
    )
    parser.add_argument(
        "--deadline",
        type=parse_deadline,
        default="50ms",
        metavar="TIME",
        help="of requests that give none, such as 50ms; none: to the last stage",
    )
    parser.add_argument(
        "--max-deadline",
        type=parse_duration,
        default="60s",
        metavar="TIME",
        help="longer deadlines are cut to it",
    )
    parser.add_argument(
        "--policy",
        choices=("none", "saved"),
        default="none",
        help="saved: requests that give no confidence stop early by the policy.json that anynest "
        "calibrate saved beside each RUN's weights",
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="clients must send this bearer token (default: none)"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen to other machines without a token"
    )
    parser.add_argument(
        "--allow-host",
        dest="hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a Host header to accept beside localhost, 127.0.0.1 and [::1]; *: any; may be "
        "repeated",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: onnxruntime on the CPU, else torch"
    )
    add_threads_flag(parser)
    add_device_flag(parser, default="cpu")
    parser.add_argument(
        "--max-batch",
        type=integer(1, MAX_BATCH),
        default=32,
        metavar="ROWS",
        help="computed together; also the most rows of one request",
    )
    parser.add_argument(
        "--max-waiting",
        type=integer(1, MAX_WAITING),
        default=1024,
        metavar="ROWS",
        help="that may wait for a first answer",
    )
    parser.add_argument(
        "--client-limit",
        type=integer(0, MAX_CLIENT_LIMIT),
        default=0,
        metavar="N",
        help="requests of one client's address at a time, default: 0 (no limit)",
    )
    parser.add_argument(
        "--drain",
        type=parse_duration,
        default="30s",
        metavar="TIME",
        help="the longest time that a shutdown waits for accepted requests",
    )
    parser.add_argument(
        "--access-log",
        metavar="FILE",
        help="one line of JSON per request; -: standard output (default: none)",
    )
    parser.add_argument(
        "--trace",
        action="store_true",
        help="send OpenTelemetry traces by OTLP; the OTEL_ variables say where to",
    )
    add_json_flag(parser, "print one line of JSON once the server is ready")
    add_import_flag(parser)


def check(arguments: Namespace) -> None:
    """Raise ConfigError for names that do not fit, and an address without protection."""
    if len(arguments.names) > len(arguments.sources):
        raise ConfigError(
            f"--name must be given at most once for each RUN, found {len(arguments.names)} names "
            f"of {len(arguments.sources)}"
        )
    if not is_loopback(arguments.host) and not (arguments.token_file or arguments.insecure):
        raise ConfigError(
            f"--host {arguments.host} is reachable from other machines, so it must have a token: "
            "give --token-file FILE, or --insecure to let anyone in"
        )
    if arguments.json and arguments.access_log == "-":
        raise ConfigError("--json and --access-log - share standard output: give the log a file")


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_port(text: str) -> int | None:
    """A port's number, or None for ``none``.

    >>> parse_port("8001"), parse_port("none")
    (8001, None)
    """
    return None if text == "none" else integer(0, MAX_PORT)(text)


def parse_deadline(text: str) -> float | None:
    """Seconds, or None for ``none``.

    >>> parse_deadline("50ms"), parse_deadline("none")
    (0.05, None)
    """
    try:
        return None if text == "none" else parse_duration(text)
    except ArgumentTypeError as error:
        if "unit" not in str(error):
            raise
        raise ArgumentTypeError(
            f"must be none or a duration with its unit, such as 50ms, found {shorten(text)}"
        ) from None
