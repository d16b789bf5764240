"""What stands in the journals becomes what is held. Pure.

The newest journal with a whole snapshot is the *base*. Of the journals before it only the batches
count; from the base on batches and releases are taken as they were then, by the same rules. At the
end each number that is held and not released must stand in a batch: one that does not is lost.

A loss, and anything in the base or behind it that does not verify, means a new life of the holder:
some receipt may have stated what is gone. That costs little where none has, since a sender loses
only what it had released. What does not verify before the base was judged by the opening that wrote
the base, and what has rotted since shows as a loss.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.transfer import ledger
from mesh.transfer.custody.journal import Content, Seen
from mesh.transfer.custody.lane import Holding, Kept, LaneKey, Place, key_of
from mesh.transfer.source import Life
from schemas.errors import Refused
from schemas.messages import BatchHeader, Instant
from schemas.ranges import Ranges
from schemas.stored import CustodyLane, CustodyRelease, LaneLedger

__all__ = ["Found", "Recovery"]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Args:
        holdings: what is held, lane by lane.
        lost: what was held and is gone.
        damaged: whether anything was found that does not verify, or is gone.
    """

    holdings: Mapping[LaneKey, Holding]
    lost: Mapping[LaneKey, Ranges] = field(default_factory=dict)
    damaged: bool = False


class Recovery:
    """Takes journals in the order of their numbers.

    Args:
        now: for how long batches have been here.
    """

    def __init__(self, now: Instant) -> None:
        self._now = now
        self._states: dict[LaneKey, Holding] = {}
        self._kept: dict[LaneKey, dict[tuple[int, int, int], Kept]] = {}
        self._damaged = False

    def add_older(self, seen: Iterable[Seen]) -> None:
        """A journal before the base: only the batches in it count."""
        for item in seen:
            if isinstance(item.what, BatchHeader):
                self._keep(item, item.what)

    def add(self, content: Content) -> None:
        """The base, or a journal behind it."""
        if content.is_complete:
            self._states = {}
        for lane in content.lanes:
            self._states[key_of(lane.ledger)] = Holding(lane)
        self._damaged |= bool(content.broken) or (content.head is None and content.end > 0)
        for item in content.seen:
            if isinstance(item.what, BatchHeader):
                self._take(item, item.what)
            else:
                self._release(item.what)

    def finish(self) -> Found:
        """What is held."""
        lost: dict[LaneKey, Ranges] = {}
        for key, holding in self._states.items():
            kept = list(self._kept.get(key, {}).values())
            there = Ranges.of(span for one in kept for span in one.present.spans)
            gone = holding.ledger.held - holding.released - there
            if gone:
                lost[key] = gone
                holding.lose(gone)
            for one in kept:
                if one.present & holding.ledger.held:
                    holding.add(one)
        return Found(self._states, lost, self._damaged or bool(lost))

    def _take(self, item: Seen, header: BatchHeader) -> None:
        holding = self._holding(key_of(header))
        try:
            taken = ledger.take(holding.ledger, header, item.entry.at.wall_ns)
        except Refused:
            # It was taken on the strength of something that is damaged now: it comes again.
            return
        holding.ledger = taken.ledger
        self._keep(item, header)

    def _release(self, said: CustodyRelease) -> None:
        key = LaneKey(Life(said.site, said.node, said.epoch), said.lane)
        self._holding(key).release(said.numbers, said.holder, said.mark)

    def _holding(self, key: LaneKey) -> Holding:
        holding = self._states.get(key)
        if holding is None:
            holding = self._states[key] = Holding(CustodyLane(LaneLedger(*key.life, key.lane)))
        return holding

    def _keep(self, item: Seen, header: BatchHeader) -> None:
        entry = item.entry
        place = Place(entry.journal, entry.body_offset, entry.body_bytes)
        kept = Kept.of(header, place, self._taken_ns(entry.at), entry.at)
        there = self._kept.setdefault(key_of(header), {})
        older = there.get(kept.name)
        if older is not None:
            # It was moved to a younger journal, or came again when this one was in doubt.
            kept.taken_ns = min(kept.taken_ns, older.taken_ns)
        there[kept.name] = kept

    def _taken_ns(self, at: Instant) -> int:
        """When something was taken, on the monotonic clock of this boot."""
        sure = at.trusted and self._now.trusted
        age_ns = max(0, self._now.wall_ns - at.wall_ns) if sure else 0
        return self._now.mono_ns - age_ns
