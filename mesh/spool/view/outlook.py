"""An outlook: how each lane of a spool stands, how long its space will last, what goes first.

Everything is told from files, so it can be told beside a running node, after its end, and on
another machine. Rates are those of the newest frames, over a span that is said with them: from the
first frame in the journals, of the newest boot, to the last one; of a lane whose newest batch was
committed in that boot under the same clock, from the first frame of that batch. What a lane takes
at rest is its appended bytes times the share to which its newest batch shrank.

*Hours left* of a lane: until it would have to give up its own oldest records, when all that is less
urgent was given up before. So with the lane and those at least as urgent taking ``b`` bytes now and
growing by ``r``, it is ``(bytes_max - b) / r``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mesh.spool.frame import HEADER_BYTES, Whole
from mesh.spool.lane import LaneSettings
from mesh.spool.recovery import LaneFound
from mesh.spool.retention import Shelf, plan
from mesh.spool.shelf import Sealed
from mesh.spool.view.sight import Sight
from schemas.errors import DiskFailed, Refused
from schemas.messages import BatchHeader, Epoch, Instant, Lane
from schemas.ranges import Ranges

__all__ = ["GoesFirst", "LaneOutlook", "Moment", "Outlook", "Rate", "outlook"]

_NS: Final = 1e-9
_HOUR_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time on the wall, and whether the clock that told it was trusted."""

    wall_ns: int
    trusted: bool


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a lane grows.

    Args:
        records_per_second: records appended.
        bytes_per_second: what they take in the journal.
        rest_bytes_per_second: what they will take as batches; the same until there is a batch.
        span_seconds: over how long it was measured, up to the newest frame of the spool.
    """

    records_per_second: float
    bytes_per_second: float
    rest_bytes_per_second: float
    span_seconds: float


@dataclass(frozen=True, slots=True)
class LaneOutlook:
    """How a lane stands.

    Args:
        end: one more than the highest number that was written, released or stated.
        records: pending: neither released nor given up.
        bytes: what they take.
        oldest: commit of the oldest pending frame; ``None`` where nothing is pending, or its batch
            does not open.
        rate: how fast it grows; ``None`` where too little is there to tell.
        hours_left: as above; ``None`` where nothing grows or no quota is known.
        settings: how it is kept.
        stated: numbers that are durably stated never to arrive, by reason.
        unstated: numbers that the next opening would state, by reason.
        released: numbers that were released.
        holders: up to where each holder has released.
    """

    end: int
    records: int
    bytes: int
    oldest: Moment | None
    rate: Rate | None
    hours_left: float | None
    settings: LaneSettings
    stated: Mapping[str, Ranges]
    unstated: Mapping[str, Ranges]
    released: Ranges
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GoesFirst:
    """What of a lane would be given up first, were the spool full now."""

    lane: Lane
    numbers: Ranges
    bytes: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a spool stands.

    Args:
        used_bytes: what journals and batches take.
        bytes_max: what they may take; ``None`` where nobody says.
        hours_left: until the spool is full; ``None`` where nothing grows or no quota is known.
        newest: commit of the newest frame in the journals.
        goes_first: what the spool would give up, were it full now; empty when nothing may go.
        lanes: how each lane stands, most urgent first.
    """

    used_bytes: int
    bytes_max: int | None
    hours_left: float | None
    newest: Moment | None
    goes_first: tuple[GoesFirst, ...]
    lanes: Mapping[Lane, LaneOutlook]


@dataclass(frozen=True, slots=True)
class _Recent:
    """What the journals tell of the newest boot.

    Args:
        boot: its id.
        start: the oldest frame's commit.
        end: the newest frame's commit.
        frames: its frames, each once.
    """

    boot: bytes
    start: Instant
    end: Instant
    frames: tuple[Whole, ...]


def outlook(
    sight: Sight, settings: Mapping[Lane, LaneSettings], bytes_max: int | None = None
) -> Outlook:
    """How a spool stands.

    Args:
        sight: what was seen of it.
        settings: how its lanes are kept.
        bytes_max: its quota.
    """
    found = sight.survey.lanes
    recent = _recent(sight)
    sizes = {lane: _bytes(state) for lane, state in found.items()}
    rates = {lane: _rate(sight, lane, recent) for lane in found}
    used = _used_bytes(sight)
    # What is in the journals but released counts for all lanes alike.
    rest = used - sum(sizes.values())
    lanes = {
        lane: LaneOutlook(
            end=sight.end(lane),
            records=len(sight.held(lane) - state.released),
            bytes=sizes[lane],
            oldest=_oldest(sight, lane),
            rate=rates[lane],
            hours_left=_hours_left(lane, sizes, rates, rest, bytes_max),
            settings=settings[lane],
            stated=sight.stated(lane),
            unstated=state.newly,
            released=state.released,
            holders=_holders(sight, lane),
        )
        for lane, state in sorted(found.items(), key=lambda item: item[0].priority)
    }
    least = max(found, key=lambda lane: lane.priority)
    return Outlook(
        used,
        bytes_max,
        lanes[least].hours_left,
        Moment(recent.end.wall_ns, recent.end.trusted) if recent else None,
        _goes_first(sight.identity.epoch, found, settings, used, bytes_max),
        lanes,
    )


def _bytes(state: LaneFound) -> int:
    frames = sum(HEADER_BYTES + item.frame.header.body_bytes for item in state.fresh)
    return frames + sum(item.size for item in state.sealed)


def _used_bytes(sight: Sight) -> int:
    journals = sum(len(content.data) for content in sight.survey.journals)
    return journals + sum(
        item.size
        for state in sight.survey.lanes.values()
        for item in (*state.sealed, *state.leaving, *state.spoiled)
    )


def _hours_left(
    lane: Lane,
    sizes: Mapping[Lane, int],
    rates: Mapping[Lane, Rate | None],
    rest: int,
    bytes_max: int | None,
) -> float | None:
    urgent = [other for other in sizes if other.priority <= lane.priority]
    told = [rate for other in urgent if (rate := rates[other]) is not None]
    growth = sum(rate.rest_bytes_per_second for rate in told)
    if bytes_max is None or growth <= 0:
        return None
    left = max(0, bytes_max - rest - sum(sizes[other] for other in urgent))
    return left / growth / _HOUR_SECONDS


def _goes_first(
    epoch: Epoch,
    found: Mapping[Lane, LaneFound],
    lanes: Mapping[Lane, LaneSettings],
    used: int,
    bytes_max: int | None,
) -> tuple[GoesFirst, ...]:
    limit = used if bytes_max is None else bytes_max
    shelves = [Shelf(epoch, lane, state.sealed, _bytes(state)) for lane, state in found.items()]
    evictions = plan(shelves, lanes, limit + 1, limit)
    by_lane: dict[Lane, list[Sealed]] = {}
    for eviction in evictions:
        by_lane.setdefault(eviction.lane, []).append(eviction.batch)
    return tuple(
        GoesFirst(
            lane,
            Ranges.of([(item.first, item.stop) for item in items]),
            sum(item.size for item in items),
        )
        for lane, items in by_lane.items()
    )


def _holders(sight: Sight, lane: Lane) -> dict[str, int]:
    prefix = f"{sight.identity.epoch}/{lane}/"
    holders = sight.survey.cursor.holders.items()
    return {key.removeprefix(prefix): stop for key, stop in holders if key.startswith(prefix)}


# --- times -----------------------------------------------------------------------------------


def _oldest(sight: Sight, lane: Lane) -> Moment | None:
    state = sight.survey.lanes[lane]
    frame = state.fresh[0].frame.header if state.fresh else None
    if state.sealed and (frame is None or state.sealed[0].first < frame.first):
        header = _header(sight, lane, state.sealed[0])
        return Moment(header.first_wall_ns, header.clock_trusted) if header else None
    return Moment(frame.at.wall_ns, frame.at.trusted) if frame else None


def _recent(sight: Sight) -> _Recent | None:
    frames = sight.frames()
    if not frames:
        return None
    boot = frames[-1].header.owner.boot
    once = {
        (frame.header.lane, frame.header.first): frame
        for frame in frames
        if frame.header.owner.boot == boot
    }
    times = sorted((frame.header.at for frame in once.values()), key=lambda at: at.mono_ns)
    return _Recent(boot, times[0], times[-1], tuple(once.values()))


def _rate(sight: Sight, lane: Lane, recent: _Recent | None) -> Rate | None:
    if recent is None:
        return None
    headers = [frame.header for frame in recent.frames if frame.header.lane is lane]
    records = sum(header.count for header in headers)
    appended = sum(HEADER_BYTES + header.body_bytes for header in headers)
    span_ns = recent.end.mono_ns - recent.start.mono_ns
    shrunk = 1.0
    sealed = sight.survey.lanes[lane].sealed
    batch = _header(sight, lane, sealed[-1]) if sealed else None
    if batch is not None:
        raw = batch.raw_bytes + HEADER_BYTES * len(batch.frames)
        shrunk = sealed[-1].size / raw
        # Between a clock that was trusted and one that was not lies a step of it.
        same = batch.boot == recent.boot and batch.clock_trusted == recent.end.trusted
        earlier_ns = recent.end.wall_ns - batch.first_wall_ns
        if same and earlier_ns > span_ns:
            # Frames that are in the journals and in this batch are counted once.
            later = [header for header in headers if header.first > batch.last]
            records = batch.count + sum(header.count for header in later)
            appended = raw + sum(HEADER_BYTES + header.body_bytes for header in later)
            span_ns = earlier_ns
    if span_ns <= 0:
        return None
    seconds = span_ns * _NS
    grown = appended / seconds
    return Rate(records / seconds, grown, grown * shrunk, seconds)


def _header(sight: Sight, lane: Lane, item: Sealed) -> BatchHeader | None:
    try:
        return sight.batch(lane, sight.identity.epoch, item).header
    except (FileNotFoundError, DiskFailed, Refused):
        # Released meanwhile, or damaged, which is for a check to tell.
        return None
