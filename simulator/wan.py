"""The wide-area network between two processes: a TCP proxy that can be cut, slowed and silenced.

Bytes are carried as they come, in order, in both directions. In between stands one bounded pipe for
each direction of each connection; a full pipe is not read into, so the sender feels it. The rate is
shared by all connections of a direction, as on a real line; the delay holds for each byte.

``open``
    The way it should be.
``cut``
    Connections are reset, new ones refused. The port stays reserved: nobody else gets it.
``half_open``
    Connections stay, what they send is swallowed, and nobody learns that the other side is gone;
    new connections are taken and swallowed too. A connection that lost a byte can never go on: it
    is reset by `restore`; the others live on.

``python -m simulator.wan --listen 127.0.0.1:0 --target 127.0.0.1:4222`` runs one as a process of
its own. It first prints ``{"host": …, "port": …}``, then answers each line of JSON from its
standard input, a pipe, with a line of JSON: ``{"do": "cut"}`` with ``{"done": "cut", "bytes_up":
…, …}``; likewise ``restore``, ``half_open``, ``count``, ``throttle`` with ``bytes_per_second`` (a
number, or null) and ``delay`` with ``seconds``; what it cannot do it answers with ``{"error": …}``.
It ends when its standard input does.
"""

import argparse
import asyncio
import json
import math
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final, Self

__all__ = ["WanCounts", "WanProxy", "WanState"]

PIPE_BYTES_MAX: Final = 256 * 1024
"""What one direction of one connection holds at most, above what one read brings."""

_PIPE_PIECES_MAX: Final = 1024
_READ_BYTES: Final = 64 * 1024
_SOCKET_BYTES: Final = 128 * 1024
_PIECE_SECONDS: Final = 0.05
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 seconds: closing sends a reset


class WanState(StrEnum):
    """What the network does to bytes and to new connections."""

    OPEN = "open"
    CUT = "cut"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class WanCounts:
    """What has passed since the start.

    Attributes:
        bytes_up: Handed on to the target.
        bytes_down: Handed on from the target.
        bytes_swallowed: Taken and thrown away, both ways.
        bytes_held: In the pipes now, both ways.
        connections: Taken since the start.
        connections_open: Standing now.
    """

    bytes_up: int
    bytes_down: int
    bytes_swallowed: int
    bytes_held: int
    connections: int
    connections_open: int


class WanProxy:
    """A network on one port; an asynchronous context manager that starts and closes it.

    Args:
        listen_host: Address to listen at.
        listen_port: Port to listen at; 0 for a free one, see `port`.
        target_host: Where connections lead.
        target_port: Where connections lead.
        seed: What the jitter of `delay` follows from.
    """

    def __init__(
        self,
        listen_host: str,
        listen_port: int,
        target_host: str,
        target_port: int,
        seed: int = 0,
    ) -> None:
        self.host = listen_host
        self.port = listen_port
        self.state = WanState.OPEN
        self._target = (target_host, target_port)
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self._delay_seconds = 0.0
        self._jitter_seconds = 0.0
        self._up, self._down = _Line(), _Line()
        self._swallowed = 0
        self._accepted = 0
        self._links: set[_Link] = set()
        self._reservation: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Starts it."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes it."""
        await self.close()

    def __repr__(self) -> str:
        return f"<WanProxy {self.host}:{self.port} {self.state} {len(self._links)} connections>"

    def counts(self) -> WanCounts:
        """What has passed since the start."""
        return WanCounts(
            bytes_up=self._up.passed,
            bytes_down=self._down.passed,
            bytes_swallowed=self._swallowed,
            bytes_held=sum(pipe.held for link in self._links for pipe in link.pipes),
            connections=self._accepted,
            connections_open=len(self._links),
        )

    async def start(self) -> None:
        """Reserves the port and takes connections.

        Raises:
            OSError: The port cannot be had.
        """
        # A bound socket that never listens keeps the port while connections are to be refused;
        # it shares the port by SO_REUSEPORT only, which servers do not set unless they are told to.
        self._reservation = self._bound()
        self.port = self._reservation.getsockname()[1]
        await self._listen()

    async def cut(self) -> None:
        """Resets all connections and refuses new ones; done when they are gone."""
        self._deafen()
        self.state = WanState.CUT
        await _reset_all(self._links)

    async def half_open(self) -> None:
        """Swallows everything from now on, and tells neither side."""
        self.state = WanState.HALF_OPEN
        await self._listen()

    async def restore(self) -> None:
        """Carries again; connections that lost bytes are reset, and gone when this is done."""
        self.state = WanState.OPEN
        await _reset_all({link for link in self._links if link.severed})
        await self._listen()

    def throttle(self, bytes_per_second: float | None) -> None:
        """Limits each direction, all connections together.

        Args:
            bytes_per_second: The limit, above 0 and finite, or None for none. What is on its way
                when it changes, 50 ms' worth of bytes or one byte, still goes at the old rate.

        Raises:
            ValueError: The limit is not above 0 and finite.
        """
        if bytes_per_second is not None and not 0 < bytes_per_second < math.inf:
            raise ValueError(f"bytes_per_second must be above 0 and finite, not {bytes_per_second}")
        for line in (self._up, self._down):
            line.bytes_per_second = bytes_per_second
            line.free_at = 0.0

    def delay(self, seconds: float, jitter_seconds: float = 0.0) -> None:
        """Delays bytes that arrive from now on, each way; order is kept.

        A connection carries at most ``PIPE_BYTES_MAX`` bytes for each delay, like a TCP window.

        Args:
            seconds: How long, from 0.
            jitter_seconds: At most how much longer, from 0, drawn for each piece.

        Raises:
            ValueError: One of them is below 0 or not finite.
        """
        if not (0 <= seconds < math.inf and 0 <= jitter_seconds < math.inf):
            raise ValueError(f"a delay is 0 or more and finite, not {seconds} and {jitter_seconds}")
        self._delay_seconds = seconds
        self._jitter_seconds = jitter_seconds

    async def close(self) -> None:
        """Resets all connections and gives the port back; done when they are gone."""
        await self.cut()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Small buffers, inherited by what is accepted: a full pipe is soon felt by the sender.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            bound.bind((self.host, self.port))
        except OSError:
            bound.close()
            raise
        return bound

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=self._bound())

    def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end, in the task that the server started."""
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task, [writer])
        self._links.add(link)
        self._accepted += 1
        try:
            await self._carry(link, reader, writer)
        except asyncio.CancelledError:
            pass  # a command ended it; nobody awaits this task for its result
        finally:
            self._links.discard(link)
            for end in link.writers:
                _reset(end)

    async def _carry(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carries both directions until both have ended, or one has failed."""
        try:
            if self.state is WanState.CUT:
                return
            if self.state is WanState.HALF_OPEN:
                await self._swallow(link, reader)
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            link.writers.append(far_writer)
            far = far_writer.get_extra_info("socket")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            up, down = link.pipes
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(link, reader, up))
                group.create_task(self._send(link, self._up, up, far_writer))
                group.create_task(self._receive(link, far_reader, down))
                group.create_task(self._send(link, self._down, down, writer))
            for end in link.writers:
                end.close()
            for end in link.writers:
                await end.wait_closed()
        except* OSError:
            pass  # one side failed: the other is reset, which tells it

    async def _receive(self, link: "_Link", reader: asyncio.StreamReader, pipe: "_Pipe") -> None:
        loop = asyncio.get_running_loop()
        data = b"?"
        while data:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                await self._hide(link)
                raise
            jitter = self._random.uniform(0.0, self._jitter_seconds)
            await pipe.put(loop.time() + self._delay_seconds + jitter, data)

    async def _send(
        self, link: "_Link", line: "_Line", pipe: "_Pipe", writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await pipe.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                await self._hide(link)
                writer.write_eof()
                return
            while data:
                piece, data = line.split(data)
                if self.state is WanState.OPEN:
                    await line.pace(len(piece))
                if self.state is not WanState.OPEN or link.severed:
                    link.severed = True
                    self._swallowed += len(piece)
                    continue
                try:
                    writer.write(piece)
                    await writer.drain()
                except OSError:
                    await self._hide(link)
                    raise
                line.passed += len(piece)

    async def _swallow(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        """Reads into nothing; ends only by being cancelled."""
        link.severed = True
        while data := await reader.read(_READ_BYTES):
            self._swallowed += len(data)
        await self._hide(link)

    async def _hide(self, link: "_Link") -> None:
        """Where nothing passes, an end does not either: waits until a command ends the link."""
        if self.state is WanState.HALF_OPEN or link.severed:
            link.severed = True
            await asyncio.Event().wait()


class _Pipe:
    """Bytes under way in one direction of one connection, with the instants they are due at."""

    def __init__(self) -> None:
        self.held = 0
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._changed = asyncio.Condition()

    async def put(self, due: float, data: bytes) -> None:
        """Adds a piece, waiting while the pipe is full; empty data is the end."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.held < PIPE_BYTES_MAX and len(self._pieces) < _PIPE_PIECES_MAX
            )
            self._pieces.append((due, data))
            self.held += len(data)
            self._changed.notify_all()

    async def get(self) -> tuple[float, bytes]:
        """Takes the oldest piece, waiting for one."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._pieces))
            due, data = self._pieces.popleft()
            self.held -= len(data)
            self._changed.notify_all()
            return due, data


@dataclass(eq=False, slots=True)
class _Link:
    """One connection: its task, its one or two ends, and whether it has lost bytes."""

    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter]
    severed: bool = False
    pipes: tuple[_Pipe, _Pipe] = field(default_factory=lambda: (_Pipe(), _Pipe()))


@dataclass(slots=True)
class _Line:
    """One direction of the network, shared by all connections."""

    passed: int = 0
    bytes_per_second: float | None = None
    free_at: float = 0.0

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """What to send next, and what is left: a change of the rate is soon felt."""
        if self.bytes_per_second is None:
            return data, b""
        size = max(1, int(self.bytes_per_second * _PIECE_SECONDS))
        return data[:size], data[size:]

    async def pace(self, size: int) -> None:
        """Waits until a piece of that size, bytes, has been transmitted."""
        if self.bytes_per_second is None:
            return
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + size / self.bytes_per_second
        await asyncio.sleep(self.free_at - now)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a reset, unless it is closed."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _reset_all(links: set[_Link]) -> None:
    tasks = [link.task for link in links]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    await asyncio.sleep(0)  # the loop closes aborted sockets in its next turn


async def _obey(proxy: WanProxy, order: object) -> None:
    """Carries out one order from standard input."""
    match order:
        case {"do": "cut"}:
            await proxy.cut()
        case {"do": "restore"}:
            await proxy.restore()
        case {"do": "half_open"}:
            await proxy.half_open()
        case {"do": "throttle", "bytes_per_second": float() | int() | None as rate}:
            proxy.throttle(rate)
        case {"do": "delay", "seconds": float() | int() as seconds}:
            proxy.delay(seconds)
        case {"do": "count"}:
            pass
        case _:
            raise ValueError(f"not an order: {order}")


async def _serve(listen: str, target: str, seed: int, say: Callable[[object], None]) -> None:
    """Runs one proxy until standard input ends."""
    host, _, port = listen.rpartition(":")
    target_host, _, target_port = target.rpartition(":")
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    async with WanProxy(host, int(port), target_host, int(target_port), seed) as proxy:
        pipe, _protocol = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        say({"host": proxy.host, "port": proxy.port})
        while line := await orders.readline():
            try:
                order = json.loads(line)
                await _obey(proxy, order)
                say({"done": order["do"], **asdict(proxy.counts())})
            except (OSError, ValueError) as error:
                say({"error": str(error)})
        pipe.close()


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The command: one proxy, obeying its standard input."""
    parser = argparse.ArgumentParser(prog="simulator.wan", description="A network to be cut.")
    parser.add_argument("--listen", default="127.0.0.1:0", help="address:port, port 0 for any")
    parser.add_argument("--target", required=True, help="address:port")
    parser.add_argument("--seed", type=int, default=0, help="what jitter follows from")
    asked = parser.parse_args()
    asyncio.run(_serve(asked.listen, asked.target, asked.seed, _say))


if __name__ == "__main__":
    main()
