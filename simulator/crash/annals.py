"""Annals: what was said to a spool and by it, through all its lives. The plain list beside it.

``Said`` notes, for one epoch, which records took which numbers and when, which were acknowledged,
which a receipt released and which the next holder has lost since; ``Annals`` keeps one ``Said`` for
each epoch, and the accounts that the next holder has taken: what they say outlives the spool.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.spool.spool import Spool
from schemas import wire
from schemas.messages import Account, Epoch, Event, Lane, Severity
from schemas.ranges import Ranges

__all__ = ["Annals", "Said", "Violation", "ranges", "record"]


class Violation(AssertionError):  # as the errors of this project: named by what it is
    """The spool has lied; the message says how."""


def record(text: str) -> bytes:
    """The canonical bytes of an event."""
    return wire.encode(Event(0, 0, "tested", Severity.NOTICE, text))


def ranges(numbers: Iterable[int]) -> Ranges:
    """The set of these numbers."""
    return Ranges.of([(number, number + 1) for number in numbers])


@dataclass
class Said:
    """What was said to a spool and by it in one epoch: the plain list to compare with."""

    produced: dict[Lane, dict[int, bytes]] = field(default_factory=dict)
    acknowledged: dict[Lane, set[int]] = field(default_factory=dict)
    released: dict[Lane, set[int]] = field(default_factory=dict)
    handed_out: dict[Lane, int] = field(default_factory=dict)
    born_ns: dict[Lane, dict[int, int]] = field(default_factory=dict)
    lost: dict[Lane, set[int]] = field(default_factory=dict)
    """Released, and lost by the next holder; a crash may undo that until the spool says otherwise.
    """
    forgettable: dict[Lane, set[int]] = field(default_factory=dict)
    """All that the next holder ever lost: nothing else may be forgotten of a present life."""

    def copy(self) -> "Said":
        """The same, to go on apart."""
        return Said(
            {lane: known.copy() for lane, known in self.produced.items()},
            {lane: numbers.copy() for lane, numbers in self.acknowledged.items()},
            {lane: numbers.copy() for lane, numbers in self.released.items()},
            self.handed_out.copy(),
            {lane: times.copy() for lane, times in self.born_ns.items()},
            {lane: numbers.copy() for lane, numbers in self.lost.items()},
            {lane: numbers.copy() for lane, numbers in self.forgettable.items()},
        )

    async def append(self, spool: Spool, lane: Lane, texts: list[str]) -> bool:
        """Appends, waits, and notes what was promised."""
        settled = await self.hand_over(spool, lane, [record(text) for text in texts])
        self.note(spool)
        return settled

    def hand_over(
        self,
        spool: Spool,
        lane: Lane,
        records: list[bytes],
        *,
        awaited: bool = True,
        now_ns: int = 0,
    ) -> asyncio.Future[bool]:
        """Appends and does not wait; what is promised later is noted when it is.

        Args:
            spool: to which.
            lane: to which of its lanes.
            records: what.
            awaited: as for ``Spool.append``.
            now_ns: the true time.

        Raises:
            Violation: a number came that had come before.
            MeshError: as ``Spool.append``; nothing was said.
        """
        appended = spool.append(lane, records, awaited=awaited)
        numbers = range(appended.first, appended.first + appended.records)
        known = self.produced.setdefault(lane, {})
        for number, data in zip(numbers, records, strict=True):
            if number in known:
                raise Violation(f"{lane}/{number} was handed out twice")
            known[number] = data
        self.born_ns.setdefault(lane, {}).update(dict.fromkeys(numbers, now_ns))
        self.note(spool)

        def acknowledge(settled: asyncio.Future[bool]) -> None:
            if not settled.cancelled() and settled.result():
                self.acknowledged.setdefault(lane, set()).update(numbers)

        appended.settled.add_done_callback(acknowledge)
        return appended.settled

    def release(
        self, spool: Spool, lane: Lane, numbers: Ranges, epoch: Epoch | None = None
    ) -> None:
        """Releases, as a receipt would."""
        self.released.setdefault(lane, set()).update(numbers)
        self.lost.setdefault(lane, set()).difference_update(numbers)
        spool.release(lane, numbers, "hq", epoch)

    def reclaim(self, spool: Spool, lane: Lane, numbers: Ranges, epoch: Epoch) -> bool:
        """The next holder has lost numbers, and says so.

        Returns:
            Whether that changes anything.

        Raises:
            Violation: what is pending again was not asked for, or something is in no place.
        """
        asked = numbers & spool.released(lane, epoch)
        given_up = numbers & spool.explained(lane, epoch)
        lost = set(asked - given_up)
        self.lost.setdefault(lane, set()).update(lost)
        self.forgettable.setdefault(lane, set()).update(lost)
        retained = spool.retained(lane, epoch)
        back = spool.reclaim(lane, numbers, "hq", epoch)
        if back != (asked - given_up) & retained:
            raise Violation(f"{lane}: {asked} reclaimed, {retained} retained, {back} pending again")
        gone = asked - back - spool.explained(lane, epoch)
        if gone or (asked - given_up) & spool.released(lane, epoch):
            raise Violation(f"{lane}: {asked} reclaimed, {back} pending again, {gone} nowhere")
        return bool(lost)

    def settle(self, lane: Lane, numbers: Ranges) -> None:
        """The spool says that it is durable what the next holder has lost."""
        settled = self.lost.get(lane, set()) & set(numbers)
        self.lost.setdefault(lane, set()).difference_update(settled)
        self.released.setdefault(lane, set()).difference_update(settled)

    def note(self, spool: Spool) -> None:
        """Notes how far numbers were handed out: none while the disk fails.

        Where it fails from the opening on, the next number was only read, perhaps from bytes that
        the next crash takes.
        """
        if spool.degraded:
            return
        for lane in Lane:
            seen = self.handed_out.get(lane, 0)
            self.handed_out[lane] = max(seen, spool.next_seq(lane))


class Annals:
    """What was said through all lives of a store, one ``Said`` for each epoch.

    ``heard`` are the accounts that the next holder has taken, by epoch and lane, and ``unsure`` the
    epochs that were there when ``STORE`` was lost: nobody can know all of them any more.
    """

    def __init__(self) -> None:
        self.epochs: defaultdict[Epoch, Said] = defaultdict(Said)
        self.heard: dict[tuple[Epoch, Lane], list[Account]] = {}
        self.unsure: set[Epoch] = set()

    def present(self, spool: Spool) -> Said:
        """What is said in the spool's present epoch."""
        return self.epochs[spool.epoch]

    def hear(self, accounts: Iterable[Account]) -> None:
        """The next holder takes accounts."""
        for account in accounts:
            known = self.heard.setdefault((account.epoch, account.lane), [])
            if account not in known:
                known.append(account)

    def lose_store(self) -> None:
        """``STORE`` rots or is removed: what was known of all lives so far is no longer certain."""
        self.unsure |= self.epochs.keys()

    def copy(self) -> "Annals":
        """The same, to go on apart."""
        twin = Annals()
        twin.epochs.update((epoch, said.copy()) for epoch, said in self.epochs.items())
        twin.heard = {place: accounts.copy() for place, accounts in self.heard.items()}
        twin.unsure = self.unsure.copy()
        return twin
