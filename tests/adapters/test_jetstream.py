"""The JetStream link under faults of its server: killed, hung, full, wrongly set up."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mesh.adapters.jetstream.client import DroppableClient
from mesh.adapters.jetstream.connection import Connection
from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import Session
from mesh.adapters.jetstream.streams import CONSUMER, STREAM_UP
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Refusal
from schemas.errors import LinkDown, RefusedBecause
from schemas.limits import INTAKE_BATCHES_MAX, SEND_WINDOW_BATCHES
from schemas.messages import Lane
from tests.contract.link_worlds import (
    NODE,
    SITE,
    arrivals,
    part_of,
    receipt_of,
    send_all,
    session_settings,
    up,
)

pytestmark = pytest.mark.integration

PING_SECONDS = 0.6
SLACK_SECONDS = 0.5  # for a machine that is busy with other things
SEND_SECONDS = 6.0
WITHIN_SECONDS = 10.0


def test_each_send_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    """Killed amid sends: each ends, accepted or down, long before its deadline; all goes on."""

    async def scenario() -> None:
        outcomes: list[object] = []
        slowest = 0.0
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            clock = asyncio.get_running_loop().time

            async def send(first: int) -> None:
                nonlocal slowest
                for number in range(first, first + 40):
                    began = clock()
                    try:
                        outcomes.append(await link.send(part_of(number, 65_536)))
                    except LinkDown as error:
                        outcomes.append(error)
                        await asyncio.sleep(0.02)
                    slowest = max(slowest, clock() - began)

            async with asyncio.TaskGroup() as tasks:
                for worker in range(SEND_WINDOW_BATCHES):
                    tasks.create_task(send(worker))
                await _until(lambda: len(outcomes) > 100)
                os.kill(server.state.pid, signal.SIGKILL)
            assert {type(outcome) for outcome in outcomes} == {Accepted, LinkDown}
            assert slowest < SEND_SECONDS / 2
            await up(link)
            assert link.state.connections == 2
            assert await link.send(part_of(1)) == Accepted()

    asyncio.run(scenario())


def test_lost_connections_leave_nothing_behind(tmp_path: Path) -> None:
    """However often the server is killed amid sends, no task is left over from it."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            # Both have begun all that they do once they have seen a sign of life.
            await asyncio.sleep(1.4 * PING_SECONDS)
            before = _tasks()
            for connections in range(1, 5):
                await up(link)
                async with asyncio.TaskGroup() as tasks:
                    for number in range(SEND_WINDOW_BATCHES):
                        tasks.create_task(_sent(link, number))
                    await asyncio.sleep(0)
                    os.kill(server.state.pid, signal.SIGKILL)
                await _until(lambda wanted=connections: server.restarts == wanted)
            await up(link)
            await _until(lambda: _tasks() == before)

    asyncio.run(scenario())


def test_nothing_accepted_is_lost_by_a_kill(tmp_path: Path) -> None:
    """What was accepted before the server was killed arrives after it came back."""

    async def scenario() -> None:
        parts = [part_of(number, 10_000) for number in range(50)]
        async with _server(tmp_path) as server, _intake(server) as intake, _link(server) as link:
            await send_all(link, parts)
            seen = intake.state
            os.kill(server.state.pid, signal.SIGKILL)
            await intake.wait_changed(seen)
            missing = {part.payload for part in parts}
            async with aclosing(intake.batches()) as groups:
                while missing:
                    missing -= {arrival.payload for arrival in await anext(groups)}

    asyncio.run(scenario())


def test_a_hung_server_is_noticed_and_recovered_from(tmp_path: Path) -> None:
    """Stopped, it takes the link down within twice the ping time; continued, the link comes up."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            clock = asyncio.get_running_loop().time
            await _freeze(server.state.pid)
            stopped = clock()
            async with asyncio.TaskGroup() as tasks:
                # More than the sockets take, so that writing itself is what hangs.
                sends = [tasks.create_task(_sent(link, number)) for number in range(60)]
                await link.wait_changed(link.state)
                assert clock() - stopped < 2 * PING_SECONDS + SLACK_SECONDS
            assert all(isinstance(task.result(), LinkDown) for task in sends)
            assert "sign of life" in link.state.reason
            os.kill(server.state.pid, signal.SIGCONT)
            await up(link)
            assert await link.send(part_of(1)) == Accepted()

    asyncio.run(scenario())


def test_leaving_does_not_wait_for_a_hung_server(tmp_path: Path) -> None:
    """Links and intakes are left in bounded time while their server is stopped."""

    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        async with _server(tmp_path) as server:
            async with _intake(server), _link(server) as link:
                await _freeze(server.state.pid)
                with pytest.raises(LinkDown):
                    await link.send(part_of(1))
                leaving = clock()
            assert clock() - leaving < 1.0

    asyncio.run(scenario())


def test_leaving_ends_though_the_library_swallows_a_cancellation(tmp_path: Path) -> None:
    """A PONG that comes in the very turn in which a flush is cancelled does not keep us."""

    async def scenario() -> None:
        async def hold() -> None:
            return

        async def flush(session: Session) -> None:
            with pytest.raises(LinkDown):
                await session.flush()

        async with _server(tmp_path) as server, asyncio.TaskGroup() as tasks:
            async with _connection(server) as session:
                session._client._process_pong = hold
                tasks.create_task(flush(session))
                await _until(lambda: session._client._pongs != [])
                # One turn after leaving begins: there already when the flush is cancelled.
                pong = session._client._pongs[-1]
                asyncio.get_running_loop().call_soon(lambda: pong.set_result("PONG"))
                leaving = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - leaving < 1.0

    asyncio.run(scenario())


def test_accepting_ends_when_the_server_hangs(tmp_path: Path) -> None:
    """``accept`` returns once the hung server is noticed; what comes again is marked."""

    async def scenario() -> None:
        async with (
            _server(tmp_path) as server,
            _intake(server, ack_seconds=1.0) as intake,
            _link(server) as link,
            aclosing(intake.batches()) as groups,
        ):
            await link.send(part_of(1))
            taken = await anext(groups)
            await _freeze(server.state.pid)
            async with asyncio.timeout(2 * PING_SECONDS + SLACK_SECONDS):
                await intake.accept(taken)
            assert not intake.state.up
            os.kill(server.state.pid, signal.SIGCONT)
            # The server may have read the acknowledgement after all, once it went on.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    assert (await anext(groups))[0].redelivered
            await _until(lambda: intake.state.up)

    asyncio.run(scenario())


def test_closing_does_not_wait_for_a_peer_that_does_not_read() -> None:
    """What is pending for a peer that never reads is dropped: ``close`` returns at once."""

    async def scenario() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"max_payload": 1000000}\r\n')
            while await reader.readline() != b"PING\r\n":
                pass
            writer.write(b"PONG\r\n")
            await left.wait()
            writer.transport.abort()

        left = asyncio.Event()
        peer = await asyncio.start_server(greet, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{peer.sockets[0].getsockname()[1]}"
        async with peer, asyncio.timeout(WITHIN_SECONDS):
            client = DroppableClient()
            await client.connect(url, allow_reconnect=False, pending_size=0)
            for _ in range(40):
                await client.publish("anything", bytes(500_000))
                await asyncio.sleep(0)
            assert client.unsent_bytes > 0
            assert client.is_reading
            await client.close()
            assert not client.is_reading
            left.set()

    asyncio.run(scenario())


def test_an_idle_link_stays_up(tmp_path: Path) -> None:
    """A link on which nobody says anything is not taken for a dead one."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            await asyncio.sleep(4 * PING_SECONDS)
            assert link.state.up
            assert link.state.connections == 1

    asyncio.run(scenario())


def test_without_streams_it_is_not_up(tmp_path: Path) -> None:
    """Connected to a server that has no streams is not up; once they are made, it is."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _unawaited_link(server) as link:
            await _until(lambda: "stream not found" in link.state.reason)
            assert not link.state.up
            async with _intake(server):
                await up(link)
                assert await link.send(part_of(1)) == Accepted()

    asyncio.run(scenario())


def test_a_stream_that_goes_away_takes_it_down(tmp_path: Path) -> None:
    """When the stream is deleted, a send says so, and the link is not up until it is back."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            async with _connection(server) as session:
                await session.call(f"STREAM.DELETE.{STREAM_UP}", {})
                with pytest.raises(LinkDown):
                    await link.send(part_of(1))
                await _until(lambda: not link.state.up)
            async with _intake(server):
                await up(link)

    asyncio.run(scenario())


def test_a_too_large_part_is_refused(tmp_path: Path) -> None:
    """A part beyond what the server takes is refused for good, and the link stays up."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _link(server) as link:
            outcome = await link.send(part_of(1, 2_000_000))
            assert isinstance(outcome, Refusal)
            assert (outcome.reason, outcome.retry_after_seconds) == (RefusedBecause.TOO_LARGE, 0.0)
            assert link.state.up

    asyncio.run(scenario())


def test_what_is_no_receipt_is_passed_over(tmp_path: Path) -> None:
    """Bytes that cannot be read are counted; the receipts beside them arrive."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server) as intake:
            async with _connection(server) as session:
                subject = f"mesh.v1.{SITE}.{NODE}.down"
                await session.store(f"{subject}.receipt-events", b"\xc1 no receipt")
                await session.store(f"{subject}.something-else", b"of another kind")
            await intake.publish([receipt_of(4, Lane.LOGS)])
            async with _link(server) as link, aclosing(link.receipts()) as receipts:
                assert await anext(receipts) == receipt_of(4, Lane.LOGS)
                assert link.undecodable == 1

    asyncio.run(scenario())


def test_an_operators_settings_stay(tmp_path: Path) -> None:
    """An intake brings a stream that is there to its shape, and leaves the rest as it was."""

    async def scenario() -> None:
        async with _server(tmp_path) as server, _intake(server), _connection(server) as session:
            config = (await session.call(f"STREAM.INFO.{STREAM_UP}", {}))["config"]
            changed = config | {"description": "ours", "max_bytes": 1_000_000}
            await session.call(f"STREAM.UPDATE.{STREAM_UP}", changed)
            async with _intake(server):
                after = (await session.call(f"STREAM.INFO.{STREAM_UP}", {}))["config"]
            assert after == config | {"description": "ours"}

    asyncio.run(scenario())


def test_intakes_share_the_work(tmp_path: Path) -> None:
    """Two intakes get each part once between them."""

    async def scenario() -> None:
        parts = [part_of(number) for number in range(300)]
        taken: list[bytes] = []
        async with _server(tmp_path) as server, _intake(server) as one, _intake(server) as other:

            async def work(intake: JetStreamIntake) -> None:
                async with aclosing(intake.batches()) as groups:
                    async for group in groups:
                        taken.extend(arrival.payload for arrival in group)
                        await intake.accept(group)

            async with _link(server) as link, asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(work(intake)) for intake in (one, other)]
                await send_all(link, parts)
                await _until(lambda: len(taken) >= len(parts))
                for worker in workers:
                    worker.cancel()
            assert sorted(taken) == sorted(part.payload for part in parts)

    asyncio.run(scenario())


def test_what_comes_next_is_here_while_the_reader_is_busy(tmp_path: Path) -> None:
    """A second half of what may be here is asked for before the reader has all of the first."""

    async def scenario() -> None:
        async with (
            _server(tmp_path) as server,
            _intake(server) as intake,
            _connection(server) as session,
        ):
            async with _link(server) as link:
                await send_all(link, [part_of(number) for number in range(INTAKE_BATCHES_MAX + 40)])

            async def out() -> int:
                found = await session.call(f"CONSUMER.INFO.{STREAM_UP}.{CONSUMER}", {})
                assert isinstance(found["num_ack_pending"], int)
                return found["num_ack_pending"]

            async with aclosing(intake.batches()) as groups, asyncio.timeout(WITHIN_SECONDS):
                taken = await arrivals(groups, INTAKE_BATCHES_MAX // 2)
                assert len(taken) == INTAKE_BATCHES_MAX // 2
                while await out() < INTAKE_BATCHES_MAX:  # noqa: ASYNC110 - only the server tells
                    await asyncio.sleep(0.01)
                assert await out() == INTAKE_BATCHES_MAX
                taken += await arrivals(groups, INTAKE_BATCHES_MAX // 2 + 40)
            assert len({arrival.payload for arrival in taken}) == INTAKE_BATCHES_MAX + 40

    asyncio.run(scenario())


@asynccontextmanager
async def _server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    settings = ServerSettings(
        "headquarters", tmp_path / "server", restart_seconds_min=0.05, stop_seconds=0.5
    )
    async with asyncio.timeout(30), EmbeddedServer(settings, random.Random(1)) as server:
        yield server


@asynccontextmanager
async def _intake(
    server: EmbeddedServer, ack_seconds: float = 5.0
) -> AsyncIterator[JetStreamIntake]:
    session = session_settings(server.client_url, "intake", PING_SECONDS)
    settings = IntakeSettings(session, ack_seconds=ack_seconds, pull_seconds=1.0)
    async with JetStreamIntake(settings, SystemClock(), random.Random(2)) as intake:
        await _until(lambda: intake.state.up)
        yield intake


@asynccontextmanager
async def _unawaited_link(server: EmbeddedServer) -> AsyncIterator[JetStreamLink]:
    session = session_settings(server.client_url, "up", PING_SECONDS)
    settings = LinkSettings(session, SITE, NODE, send_seconds=SEND_SECONDS, pull_seconds=1.0)
    async with JetStreamLink(settings, SystemClock(), random.Random(3)) as link:
        yield link


@asynccontextmanager
async def _link(server: EmbeddedServer) -> AsyncIterator[JetStreamLink]:
    async with _unawaited_link(server) as link:
        await up(link)
        yield link


@asynccontextmanager
async def _connection(server: EmbeddedServer) -> AsyncIterator[Session]:
    """An operator's connection to the same server."""

    async def ready(session: Session) -> None:
        await session.call("INFO", {})

    settings = session_settings(server.client_url, "operator")
    async with Connection(settings, SystemClock(), random.Random(4), ready) as connection:
        yield await connection.wait_up()


async def _freeze(pid: int) -> None:
    """Stops a process, and returns once each of its threads has noticed."""
    os.kill(pid, signal.SIGSTOP)
    await _until(lambda: set(_thread_states(pid)) == {"T"})


def _thread_states(pid: int) -> list[str]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [(path / "stat").read_text().rpartition(")")[2].split()[0] for path in threads]


async def _sent(link: JetStreamLink, number: int) -> object:
    try:
        return await link.send(part_of(number, 250_000))
    except LinkDown as error:
        return error


def _tasks() -> list[str]:
    """What runs: the qualified names of the coroutines, with the library's among them."""
    return sorted(str(task.get_coro().__qualname__) for task in asyncio.all_tasks())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while not condition():  # noqa: ASYNC110  # some conditions are of another process
            await asyncio.sleep(0.01)
