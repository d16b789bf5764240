"""A gateway's custody as plain as it can be: what any gateway has to do, on a simulated disk.

It is a ``Source`` for a forwarder: foreign batches whole and unopened in one log; durable when a
group is synced, and only then receipted. A log is a sequence of entries, each ``u32 bytes, u32
CRC-32, u8 kind`` and a body: a *batch* as it came, a *release* as the receipt that said so, or a
*ledger*, which stands for all entries of an older log. It is read up to the first entry that is not
whole. Each opening writes what still counts into a log of its own, and removes the others.

It stands in the world for ``nodes.gateway``: small enough to be seen through, and a measure for it.
"""

import asyncio
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.ports import Arrival, Disk
from mesh.spool import batch as batches
from mesh.spool.batch import Batch
from mesh.transfer import ledger
from mesh.transfer.source import Life
from schemas import wire
from schemas.errors import Refused
from schemas.limits import SEQ_MAX
from schemas.messages import BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger

__all__ = ["Custody", "Outcome"]

_HEAD: Final = struct.Struct("<IIB")
_BATCH: Final = 1
_RELEASE: Final = 2
_LEDGER: Final = 3
_READ_MAX: Final = 1 << 30
_NUMBERS_A_LIFE: Final = 1 << 32
_NONE: Final = Ranges()

_Key = tuple[Life, Lane]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a group of arrivals.

    Args:
        taken: those that are in custody now, or were before.
        refused: those that never will be, and why.
        receipts: what may be said of them, once this is returned.
    """

    taken: tuple[Arrival, ...]
    refused: tuple[tuple[Arrival, Refused], ...]
    receipts: tuple[Receipt, ...]


@dataclass(slots=True)
class _Shelf:
    """The batches that are held of one lane, in the order of their numbers."""

    held: list[tuple[BatchHeader, bytes]] = field(default_factory=list)
    released: Ranges = _NONE
    holders: dict[str, int] = field(default_factory=dict)


class Custody:
    """Holds the batches of others. Blocking where it writes: called in an executor.

    Args:
        disk: its folder.
        holder: who signs the receipts.
        life: of this holder.
    """

    def __init__(self, disk: Disk, holder: str, life: Epoch) -> None:
        self._disk = disk
        self._known = PartitionLedger(holder, life)
        self._ledgers: dict[_Key, LaneLedger] = {}
        self._shelves: dict[_Key, _Shelf] = {}
        self._unwritten: list[tuple[int, bytes]] = []
        self._grown = asyncio.Event()
        self._number = 0
        self._end = 0
        self._open()

    def __repr__(self) -> str:
        held = sum(len(shelf.held) for shelf in self._shelves.values())
        return f"<Custody {self._known.holder} holds {held} batches>"

    # --- queries ------------------------------------------------------------------------------

    def lives(self) -> list[Life]:
        """The lives of which something is held, the oldest first."""
        found = dict.fromkeys(life for (life, _), shelf in self._shelves.items() if shelf.held)
        return sorted(found, key=lambda life: (life.site, life.node, life.epoch.counter))

    def known(self) -> list[tuple[Life, Lane]]:
        """The lanes of which anything was ever held."""
        return list(self._shelves)

    def numbers(self, life: Life, lane: Lane) -> Ranges:
        """The numbers of a lane that are held."""
        shelf = self._shelves.get((life, lane))
        spans = [] if shelf is None else [(h.first, h.last + 1) for h, _ in shelf.held]
        return Ranges.of(spans) - (_NONE if shelf is None else shelf.released)

    def stop_of(self, life: Life, lane: Lane) -> int:
        """All numbers that ever were durable here lie below this."""
        known = self._ledgers.get((life, lane))
        # What is explained at the origin lies in the accounts, which nobody opens here: a receipt
        # may speak of more than was ever held.
        return 0 if known is None else SEQ_MAX

    def released(self, life: Life, lane: Lane) -> Ranges:
        """What was released of a lane."""
        shelf = self._shelves.get((life, lane))
        return _NONE if shelf is None else shelf.released

    def held_by(self, life: Life, lane: Lane, holder: str) -> int:
        """A holder has released the numbers below this."""
        shelf = self._shelves.get((life, lane))
        return 0 if shelf is None else shelf.holders.get(holder, 0)

    def has_pending(self, life: Life, lane: Lane, start: int) -> bool:
        """Whether a number at or above ``start`` is pending."""
        return self._find(life, lane, start) is not None

    async def next_batch(self, life: Life, lane: Lane, start: int) -> Batch | None:
        """The first batch that holds a number at or above ``start``."""
        found = self._find(life, lane, start)
        return None if found is None else batches.parse(found)

    def _find(self, life: Life, lane: Lane, start: int) -> bytes | None:
        shelf = self._shelves.get((life, lane))
        if shelf is None:
            return None
        index = bisect_right(shelf.held, start - 1, key=lambda item: item[0].last)
        return None if index == len(shelf.held) else shelf.held[index][1]

    def statements(self) -> list[Receipt]:
        """A receipt for each lane that was ever taken: what to say first after a start."""
        return self._receipts(self._ledgers)

    # --- commands -----------------------------------------------------------------------------

    def take(self, arrivals: Sequence[Arrival]) -> Outcome:
        """Takes custody of what is good and not held yet; durable on return.

        Raises:
            DiskFailed: nothing is promised; this object must not be used again.
        """
        entries: list[tuple[int, bytes]] = []
        taken: list[Arrival] = []
        refused: list[tuple[Arrival, Refused]] = []
        changed: dict[_Key, LaneLedger] = {}
        kept: list[tuple[_Key, BatchHeader, bytes]] = []
        for arrival in arrivals:
            try:
                header = batches.parse(arrival.payload).header
                key = (Life(header.site, header.node, header.epoch), header.lane)
                known = changed.get(key) or self._ledgers.get(key) or LaneLedger(*key[0], key[1])
                outcome = ledger.take(known, header, 0)
            except Refused as wrong:
                refused.append((arrival, wrong))
                continue
            taken.append(arrival)
            changed[key] = outcome.ledger
            if outcome.new:
                kept.append((key, header, arrival.payload))
                entries.append((_BATCH, arrival.payload))
        released, self._unwritten = self._unwritten, []
        self._write([*released, *entries])
        self._ledgers |= changed
        for key, header, payload in kept:
            self._shelve(key, header, payload)
        self._grown.set()
        receipts = self._receipts(changed)
        return Outcome(tuple(taken), tuple(refused), tuple(receipts))

    def release(self, life: Life, lane: Lane, numbers: Ranges, receipt: Receipt) -> None:
        """Takes what the next holder says; durable with the next group that is taken."""
        self._let_go((life, lane), numbers)
        self._shelves[life, lane].holders[receipt.holder] = receipt.watermark
        self._unwritten.append((_RELEASE, wire.encode(receipt)))

    def reclaim(self, life: Life, lane: Lane, numbers: Ranges, holder: str) -> Ranges:
        """The next holder has lost these numbers; nothing that was released is kept here."""
        del life, lane, numbers, holder
        return _NONE

    async def disown(self, life: Life, reason: str) -> None:
        """The next holder knows another past of this life: it is kept all the same."""

    def set_linked(self, *, up: bool) -> None:
        """It is the same to it whether a link is up."""

    async def wait_grown(self) -> None:
        """Returns once something was taken since the last call."""
        await self._grown.wait()
        self._grown.clear()

    # --- the log ------------------------------------------------------------------------------

    def _write(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if not entries:
            return
        data = b"".join(
            _HEAD.pack(len(body), zlib.crc32(body, kind), kind) + body for kind, body in entries
        )
        file = self._disk.open(_path(self._number), "update")
        try:
            file.write(data, self._end)
            self._sync(file.sync)
        finally:
            file.close()
        self._end += len(data)

    def _sync(self, sync: Callable[[], None]) -> None:
        sync()

    def _open(self) -> None:
        """Reads all logs, the oldest first, and goes on in one of its own."""
        names = [name for name in self._disk.list("") if name.startswith("custody.")]
        numbers = sorted(int(name.partition(".")[2]) for name in names)
        for number in numbers:
            self._read(number)
        self._number = max(numbers, default=0) + 1
        life = self._known
        self._known = replace(life, receipts=life.receipts + _NUMBERS_A_LIFE)
        state = ledger.store(self._known, self._ledgers.values())
        entries = [(_LEDGER, wire.encode(state))]
        for shelf in self._shelves.values():
            entries += [(_BATCH, payload) for _, payload in shelf.held]
        self._disk.open(_path(self._number), "create").close()
        self._write(entries)
        self._disk.sync_directory("")
        for number in numbers:
            self._disk.unlink(_path(number))

    def _read(self, number: int) -> None:
        file = self._disk.open(_path(number), "read")
        data = file.read(0, _READ_MAX)
        file.close()
        offset = 0
        while offset + _HEAD.size <= len(data):
            size, crc, kind = _HEAD.unpack_from(data, offset)
            body = data[offset + _HEAD.size : offset + _HEAD.size + size]
            if len(body) != size or zlib.crc32(body, kind) != crc or not kind:
                return
            self._replay(kind, body)
            offset += _HEAD.size + size

    def _replay(self, kind: int, body: bytes) -> None:
        if kind == _LEDGER:
            self._known = wire.decode_as(PartitionLedger, body)
            self._ledgers |= {
                (Life(one.site, one.node, one.epoch), one.lane): one for one in self._known.lanes
            }
            self._known = replace(self._known, lanes=())
        elif kind == _RELEASE:
            receipt = wire.decode_as(Receipt, body)
            key = (Life(receipt.site, receipt.node, receipt.epoch), receipt.lane)
            self._let_go(key, Ranges.of([(0, receipt.watermark)]) | receipt.held)
        else:
            header = batches.parse(body).header
            key = (Life(header.site, header.node, header.epoch), header.lane)
            known = self._ledgers.get(key) or LaneLedger(*key[0], key[1])
            self._ledgers[key] = ledger.take(known, header, 0).ledger
            self._shelve(key, header, body)

    def _shelve(self, key: _Key, header: BatchHeader, payload: bytes) -> None:
        shelf = self._shelves.setdefault(key, _Shelf())
        known = [one for one, _ in shelf.held]
        if header not in known and header.present - shelf.released:
            shelf.held.append((header, payload))
            shelf.held.sort(key=lambda item: (item[0].last, item[0].first))

    def _let_go(self, key: _Key, stated: Ranges) -> None:
        # What is not here yet may still come, though the next holder has an explanation for it now.
        known = self._ledgers.get(key)
        shelf = self._shelves.setdefault(key, _Shelf())
        shelf.released |= stated & (_NONE if known is None else known.held)
        shelf.held = [item for item in shelf.held if item[0].present - shelf.released]

    def _receipts(self, changed: dict[_Key, LaneLedger]) -> list[Receipt]:
        found = []
        for known in changed.values():
            self._known = replace(self._known, receipts=self._known.receipts + 1)
            number = self._known.receipts
            found.append(ledger.receipt(self._known, known, number, Stage.HELD))
        return found


def _path(number: int) -> str:
    return f"custody.{number:08d}"
