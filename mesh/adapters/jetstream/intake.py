"""The receiving end of the JetStream link: port ``Intake``.

It owns the streams: whoever receives makes them. Arrivals come through one durable pull consumer,
``ingest``, which many workers may share; what is neither accepted nor refused within
``ack_seconds`` comes again, to whichever worker asks. Acknowledgements are for messages, not for
connections: one that was lost with a connection is made good by the next delivery, which the ledger
knows for a duplicate.

A batch crosses as one message, or as parts of which the last comes here; the others are fetched
from where they wait, and stay there until the batch was accepted or refused. A last part whose
others are not all there, bytes that do not have the digest that they state, or a subject that is
none of ours is refused here, and never reaches a reader.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from mesh.adapters.jetstream.connection import Connection
from mesh.adapters.jetstream.inbox import Message
from mesh.adapters.jetstream.link import DIGEST_HEADER, OFFSET_HEADER, TOTAL_HEADER
from mesh.adapters.jetstream.session import Session, SessionSettings
from mesh.adapters.jetstream.streams import (
    CONSUMER,
    STREAM_PARTS,
    STREAM_UP,
    ensure_stream,
    shape_down,
    shape_parts,
    shape_up,
)
from mesh.ports import Arrival, Clock, LinkState, Part, Refusal
from mesh.transfer.parts import Assembly, check_part
from schemas.errors import LinkDown, MeshError, Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, INTAKE_BATCHES_MAX, PARTS_MAX, RECEIPT_BYTES_MAX
from schemas.messages import Receipt
from schemas.topics import RECEIPT_PREFIX, PartSubject, Subject
from schemas.wire import encode

__all__ = ["IntakeSettings", "JetStreamIntake"]

_NANOSECONDS: Final = 1_000_000_000
_MIB: Final = 1024 * 1024
_LOOK_SECONDS: Final = 1.0
_REASON_CHARS_MAX: Final = 200
_PURGE: Final = "$JS.API.STREAM.PURGE"
_ACK: Final = b"+ACK"
_TERM: Final = b"+TERM"
# $JS.ACK.<stream>.<consumer>.<delivered>.… or, since 2.4 where a domain is set,
# $JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.…
_TOKENS_WITHOUT_DOMAIN: Final = 9
_DELIVERED: Final = 4
_DELIVERED_WITH_DOMAIN: Final = 6


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """The settings of an intake.

    Args:
        session: where it connects.
        up_bytes_max: how much may wait in the stream before it refuses.
        replicas: on how many servers new streams are kept.
        ack_seconds: after how long an arrival that was neither accepted nor refused comes again.
        ack_pending_max: how many arrivals may be out at all workers together.
        waiting_bytes_max: how many bytes of arrivals may be here, taken or not.
        pull_seconds: how long one request for arrivals stands at the server.
    """

    session: SessionSettings
    up_bytes_max: int = 512 * _MIB
    replicas: int = 1
    ack_seconds: float = 60.0
    ack_pending_max: int = 4 * INTAKE_BATCHES_MAX
    waiting_bytes_max: int = 16 * _MIB
    pull_seconds: float = 30.0

    def __post_init__(self) -> None:
        assert self.waiting_bytes_max >= 4 * BATCH_BYTES_MAX, "the largest message can be asked for"


class JetStreamIntake:
    """The receiving end, over JetStream: ``async with JetStreamIntake(...) as intake``.

    Entering does not wait for the network.

    Args:
        settings: where, and how much.
        clock: for the time of changes.
        rng: for the jitter of reconnections.
    """

    def __init__(self, settings: IntakeSettings, clock: Clock, rng: random.Random) -> None:
        self._settings = settings
        self._connection = Connection(settings.session, clock, rng, self._prepare)
        self._refused = 0
        self._filled = (0, settings.up_bytes_max)
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"<JetStreamIntake {self.state}>"

    @property
    def state(self) -> LinkState:
        """How its connection stands now."""
        return self._connection.state

    @property
    def refused(self) -> int:
        """How many arrivals were refused, here or by ``refuse``."""
        return self._refused

    @property
    def filled(self) -> tuple[int, int]:
        """How many bytes wait in the stream, as of a second ago, and how many it takes."""
        return self._filled

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        return await self._connection.wait_changed(seen)

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Arrivals in groups; each comes again until it is accepted or refused. One reader."""
        while True:
            session = await self._connection.wait_up()
            pulling = session.pull(
                STREAM_UP,
                CONSUMER,
                # Half of it: the other half comes while the reader is at the first.
                count_max=INTAKE_BATCHES_MAX // 2,
                bytes_max=self._settings.waiting_bytes_max // 2,
                expires_seconds=self._settings.pull_seconds,
            )
            try:
                async with aclosing(pulling) as groups:
                    async for group in groups:
                        await self._look(session)
                        arrivals = await self._arrived(session, group)
                        if arrivals:
                            yield arrivals
            except LinkDown as error:
                session.lose(str(error))

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Makes receipts reach their nodes, and stay for those that connect later.

        Raises:
            LinkDown: some were not handed over.
            Refused: ``too_large``: one of them, and nothing was handed over.
        """
        session = self._connection.session
        written = [_written(receipt) for receipt in receipts]
        failures: list[MeshError] = []

        async def store(subject: str, data: bytes) -> None:
            try:
                await session.store(subject, data)
            except MeshError as error:
                failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for subject, data in written:
                tasks.create_task(store(subject, data))
        if failures:
            raise failures[0]

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Lets the transport forget them; when it cannot be told, they come again."""
        await self._tell(_ACK, arrivals)

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Takes an arrival that can never be taken out of the queue, with the reason."""
        self._refused += 1
        await self._tell(_term(refusal.reason, refusal.detail), [arrival])

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

    async def _prepare(self, session: Session) -> None:
        settings = self._settings
        await ensure_stream(session, shape_up(settings.up_bytes_max, settings.replicas))
        await ensure_stream(session, shape_parts(settings.up_bytes_max // 4, settings.replicas))
        await ensure_stream(session, shape_down(settings.replicas))
        config = {
            "name": CONSUMER,
            "durable_name": CONSUMER,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(settings.ack_seconds * _NANOSECONDS),
            "max_ack_pending": settings.ack_pending_max,
        }
        await session.call(
            f"CONSUMER.CREATE.{STREAM_UP}.{CONSUMER}",
            {"stream_name": STREAM_UP, "config": config},
        )

    async def _look(self, session: Session) -> None:
        """Looks how full the stream is, once in a while."""
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        found = await session.call(f"STREAM.INFO.{STREAM_UP}", {})
        try:
            self._filled = (int(found["state"]["bytes"]), int(found["config"]["max_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LinkDown(f"{STREAM_UP}: the answer makes no sense: {error!r}") from error

    async def _arrived(self, session: Session, group: Sequence[Message]) -> list[Arrival]:
        arrivals = []
        for message in group:
            try:
                arrivals.append(await _arrival(session, message))
            except Refused as error:
                self._refused += 1
                await session.publish(message.reply, _term(error.reason, error.detail))
        return arrivals

    async def _tell(self, word: bytes, arrivals: Sequence[Arrival]) -> None:
        tokens = [arrival.token for arrival in arrivals]
        try:
            session = self._connection.session
            for token in tokens:
                assert isinstance(token, _Token), "a token of this intake"
                await session.publish(token.reply, word)
                if token.parts:
                    await _purge(session, token.parts)
            await session.flush()
        except LinkDown:
            # Those of which the server has not heard come again.
            return


class _Token(NamedTuple):
    reply: str
    parts: str = ""
    """The subjects of the parts that the batch came in; empty where it came whole."""


async def _arrival(session: Session, message: Message) -> Arrival:
    """The arrival that a message is.

    Raises:
        Refused: it is no whole batch, nor the last part of one.
        LinkDown: the other parts cannot be fetched now.
    """
    subject = Subject.parse(message.subject)
    part = _part(subject, message)
    data, parts = part.payload, ""
    if part.offset:
        others = PartSubject(part.site, part.node, part.digest)
        data, parts = await _gathered(session, part, others), others.every
    elif hashlib.sha256(data).digest() != part.digest:
        raise Refused(
            RefusedBecause.BAD_CHECKSUM, f"{len(data)} bytes do not have the digest they state"
        )
    return Arrival(
        site=subject.site,
        node=subject.node,
        lane=subject.name,
        payload=data,
        redelivered=_deliveries(message.reply) > 1,
        token=_Token(message.reply, parts),
    )


def _part(subject: Subject, message: Message) -> Part:
    """The part that a message is: the last one of its batch, or all of it.

    Raises:
        Refused: its headers do not say so.
    """
    size = len(message.data)
    headers = [message.headers.get(name, "") for name in (OFFSET_HEADER, TOTAL_HEADER)]
    stated = message.headers.get(DIGEST_HEADER, "")
    try:
        offset, total = map(int, headers)
        # The lane is judged by whoever takes custody: a newer one must not be lost here.
        lane: Any = subject.name
        digest = bytes.fromhex(stated)
        part = Part(subject.site, subject.node, lane, digest, offset, total, message.data)
    except ValueError:
        raise Refused(
            RefusedBecause.MALFORMED, f"offset and total {headers}, digest {stated[:80]!r}"
        ) from None
    check_part(part)
    if offset + size != total:
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"{size} bytes at {offset} of {total}: only the last part of a batch comes this way",
        )
    return part


async def _gathered(session: Session, last: Part, others: PartSubject) -> bytes:
    """The batch that ends with a part.

    Raises:
        Refused: ``out_of_range``: a part is missing; ``bad_checksum``.
        LinkDown: the other parts cannot be fetched now.
    """
    try:
        return _joined(last, await session.fetch(STREAM_PARTS, others.every, PARTS_MAX))
    except Refused:
        # They are of no use to the next sending.
        await _purge(session, others.every)
        raise


def _joined(last: Part, found: Mapping[str, bytes]) -> bytes:
    assembly = Assembly()
    data = assembly.take(last, 0.0)
    for subject, payload in found.items():
        # Anybody may have published there: what is no offset is no part of it.
        text = subject.rpartition(".")[2]
        offset = int(text) if text.isascii() and text.isdecimal() else last.total
        if data is None and 0 < len(payload) <= last.total - offset:
            data = assembly.take(last._replace(offset=offset, payload=payload), 0.0)
    if data is None:
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"the last part of {last.total} bytes came, and the {len(found)} others leave a hole",
        )
    return data


async def _purge(session: Session, subjects: str) -> None:
    body = json.dumps({"filter": subjects}).encode()
    await session.publish(f"{_PURGE}.{STREAM_PARTS}", body, session.unheard)


def _deliveries(reply: str) -> int:
    tokens = reply.split(".")
    position = _DELIVERED if len(tokens) == _TOKENS_WITHOUT_DOMAIN else _DELIVERED_WITH_DOMAIN
    return int(tokens[position])


def _written(receipt: Receipt) -> tuple[str, bytes]:
    subject = Subject(receipt.site, receipt.node, "down", f"{RECEIPT_PREFIX}{receipt.lane}")
    data = encode(receipt)
    if len(data) > RECEIPT_BYTES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{receipt}: {len(data)} bytes")
    return str(subject), data


def _term(reason: RefusedBecause, detail: str) -> bytes:
    words = f"{reason}: {detail}"[:_REASON_CHARS_MAX]
    return _TERM + b" " + " ".join(words.split()).encode()
