"""One life of a NATS connection, from CONNECT until it is lost.

nats-py is used for its protocol alone. What it does on its own is kept away from us (seen with
version 2.16):

- Futures of ``publish_async`` stay unresolved for ever after a crash of the server. Here each
  answer is awaited with a deadline, and all that are under way fail once the session is lost.
- ``publish`` swallows cancellation while it waits for the socket. With ``pending_size=0`` it never
  waits, and it refuses while there is no connection instead of keeping up to 2 MiB for later.
- It gives up after 60 reconnections, and its pings notice a dead peer after minutes. Here a
  watchdog drops a connection on which nothing moves, and another session is made.
- A ``PONG`` that comes after its ``flush`` has timed out ends the library's reader without a word.
  So no flush here ever times out; the watchdog ends the session instead.

Requests share one subscription, each with a number of its own as the last token of its reply
subject. A pull has a subscription of its own, since JetStream delivers messages under their
original subject; the last token of a *status* tells which request it ends.
"""

import asyncio
import contextlib
import itertools
import json
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from mesh.adapters.jetstream.client import DroppableClient
from mesh.adapters.jetstream.inbox import Inbox, Message
from schemas.errors import LinkDown, Refused, RefusedBecause

__all__ = ["JetStreamError", "NoResponders", "Session", "SessionSettings"]

_API: Final = "$JS.API"
_SUBJECT: Final = "Nats-Subject"
_STATUS: Final = "Status"
_FETCH_ENDS: Final = frozenset({"204", "404"})  # the end of what was found; nothing was found
_TOO_MANY: Final = "413"
_NEVER_SECONDS: Final = 10**9
_CLOSE_SECONDS: Final = 2.0
_POLLS_PER_PING: Final = 8
_STATUSES_MAX: Final = 16
_PULL_PAUSE_SECONDS: Final = 0.25
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Where to connect, and how patiently.

    Args:
        name: names the connection in states and at the server.
        servers: URLs, ``nats://host:port`` or ``tls://host:port``; one after another is tried.
        user: user name; empty for none.
        password: its password.
        tls: how to verify the server, and who we are; ``None`` without TLS.
        connect_seconds: how long a connection may take to be made.
        request_seconds: how long the server may take for an answer.
        ping_seconds: how often it is asked for a sign of life; without one the connection is lost
            within twice that.
        reconnect_seconds_min: pause before the first attempt to reconnect.
        reconnect_seconds_max: the longest pause.
    """

    name: str
    servers: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    connect_seconds: float = 10.0
    request_seconds: float = 10.0
    ping_seconds: float = 5.0
    reconnect_seconds_min: float = 0.25
    reconnect_seconds_max: float = 30.0


class Session:
    """One life of a connection, from CONNECT until it is lost.

    ``reason`` says why it was lost; ``lost`` is set then, and never cleared. ``on_lost`` is called
    before anybody who waits is told.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._client = DroppableClient()
        self._inbox = self._client.new_inbox()
        self._numbers = itertools.count()
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._inboxes: set[Inbox] = set()
        self._flushes: list[asyncio.Future[None]] = []
        self._flush_wanted = asyncio.Event()
        self._pinged_at: float | None = None
        self._trouble = ""
        self.lost = asyncio.Event()
        self.reason = ""
        self.on_lost: Callable[[], None] | None = None

    @property
    def token(self) -> str:
        """A name that no other session has; fit for a subject."""
        return self._inbox.rpartition(".")[2]

    @property
    def unheard(self) -> str:
        """A subject for answers that nobody waits for."""
        return f"{self._inbox}.unheard"

    async def open(self) -> None:
        """Connects.

        Raises:
            LinkDown: no server takes us in time.
        """
        settings = self._settings
        try:
            async with asyncio.timeout(settings.connect_seconds):
                await self._client.connect(
                    list(settings.servers),
                    name=settings.name,
                    error_cb=self._on_error,
                    closed_cb=self._on_closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=math.ceil(settings.connect_seconds),
                    ping_interval=math.ceil(settings.ping_seconds),
                    max_outstanding_pings=2,
                    pending_size=0,
                    user=settings.user or None,
                    password=settings.password or None,
                    tls=settings.tls,
                )
                await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        except TimeoutError:
            raise LinkDown(
                f"no connection to {self._where} within {settings.connect_seconds:g} s"
                f"{self._trouble and ': ' + self._trouble}"
            ) from None
        except (NatsError, OSError, ValueError) as error:
            raise LinkDown(f"no connection to {self._where}: {self._trouble or error}") from error

    async def close(self) -> None:
        """Ends it, in bounded time whatever the server does."""
        with contextlib.suppress(TimeoutError, NatsError, OSError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.close()

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Message:
        """Publishes, and returns the first answer.

        Args:
            subject: where.
            payload: what.
            headers: printable text by printable name.
            seconds: deadline, ``request_seconds`` when it is not given.

        Raises:
            NoResponders: nobody listens there.
            LinkDown: it is lost, or no answer came in time.
            Refused: ``too_large`` for this server.
        """
        seconds = self._settings.request_seconds if seconds is None else seconds
        number = str(next(self._numbers))
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(seconds):
                await self.publish(subject, payload, f"{self._inbox}.{number}", headers)
                message: Message = await answer
        except TimeoutError:
            raise LinkDown(f"{subject}: no answer within {seconds:g} s") from None
        finally:
            del self._answers[number]
        if not message.data and message.is_no_responders:
            raise NoResponders(f"{subject}: no stream takes it, or JetStream is not available")
        return message

    async def call(
        self, subject: str, body: Mapping[str, Any], seconds: float | None = None
    ) -> dict[str, Any]:
        """Calls the JetStream API.

        Args:
            subject: what follows ``$JS.API.``.
            body: the request, as JSON can say it.
            seconds: deadline, ``request_seconds`` when it is not given.

        Raises:
            JetStreamError: it answered with an error.
            LinkDown: it did not answer.
        """
        payload = json.dumps(body).encode() if body else b""
        return _opened(await self.request(f"{_API}.{subject}", payload, None, seconds))

    async def store(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> int:
        """Stores a message in the stream that takes the subject; returns its number there.

        Raises:
            JetStreamError: the stream does not take it.
            NoResponders: no stream takes the subject.
            LinkDown: no answer; it may or may not be stored.
            Refused: ``too_large`` for this server.
        """
        answer = _opened(await self.request(subject, payload, headers, seconds))
        number = answer.get("seq")
        if not isinstance(number, int):
            raise JetStreamError(0, f"{subject} was answered by something that is no stream")
        return number

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hands a message to the socket, and awaits nothing.

        Raises:
            LinkDown: it is lost.
            Refused: ``too_large`` for this server.
        """
        if self.lost.is_set():
            raise LinkDown(f"{self._where}: {self.reason}")
        try:
            await self._client.publish(
                subject, payload, reply, None if headers is None else dict(headers)
            )
        except MaxPayloadError as error:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"{len(payload)} bytes for {subject}: {self._where} takes"
                f" {self._client.max_payload}",
            ) from error
        except NatsError as error:
            raise LinkDown(f"{self._where}: {error}") from error

    async def flush(self) -> None:
        """Returns once the server has taken all that was published before.

        Raises:
            LinkDown: the connection is lost.
        """
        if self.lost.is_set():
            raise LinkDown(f"{self._where}: {self.reason}")
        done = asyncio.get_running_loop().create_future()
        self._flushes.append(done)
        self._flush_wanted.set()
        await done

    async def pull(
        self,
        stream: str,
        consumer: str,
        *,
        count_max: int,
        bytes_max: int,
        expires_seconds: float,
    ) -> AsyncGenerator[list[Message], None]:
        """Messages of a consumer as they come, in groups; no more than asked for is under way.

        When all that was asked for has come, more is asked for before the reader has the last of
        it: so the next group is here when the reader comes back.

        Args:
            stream: the stream.
            consumer: its pull consumer.
            count_max: most messages waiting here beside the group that the reader has.
            bytes_max: most bytes waiting here beside it; larger than the largest message.
            expires_seconds: how long one request stands at the server.

        Raises:
            LinkDown: the connection is lost, or the consumer is gone.
        """
        clock = asyncio.get_running_loop().time
        subject = f"{_API}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        ask = {
            "batch": count_max,
            "max_bytes": bytes_max,
            "expires": int(expires_seconds * _NANOSECONDS),
        }
        body = json.dumps(ask).encode()
        async with self._listening(count_max + _STATUSES_MAX) as inbox:
            group: list[Message] = []
            for number in itertools.count():
                reply = f"{inbox.prefix}.{number}"
                asked_at, left, status = clock(), count_max, ""
                await self.publish(subject, body, reply)
                while left > 0 and not status:
                    if group:
                        yield group
                    group, status = await inbox.take(
                        reply, asked_at + expires_seconds + self._settings.request_seconds
                    )
                    left -= len(group)
                if status and left == count_max and clock() - asked_at < _PULL_PAUSE_SECONDS:
                    # It ended at once and brought nothing: asking again at once would spin.
                    await asyncio.sleep(_PULL_PAUSE_SECONDS)

    async def fetch(self, stream: str, subjects: str, count_max: int) -> dict[str, bytes]:
        """The newest message under each subject of a pattern, by subject (ADR-31 of NATS).

        Args:
            stream: which stream; it allows direct access.
            subjects: the pattern.
            count_max: the most that may be there.

        Raises:
            LinkDown: the session is lost, or no answer came in time.
            Refused: ``too_large``: there are more.
        """
        found: dict[str, bytes] = {}
        body = json.dumps({"multi_last": [subjects], "batch": count_max}).encode()
        deadline = asyncio.get_running_loop().time() + self._settings.request_seconds
        async with self._listening(count_max + _STATUSES_MAX) as inbox:
            await self.publish(f"{_API}.DIRECT.GET.{stream}", body, f"{inbox.prefix}.0")
            while True:
                message = await inbox.take_answer(deadline)
                if message.is_no_responders:
                    raise NoResponders(f"{stream}: no server has it")
                subject = message.headers.get(_SUBJECT)
                if subject is not None:
                    found[subject] = message.data
                elif message.headers.get(_STATUS) in _FETCH_ENDS:
                    return found
                elif message.headers.get(_STATUS) == _TOO_MANY:
                    raise Refused(
                        RefusedBecause.TOO_LARGE, f"{subjects}: more than {count_max} messages"
                    )
                else:
                    raise LinkDown(f"{stream}: {message.headers}")

    async def watch(self) -> None:
        """Asks for signs of life, and loses the session when there are none."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ping())
            tasks.create_task(self._guard())

    def lose(self, reason: str) -> None:
        """Drops the connection: all that is under way fails at once. The first reason counts."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        self._client.abort()
        if self.on_lost is not None:
            self.on_lost()
        error = LinkDown(f"{self._where}: {reason}")
        for answer in self._answers.values():
            _fail(answer, error)
        for flush in self._flushes:
            _fail(flush, error)
        self._flushes.clear()
        self._flush_wanted.set()
        for inbox in self._inboxes:
            inbox.end(reason)

    @property
    def _where(self) -> str:
        return ", ".join(self._settings.servers)

    @contextlib.asynccontextmanager
    async def _listening(self, size: int) -> "AsyncIterator[Inbox]":
        inbox = Inbox(self._client.new_inbox(), size, self.lose)
        self._inboxes.add(inbox)
        subscription = None
        try:
            subscription = await self._client.subscribe(f"{inbox.prefix}.*", cb=inbox.put)
            yield inbox
        except NatsError as error:
            raise LinkDown(f"{self._where}: {error}") from error
        finally:
            self._inboxes.discard(inbox)
            if subscription is not None and not self.lost.is_set():
                with contextlib.suppress(NatsError):
                    await subscription.unsubscribe()

    async def _ping(self) -> None:
        while not self.lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.ping_seconds):
                    await self._flush_wanted.wait()
            if self.lost.is_set():
                return
            self._flush_wanted.clear()
            # Later ones join the list behind these, and want a flush of their own.
            served = len(self._flushes)
            self._pinged_at = asyncio.get_running_loop().time()
            try:
                await self._client.flush(timeout=_NEVER_SECONDS)
            except (NatsError, OSError) as error:
                self.lose(str(error))
                return
            self._pinged_at = None
            done, self._flushes = self._flushes[:served], self._flushes[served:]
            for flush in done:
                if not flush.done():
                    flush.set_result(None)

    async def _guard(self) -> None:
        clock = asyncio.get_running_loop().time
        poll = self._settings.ping_seconds / _POLLS_PER_PING
        patience = self._settings.ping_seconds - 2 * poll
        before, moved_at = None, clock()
        while not self.lost.is_set():
            await asyncio.sleep(poll)
            now = self._client.stats["in_msgs"], self._client.unsent_bytes
            if self._pinged_at is None or now != before:
                before, moved_at = now, clock()
            if not self._client.is_reading:
                self.lose(self._trouble or "the connection was closed")
            elif self._pinged_at is not None and (
                clock() - max(moved_at, self._pinged_at) > patience
            ):
                self.lose(f"no sign of life for {patience:g} s")

    async def _on_answer(self, msg: Msg) -> None:
        answer = self._answers.get(msg.subject.rpartition(".")[2])
        if answer is not None and not answer.done():
            answer.set_result(Message.of(msg))

    async def _on_error(self, error: Exception) -> None:
        self._trouble = str(error) or repr(error)
        if self._client.is_connected and "permissions violation" not in self._trouble:
            self.lose(self._trouble)

    async def _on_closed(self) -> None:
        self.lose(self._trouble or "the server closed the connection")


class NoResponders(LinkDown):
    """The server is there, but nobody listens on that subject: no stream, or no JetStream."""


class JetStreamError(LinkDown):
    """JetStream answered with an error.

    Args:
        code: its own code, from the server's ``errors.json``; 0 when it named none.
        description: its words.
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"JetStream says: {description} ({code})")
        self.code = code
        self.description = description


def _opened(answer: Message) -> dict[str, Any]:
    """The JSON object that JetStream answered with.

    Raises:
        JetStreamError: it is an error, or not what it should be.
    """
    try:
        opened = json.loads(answer.data)
    except ValueError:
        opened = None
    if not isinstance(opened, dict):
        raise JetStreamError(0, f"not understood: {answer.data[:80]!r}")
    error = opened.get("error")
    if isinstance(error, dict):
        raise JetStreamError(
            int(error.get("err_code", 0)), str(error.get("description", "no words"))
        )
    return opened


def _fail(waiting: asyncio.Future[Any], error: LinkDown) -> None:
    if not waiting.done():
        waiting.set_exception(error)
