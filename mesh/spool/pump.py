"""The commit pump: numbers records, gathers them, and hands them to the writer one group at a time.

Natural group commit: while the writer syncs one group, the next one gathers. What somebody awaits
is handed over at the end of the loop's turn; what nobody awaits lingers for a few milliseconds, or
for its lane's window, and rides along with whatever goes first. Bounded: what waits has a limit in
bytes, and each lane one in numbers; beyond them ``append`` refuses at once.

One future serves all appends of a group, so a group of a thousand costs the loop one wake-up.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple, Protocol

from mesh.ports import Clock, Observer
from mesh.spool import events
from mesh.spool.commit import Committed, Group, Located, Writer
from mesh.spool.lane import LaneState
from schemas.errors import DiskFailed, Overloaded, Refused, RefusedBecause
from schemas.limits import (
    COMMIT_GROUP_BYTES_MAX,
    JOURNAL_BYTES_MAX,
    PENDING_BYTES_MAX,
    RECORD_BYTES_MAX,
)
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges

__all__ = ["Appended", "Pump"]

_RETRY_SECONDS: Final = 5.0
_AT_ONCE: Final = 0.0


class Appended(NamedTuple):
    """Records that took their numbers.

    ``settled`` becomes true once they are durable, false once they are given up; it never raises.
    """

    epoch: Epoch
    first: int
    records: int
    settled: "asyncio.Future[bool]"


class _Resources(Protocol):
    """What of the spool's resources a pump needs."""

    @property
    def clock(self) -> Clock: ...
    @property
    def writer(self) -> Executor: ...
    @property
    def observer(self) -> Observer: ...


class Pump:
    """The only caller of the writer.

    Args:
        lanes: the state of each lane, shared with the spool on the loop.
        epoch: the present life.
        writer: owns the journal.
        resources: clock, the writer's executor, observer.
        journals: numbers of journals that are there and will not be written again.
        committed: called after each group that became durable.
    """

    def __init__(
        self,
        lanes: Mapping[Lane, LaneState],
        epoch: Epoch,
        writer: Writer,
        resources: _Resources,
        journals: list[int],
        committed: Callable[[], None],
    ) -> None:
        self._lanes = lanes
        self._epoch = epoch
        self._writer = writer
        self._resources = resources
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._journal = 0
        self._busy = False
        self._waiting_bytes = 0
        self._settled: asyncio.Future[bool] = self._loop.create_future()
        self._timer: asyncio.Handle | None = None
        self._due: float | None = None
        self._rotate = True
        self._closing = False
        self.closed_journals = journals
        self.journal_bytes = 0
        self.degraded = ""

    def append(self, lane: Lane, records: list[bytes], *, awaited: bool = True) -> Appended:
        """As ``Spool.append``."""
        state = self._lanes[lane]
        size = sum(map(len, records))
        if size > RECORD_BYTES_MAX and (longest := max(map(len, records))) > RECORD_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"a record of {longest} bytes for lane {lane}, at most {RECORD_BYTES_MAX}",
            )
        if self.degraded:
            raise DiskFailed(self.degraded)
        if self._waiting_bytes + size > PENDING_BYTES_MAX:
            raise Overloaded(
                f"{self._waiting_bytes} bytes wait for the disk, at most {PENDING_BYTES_MAX}"
            )
        if state.next_seq + len(records) > state.reserved:
            raise Overloaded(
                f"lane {lane}: all numbers below {state.reserved} are handed out; more are "
                "reserved with the next commit"
            )
        first = state.take(records, size)
        self._waiting_bytes += size
        self._wake(_AT_ONCE if awaited else state.settings.linger_seconds)
        return Appended(self._epoch, first, len(records), self._settled)

    async def commit(self) -> bool:
        """Commits what waits now; whether that succeeded."""
        settled = self._settled
        self._wake(_AT_ONCE)
        return await asyncio.shield(settled)

    def rotate(self) -> None:
        """Begins a new journal with the next group, and sees to it that there is one.

        Its header states what is explained.
        """
        self._rotate = True
        self._wake(_AT_ONCE)

    async def close(self) -> None:
        """Commits what waits, and says in the journal with which numbers to go on."""
        await self.commit()
        self._closing = True
        await self.commit()

    def _wake(self, delay: float) -> None:
        """Sees to it that what waits is handed over within ``delay`` seconds."""
        due = self._loop.time() + delay
        if self._due is not None and self._due <= due:
            return
        self._due = due
        if self._busy:
            return
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._due is None:
            self._timer = None
        elif self._due <= self._loop.time():
            self._timer = self._loop.call_soon(self._hand_over)
        else:
            self._timer = self._loop.call_at(self._due, self._hand_over)

    def _hand_over(self) -> None:
        self._timer = None
        if self._busy:
            return
        self._busy = True
        self._due = None
        group, all_of_it = self._next_group()
        settled = None
        if all_of_it:
            settled, self._settled = self._settled, self._loop.create_future()
        else:
            self._due = self._loop.time()
        job = self._loop.run_in_executor(self._resources.writer, self._writer.commit, group)
        job.add_done_callback(partial(self._after_commit, group, settled))

    def _next_group(self) -> tuple[Group, bool]:
        entries = []
        room = COMMIT_GROUP_BYTES_MAX
        for lane, state in self._lanes.items():
            if room <= 0:
                break
            entry, size = state.hand_over(lane, room)
            if entry is not None:
                entries.append(entry)
                room -= size
                self._waiting_bytes -= size
        all_of_it = not any(state.waiting for state in self._lanes.values())
        rotate = self._rotate or self.journal_bytes >= JOURNAL_BYTES_MAX
        closing = self._closing and all_of_it
        reserve = {}
        standing = {}
        for lane, state in self._lanes.items():
            wanted = 0 if closing else state.wanted_reservation()
            if wanted:
                reserve[lane] = wanted
            reserved = state.next_seq if closing else wanted or state.reserved
            standing[lane] = state.standing(reserved)
        self._rotate = False
        at = self._resources.clock.now()
        return Group(at, entries, standing, reserve, rotate, closing), all_of_it

    def _after_commit(
        self,
        group: Group,
        settled: "asyncio.Future[bool] | None",
        job: "asyncio.Future[Committed]",
    ) -> None:
        self._busy = False
        failure = job.exception()
        if failure is None:
            self._take_commit(group, job.result())
        else:
            self._degrade(group, failure)
        if settled is not None and not settled.done():
            settled.set_result(failure is None)
        if self._due is not None:
            self._arm()

    def _take_commit(self, group: Group, committed: Committed) -> None:
        if self.degraded:
            self.degraded = ""
            self._resources.observer.observe(events.SpoolRecovered())
        for lane, reserved in group.reserve.items():
            self._lanes[lane].reserved = max(self._lanes[lane].reserved, reserved)
        by_lane: dict[Lane, list[Located]] = {}
        for located in committed.frames:
            if located.frame.header.lane is not None:
                by_lane.setdefault(located.frame.header.lane, []).append(located)
        for lane, frames in by_lane.items():
            self._lanes[lane].backlog.add(frames)
        if committed.journal != self._journal and self._journal:
            self.closed_journals.append(self._journal)
        self._journal, self.journal_bytes = committed.journal, committed.journal_bytes
        self._committed()

    def _degrade(self, group: Group, failure: BaseException) -> None:
        for entry in group.entries:
            numbers = Ranges(((entry.first, entry.first + len(entry.records)),))
            self._lanes[entry.lane].explain(Explained.SHED, numbers)
        if not self.degraded:
            self.degraded = str(failure) or repr(failure)
            self._resources.observer.observe(events.SpoolDegraded(self.degraded))
        self._rotate = True
        self._loop.call_later(_RETRY_SECONDS, self._wake, _AT_ONCE)
