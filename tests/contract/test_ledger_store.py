"""The contract of the port ``LedgerStore``, in memory and on JetStream."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mesh.adapters.jetstream.ledger import JetStreamLedgerStore, LedgerStoreSettings
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import LedgerStore, Stored
from schemas.errors import Conflict, LinkDown
from simulator.ledger_store import MemoryLedgerStore
from tests.contract.link_worlds import session_settings

Scenario = Callable[[LedgerStore], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture(params=["memory", pytest.param("jetstream", marks=pytest.mark.integration)])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a scenario on one of the stores."""

    async def in_memory(scenario: Scenario) -> None:
        await scenario(MemoryLedgerStore(random.Random(1)))

    async def on_jetstream(scenario: Scenario) -> None:
        server = EmbeddedServer(ServerSettings("hq", tmp_path / "server"), random.Random(1))
        async with asyncio.timeout(20), server:
            settings = LedgerStoreSettings(session_settings(server.client_url))
            async with JetStreamLedgerStore(settings, SystemClock(), random.Random(2)) as store:
                while not store.state.up:
                    await store.wait_changed(store.state)
                await scenario(store)

    world = in_memory if request.param == "memory" else on_jetstream
    return lambda scenario: asyncio.run(world(scenario))


def test_what_was_never_set_is_version_0(play: Play) -> None:
    """A partition without a ledger loads as version 0 with no bytes."""

    async def scenario(store: LedgerStore) -> None:
        assert await store.load(255) == Stored(0, b"")

    play(scenario)


def test_what_was_set_is_loaded(play: Play) -> None:
    """The state and the version that ``compare_and_set`` returned are what ``load`` gives."""

    async def scenario(store: LedgerStore) -> None:
        state = random.Random(1).randbytes(100_000)
        first = await store.compare_and_set(3, 0, b"first")
        second = await store.compare_and_set(3, first, state)
        assert 0 < first < second
        assert await store.load(3) == Stored(second, state)

    play(scenario)


def test_an_empty_state_is_a_state(play: Play) -> None:
    """An empty state that was set is told apart from none by its version."""

    async def scenario(store: LedgerStore) -> None:
        version = await store.compare_and_set(0, 0, b"")
        assert version > 0
        assert await store.load(0) == Stored(version, b"")

    play(scenario)


def test_a_stale_version_conflicts(play: Play) -> None:
    """Who expects an older version, or none, changes nothing."""

    async def scenario(store: LedgerStore) -> None:
        first = await store.compare_and_set(3, 0, b"first")
        second = await store.compare_and_set(3, first, b"second")
        for stale in (0, first, second + 1):
            with pytest.raises(Conflict):
                await store.compare_and_set(3, stale, b"stale")
        assert await store.load(3) == Stored(second, b"second")

    play(scenario)


def test_of_many_writers_one_wins(play: Play) -> None:
    """Of writers that replace the same version at once, exactly one does."""

    async def scenario(store: LedgerStore) -> None:
        won: list[int] = []

        async def write(number: int) -> None:
            try:
                await store.compare_and_set(9, 0, bytes([number]))
            except Conflict:
                return
            won.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(16):
                tasks.create_task(write(number))
        assert len(won) == 1
        assert (await store.load(9)).state == bytes(won)

    play(scenario)


def test_partitions_are_apart(play: Play) -> None:
    """Setting one partition leaves the version of another alone."""

    async def scenario(store: LedgerStore) -> None:
        one = await store.compare_and_set(1, 0, b"one")
        await store.compare_and_set(2, 0, b"two")
        assert await store.load(1) == Stored(one, b"one")
        await store.compare_and_set(1, one, b"more")

    play(scenario)


def test_a_store_that_cannot_be_asked_says_so() -> None:
    """A store that does not answer raises ``LinkDown``; a lost answer hides what was done."""

    async def scenario() -> None:
        settings = LedgerStoreSettings(session_settings("nats://127.0.0.1:1"))
        async with JetStreamLedgerStore(settings, SystemClock(), random.Random(2)) as store:
            with pytest.raises(LinkDown):
                await store.load(1)
        memory = MemoryLedgerStore(random.Random(4), loss=1.0)
        outcomes = set()
        for partition in range(32):
            with pytest.raises(LinkDown):
                await memory.compare_and_set(partition, 0, b"x")
        memory.loss = 0.0
        for partition in range(32):
            outcomes.add((await memory.load(partition)).state)
        assert outcomes == {b"", b"x"}

    asyncio.run(scenario())
