"""The oracle: knows what was said to each spool, and holds it against what came of it.

It sees what crosses the borders of the code under test and nothing inside it: what was appended and
acknowledged, each receipt that was issued, each row of the archive. From that alone it judges:

- a row at headquarters is a record that was appended under that identity, and the only one (I2,
  I7);
- a number is handed out once (I3), unless its store was copied or put back: then what was said
  under it is a *fork*, and both records have to be somewhere, or an alarm was given;
- a receipt speaks of nothing that its holder does not have, or has no word of (durable first);
- nothing is released without a receipt;
- what was acknowledged is a row, or explained by a statement that may explain it, when all is
  mended (I1); on the way there it can be read at its edge, or was released;
- the ledgers hold what the archive holds, and for each lane of each epoch *produced = delivered +
  explained*, nothing missing (I5).

What an operator destroyed (a store replaced by an older one, an image written anew) may be missing.
It must not be called delivered. What an archive lost that was put back comes again, or is stated.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Arrival
from mesh.spool import batch as batches
from mesh.transfer.ledger import account_line
from schemas import wire
from schemas.errors import Refused
from schemas.messages import Account, Explained, Lane, Receipt
from schemas.ranges import Ranges
from schemas.stored import LaneLedger
from simulator.crash.annals import Violation, ranges
from simulator.world.archive import ArchiveDisk
from simulator.world.place import Place, stated

__all__ = ["Book", "Oracle"]

_NONE: Final = Ranges()
_GIVEN_UP: Final = (Explained.EVICTED, Explained.EXPIRED, Explained.FORGOTTEN)


@dataclass(slots=True)
class Book:
    """What was said under each number of a place.

    Args:
        said: the records; more than one where the store was copied or put back.
        acknowledged: those of them that were promised.
        destroyed: those of them whose last copy an operator took away.
        receipted: the numbers of which any receipt spoke.
    """

    said: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    acknowledged: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    destroyed: set[tuple[int, bytes]] = field(default_factory=set)
    receipted: Ranges = _NONE

    @property
    def forked(self) -> bool:
        """Whether any number names two records."""
        return any(len(records) > 1 for records in self.said.values())


class Oracle:
    """Judges one world.

    Args:
        archive: what headquarters has.
    """

    def __init__(self, archive: ArchiveDisk) -> None:
        self._archive = archive
        self.books: defaultdict[Place, Book] = defaultdict(Book)
        self.records = 0
        """How many records were appended."""
        self.copied: set[tuple[str, str]] = set()
        """Sites and nodes whose store was copied, put back or made anew."""
        self.alarmed: set[tuple[str, str]] = set()
        """Sites and nodes of which somebody was told that something is wrong with their past."""
        self.was_put_back = False
        """Whether the archive was ever replaced by an older copy of itself."""
        self.set_aside: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        """Records of batches that were refused and kept, by site and node."""
        self._heard: dict[tuple[Place, bool], Account] = {}
        self._verified: dict[Place, Ranges] = {}
        self._taken_back: dict[Place, Ranges] = {}

    # --- what is said -------------------------------------------------------------------------

    def appended(self, place: Place, first: int, records: Sequence[bytes]) -> None:
        """Records took their numbers.

        Raises:
            Violation: a number was handed out twice.
        """
        said = self.books[place].said
        for number, record in enumerate(records, first):
            known = said.get(number, ())
            if known and place.origin not in self.copied:
                raise Violation(f"{place}/{number} was handed out twice")
            said[number] = (*known, record)
        self.records += len(records)

    def acknowledged(self, place: Place, first: int, records: Sequence[bytes]) -> None:
        """Records were promised to be durable."""
        promised = self.books[place].acknowledged
        for number, record in enumerate(records, first):
            promised[number] = (*promised.get(number, ()), record)

    def issued(self, receipt: Receipt) -> None:
        """A holder issued a receipt."""
        book = self.books[Place.of(receipt)]
        book.receipted |= stated(receipt)

    def keep_refused(self, arrival: Arrival) -> None:
        """A batch was refused and kept: its records are somewhere."""
        try:
            kept = batches.open_records(batches.parse(arrival.payload))
        except Refused:
            return
        self.set_aside[arrival.site, arrival.node] += kept

    def archived_by(self, receipt: Receipt) -> None:
        """Headquarters issues a receipt: what it speaks of has a row, or a word.

        Raises:
            Violation: it is ahead of the archive.
        """
        place = Place.of(receipt)
        claimed = stated(receipt) - self._verified.get(place, _NONE)
        rows = self._archive.numbers(place)
        ahead = claimed - rows
        if ahead:
            ahead -= _union(self._explained(place).values())
        if ahead:
            raise Violation(f"{receipt} is ahead of the archive: {place} {ahead}")
        # What is explained may be taken back by a later statement; what has a row may not.
        self._verified[place] = self._verified.get(place, _NONE) | (claimed & rows)
        self.issued(receipt)

    def check_row(self, place: Place, number: int, record: bytes) -> None:
        """A row is published.

        Raises:
            Violation: nobody ever appended it.
        """
        if place.lane is Lane.ACCOUNT:
            self._hear(place, wire.decode_as(Account, record))
            return
        book = self.books.get(place)
        if book is None or record not in book.said.get(number, ()):
            raise Violation(f"{place}/{number} was never appended, and has a row")

    def _hear(self, place: Place, account: Account) -> None:
        # What a later life states of an earlier one stands beside what that one states itself.
        about = Place(place.site, place.node, account.epoch, account.lane)
        key = about, account.epoch.counter == place.epoch.counter
        known = self._heard.get(key)
        if known is None or account.number > known.number:
            self._heard[key] = account

    def _explained(self, place: Place) -> Mapping[str, Ranges]:
        """What the newest accounts of a place explain that ever had a row."""
        found: dict[str, Ranges] = {}
        for own in (True, False):
            account = self._heard.get((place, own))
            for why, numbers in account.explained.items() if account is not None else ():
                found[why] = found.get(why, _NONE) | numbers
        return found

    # --- what an operator does ----------------------------------------------------------------

    def destroy(self, site: str, node: str) -> None:
        """The store of a node is taken away: what has no row now may never have one."""
        self.copied.add((site, node))
        for place, book in self.books.items():
            if place.origin == (site, node):
                there = self._archive.rows.get(place, {})
                for number, records in book.acknowledged.items():
                    for record in records:
                        if there.get(number) != record:
                            book.destroyed.add((number, record))

    def put_back(self, before: Mapping[Place, Mapping[int, bytes]]) -> None:
        """The archive was replaced by an older copy of itself.

        Args:
            before: the rows that it had.
        """
        self._verified.clear()
        self.was_put_back = True
        for place, rows in before.items():
            there = self._archive.rows.get(place, {})
            gone = ranges(number for number in rows if number not in there)
            if gone:
                self._taken_back[place] = self._taken_back.get(place, _NONE) | gone

    def taken_back(self, place: Place) -> Ranges:
        """The numbers whose rows an older copy of the archive took away."""
        return self._taken_back.get(place, _NONE)

    # --- what is judged -----------------------------------------------------------------------

    def judge_released(self, place: Place, released: Ranges) -> None:
        """A sender has released numbers.

        Raises:
            Violation: no receipt spoke of some.
        """
        alone = released - self.books[place].receipted
        if alone:
            raise Violation(f"{place}: released without a receipt: {alone}")

    def judge_spool(
        self,
        place: Place,
        promised: Mapping[int, tuple[bytes, ...]],
        held: Mapping[int, bytes],
        released: Ranges,
        explained: Mapping[str, Ranges],
    ) -> None:
        """What an edge holds of a place, held against what it promised.

        Args:
            place: which.
            promised: what it had acknowledged before the rest was looked at.
            held: what can be read.
            released: what it has released.
            explained: what it states.

        Raises:
            Violation: something is lost, was never appended, or was released without a receipt.
        """
        self.judge_released(place, released)
        book = self.books[place]
        for number, record in held.items():
            if record not in book.said.get(number, ()):
                raise Violation(f"{place}/{number} can be read, and was never appended")
        allowed = self._allowed(place, explained)
        # An older copy of a store knows nothing of what its other self has delivered since.
        rows = self._archive.rows.get(place, {})
        lost = [
            number
            for number, records in promised.items()
            if held.get(number) not in records
            and number not in released
            and number not in allowed
            and not all((number, record) in book.destroyed for record in records)
            and not (place.origin in self.copied and rows.get(number) in records)
        ]
        if lost:
            raise Violation(f"{place}: acknowledged, and lost at its edge: {ranges(lost)}")

    def judge_end(
        self,
        ledgers: Iterable[LaneLedger],
        pending: Mapping[Place, list[bytes]],
        kept: Mapping[Place, Ranges],
    ) -> int:
        """All is mended and drained: what came of everything?

        Args:
            ledgers: all that headquarters has.
            pending: records that are still held at an edge, by place.
            kept: numbers that a gateway still holds, by place.

        Returns:
            How many forks were given up with an alarm, and are nowhere to be seen.

        Raises:
            Violation: something is lost, or the ledgers do not agree with the archive.
        """
        known = {Place.of(ledger): ledger for ledger in ledgers}
        for place, ledger in known.items():
            self._judge_ledger(place, ledger)
        for place in self._archive.rows:
            if place not in known:
                raise Violation(f"{place} has rows, and no ledger")
        dropped = 0
        for place, book in self.books.items():
            dropped += self._judge_book(place, book, pending.get(place, []), kept.get(place, _NONE))
        return dropped

    def unsettled(self, ledgers: Iterable[LaneLedger]) -> list[str]:
        """The lanes of which something is missing that may still come."""
        found = []
        for ledger in ledgers:
            place = Place.of(ledger)
            missing = self._missing(place, ledger)
            if missing:
                found.append(f"{place}: missing {missing}")
        return found

    def _missing(self, place: Place, ledger: LaneLedger) -> Ranges:
        if place.origin in self.copied:
            return _NONE
        return account_line(ledger).missing

    def _judge_ledger(self, place: Place, ledger: LaneLedger) -> None:
        rows = self._archive.numbers(place)
        if rows != ledger.held:
            raise Violation(
                f"{place}: rows without a ledger {rows - ledger.held}, "
                f"a ledger without rows {ledger.held - rows}"
            )
        missing = self._missing(place, ledger)
        if missing:
            raise Violation(f"{place}: produced, and neither delivered nor explained: {missing}")
        line = account_line(ledger)
        total = line.delivered + sum(line.explained.values()) + len(line.missing)
        if place.origin not in self.copied and line.produced != total:
            raise Violation(f"{place}: {line.produced} produced, {total} accounted for")

    def _judge_book(self, place: Place, book: Book, pending: Sequence[bytes], kept: Ranges) -> int:
        rows = self._archive.rows.get(place, {})
        explained = self._explained(place)
        allowed = self._allowed(place, explained)
        dropped = 0
        for number, records in book.acknowledged.items():
            for record in records:
                if rows.get(number) == record or (number, record) in book.destroyed:
                    continue
                if number in allowed and number not in rows:
                    continue
                somewhere = record in pending or record in self.set_aside[place.origin]
                if somewhere or number in kept:
                    self._demand_alarm(place, number)
                elif len(book.said[number]) > 1:
                    self._demand_alarm(place, number)
                    dropped += 1
                else:
                    why = [str(why) for why, of in explained.items() if number in of]
                    told = f"though {', '.join(why)} is stated" if why else "and unexplained"
                    raise Violation(f"{place}/{number}: acknowledged and lost, {told}")
        return dropped

    def _demand_alarm(self, place: Place, number: int) -> None:
        if place.origin not in self.alarmed:
            raise Violation(f"{place}/{number} names two records, and nobody was told")

    def _allowed(self, place: Place, explained: Mapping[str, Ranges]) -> Ranges:
        """The numbers that may be explained though they were acknowledged."""
        if place.origin in self.copied:
            return _union(explained.values())
        return _union(explained.get(why, _NONE) for why in _GIVEN_UP)


def _union(sets: Iterable[Ranges]) -> Ranges:
    return Ranges.of([span for numbers in sets for span in numbers.spans])
