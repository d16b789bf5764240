"""The eight ports: what the work asks of the world. Each has a real adapter and a simulated one.

One contract test suite, ``tests/contract``, runs on both, so each obligation stated here is checked
on both. Hot paths cross a port once per group, not once per message. What a port does not promise,
nobody may build on: a link claims nothing about durability, a broker may lose, and only
``DiskFile.sync`` makes bytes durable.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from schemas.errors import RefusedBecause
from schemas.messages import Instant, Lane, Receipt

__all__ = [
    "Accepted",
    "Arrival",
    "BrokerState",
    "Clock",
    "Delivery",
    "Disk",
    "DiskFile",
    "Intake",
    "LedgerStore",
    "Link",
    "LinkState",
    "LocalBroker",
    "Observer",
    "OpenMode",
    "Part",
    "Publication",
    "Refusal",
    "Registry",
    "Stored",
]


class Clock(Protocol):
    """Tells the time, and nothing else. Waiting is ``asyncio`` on the loop that was supplied."""

    def now(self) -> Instant:
        """UTC and monotonic nanoseconds, and whether the wall clock is trusted."""
        ...


OpenMode = Literal["create", "update", "read"]


class DiskFile(Protocol):
    """One open file. Not safe for two threads at once."""

    def write(self, data: bytes | bytearray, offset: int) -> None:
        """Writes all of ``data`` at ``offset``, or raises.

        After an error any part may have been written.

        Raises:
            DiskFull: no space, no quota.
            DiskReadOnly: the file system has become read-only.
            DiskFailed: anything else.
        """
        ...

    def sync(self) -> None:
        """Returns only when everything written to this file is durable (``fdatasync``).

        Raises:
            DiskFailed: nothing is known about what was written since the last sync. The caller must
                never sync this file again: the kernel may have dropped the pages and would report
                success.
        """
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            DiskFailed: the medium does not give them back.
        """
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Cuts the file; durable only after ``sync``."""
        ...

    def close(self) -> None:
        """Gives the descriptor back; promises nothing about durability. May be called twice."""
        ...


class Disk(Protocol):
    """A folder of the local file system. Synchronous.

    Called only through an executor that the composition root supplies.

    Paths are relative to that folder, with ``/`` between names. A new, renamed or unlinked name is
    durable only after ``sync_directory`` on the folder that holds it.
    """

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file.

        Args:
            path: which file.
            mode: ``create`` fails when it exists; ``update`` and ``read`` fail when it does not.

        Raises:
            FileExistsError: mode ``create``, and it is there.
            FileNotFoundError: mode ``update`` or ``read``, and it is not there.
            DiskFailed: anything else.
        """
        ...

    def make_directory(self, path: str) -> None:
        """Makes a folder and those above it; fine when it is there."""
        ...

    def sync_directory(self, path: str) -> None:
        """Returns only when the names in this folder are durable; ``""`` is the root."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Replaces ``target`` atomically.

        Raises:
            FileNotFoundError: ``source`` is not there.
            DiskFailed: anything else.
        """
        ...

    def unlink(self, path: str) -> None:
        """Removes a name; fine when it is not there."""
        ...

    def list(self, path: str) -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder."""
        ...

    def size(self, path: str) -> int:
        """Length of a file in bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        ...

    def free_bytes(self) -> int:
        """What an ordinary user can still write."""
        ...

    def lock(self, path: str) -> None:
        """Takes an exclusive lock, held until the process ends or ``unlock``.

        Raises:
            StoreInUse: another holder has it.
        """
        ...

    def unlock(self, path: str) -> None:
        """Gives the lock back; fine when it is not held."""
        ...


class Delivery(NamedTuple):
    """A message that the local broker handed over."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    duplicate: bool
    received: Instant
    token: object
    """For ``acknowledge``; means nothing to anybody else."""


class Publication(NamedTuple):
    """A message for the local broker."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class BrokerState:
    """How the connection to the local broker stands.

    Args:
        connected: whether it is up.
        reason: why it is not, for a person; empty when it is.
        protocol: ``MQTT 5`` or ``MQTT 3.1.1``; empty before the first connection.
        connections: how many times it came up.
        shed: messages dropped at this port because a bounded queue was full, in and out.
        refused: messages passed over for their topic or size, and publications that the broker
            did not take.
        refused_filters: topic filters that the broker does not let us read.
    """

    connected: bool
    reason: str = ""
    protocol: str = ""
    connections: int = 0
    shed: int = 0
    refused: int = 0
    refused_filters: frozenset[str] = frozenset()


class LocalBroker(Protocol):
    """The MQTT broker on the device: a lossy bus. Used as ``async with broker.

    …`` by its composition root.

    Subscriptions outlive reconnections: the adapter subscribes again. It never gives up, and never
    waits for the network at its start.
    """

    @property
    def state(self) -> BrokerState:
        """How it stands now."""
        ...

    def subscribe(self, filters: Mapping[str, int]) -> None:
        """Subscribes to topic filters with a QoS each, now and after every reconnection.

        Adds to earlier calls.
        """
        ...

    def groups(self) -> AsyncIterator[Sequence[Delivery]]:
        """Messages in the groups in which they arrived, in order.

        At most ``BROKER_GROUP_MESSAGES_MAX`` in one.

        One reader. While nobody reads, a bounded queue fills; then the oldest QoS 0 messages are
        dropped and counted in ``state.shed``, and nothing more is read from the socket for QoS 1
        ones.
        """
        ...

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACK of each QoS 1 delivery.

        Those of an earlier connection, and QoS 0, are passed over.
        """
        ...

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hands many messages to the transport in one go, in order.

        QoS 0 returns once handed over. QoS 1 returns once there is room in the window of
        ``PUBLISH_WINDOW_MAX`` for all of them; the broker's PUBACK is not awaited.

        Raises:
            LinkDown: not connected; none of what was not yet handed over will be sent later.
        """
        ...


class Part(NamedTuple):
    """A piece of a batch, or all of it, on its way over a link.

    The last one of a batch is sent only once all the others were accepted.
    """

    site: str
    node: str
    lane: Lane
    digest: bytes
    """SHA-256 of the whole batch."""
    offset: int
    total: int
    payload: bytes


class Accepted(NamedTuple):
    """The transport took it. Moves the send window, nothing else: this is no custody."""


class Refusal(NamedTuple):
    """The transport or the receiver does not take it."""

    reason: RefusedBecause
    detail: str
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class LinkState:
    """How a link stands.

    Args:
        name: as configured.
        up: whether parts can be sent.
        reason: why not, for a person; empty when it is up.
        since_mono_ns: since when, on the monotonic clock.
        sent_bytes: payload bytes that the transport accepted.
        connections: how many times it came up.
    """

    name: str
    up: bool
    reason: str
    since_mono_ns: int
    sent_bytes: int = 0
    connections: int = 0


class Link(Protocol):
    """One way upstream. Reconnects for ever, with jitter."""

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        ...

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        ...

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew: it is up, and nothing comes of it.

        What is under way fails with ``LinkDown``. Fine while it is down.
        """
        ...

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part; many may be under way at once.

        Raises:
            LinkDown: it is not up, broke, or the transport did not answer within its deadline. The
                part may or may not have arrived.
        """
        ...

    def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts as they come; after every connection the newest of each lane come first.

        One reader.
        """
        ...


class Arrival(NamedTuple):
    """A batch that came in over a link."""

    site: str
    node: str
    lane: str
    payload: bytes
    redelivered: bool
    token: object
    """For ``accept`` and ``refuse``; means nothing to anybody else."""


class Intake(Protocol):
    """The receiving end of a link."""

    def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Arrivals in groups of at most ``INTAKE_BATCHES_MAX``.

        Each comes again until it is accepted or refused. One reader.
        """
        ...

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Makes receipts reach their nodes, and stay for those that connect later.

        Raises:
            LinkDown: some were not handed over.
        """
        ...

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Lets the transport forget them. Called after their receipt, never before."""
        ...

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Takes an arrival that can never be taken out of the queue, and tells why."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A ledger as it stands in its store.

    Args:
        version: for ``compare_and_set``; 0 when there is none yet.
        state: opaque bytes; empty when there is none yet.
    """

    version: int = 0
    state: bytes = field(default=b"", repr=False)


class LedgerStore(Protocol):
    """Keeps one opaque state for each partition. Durable when ``compare_and_set`` returns."""

    async def load(self, partition: int) -> Stored:
        """The newest state.

        Raises:
            LinkDown: the store cannot be asked.
        """
        ...

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        """Replaces the state if its version is still ``version``; returns the new version.

        Raises:
            Conflict: another one came in between; nothing was changed.
            LinkDown: not known whether it was replaced: load, and look.
        """
        ...


class Registry(Protocol):
    """Small documents, replaced atomically and durably.

    Never a cursor, a queue or a ledger. Synchronous, as ``Disk``.
    """

    def get(self, name: str) -> dict[str, object] | None:
        """A document, or ``None``."""
        ...

    def put(self, name: str, document: Mapping[str, object]) -> None:
        """Replaces a document; durable on return. Values are what JSON can say.

        Raises:
            DiskFailed: the old one still stands.
        """
        ...

    def remove(self, name: str) -> None:
        """Removes a document; fine when it is not there."""
        ...

    def names(self) -> list[str]:
        """The names of all documents, sorted."""
        ...


class Observer(Protocol):
    """Receives frozen events; logs and metrics are derived from them.

    Must not block and must not raise.
    """

    def observe(self, event: object) -> None:
        """Takes one event."""
        ...
