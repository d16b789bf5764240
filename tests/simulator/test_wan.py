"""The network that can be cut: what passes, what is refused, what is swallowed, what is counted."""

import asyncio
import json
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from simulator.wan import PIPE_BYTES_MAX, WanProxy, WanState

PATIENCE_SECONDS = 30
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Far:
    """A target that hands its connections to the test, one after the other."""

    def __init__(self) -> None:
        self.port = 0
        self.taken: asyncio.Queue[Streams] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Puts a connection where the test finds it."""
        self.writers.append(writer)
        self.taken.put_nowait((reader, writer))


@asynccontextmanager
async def network(seed: int = 0) -> AsyncIterator[tuple[WanProxy, Far]]:
    """A target, and a proxy before it."""
    far = Far()
    server = await asyncio.start_server(far.accept, "127.0.0.1", 0)
    far.port = server.sockets[0].getsockname()[1]
    async with WanProxy("127.0.0.1", 0, "127.0.0.1", far.port, seed) as proxy:
        yield proxy, far
    server.close()
    for writer in far.writers:
        writer.transport.abort()
    await asyncio.sleep(0)


@asynccontextmanager
async def connection(proxy: WanProxy) -> AsyncIterator[Streams]:
    """One connection through the proxy, aborted at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def run(body: Callable[[], Awaitable[None]]) -> None:
    """Runs a test on a loop of its own; one that hangs fails."""

    async def patient() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await body()

    asyncio.run(patient())


async def until(true: Callable[[], bool]) -> None:
    """Gives the loop its turns until something holds; the timeout of the test is the bound."""
    while not true():  # noqa: ASYNC110 - counts tell no one that they changed
        await asyncio.sleep(0.001)


def test_bytes_pass_both_ways_unchanged_and_counted() -> None:
    """What goes in comes out, in order, each way; an end is passed on; the counts are exact."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, writer):
            up, down = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(1_000_000)
            far_reader, far_writer = await far.taken.get()

            async def send(end: asyncio.StreamWriter, data: bytes) -> None:
                end.write(data)
                await end.drain()
                end.write_eof()

            async with asyncio.TaskGroup() as group:
                group.create_task(send(writer, up))
                group.create_task(send(far_writer, down))
                got_up = group.create_task(far_reader.read(-1))
                got_down = group.create_task(reader.read(-1))
            assert got_up.result() == up
            assert got_down.result() == down
            await until(lambda: proxy.counts().connections_open == 0)
            counts = proxy.counts()
            assert (counts.bytes_up, counts.bytes_down) == (3_000_000, 1_000_000)
            assert (counts.connections, counts.bytes_swallowed, counts.bytes_held) == (1, 0, 0)

    run(body)


def test_half_closed_connection_still_carries_the_other_way() -> None:
    """One side that has said all it had to say can still hear the other."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, writer):
            far_reader, far_writer = await far.taken.get()
            writer.write_eof()
            assert await far_reader.read() == b""
            far_writer.write(b"late")
            assert await reader.readexactly(4) == b"late"

    run(body)


def test_cut_resets_connections_and_refuses_new_ones_until_restored() -> None:
    """A cut is felt at once by both sides; nobody gets in; afterwards the same port carries."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, _):
            far_reader, _ = await far.taken.get()
            port = proxy.port
            await proxy.cut()
            assert proxy.state is WanState.CUT
            assert proxy.counts().connections_open == 0
            for end in (reader, far_reader):
                with pytest.raises(ConnectionResetError):
                    await end.read(1)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            # Cut means reserved: another listener cannot take the port meanwhile.
            with pytest.raises(OSError, match="address already in use"):
                await asyncio.start_server(far.accept, "127.0.0.1", port)
            await proxy.cut()
            await proxy.restore()
            async with connection(proxy) as (_, again):
                again.write(b"back")
                far_again, _ = await far.taken.get()
                assert await far_again.readexactly(4) == b"back"
            assert proxy.port == port

    run(body)


def test_half_open_swallows_and_tells_nobody() -> None:
    """Half open, bytes and ends vanish while connections stay, old and new; then they are reset."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, writer):
            far_reader, _ = await far.taken.get()
            writer.write(b"before")
            assert await far_reader.readexactly(6) == b"before"
            await proxy.half_open()
            writer.write(b"lost")
            async with connection(proxy) as (new_reader, new_writer):
                new_writer.write(b"nobody")
                await until(lambda: proxy.counts().bytes_swallowed == 10)
                writer.write_eof()
                assert far.taken.empty()
                for end in (reader, far_reader, new_reader):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await end.read(1)
                assert proxy.counts().bytes_up == 6
                await proxy.restore()
                for end in (reader, far_reader, new_reader):
                    with pytest.raises(ConnectionResetError):
                        await end.read(1)

    run(body)


def test_half_open_hides_a_side_that_dies() -> None:
    """A target that goes away during half open is not noticed by the other side."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, _):
            _, far_writer = await far.taken.get()
            await proxy.half_open()
            far_socket = far_writer.get_extra_info("socket")
            far_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far_writer.transport.abort()
            await until(lambda: any(link.severed for link in proxy._links))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await reader.read(1)
            assert proxy.counts().connections_open == 1

    run(body)


def test_connection_that_lost_nothing_survives_half_open() -> None:
    """A silent connection does not notice that the network was half open for a while."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (reader, writer):
            far_reader, far_writer = await far.taken.get()
            await proxy.half_open()
            await proxy.restore()
            writer.write(b"still")
            assert await far_reader.readexactly(5) == b"still"
            far_writer.write(b"here")
            assert await reader.readexactly(4) == b"here"

    run(body)


def test_throttle_holds_for_all_connections_together() -> None:
    """Two connections share the rate of a direction, and a lifted limit is felt soon."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with network() as (proxy, far), connection(proxy) as (_, one):
            far_one, _ = await far.taken.get()
            async with connection(proxy) as (_, two):
                far_two, _ = await far.taken.get()
                proxy.throttle(100_000)
                start = loop.time()
                for writer in (one, two):
                    writer.write(bytes(20_000))
                for reader in (far_one, far_two):
                    await reader.readexactly(20_000)
                assert loop.time() - start >= 0.4 - 0.01
            start = loop.time()
            one.write(bytes(1_000_000))
            await until(lambda: proxy.counts().bytes_held > 0)
            proxy.throttle(None)
            await far_one.readexactly(1_000_000)
            assert loop.time() - start < 5

    run(body)


def test_delay_holds_each_way() -> None:
    """An answer takes at least twice the delay; order survives jitter."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with network(seed=5) as (proxy, far), connection(proxy) as (reader, writer):
            far_reader, far_writer = await far.taken.get()
            proxy.delay(0.05, jitter_seconds=0.02)
            start = loop.time()
            writer.write(b"ask")
            far_writer.write(await far_reader.readexactly(3))
            assert await reader.readexactly(3) == b"ask"
            assert loop.time() - start >= 0.1
            sent = bytes(range(256))
            for number in sent:
                writer.write(bytes([number]))
                await asyncio.sleep(0)
            assert await far_reader.readexactly(256) == sent

    run(body)


def test_sender_feels_a_receiver_that_does_not_read() -> None:
    """Buffers are bounded: the sender waits until the receiver reads, and nothing is lost."""

    async def body() -> None:
        async with network() as (proxy, far), connection(proxy) as (_, writer):
            far_reader, _ = await far.taken.get()
            total = 64 * 1024 * 1024
            writer.write(bytes(total))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.drain()
            counts = proxy.counts()
            assert 0 < counts.bytes_held <= PIPE_BYTES_MAX + 64 * 1024
            assert counts.bytes_up < total // 4
            await far_reader.readexactly(total)
            await writer.drain()
            assert proxy.counts().bytes_up == total

    run(body)


def test_target_that_is_away_resets_the_connection() -> None:
    """Where nobody listens at the target, who connects is told so by a reset or an end."""

    async def body() -> None:
        async with network() as (_, far):
            gone = far.port
        async with (
            WanProxy("127.0.0.1", 0, "127.0.0.1", gone) as proxy,
            connection(proxy) as (reader, _),
        ):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            assert proxy.counts().connections_open == 0

    run(body)


def test_close_leaves_nothing_behind() -> None:
    """After closing no task and no connection is left, whatever the state was."""

    async def body() -> None:
        for command in ("cut", "half_open", "restore"):
            async with network() as (proxy, far), connection(proxy) as (_, writer):
                await far.taken.get()
                proxy.delay(60)
                writer.write(b"under way")
                await getattr(proxy, command)()
                await proxy.close()
                await proxy.close()
                assert asyncio.all_tasks() - {asyncio.current_task()} == set()
                assert proxy.counts().connections_open == 0

    run(body)


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf")])
def test_impossible_rates_and_delays_are_refused(wrong: float) -> None:
    """A limit is above 0 and finite, a delay finite and not negative; a refusal changes nothing."""
    proxy = WanProxy("127.0.0.1", 0, "127.0.0.1", 1)
    with pytest.raises(ValueError, match="bytes_per_second"):
        proxy.throttle(wrong)
    with pytest.raises(ValueError, match="delay"):
        proxy.delay(wrong or -0.1)


def test_process_obeys_lines_of_json() -> None:
    """A process tells its port, answers each order, survives nonsense, and ends with stdin."""

    async def body() -> None:
        async with network() as (_, far):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "simulator.wan", "--target", f"127.0.0.1:{far.port}"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            assert process.stdin is not None
            assert process.stdout is not None
            stdin, stdout = process.stdin, process.stdout

            async def order(line: str) -> dict[str, object]:
                stdin.write(line.encode() + b"\n")
                answer: dict[str, object] = json.loads(await stdout.readline())
                return answer

            port = json.loads(await stdout.readline())["port"]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            far_reader, _ = await far.taken.get()
            writer.write(b"12345")
            await far_reader.readexactly(5)
            assert (await order('{"do": "throttle", "bytes_per_second": 1e6}'))[
                "done"
            ] == "throttle"
            assert (await order('{"do": "throttle", "bytes_per_second": null}'))["bytes_up"] == 5
            assert (await order('{"do": "delay", "seconds": 0.01}'))["done"] == "delay"
            assert (await order('{"do": "count"}'))["connections_open"] == 1
            for nonsense in ("{", "[]", '{"do": "burn"}', '{"do": "delay", "seconds": -1}'):
                assert list(await order(nonsense)) == ["error"]
            assert (await order('{"do": "half_open"}'))["done"] == "half_open"
            assert (await order('{"do": "restore"}'))["connections_open"] == 1
            assert (await order('{"do": "cut"}'))["connections_open"] == 0
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            stdin.close()
            assert await process.wait() == 0
            writer.transport.abort()

    run(body)
