"""A tap: listens to what crosses a NATS server, and never speaks.

For witnesses and tests, not for links.

A tap is told of messages while it is connected, and of none before or between; it promises nothing
else.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self

import nats
from nats.aio.client import Client  # noqa: TC002 - one import, not two
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

__all__ = ["Tap", "Tapped"]

_QUEUE_MESSAGES_MAX: Final = 4096
_RETRY_SECONDS: Final = 0.2


class Tapped(NamedTuple):
    """A message that was heard."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]


class Tap:
    """Hears messages of one subject pattern: ``async with Tap(url, "mesh.v1.>") as tap``.

    Entering does not wait for the network; it connects and reconnects by itself for ever.

    Args:
        url: of the server, ``nats://host:port``.
        pattern: which subjects.
    """

    def __init__(self, url: str, pattern: str) -> None:
        self._url = url
        self._pattern = pattern
        self._queue: asyncio.Queue[Tapped] = asyncio.Queue(_QUEUE_MESSAGES_MAX)
        self._client: Client | None = None
        self._subscribed = False
        self._tasks = asyncio.TaskGroup()
        self._connecting: asyncio.Task[None] | None = None
        self.missed = 0
        """Messages dropped because nobody took them in time."""

    @property
    def connected(self) -> bool:
        """Whether it hears now."""
        return self._client is not None and self._client.is_connected and self._subscribed

    async def messages(self) -> AsyncIterator[Tapped]:
        """Messages as they are heard.

        When more wait than may wait, new ones are dropped and counted.
        """
        while True:
            yield await self._queue.get()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._connecting = self._tasks.create_task(self._connect(), name="tap")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._connecting is not None, "entered before"
        self._connecting.cancel()
        await self._tasks.__aexit__(None, None, None)
        if self._client is not None:
            await self._client.close()

    async def _connect(self) -> None:
        while True:
            try:
                self._client = await nats.connect(
                    self._url,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RETRY_SECONDS,
                    ping_interval=5,
                    error_cb=self._pass_over,
                )
                await self._client.subscribe(self._pattern, cb=self._hear)
                await self._client.flush()
                self._subscribed = True
            except (NatsError, OSError):
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _hear(self, message: Msg) -> None:
        try:
            self._queue.put_nowait(Tapped(message.subject, message.data, message.headers or {}))
        except asyncio.QueueFull:
            self.missed += 1

    async def _pass_over(self, _error: Exception) -> None:
        """The library reconnects by itself; there is nothing to tell."""
