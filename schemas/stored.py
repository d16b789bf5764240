"""What holders write about themselves: a spool's identity, numbers and cursor; a receiver's ledger.

These are not records: they have no identity and never leave the node. ``schemas.wire`` writes them
as it writes records; ``mesh.spool``, ``mesh.transfer.custody`` and ``nodes.headquarters`` say where
they stand and when they are durable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = [
    "Closed",
    "Cursor",
    "CustodyHead",
    "CustodyLane",
    "CustodyRelease",
    "JournalHeader",
    "LaneLedger",
    "LaneMark",
    "Numbers",
    "PartitionLedger",
    "PastEpoch",
    "Reserved",
    "StoreIdentity",
]


@dataclass(frozen=True, slots=True)
class LaneMark:
    """Where a lane stands: the next number, and the chain before it (16 bytes)."""

    next_seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Numbers:
    """Where the numbers of one lane stand when a journal begins.

    Args:
        mark: the next number to be written, and the chain before it.
        reserved: numbers below this may be handed out before they are durable.
        explained: numbers that will never arrive, by reason.
        statement: the number of the newest account.
    """

    mark: LaneMark
    reserved: int
    explained: Mapping[str, Ranges] = field(default_factory=dict)
    statement: int = 0


@dataclass(frozen=True, slots=True)
class PastEpoch:
    """A life of the spool that is over and may still have something pending.

    Args:
        epoch: which life.
        lanes: where each of its lanes ended; nothing is reserved.
        changed: counter of the life in which that last changed.
    """

    epoch: Epoch
    lanes: Mapping[Lane, Numbers]
    changed: int = 0


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """The file ``STORE``.

    Args:
        store: 16 random bytes, made with the store.
        site: the site that it was made for.
        node: the node that it was made for.
        epoch: the present life.
        parent: the life before it; ``None`` for the first.
        machine: 16 bytes that name the machine it lives on.
        past: the lives before it that may have something pending, oldest first.
    """

    store: bytes
    site: str
    node: str
    epoch: Epoch
    parent: Epoch | None
    machine: bytes
    past: tuple[PastEpoch, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """The head of a journal file: enough to open the spool from the newest journal alone.

    Args:
        store: id of the spool, 16 bytes.
        epoch: the life that writes.
        boot: boot id, 16 bytes.
        number: of this journal file; the same as in its name.
        wall_ns: when it was begun, UTC.
        mono_ns: the same on the monotonic clock of this boot.
        running_ns: the same in the spool's running time.
        lanes: each lane that ever had a record.
    """

    store: bytes
    epoch: Epoch
    boot: bytes
    number: int
    wall_ns: int
    mono_ns: int
    running_ns: int
    lanes: Mapping[Lane, Numbers]


@dataclass(frozen=True, slots=True)
class Reserved:
    """Body of a control frame: from now on, numbers below these may be handed out."""

    lanes: Mapping[Lane, int]


@dataclass(frozen=True, slots=True)
class Closed:
    """Body of a control frame, the last of a journal that was closed in order.

    The numbers to go on with.
    """

    lanes: Mapping[Lane, int]


@dataclass(frozen=True, slots=True)
class Cursor:
    """What was released, by the next holder's receipts.

    Args:
        generation: counts up with each writing; of two readable slots the higher one holds.
        released: numbers by ``<epoch>/<lane>``.
        holders: up to where each holder has released, by ``<epoch>/<lane>/<holder>``.
    """

    generation: int
    released: Mapping[str, Ranges] = field(default_factory=dict)
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaneLedger:
    """What a receiver knows of one (site, node, epoch, lane).

    About a hundred bytes, however long the outage.

    Args:
        site: the origin's site.
        node: the origin.
        epoch: the life of its spool.
        lane: the lane.
        held: numbers that are durable here.
        explained: numbers that will never arrive, by reason, as the origin's newest account says.
        next_seq: the next number at the origin, as its newest account says.
        statement: the number of that account.
        chain: the chain where ``chain_at`` stands; 16 bytes.
        chain_at: the number up to which ``chain`` holds.
        duplicates: how many numbers came again.
        seen_wall_ns: when something last came, UTC.
        released: up to where each holder had released the origin, by the holder's name, as its
            newest account says.
        stated_wall_ns: when the origin made that account, by its own clock.
        disputed: numbers under which other records were offered than those that are held.
        succession: the number of the newest account in which a later life stated this one.
    """

    site: str
    node: str
    epoch: Epoch
    lane: Lane
    held: Ranges = field(default_factory=Ranges)
    explained: Mapping[str, Ranges] = field(default_factory=dict)
    next_seq: int = 0
    statement: int = 0
    chain: bytes = bytes(16)
    chain_at: int = 0
    duplicates: int = 0
    seen_wall_ns: int = 0
    released: Mapping[str, int] = field(default_factory=dict)
    stated_wall_ns: int = 0
    disputed: Ranges = field(default_factory=Ranges)
    succession: int = 0


@dataclass(frozen=True, slots=True)
class PartitionLedger:
    """All ledgers of one partition of nodes, replaced as one.

    Its replacement is the commit point of an intake.

    Args:
        holder: who keeps it.
        life: the holder's life; another one means that its store was replaced.
        receipts: how many receipts were made of it.
        lanes: the ledgers, sorted by their keys.
        files: staged files that this state counts as held and that may still have to be renamed.
    """

    holder: str
    life: Epoch
    receipts: int = 0
    lanes: tuple[LaneLedger, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CustodyHead:
    """The head of a journal of custody.

    Args:
        store: id of the store, 16 bytes.
        holder: whose custody it is.
        life: the holder's life; another one means that something it had stated is lost.
        machine: 16 bytes that name the machine it lives on.
        number: of this journal; the same as in its name.
        wall_ns: when it was begun, UTC.
        lanes: how many lanes follow it.
        ends: up to where each older journal counts, by its number.
    """

    store: bytes
    holder: str
    life: Epoch
    machine: bytes
    number: int
    wall_ns: int
    lanes: int
    ends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CustodyLane:
    """How one lane stands when a journal of custody begins.

    Args:
        ledger: what is held of it, here or further on.
        released: which of that the next holder has.
        holders: up to where each next holder has released.
    """

    ledger: LaneLedger
    released: Ranges = field(default_factory=Ranges)
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CustodyRelease:
    """The next holder has these numbers durably.

    Args:
        site: the origin's site.
        node: the origin.
        epoch: the life of its spool.
        lane: the lane.
        numbers: which numbers.
        holder: who said so.
        mark: up to where that holder has released.
    """

    site: str
    node: str
    epoch: Epoch
    lane: Lane
    numbers: Ranges
    holder: str
    mark: int
