"""What a spool concludes from the files it finds. Pure.

Files' contents in, standing of each lane out.

For each lane, what is *known* is what stands on the shelf, in a journal, in the cursor or in an
explanation. With ``end`` one more than the highest number known or marked, and ``reserved`` the
numbers that could have been handed out:

- a hole below ``end`` is ``damaged``: it was durable once, and neither the cursor nor an account
covers it;
- ``end`` to ``reserved`` is ``void`` after an unclean close: handed out but not durable, or never
handed out. Where bytes without
  a whole header were damaged, those numbers may have been acknowledged, so they are called
  ``damaged``;
- where the newest journal has lost its head, what it reserved is not known: numbering goes on 2**32
higher, beyond all that can
  have been handed out, and what lies between is ``damaged``;
- after a clean close nothing is void: the journal's last frame says with which number to go on.

Numbering goes on at ``reserved``, so no number is used twice. The chain goes on from the last
record that there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.spool.commit import Located
from mesh.spool.frame import CHAIN_START, Broken
from mesh.spool.journal import JournalContent
from mesh.spool.shelf import Sealed
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneMark, Numbers

__all__ = ["LaneFound", "judge"]

_JUMP = 2**32
_UNUSED = Numbers(LaneMark(0, CHAIN_START), 0)


@dataclass(frozen=True, slots=True)
class LaneFound:
    """Where a lane stands after opening.

    Args:
        mark: the next number, and the chain to go on from.
        explained: numbers that will never arrive, by reason.
        newly: those among them that no journal header said before.
        statement: number of the newest account.
        fresh: frames that stand in journals only.
        released: what the cursor says.
        sealed: what is on the shelf.
    """

    mark: LaneMark
    explained: Mapping[str, Ranges]
    newly: Mapping[str, Ranges]
    statement: int
    fresh: tuple[Located, ...]
    released: Ranges
    sealed: tuple[Sealed, ...]


def judge(
    lane: Lane, journals: Sequence[JournalContent], sealed: Sequence[Sealed], released: Ranges
) -> LaneFound:
    """Where a lane stands.

    Args:
        lane: which one.
        journals: all that there are, oldest first.
        sealed: what is on its shelf, sorted.
        released: what the cursor says.
    """
    begun = [journal for journal in journals if journal.header is not None]
    newest = begun[-1] if begun else None
    header = newest.header if newest else None
    numbers = header.lanes.get(lane, _UNUSED) if header else _UNUSED
    shelf = Ranges.of([(item.first, item.stop) for item in sealed])
    fresh = _fresh(lane, journals, shelf)
    known = shelf | released | Ranges.of(_spans(fresh))
    for ranges in numbers.explained.values():
        known |= ranges
    end = max(numbers.mark.next_seq, known.end)
    explained = dict(numbers.explained)
    newly: dict[str, Ranges] = {}
    _explain(explained, newly, Explained.DAMAGED, known.gaps(0, end))
    closed = newest.closed.lanes.get(lane) if newest and newest.closed else None
    if _head_lost(journals, known):
        stop = end + _JUMP
        _explain(explained, newly, Explained.DAMAGED, Ranges.of([(end, stop)]))
    elif closed is None:
        stop = max(end, _reserved(lane, newest, numbers))
        doubt = any(item.header is None for item in _damage(journals))
        why = Explained.DAMAGED if doubt else Explained.VOID
        _explain(explained, newly, why, Ranges.of([(end, stop)]))
    else:
        stop = max(end, closed)
    chain = _last_chain(lane, journals, numbers.mark)
    unreleased = tuple(
        item
        for item in fresh
        if not released.covers(item.frame.header.first, item.frame.header.stop)
    )
    return LaneFound(
        LaneMark(stop, chain),
        explained,
        newly,
        numbers.statement,
        unreleased,
        released,
        tuple(sealed),
    )


def _fresh(lane: Lane, journals: Sequence[JournalContent], shelf: Ranges) -> tuple[Located, ...]:
    """Frames of a lane that are not on the shelf, by number; of two copies the newer one."""
    found: dict[int, Located] = {}
    for journal in journals:
        for frame in journal.frames:
            header = frame.header
            if header.lane is lane and not shelf.covers(header.first, header.stop):
                found[header.first] = Located(journal.number, frame)
    return tuple(found[first] for first in sorted(found))


def _spans(frames: Sequence[Located]) -> list[tuple[int, int]]:
    return [(item.frame.header.first, item.frame.header.stop) for item in frames]


def _reserved(lane: Lane, newest: JournalContent | None, numbers: Numbers) -> int:
    later = [item.lanes.get(lane, 0) for item in newest.reserved] if newest else []
    return max([numbers.reserved, *later])


def _head_lost(journals: Sequence[JournalContent], known: Ranges) -> bool:
    """Whether what was reserved last cannot be known: the head that said so is gone."""
    if not journals or all(journal.header is None for journal in journals):
        return bool(known)
    return journals[-1].header is None and bool(journals[-1].frames)


def _damage(journals: Sequence[JournalContent]) -> list[Broken]:
    """What does not verify, less what a crash in mid-write leaves at the end."""
    return [
        item
        for journal in journals
        if journal.header is not None
        for item in (journal.broken[:-1] if journal.torn_tail else journal.broken)
    ]


def _last_chain(lane: Lane, journals: Sequence[JournalContent], mark: LaneMark) -> bytes:
    last, chain = mark.next_seq, mark.chain
    for journal in journals:
        for frame in journal.frames:
            if frame.header.lane is lane and frame.header.stop > last:
                last, chain = frame.header.stop, frame.header.chain_after
    return chain


def _explain(
    explained: dict[str, Ranges], newly: dict[str, Ranges], why: Explained, numbers: Ranges
) -> None:
    if numbers:
        explained[why] = explained.get(why, Ranges()) | numbers
        newly[why] = newly.get(why, Ranges()) | numbers
