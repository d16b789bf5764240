"""Running time: how long a spool has been in use, in nanoseconds. Pure.

Age is counted by it. Within one boot it goes on with the monotonic clock, through restarts of the
process too. Across a boot it goes on from the newest frame, plus what the wall clock says lies
between, where the wall clock was trusted on both sides and has not gone back. So no step of a clock
that nobody trusts makes a record older; a device that was switched off without a clock that anybody
trusts keeps its records a little longer than it was told to, never shorter.
"""

from collections.abc import Sequence

from mesh.spool.journal import JournalContent
from schemas.messages import Instant
from schemas.stored import JournalHeader

__all__ = ["running_offset_ns"]


def running_offset_ns(journals: Sequence[JournalContent], now: Instant, boot: bytes) -> int:
    """What to add to the monotonic clock of this boot to get the running time.

    Args:
        journals: what was found on opening, oldest first.
        now: the time now.
        boot: boot id, 16 bytes.
    """
    newest = next((item for item in reversed(journals) if item.header is not None), None)
    if newest is None or newest.header is None:
        return -now.mono_ns
    header = newest.header
    if header.boot == boot and header.mono_ns <= now.mono_ns:
        return header.running_ns - header.mono_ns
    last = _last(newest, header)
    away_ns = now.wall_ns - last.wall_ns if now.trusted and last.trusted else 0
    return last.mono_ns + max(0, away_ns) - now.mono_ns


def _last(newest: JournalContent, header: JournalHeader) -> Instant:
    """The newest frame's time, or the journal's own: its clock is not known to be trusted."""
    if newest.frames:
        return newest.frames[-1].header.at
    return Instant(header.wall_ns, header.running_ns, trusted=False)
