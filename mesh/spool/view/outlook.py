"""An outlook: how each lane of a spool stands, how long its space will last, what goes first.

Everything is told from files, so it can be told beside a running node, after its end, and on
another machine: pending records of all lives, what they take in blocks, rates
(``mesh.spool.view.rates``), and how long that lasts (``mesh.spool.view.forecast``).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mesh.spool import journal
from mesh.spool.frame import HEADER_BYTES
from mesh.spool.lane import LaneSettings
from mesh.spool.recovery import LaneFound
from mesh.spool.retention import Eviction, Shelf, first_to_go, plan
from mesh.spool.view.forecast import Growth, hours_left, hours_until_full, refusal
from mesh.spool.view.rates import Moment, Rate, oldest, rate_of, recent_of
from mesh.spool.view.sight import Sight
from schemas.limits import BLOCK_BYTES
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["GoesFirst", "LaneLife", "LaneOutlook", "Outlook", "outlook"]


@dataclass(frozen=True, slots=True)
class LaneLife:
    """How a lane stands in one life of the spool.

    Args:
        end: one more than the highest number that was written, released or stated.
        records: pending: neither released nor given up.
        bytes: what they take.
        stated: numbers that are durably stated never to arrive, by reason.
        unstated: numbers that the next opening would state, by reason.
        released: numbers that were released.
        retained: of these, what is still there, for a holder that loses it.
        holders: up to where each holder has released.
    """

    end: int
    records: int
    bytes: int
    stated: Mapping[str, Ranges]
    unstated: Mapping[str, Ranges]
    released: Ranges
    retained: Ranges
    holders: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LaneOutlook:
    """How a lane stands.

    Args:
        present: in the present life.
        past: in the lives that are over, the oldest first.
        oldest: commit of the oldest pending frame; ``None`` where nothing is pending, or its batch
            does not open.
        rate: how fast it grows; ``None`` where too little is there to tell.
        hours_left: until it has to give up or refuse records; ``None`` where that never comes, or
            no quota is known.
        settings: how it is kept.
        refuses: why it takes nothing, by how much there is; empty when it does.
    """

    present: LaneLife
    past: Mapping[Epoch, LaneLife]
    oldest: Moment | None
    rate: Rate | None
    hours_left: float | None
    settings: LaneSettings
    refuses: str

    @property
    def records(self) -> int:
        """Pending, of all lives."""
        return self.present.records + sum(life.records for life in self.past.values())

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.present.bytes + sum(life.bytes for life in self.past.values())

    @property
    def losses(self) -> Mapping[str, int]:
        """How many numbers are stated never to arrive, of all lives, by reason."""
        counts: Counter[str] = Counter()
        for life in (self.present, *self.past.values()):
            counts.update({why: len(numbers) for why, numbers in life.stated.items()})
        return counts


@dataclass(frozen=True, slots=True)
class GoesFirst:
    """What of a lane, of one life, would be given up first, were the spool full now."""

    lane: Lane
    epoch: Epoch
    numbers: Ranges
    bytes: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a spool stands.

    Args:
        used_bytes: what journals, the spare ones too, and batches take, in blocks, less what is
            only retained.
        retained_bytes: what batches and journals take of which all was released: it goes first.
        bytes_max: what they may take; ``None`` where nobody says.
        hours_left: until the spool is full; ``None`` where it never is, or no quota is known.
        newest: commit of the newest frame in the journals.
        goes_first: what the spool would give up, were it full now; empty when nothing may go.
        first_to_go: the lanes that give up records when it is full, in that order.
        epochs: how many records are pending of each life, the oldest first, the present one last.
        lanes: how each lane stands, most urgent first.
    """

    used_bytes: int
    retained_bytes: int
    bytes_max: int | None
    hours_left: float | None
    newest: Moment | None
    goes_first: tuple[GoesFirst, ...]
    first_to_go: tuple[Lane, ...]
    epochs: Mapping[Epoch, int]
    lanes: Mapping[Lane, LaneOutlook]


def outlook(
    sight: Sight,
    settings: Mapping[Lane, LaneSettings],
    bytes_max: int | None = None,
    headroom_bytes: int | None = None,
) -> Outlook:
    """How a spool stands.

    Args:
        sight: what was seen of it.
        settings: how its lanes are kept.
        bytes_max: its quota.
        headroom_bytes: what it leaves free on the file system, where that has less to give.
    """
    retained = _retained_bytes(sight)
    used = _taken_bytes(sight) - retained
    allowed = bytes_max
    if bytes_max is not None and headroom_bytes is not None:
        room = used + retained + sight.picture.free_bytes() - headroom_bytes
        allowed = max(0, min(bytes_max, room))
    recent = recent_of(sight)
    rates = {lane: rate_of(sight, lane, recent) for lane in Lane}
    lives = {lane: _lives(sight, lane) for lane in Lane}
    sizes = {lane: sum(life.bytes for life in found.values()) for lane, found in lives.items()}
    growths = {
        lane: Growth(
            sizes[lane],
            0.0 if rate is None else rate.rest_bytes_per_second,
            settings[lane].bytes_max,
        )
        for lane, rate in rates.items()
    }
    # What is in the journals but released, and the spare ones, count for all lanes alike.
    room_bytes = None if allowed is None else allowed - (used - sum(sizes.values()))
    present = sight.identity.epoch
    lanes = {
        lane: LaneOutlook(
            present=lives[lane][present],
            past={epoch: life for epoch, life in lives[lane].items() if epoch != present},
            oldest=oldest(sight, lane),
            rate=rates[lane],
            hours_left=hours_left(lane, growths, settings, room_bytes),
            settings=settings[lane],
            refuses=refusal(lane, settings[lane], sizes[lane], used, allowed),
        )
        for lane in Lane
    }
    return Outlook(
        used_bytes=used,
        retained_bytes=retained,
        bytes_max=allowed,
        hours_left=hours_until_full(growths, room_bytes),
        newest=Moment(recent.end.wall_ns, recent.end.trusted) if recent else None,
        goes_first=_goes_first(sight, settings, used if allowed is None else allowed),
        first_to_go=tuple(lane for lane in first_to_go(settings) if lanes[lane].records),
        epochs={
            epoch: sum(found[epoch].records for found in lives.values() if epoch in found)
            for epoch in sight.lives
        },
        lanes=lanes,
    )


def _lives(sight: Sight, lane: Lane) -> dict[Epoch, LaneLife]:
    """How a lane stands in each life that it had a number in, and in the present one."""
    return {
        epoch: LaneLife(
            end=sight.end(lane) if epoch == sight.identity.epoch else found.mark.next_seq,
            records=len(sight.held(lane, epoch) - found.released),
            bytes=_bytes(found),
            stated=sight.stated(lane, epoch),
            unstated=found.newly,
            released=found.released,
            retained=sight.retained(lane, epoch),
            holders=_holders(sight, lane, epoch),
        )
        for epoch, lanes in sight.lives.items()
        if (found := lanes.get(lane)) is not None
    }


def _bytes(state: LaneFound) -> int:
    frames = sum(HEADER_BYTES + item.frame.header.body_bytes for item in state.fresh)
    return frames + sum(item.allocated for item in state.sealed)


def _taken_bytes(sight: Sight) -> int:
    files = [content.size for content in sight.survey.journals]
    files += journal.spares(sight.picture)[0].values()
    return sum(map(_in_blocks, files)) + sum(
        item.allocated
        for lanes in sight.lives.values()
        for state in lanes.values()
        for item in (*state.sealed, *state.leaving, *state.spoiled, *state.retained)
    )


def _retained_bytes(sight: Sight) -> int:
    return sum(_in_blocks(content.size) for content in sight.retained_journals()) + sum(
        item.allocated
        for lanes in sight.lives.values()
        for state in lanes.values()
        for item in state.retained
    )


def _in_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _goes_first(
    sight: Sight, settings: Mapping[Lane, LaneSettings], limit: int
) -> tuple[GoesFirst, ...]:
    shelves = [
        Shelf(epoch, lane, state.sealed, _bytes(state))
        for epoch, lanes in sight.lives.items()
        for lane, state in lanes.items()
    ]
    by_place: dict[tuple[Lane, Epoch], list[Eviction]] = {}
    for eviction in plan(shelves, settings, limit + 1, limit):
        by_place.setdefault((eviction.lane, eviction.epoch), []).append(eviction)
    return tuple(
        GoesFirst(
            lane,
            epoch,
            Ranges.of([(item.batch.first, item.batch.stop) for item in items]),
            sum(item.batch.allocated for item in items),
        )
        for (lane, epoch), items in by_place.items()
    )


def _holders(sight: Sight, lane: Lane, epoch: Epoch) -> dict[str, int]:
    prefix = f"{epoch}/{lane}/"
    holders = sight.survey.cursor.holders.items()
    return {key.removeprefix(prefix): stop for key, stop in holders if key.startswith(prefix)}
