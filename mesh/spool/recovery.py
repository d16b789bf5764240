"""What a spool concludes from the files it finds. Pure.

Files' contents in, standing of each lane out.

For each lane, what is *known* is what stands on the shelf, in a journal, in the cursor or in an
explanation. With ``end`` one more than the highest number known, marked, or named by the whole
header of a broken frame, and ``reserved`` the numbers that could have been handed out:

- a hole below ``end`` is ``damaged``: it was written once, and neither the cursor nor an account
  covers it;
- ``end`` to ``reserved`` is ``void`` after an unclean close: handed out but not durable, or never
  handed out. Where bytes without a whole header were damaged, those numbers may have been
  acknowledged, so they are called ``damaged``;
- after a clean close nothing is void: the journal's last frame says with which number to go on;
- where the newest journal has lost its head, or a lane is known beyond what was reserved for it,
  what was reserved last is not known: each lane goes on 2**32 higher, beyond all that can have been
  handed out, and what lies between is ``damaged``. Where nothing is known at all, not even that
  helps: the spool begins a new life.

Broken bytes may have held the control frame that reserved last. Each such frame takes at least a
header, and raises the reservation by at most ``NUMBERS_RESERVED``: so much is skipped for each that
may have stood there. A torn tail may be rot as well as a crash's leaving; one more is skipped.

Numbering goes on at ``reserved``, so no number is used twice. The chain goes on from the last
record that there is. A frame whose numbers are already explained was given up: its group failed,
its bytes reached the disk all the same. It stays given up, since the chain goes on without it.

What is released and still there, whole batches and whole frames, is retained: a holder may lose it.
Where some of it is explained as well it was given up, and is offered to nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.spool.commit import Located
from mesh.spool.explained import all_of
from mesh.spool.frame import CHAIN_START, HEADER_BYTES, Broken
from mesh.spool.journal import JournalContent
from mesh.spool.kept import touches
from mesh.spool.shelf import Sealed
from schemas.limits import NUMBERS_RESERVED
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneMark, Numbers

__all__ = ["UNUSED", "LaneFound", "judge", "judge_past", "knows_nothing"]

_JUMP = 2**32
UNUSED = Numbers(LaneMark(0, CHAIN_START), 0)
"""Where a lane stands that never had a record."""


@dataclass(frozen=True, slots=True)
class LaneFound:
    """Where a lane stands after opening.

    Args:
        mark: the next number, and the chain to go on from.
        explained: numbers that will never arrive, by reason.
        newly: those among them that no journal header said before.
        statement: number of the newest account that the header knows of.
        fresh: frames that stand in journals only.
        released: what the cursor says.
        sealed: what is on the shelf and pending.
        leaving: what is on the shelf, but given up: to be unlinked.
        spoiled: what is on the shelf, but known to be damaged: to be set aside.
        retained: what is on the shelf, and released as a whole.
        kept: numbers of frames that are released as a whole, by the journal in which they stand.
    """

    mark: LaneMark
    explained: Mapping[str, Ranges]
    newly: Mapping[str, Ranges]
    statement: int
    fresh: tuple[Located, ...]
    released: Ranges
    sealed: tuple[Sealed, ...]
    leaving: tuple[Sealed, ...]
    spoiled: tuple[Sealed, ...]
    retained: tuple[Sealed, ...] = ()
    kept: Mapping[int, Ranges] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the files say of one lane."""

    lane: Lane
    numbers: Numbers
    stated: Ranges
    fresh: tuple[Located, ...]
    kept: Mapping[int, Ranges]
    sealed: Sequence[Sealed]
    released: Ranges
    known: Ranges
    closed: int | None
    reserved: int


def judge(
    journals: Sequence[JournalContent],
    shelves: Mapping[Lane, Sequence[Sealed]],
    released: Mapping[Lane, Ranges],
) -> dict[Lane, LaneFound]:
    """Where each lane stands.

    Args:
        journals: all that there are, oldest first.
        shelves: what is on each lane's shelf, sorted.
        released: what the cursor says of each lane.
    """
    newest = _newest(journals)
    lanes = [_gather(lane, journals, newest, shelves[lane], released[lane]) for lane in shelves]
    leap = _head_lost(journals, lanes)
    return {evidence.lane: _conclude(evidence, journals, newest, leap=leap) for evidence in lanes}


def judge_past(numbers: Numbers, sealed: Sequence[Sealed], released: Ranges) -> LaneFound:
    """Where a lane of a past epoch stands: all that it had is on the shelf.

    Args:
        numbers: where it ended, as ``STORE`` says.
        sealed: what is on its shelf, sorted.
        released: what the cursor says of it.
    """
    explained = dict(numbers.explained)
    newly: dict[str, Ranges] = {}
    shelf = Ranges.of([(item.first, item.stop) for item in sealed])
    known = shelf | released | all_of(explained)
    # What STORE does not know of came back with a crash; it is handed on like the rest.
    mark = LaneMark(max(numbers.mark.next_seq, shelf.end), numbers.mark.chain)
    _explain(explained, newly, Explained.DAMAGED, known.gaps(0, mark.next_seq))
    sorted_out = _sort_out(sealed, released, numbers.explained)
    return LaneFound(
        mark=mark,
        explained=explained,
        newly=newly,
        statement=numbers.statement,
        fresh=(),
        released=released,
        sealed=tuple(sorted_out.staying),
        leaving=tuple(sorted_out.leaving),
        spoiled=tuple(sorted_out.spoiled),
        retained=tuple(sorted_out.retained),
    )


def knows_nothing(
    journals: Sequence[JournalContent],
    shelves: Mapping[Lane, Sequence[Sealed]],
    released: Mapping[Lane, Ranges],
) -> bool:
    """Whether no file tells of a single number, nor that none was ever handed out."""
    known = any(shelves.values()) or any(released.values()) or any(map(_has_frames, journals))
    return not known and _newest(journals) is None


def _newest(journals: Sequence[JournalContent]) -> JournalContent | None:
    begun = [journal for journal in journals if journal.header is not None]
    return begun[-1] if begun else None


def _gather(
    lane: Lane,
    journals: Sequence[JournalContent],
    newest: JournalContent | None,
    sealed: Sequence[Sealed],
    released: Ranges,
) -> _Evidence:
    header = newest.header if newest else None
    numbers = header.lanes.get(lane, UNUSED) if header else UNUSED
    stated = all_of(numbers.explained)
    shelf = Ranges.of([(item.first, item.stop) for item in sealed])
    fresh = _fresh(lane, journals, shelf | stated | released)
    kept = _kept(lane, journals, released, shelf | stated)
    known = shelf | released | stated | Ranges.of(_spans(fresh))
    closed = newest.closed.lanes.get(lane) if newest and newest.closed else None
    reserved = _reserved(lane, newest, numbers) if closed is None else closed
    return _Evidence(lane, numbers, stated, fresh, kept, sealed, released, known, closed, reserved)


def _conclude(
    evidence: _Evidence,
    journals: Sequence[JournalContent],
    newest: JournalContent | None,
    *,
    leap: bool,
) -> LaneFound:
    lane, numbers, known, released = (
        evidence.lane,
        evidence.numbers,
        evidence.known,
        evidence.released,
    )
    end = max(numbers.mark.next_seq, known.end, _broken_end(lane, journals))
    explained = dict(numbers.explained)
    newly: dict[str, Ranges] = {}
    _explain(explained, newly, Explained.DAMAGED, known.gaps(0, end))
    why = Explained.DAMAGED
    if leap:
        stop = end + _JUMP
    elif evidence.closed is None:
        stop = max(end, evidence.reserved + _skipped(newest))
        if not any(item.header is None for item in _damage(newest)):
            why = Explained.VOID
    else:
        stop = max(end, evidence.closed)
    _explain(explained, newly, why, Ranges.of([(end, stop)]))
    sorted_out = _sort_out(evidence.sealed, released, numbers.explained)
    return LaneFound(
        mark=LaneMark(stop, _last_chain(lane, journals, numbers.mark, evidence.stated)),
        explained=explained,
        newly=newly,
        statement=numbers.statement,
        fresh=tuple(
            item
            for item in evidence.fresh
            if not released.covers(item.frame.header.first, item.frame.header.stop)
        ),
        released=released,
        sealed=tuple(sorted_out.staying),
        leaving=tuple(sorted_out.leaving),
        spoiled=tuple(sorted_out.spoiled),
        retained=tuple(sorted_out.retained),
        kept=evidence.kept,
    )


def _fresh(lane: Lane, journals: Sequence[JournalContent], gone: Ranges) -> tuple[Located, ...]:
    """Frames of a lane that are not on the shelf, given up or released, by number.

    Of two copies the newer one.
    """
    found: dict[int, Located] = {}
    for journal in journals:
        for frame in journal.frames:
            header = frame.header
            if header.lane is lane and not gone.covers(header.first, header.stop):
                found[header.first] = Located(journal.number, frame)
    return tuple(found[first] for first in sorted(found))


def _kept(
    lane: Lane, journals: Sequence[JournalContent], released: Ranges, gone: Ranges
) -> dict[int, Ranges]:
    """Numbers of frames that are released as a whole, by journal. Of two copies the newer one.

    Args:
        lane: which lane.
        journals: all that there are, oldest first.
        released: what the cursor says.
        gone: what stands on the shelf, or was given up.
    """
    found: dict[int, tuple[int, int]] = {}
    for journal in journals:
        for frame in journal.frames:
            header = frame.header
            if (
                header.lane is lane
                and released.covers(header.first, header.stop)
                and not touches(gone, header.first, header.stop)
            ):
                found[header.first] = (journal.number, header.stop)
    spans: dict[int, list[tuple[int, int]]] = {}
    for first, (number, stop) in found.items():
        spans.setdefault(number, []).append((first, stop))
    return {number: Ranges.of(numbers) for number, numbers in spans.items()}


def _spans(frames: Sequence[Located]) -> list[tuple[int, int]]:
    return [(item.frame.header.first, item.frame.header.stop) for item in frames]


def _broken_end(lane: Lane, journals: Sequence[JournalContent]) -> int:
    """One more than the highest number that a broken frame with a whole header names."""
    stops = [
        item.header.stop
        for journal in journals
        for item in journal.broken
        if item.header is not None and item.header.lane is lane
    ]
    return max(stops, default=0)


def _reserved(lane: Lane, newest: JournalContent | None, numbers: Numbers) -> int:
    later = [item.lanes.get(lane, 0) for item in newest.reserved] if newest else []
    return max([numbers.reserved, *later])


def _skipped(newest: JournalContent | None) -> int:
    """How far the reservation may have been raised by control frames that are broken now."""
    if newest is None:
        return 0
    lost = sum(_room(item) // HEADER_BYTES for item in _without_tail(newest))
    tail = newest.torn_tail and _room(newest.broken[-1]) >= HEADER_BYTES
    return NUMBERS_RESERVED * (lost + tail)


def _room(item: Broken) -> int:
    """How many of the broken bytes belong to no record frame that is known by its header."""
    size = item.end - item.offset
    if item.header is None or item.header.lane is None:
        return size
    return max(0, size - HEADER_BYTES - item.header.body_bytes)


def _head_lost(journals: Sequence[JournalContent], lanes: Sequence[_Evidence]) -> bool:
    """Whether what was reserved last cannot be known: what said so is gone."""
    if any(evidence.known.end > evidence.reserved for evidence in lanes):
        return True
    since = journals if _newest(journals) is None else journals[-1:]
    return any(
        journal.unreadable or (journal.header is None and _has_frames(journal)) for journal in since
    )


def _has_frames(journal: JournalContent) -> bool:
    return bool(journal.frames or journal.reserved or journal.closed)


def _damage(newest: JournalContent | None) -> tuple[Broken, ...]:
    """What does not verify, less what a crash in mid-write leaves at the end.

    Older journals had nothing of what was handed out since the newest began.
    """
    return () if newest is None else _without_tail(newest)


def _without_tail(journal: JournalContent) -> tuple[Broken, ...]:
    return journal.broken[:-1] if journal.torn_tail else journal.broken


def _last_chain(
    lane: Lane, journals: Sequence[JournalContent], mark: LaneMark, stated: Ranges
) -> bytes:
    last, chain = mark.next_seq, mark.chain
    for journal in journals:
        for frame in journal.frames:
            header = frame.header
            if header.lane is lane and header.stop > last and header.first not in stated:
                last, chain = header.stop, header.chain_after
    return chain


class _SortedOut(NamedTuple):
    """What a crash kept from leaving the shelf, what is damaged, what stays, what is released."""

    leaving: list[Sealed]
    spoiled: list[Sealed]
    staying: list[Sealed]
    retained: list[Sealed]


def _sort_out(
    sealed: Sequence[Sealed], released: Ranges, explained: Mapping[str, Ranges]
) -> _SortedOut:
    stated = all_of(explained)
    gone = released
    for why in (Explained.EVICTED, Explained.EXPIRED, Explained.FORGOTTEN):
        gone |= explained.get(why, Ranges())
    damaged = gone | explained.get(Explained.DAMAGED, Ranges())
    sorted_out = _SortedOut([], [], [], [])
    for item in sealed:
        span = (item.first, item.stop)
        if released.covers(*span) and not touches(stated, *span):
            sorted_out.retained.append(item)
        elif gone.covers(*span):
            sorted_out.leaving.append(item)
        elif damaged.covers(*span):
            sorted_out.spoiled.append(item)
        else:
            sorted_out.staying.append(item)
    return sorted_out


def _explain(
    explained: dict[str, Ranges], newly: dict[str, Ranges], why: Explained, numbers: Ranges
) -> None:
    if numbers:
        explained[why] = explained.get(why, Ranges()) | numbers
        newly[why] = newly.get(why, Ranges()) | numbers
