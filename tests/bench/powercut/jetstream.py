"""JetStream on the bench: a nats-server with one stream in files, acknowledged by its ``PubAck``.

Once as it comes, when it syncs every two minutes, and once with ``sync_interval: always`` (NATS
documentation, "JetStream", ``sync_interval``). The stream is made and synced before the work
begins, so what is lost are messages. As a program: ``python -m tests.bench.powercut.jetstream URL
SEED ROUND``.
"""

import asyncio
import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import nats
from nats.aio.client import Client
from nats.errors import Error

from mesh.adapters.child import bound_to_parent
from mesh.adapters.server.binary import find_binary
from schemas.errors import ServerUnusable
from tests.bench.powercut.work import PRODUCERS, Name, Told, Verdict, compare, record
from tests.bench.powercut.writer import Writer, say, writing
from tests.brokers import RunningBroker, free_port

__all__ = ["JetStream"]

_STREAM: Final = "cut"
_SUBJECT: Final = "cut.records"
_ANSWER_SECONDS: Final = 5.0


class JetStream:
    """A nats-server whose store is on the disk.

    Args:
        seed: of the records.
        always: whether it is told ``sync_interval: always``.
    """

    lasting = False

    def __init__(self, seed: int, *, always: bool) -> None:
        self.name = f"nats-server {'sync_interval: always' if always else 'default'}"
        self._seed = seed
        self._always = always

    def obstacle(self) -> str:
        """Why it cannot be tried; empty when it can."""
        try:
            _binary()
        except ServerUnusable as problem:
            return str(problem)
        return ""

    @contextmanager
    def running(
        self, root: Path, scratch: Path, cut_round: int, settle: Callable[[], None]
    ) -> Iterator[Writer]:
        """Runs a server and makes the stream durable, then runs the writer."""
        with self._server(root, scratch) as url:
            asyncio.run(_make_stream(url))
            settle()
            arguments = (url, self._seed, cut_round)
            with writing(scratch / "jetstream.log", "jetstream", arguments) as writer:
                yield writer

    def judge(self, root: Path, scratch: Path, told: Told) -> Verdict:
        """Starts the server again and reads the stream."""
        try:
            with self._server(root, scratch) as url:
                found = asyncio.run(_read_stream(url))
        except (AssertionError, Error, OSError) as problem:
            lost = compare(self._seed, told, ()).lost
            return Verdict(lost, lost, opened=False, note=repr(problem))
        return compare(self._seed, told, found)

    @contextmanager
    def _server(self, root: Path, scratch: Path) -> Iterator[str]:
        port = free_port()
        configuration = scratch / "nats.conf"
        # The parser takes the rest of the line for the value of sync_interval.
        sync = "sync_interval: always\n" if self._always else ""
        configuration.write_text(
            f"server_name: cut\nlisten: 127.0.0.1:{port}\n"
            f'jetstream {{\nstore_dir: "{root}/jetstream"\n{sync}}}\n'
        )
        command = bound_to_parent((str(_binary()), "-c", str(configuration)))
        server = RunningBroker(list(command), port, scratch / "nats.log")
        try:
            server.start()
            yield f"nats://127.0.0.1:{port}"
        finally:
            server.end(signal.SIGKILL)


@cache
def _binary() -> Path:
    return asyncio.run(find_binary())


async def _connect(url: str) -> Client:
    return await nats.connect(url, allow_reconnect=False, error_cb=_pass_over)


async def _pass_over(_problem: Exception) -> None:
    """Whoever awaits an answer is told anyway."""


async def _make_stream(url: str) -> None:
    client = await _connect(url)
    await client.jetstream().add_stream(name=_STREAM, subjects=[_SUBJECT])
    await client.close()


async def _read_stream(url: str) -> list[bytes]:
    client = await _connect(url)
    try:
        stream = client.jetstream()
        messages = (await stream.stream_info(_STREAM)).state.messages
        reader = await stream.subscribe(_SUBJECT, ordered_consumer=True)
        return [(await reader.next_msg(_ANSWER_SECONDS)).data for _ in range(messages)]
    finally:
        await client.close()


async def _produce(client: Client, seed: int, cut_round: int, producer: int) -> None:
    stream = client.jetstream()
    for number in itertools.count():
        data = record(seed, Name(cut_round, producer, number))
        try:
            await stream.publish(_SUBJECT, data, timeout=_ANSWER_SECONDS)
        except Error:
            return
        say("A", producer, number)


async def _work(url: str, seed: int, cut_round: int) -> None:
    client = await _connect(url)
    async with asyncio.TaskGroup() as tasks:
        for producer in range(PRODUCERS):
            tasks.create_task(_produce(client, seed, cut_round, producer))


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
