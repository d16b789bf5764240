"""Ports of loopback that nobody listens on."""

import socket
from contextlib import ExitStack

__all__ = ["free_ports"]


def free_ports(count: int) -> list[int]:
    """So many free ports; all are held until the last was found, so they differ.

    Another process may take one before it is used: whoever listens there then says so.
    """
    with ExitStack() as held:
        found = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            found.append(port)
        return found
