"""The link to NATS JetStream: port ``Link``.

A batch, or the last part of one, is one message of the stream ``MESH_UP``, published to
``mesh.v1.<site>.<node>.up.<lane>`` with the batch's digest, the part's offset and the batch's total
length as headers. The parts before it wait in the stream ``MESH_PARTS``, each under a subject of
its own, from which whoever takes the last one fetches them. The server's acknowledgement says that
it has the message, which moves the send window and nothing else: a server that syncs lazily loses
it in a power cut. So ``Nats-Msg-Id`` is not used either: its window of deduplication would be a
promise that the ledger has to keep anyway.

Receipts are the newest messages under ``mesh.v1.<site>.<node>.down.receipt-<lane>`` in
``MESH_DOWN``. After each connection a new consumer starts with the last one of each lane, then
brings those that follow. What is asked of the server is bounded, and it is asked for more only when
the reader has taken what came.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from mesh.adapters.jetstream.connection import Connection
from mesh.adapters.jetstream.inbox import Message
from mesh.adapters.jetstream.session import (
    JetStreamError,
    NoResponders,
    Session,
    SessionSettings,
)
from mesh.adapters.jetstream.streams import STREAM_DOWN, STREAM_UP
from mesh.ports import Accepted, Clock, LinkState, Part, Refusal
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import RECEIPT_BYTES_MAX
from schemas.messages import Receipt
from schemas.topics import RECEIPT_PREFIX, PartSubject, Subject, check_identifier
from schemas.wire import decode_as

__all__ = ["DIGEST_HEADER", "OFFSET_HEADER", "TOTAL_HEADER", "JetStreamLink", "LinkSettings"]

DIGEST_HEADER: Final = "Mesh-Digest"
OFFSET_HEADER: Final = "Mesh-Offset"
TOTAL_HEADER: Final = "Mesh-Total"

_NANOSECONDS: Final = 1_000_000_000
_RECEIPTS_MAX: Final = 64
_RECEIPTS_BYTES_MAX: Final = 8 * 1024 * 1024
_CONSUMER_IDLE_SECONDS: Final = 60

_FULL: Final = frozenset(
    {
        10002,  # resource limits exceeded for account
        10023,  # insufficient resources
        10028,  # insufficient memory resources available
        10047,  # insufficient storage resources available
        10077,  # the store does not take it: maximum bytes or messages exceeded, disk full
        10167,  # the stream has too many requests waiting
    }
)
_TOO_LARGE: Final = frozenset(
    {
        10054,  # message size exceeds maximum allowed
        10097,  # header size exceeds maximum allowed of 64k
    }
)

assert RECEIPT_BYTES_MAX < _RECEIPTS_BYTES_MAX, "a receipt fits into what is asked for"


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The settings of a link.

    Args:
        session: where it connects.
        site: whose receipts it reads; ``None`` for those of every site.
        node: whose receipts it reads; ``None`` for those of every node.
        send_seconds: how long the transport may take to acknowledge a part.
        window_parts_max: how many parts may be under way; further ones wait, within their deadline.
        full_seconds: after how long a part that found the stream full may be offered again.
        pull_seconds: how long one request for receipts stands at the server.
    """

    session: SessionSettings
    site: str | None
    node: str | None
    send_seconds: float = 20.0
    window_parts_max: int = 64
    full_seconds: float = 5.0
    pull_seconds: float = 30.0


class JetStreamLink:
    """One way upstream, over JetStream: ``async with JetStreamLink(...) as link``.

    Entering does not wait for the network. It is up while the streams are there and answer.

    Args:
        settings: where, whose, how patiently.
        clock: for the time of changes.
        rng: for the jitter of reconnections.

    Raises:
        Refused: ``bad_name``, when site or node is no identifier.
    """

    def __init__(self, settings: LinkSettings, clock: Clock, rng: random.Random) -> None:
        for what, name in (("site", settings.site), ("node", settings.node)):
            if name is not None:
                check_identifier(what, name)
        self._settings = settings
        self._connection = Connection(
            settings.session, clock, rng, self._prepare, self._read_receipts
        )
        self._window = asyncio.Semaphore(settings.window_parts_max)
        self._receipts: asyncio.Queue[Receipt] = asyncio.Queue(_RECEIPTS_MAX)
        self._consumer = ""
        self._sent_bytes = 0
        self._undecodable = 0

    def __repr__(self) -> str:
        return f"<JetStreamLink {self.state}>"

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        return replace(self._connection.state, sent_bytes=self._sent_bytes)

    @property
    def undecodable(self) -> int:
        """How many receipts were passed over because they could not be read."""
        return self._undecodable

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        await self._connection.wait_changed(seen)
        return self.state

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew."""
        self._connection.reset(reason)

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part; many may be under way at once.

        Raises:
            LinkDown: it is not up, broke, or did not answer in time.
        """
        session = self._connection.session
        try:
            subject = _subject(part)
            async with asyncio.timeout(self._settings.send_seconds), self._window:
                await session.store(
                    subject, part.payload, _headers(part), self._settings.send_seconds
                )
        except TimeoutError:
            raise LinkDown(
                f"{self._settings.session.name}: {part.lane} of {part.node} was not acknowledged"
                f" within {self._settings.send_seconds:g} s"
            ) from None
        except Refused as error:
            return Refusal(error.reason, error.detail, 0.0)
        except NoResponders as error:
            # The stream went away: up means that it is there.
            session.lose(str(error))
            raise
        except JetStreamError as error:
            return self._refusal(error)
        self._sent_bytes += len(part.payload)
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts as they come; after every connection the newest of each lane come first."""
        while True:
            yield await self._receipts.get()

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    def _refusal(self, error: JetStreamError) -> Refusal:
        if error.code in _FULL:
            return Refusal(RefusedBecause.FULL, error.description, self._settings.full_seconds)
        if error.code in _TOO_LARGE:
            return Refusal(RefusedBecause.TOO_LARGE, error.description, 0.0)
        raise error

    async def _prepare(self, session: Session) -> None:
        await session.call(f"STREAM.INFO.{STREAM_UP}", {})
        self._consumer = f"receipts-{session.token}"
        site, node = self._settings.site or "*", self._settings.node or "*"
        watched = f"mesh.v1.{site}.{node}.down.*"
        config = {
            "name": self._consumer,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": watched,
            "inactive_threshold": _CONSUMER_IDLE_SECONDS * _NANOSECONDS,
            "mem_storage": True,
        }
        await session.call(
            f"CONSUMER.CREATE.{STREAM_DOWN}.{self._consumer}.{watched}",
            {"stream_name": STREAM_DOWN, "config": config, "action": "create"},
        )

    async def _read_receipts(self, session: Session) -> None:
        while not self._receipts.empty():
            # Left over from an earlier connection: the newest of each lane come first.
            self._receipts.get_nowait()
        async for group in session.pull(
            STREAM_DOWN,
            self._consumer,
            count_max=_RECEIPTS_MAX,
            bytes_max=_RECEIPTS_BYTES_MAX,
            expires_seconds=self._settings.pull_seconds,
        ):
            for message in group:
                receipt = self._decoded(message)
                if receipt is not None:
                    await self._receipts.put(receipt)

    def _decoded(self, message: Message) -> Receipt | None:
        try:
            if not Subject.parse(message.subject).name.startswith(RECEIPT_PREFIX):
                return None
            return decode_as(Receipt, message.data[: RECEIPT_BYTES_MAX + 1])
        except Refused:
            self._undecodable += 1
            return None


def _subject(part: Part) -> str:
    """Where a part goes.

    Raises:
        Refused: ``bad_name``.
    """
    if part.offset + len(part.payload) < part.total:
        return PartSubject(part.site, part.node, part.digest).at(part.offset)
    return str(Subject(part.site, part.node, "up", part.lane))


def _headers(part: Part) -> dict[str, str]:
    return {
        DIGEST_HEADER: part.digest.hex(),
        OFFSET_HEADER: str(part.offset),
        TOTAL_HEADER: str(part.total),
    }
