"""Rates: how fast the lanes of a spool grow, and since when records wait, told from its files.

Rates are those of the newest frames, over a span that is said with them: from the first frame in
the journals, of the newest boot, to the last one; of a lane whose newest batch was committed in
that boot under the same clock, from the first frame of that batch. What a lane takes at rest is its
appended bytes times the share to which its newest batch shrank, in whole blocks.
"""

from dataclasses import dataclass
from typing import Final

from mesh.spool.frame import HEADER_BYTES, Whole
from mesh.spool.recovery import LaneFound
from mesh.spool.shelf import Sealed
from mesh.spool.view.sight import Sight
from schemas.errors import DiskFailed, Refused
from schemas.messages import BatchHeader, Epoch, Instant, Lane

__all__ = ["Moment", "Rate", "Recent", "oldest", "rate_of", "recent_of"]

_NS: Final = 1e-9


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
class Recent:
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


def oldest(sight: Sight, lane: Lane) -> Moment | None:
    """Commit of the oldest pending frame of a lane, of whichever life it is."""
    for epoch, lanes in sight.lives.items():
        state = lanes.get(lane)
        if state is not None and (state.sealed or state.fresh):
            return _first(sight, lane, epoch, state)
    return None


def _first(sight: Sight, lane: Lane, epoch: Epoch, state: LaneFound) -> Moment | None:
    frame = state.fresh[0].frame.header if state.fresh else None
    if state.sealed and (frame is None or state.sealed[0].first < frame.first):
        header = _header(sight, lane, epoch, state.sealed[0])
        return Moment(header.first_wall_ns, header.clock_trusted) if header else None
    return Moment(frame.at.wall_ns, frame.at.trusted) if frame else None


def recent_of(sight: Sight) -> Recent | None:
    """What the journals tell of the newest boot; ``None`` where no frame stands in them."""
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
    return Recent(boot, times[0], times[-1], tuple(once.values()))


def rate_of(sight: Sight, lane: Lane, recent: Recent | None) -> Rate | None:
    """How fast a lane grows; ``None`` where too little is there to tell."""
    if recent is None:
        return None
    headers = [frame.header for frame in recent.frames if frame.header.lane is lane]
    records = sum(header.count for header in headers)
    appended = sum(HEADER_BYTES + header.body_bytes for header in headers)
    span_ns = recent.end.mono_ns - recent.start.mono_ns
    shrunk = 1.0
    sealed = sight.survey.lanes[lane].sealed
    batch = _header(sight, lane, sight.identity.epoch, sealed[-1]) if sealed else None
    if batch is not None:
        raw = batch.raw_bytes + HEADER_BYTES * len(batch.frames)
        shrunk = sealed[-1].allocated / raw
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


def _header(sight: Sight, lane: Lane, epoch: Epoch, item: Sealed) -> BatchHeader | None:
    try:
        return sight.batch(lane, epoch, item).header
    except (FileNotFoundError, DiskFailed, Refused):
        # Released meanwhile, or damaged, which is for a check to tell.
        return None
