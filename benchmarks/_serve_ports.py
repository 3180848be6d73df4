"""Ports of servers; without dependencies, for the peers' environments, too."""

import socket


def free_port() -> int:
    """A port on loopback that nobody listens to now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
