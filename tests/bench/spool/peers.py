"""What a spool is measured against: SQLite, JetStream, and a bare loop on the same disk.

- ``sqlite``: 64 coroutines, each awaiting its own record; one thread inserts and commits a record
  at a time (WAL, ``synchronous=FULL``).
- ``sqlite_grouped``: the same 64; what queued while the last commit ran is one transaction, so at
  most 64 rows.
- ``jetstream``: a nats-server that syncs each message before it acknowledges it; 64 coroutines,
  each awaiting the acknowledgement of its own, so 64 are under way.
- ``bare``: a thread that writes a group and calls ``fdatasync``, for ever: no framing, no checksum,
  no numbers, nobody who waits. Either *appending* to a file that grows, or *overwriting* one whose
  blocks were written before.
- ``queued``: 64 coroutines and a thread, joined as in ``sqlite_grouped``, doing what ``bare`` does:
  what the hand-over between a loop and a thread leaves of it.
"""

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import nats
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from tests.bench.spool.load import PRODUCERS, Appends

__all__ = ["bare", "jetstream", "jetstream_server", "queued", "sqlite", "sqlite_grouped"]

_PREPARED_BYTES = 64 << 20
_SUBJECT = "bench.spool"
_ACK_SECONDS_MAX = 30.0


async def _drive(
    send: Callable[[bytes], Awaitable[object]], record: bytes, seconds: float
) -> Appends:
    """The coroutines, each sending the next record once the last one was acknowledged."""
    begun = perf_counter()
    until = begun + seconds
    count = 0

    async def produce() -> None:
        nonlocal count
        while perf_counter() < until:
            await send(record)
            count += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(PRODUCERS):
            tasks.create_task(produce())
    return Appends(count, perf_counter() - begun)


class _Groups:
    """Natural group commit: what gathers while the thread is busy goes to it as one group.

    Args:
        thread: the thread.
        write: makes a group durable; runs there.
    """

    def __init__(
        self, thread: ThreadPoolExecutor, write: Callable[[Sequence[bytes]], None]
    ) -> None:
        self._thread = thread
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes] = []
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._busy = False

    def send(self, record: bytes) -> "asyncio.Future[None]":
        """Appends a record; the future is done once it is durable."""
        self._gathered.append(record)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)
        return self._settled

    def _hand_over(self) -> None:
        gathered, settled = self._gathered, self._settled
        self._gathered, self._settled = [], self._loop.create_future()
        job = self._loop.run_in_executor(self._thread, self._write, gathered)
        job.add_done_callback(lambda done: self._after(done, settled))

    def _after(self, done: "asyncio.Future[None]", settled: "asyncio.Future[None]") -> None:
        done.result()
        settled.set_result(None)
        self._busy = bool(self._gathered)
        if self._busy:
            self._hand_over()


def _database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    return connection


_INSERT = "INSERT INTO records (data) VALUES (?)"


async def sqlite(folder: Path, record: bytes, seconds: float) -> Appends:
    """One commit a record, in one thread."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        connection = await loop.run_in_executor(thread, _database, folder / "single.sqlite")

        def insert(data: bytes) -> None:
            # Without a transaction of its own each statement is one, and is committed at its end.
            connection.execute(_INSERT, (data,))

        outcome = await _drive(
            lambda data: loop.run_in_executor(thread, insert, data), record, seconds
        )
        await loop.run_in_executor(thread, connection.close)
    return outcome


async def sqlite_grouped(folder: Path, record: bytes, seconds: float) -> Appends:
    """What queued is one transaction, in one thread."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        connection = await loop.run_in_executor(thread, _database, folder / "grouped.sqlite")

        def insert(group: Sequence[bytes]) -> None:
            connection.execute("BEGIN")
            connection.executemany(_INSERT, [(data,) for data in group])
            connection.execute("COMMIT")

        outcome = await _drive(_Groups(thread, insert).send, record, seconds)
        await loop.run_in_executor(thread, connection.close)
    return outcome


@asynccontextmanager
async def jetstream_server(folder: Path) -> AsyncIterator[JetStreamContext]:
    """A nats-server that syncs always, with a stream for the records."""
    settings = ServerSettings("bench", folder, sync_always=True)
    async with EmbeddedServer(settings, random.Random(1)) as server:
        client = await nats.connect(server.client_url)
        try:
            context = client.jetstream(publish_async_max_pending=PRODUCERS)
            await context.add_stream(
                StreamConfig(
                    name="bench",
                    subjects=[_SUBJECT],
                    storage=StorageType.FILE,
                    max_bytes=512 << 20,
                    discard=DiscardPolicy.OLD,
                )
            )
            yield context
        finally:
            await client.close()


async def jetstream(context: JetStreamContext, record: bytes, seconds: float) -> Appends:
    """Publishes with as many under way as there are producers."""

    async def send(data: bytes) -> None:
        # One deadline for all: one for each would cost more than the publishing.
        await (await context.publish_async(_SUBJECT, data))

    async with asyncio.timeout(seconds + _ACK_SECONDS_MAX):
        return await _drive(send, record, seconds)


def bare(folder: Path, group: bytes, records: int, seconds: float, *, overwriting: bool) -> Appends:
    """``pwrite`` and ``fdatasync``, one after another, in the calling thread."""
    descriptor, size_max = _bare_file(folder, overwriting=overwriting)
    groups = offset = 0
    begun = perf_counter()
    until = begun + seconds
    while perf_counter() < until:
        if offset + len(group) > size_max:
            offset = 0
        os.pwrite(descriptor, group, offset)
        os.fdatasync(descriptor)
        offset += len(group)
        groups += 1
    outcome = Appends(groups * records, perf_counter() - begun)
    os.close(descriptor)
    return outcome


async def queued(folder: Path, record: bytes, seconds: float, *, overwriting: bool) -> Appends:
    """The same behind a loop: 64 coroutines, a future and a hand-over for each group."""
    descriptor, size_max = _bare_file(folder, overwriting=overwriting)
    offset = 0

    def write(group: Sequence[bytes]) -> None:
        nonlocal offset
        data = b"".join(group)
        if offset + len(data) > size_max:
            offset = 0
        os.pwrite(descriptor, data, offset)
        os.fdatasync(descriptor)
        offset += len(data)

    with ThreadPoolExecutor(1) as thread:
        outcome = await _drive(_Groups(thread, write).send, record, seconds)
    os.close(descriptor)
    return outcome


def _bare_file(folder: Path, *, overwriting: bool) -> tuple[int, int]:
    path = folder / "bare"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    if not overwriting:
        return descriptor, 1 << 62
    os.pwrite(descriptor, bytes(_PREPARED_BYTES), 0)
    os.fsync(descriptor)
    return descriptor, _PREPARED_BYTES
