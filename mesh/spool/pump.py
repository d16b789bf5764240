"""The commit pump: numbers records, gathers them, and hands them to the writer one group at a time.

Natural group commit: while the writer syncs one group, the next one gathers. What somebody awaits
is handed over at the end of the loop's turn; what nobody awaits lingers for a few milliseconds, or
for its lane's window, and rides along with whatever goes first. Bounded: what waits has a limit in
bytes, and each lane one in numbers; beyond them ``append`` refuses at once.

A lane that refuses says so at once: it is switched off, or full and not one that gives up its
oldest. So do all while more stands in closed journals than the chores can be allowed to fall behind
by, since what is not sealed cannot be given up. What gathers is cut before it exceeds
``COMMIT_GROUP_BYTES_MAX``, between two appends; each piece is one group with one future, which
serves all its appends. So what a future says is exact, and a group of a thousand costs the loop one
wake-up.
"""

import asyncio
from collections import deque
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
    NUMBERS_RESERVED,
    PENDING_BYTES_MAX,
    RECORD_BYTES_MAX,
)
from schemas.messages import Epoch, Explained, Instant, Lane
from schemas.ranges import Ranges

__all__ = ["Appended", "Pump"]

_RETRY_SECONDS: Final = 5.0
_AT_ONCE: Final = 0.0


class Appended(NamedTuple):
    """Records that took their numbers.

    ``settled`` becomes true once they are durable, false once they are given up; it never raises.
    All records of a group share it: who may be cancelled while waiting shields it.
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
        journals: the journals that are there and will not be written again, by number, oldest
            first, and what they occupy.
        changed: called after each group that became durable, and when the disk has failed.
        journal_bytes_max: a journal of at least so many bytes is followed by a new one.
        unsealed_bytes_max: beyond so many in closed journals nothing is taken.
        running_offset_ns: what to add to the monotonic clock for the running time.
    """

    def __init__(
        self,
        lanes: Mapping[Lane, LaneState],
        epoch: Epoch,
        writer: Writer,
        resources: _Resources,
        journals: dict[int, int],
        changed: Callable[[], None],
        journal_bytes_max: int,
        unsealed_bytes_max: int,
        running_offset_ns: int,
    ) -> None:
        self._lanes = lanes
        self._epoch = epoch
        self._writer = writer
        self._resources = resources
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._journal_bytes_max = journal_bytes_max
        self._unsealed_bytes_max = unsealed_bytes_max
        self.running_offset_ns = running_offset_ns
        self._busy = False
        self._waiting_bytes = 0
        self._gathered_bytes = 0
        self._settled: asyncio.Future[bool] = self._loop.create_future()
        self._cuts: deque[tuple[asyncio.Future[bool], dict[Lane, int]]] = deque()
        self._urgent = False
        self._shut = False
        self._timer: asyncio.Handle | None = None
        self._resuming = False
        self._retry: asyncio.Handle | None = None
        self._due: float | None = None
        self._rotate = True
        self._closing = self._closed = False
        self.journal = 0
        self.journal_bytes = self.journal_allocated = 0
        self.journal_since_ns = 0
        """When the open journal took its first group, in running time."""
        self.closed_journals = journals
        self.reusable: set[int] = set()
        """Of these, the ones of which no sync ever failed."""
        self.behind = False
        """Whether more waits to be sealed than may."""
        self.spares: dict[str, int] = {}
        """The spares that are there, and their sizes; whoever makes one says so."""
        self.degraded = ""

    def append(self, lane: Lane, records: list[bytes], *, awaited: bool = True) -> Appended:
        """As ``Spool.append``."""
        state = self._lanes[lane]
        count = len(records)
        if count == 1:
            size = longest = len(records[0])
        else:
            sizes = [*map(len, records)]
            size, longest = sum(sizes), max(sizes)
        first = state.next_seq
        waiting = self._waiting_bytes + size
        gathered = self._gathered_bytes + size
        if (
            self._shut
            or state.refuses
            or longest > RECORD_BYTES_MAX
            or size > COMMIT_GROUP_BYTES_MAX
            or first + count > state.reserved
            or waiting > PENDING_BYTES_MAX
        ):
            self._check(lane, state, count, size, longest)
        if gathered > COMMIT_GROUP_BYTES_MAX:
            self._cut()
            gathered = size
        state.next_seq = first + count
        state.waiting += records
        state.waiting_bytes += size
        self._waiting_bytes = waiting
        self._gathered_bytes = gathered
        if not (awaited and self._urgent):
            self._wake(_AT_ONCE if awaited else state.settings.linger_seconds)
        return Appended(self._epoch, first, count, self._settled)

    def _check(self, lane: Lane, state: LaneState, count: int, size: int, longest: int) -> None:
        """Refuses what cannot be taken; says what would be right."""
        if size > COMMIT_GROUP_BYTES_MAX or count > NUMBERS_RESERVED:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"{count} records of {size} bytes at once for lane {lane}, at most "
                f"{NUMBERS_RESERVED} of {COMMIT_GROUP_BYTES_MAX}",
            )
        if longest > RECORD_BYTES_MAX:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"a record of {longest} bytes for lane {lane}, at most {RECORD_BYTES_MAX}",
            )
        if self.degraded or self._closing:
            raise DiskFailed(self.degraded or "the spool is closed")
        if self._shut and lane is not Lane.ACCOUNT:
            raise Overloaded(
                f"{self._unsealed_bytes} bytes in closed journals wait to be sealed, at most "
                f"{self._unsealed_bytes_max}"
            )
        if state.refuses:
            raise Overloaded(f"lane {lane}: {state.refuses}")
        if self._waiting_bytes + size > PENDING_BYTES_MAX:
            raise Overloaded(
                f"{self._waiting_bytes} bytes wait for the disk, at most {PENDING_BYTES_MAX}"
            )
        if state.next_seq + count > state.reserved:
            state.short_of = max(state.short_of, count)
            self._wake(_AT_ONCE)
            raise Overloaded(
                f"lane {lane}: all numbers below {state.reserved} are handed out; more are "
                "reserved with the next commit"
            )

    async def commit(self) -> bool:
        """Commits what waits now; whether that succeeded."""
        if self._closed:
            return False
        gathered = [*(settled for settled, _ in self._cuts), self._settled]
        self._wake(_AT_ONCE)
        return all([await asyncio.shield(settled) for settled in gathered])

    def rotate(self) -> None:
        """Begins a new journal with the next group, and sees to it that there is one.

        Its header states what is explained.
        """
        self._rotate = True
        self._wake(_AT_ONCE)

    def retired(self, number: int) -> None:
        """A closed journal is gone."""
        del self.closed_journals[number]
        self.reusable.discard(number)
        self._judge()

    @property
    def _unsealed_bytes(self) -> int:
        return sum(self.closed_journals.values())

    def _judge(self) -> None:
        """Whether anything is taken now; asked only when something has changed."""
        self.behind = self._unsealed_bytes > self._unsealed_bytes_max
        self._shut = bool(self.degraded) or self._closing or self.behind

    async def close(self) -> None:
        """Commits what waits, and says in the journal with which numbers to go on.

        Nothing is taken from now on, and no failure is tried again.
        """
        self._closing = self._shut = True
        await self.commit()
        self._closed = True
        for handle in (self._timer, self._retry):
            if handle is not None:
                handle.cancel()
        await self._loop.run_in_executor(self._resources.writer, self._writer.close)

    def _cut(self) -> None:
        """What gathered so far is a group; the next append begins another."""
        settled, _ = self._all()
        marks = {lane: state.next_seq for lane, state in self._lanes.items()}
        self._cuts.append((settled, marks))

    def _all(self) -> tuple["asyncio.Future[bool]", Mapping[Lane, int]]:
        """Takes out what gathered, up to the last record of each lane."""
        settled, self._settled = self._settled, self._loop.create_future()
        self._gathered_bytes = 0
        return settled, {}

    def _wake(self, delay: float) -> None:
        """Sees to it that what waits is handed over within ``delay`` seconds."""
        self._urgent |= not delay
        due = self._loop.time() + delay
        if self._due is not None and self._due <= due:
            return
        self._due = due
        if not (self._busy or self._resuming):
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._due is None or self._closed:
            self._timer = None
        elif self._due <= self._loop.time():
            self._timer = self._loop.call_soon(self._hand_over)
        else:
            self._timer = self._loop.call_at(self._due, self._hand_over)

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:
            return
        self._busy = True
        self._due = None
        self._urgent = False
        settled, marks = self._cuts.popleft() if self._cuts else self._all()
        group = self._next_group(marks)
        if self._cuts or self._gathered_bytes:
            self._due = self._loop.time()
            self._urgent = True
        job = self._loop.run_in_executor(self._resources.writer, self._writer.commit, group)
        job.add_done_callback(partial(self._after_commit, group, settled))

    def _next_group(self, marks: Mapping[Lane, int]) -> Group:
        lanes = self._lanes.items()
        entries = []
        for lane, state in lanes:
            stop = marks.get(lane, state.next_seq)
            if state.waiting and (entry := state.hand_over(lane, stop)) is not None:
                entries.append(entry)
                self._waiting_bytes -= entry.size
        rotate = self._rotate or self.journal_bytes >= self._journal_bytes_max
        closing = self._closing and not any(state.waiting for _, state in lanes)
        reserve = {}
        standing = {}
        for lane, state in lanes:
            wanted = 0 if closing else state.wanted_reservation()
            if wanted:
                reserve[lane] = wanted
            reserved = state.next_seq if closing else wanted or state.reserved
            standing[lane] = state.standing(reserved)
        self._rotate = False
        now = self._resources.clock.now()
        at = Instant(now.wall_ns, now.mono_ns + self.running_offset_ns, now.trusted)
        # The largest, since what is written over costs a third less than what grows.
        spare = max(self.spares, key=self.spares.__getitem__, default="")
        return Group(at, entries, standing, reserve, rotate, closing, spare, now.mono_ns)

    def _after_commit(
        self,
        group: Group,
        settled: "asyncio.Future[bool]",
        job: "asyncio.Future[Committed]",
    ) -> None:
        self._busy = False
        failure = DiskFailed("the writer was stopped") if job.cancelled() else job.exception()
        if failure is None:
            self._take_commit(group, job.result())
        else:
            self._degrade(group, failure)
        if not settled.done():
            settled.set_result(failure is None)
        # Behind all who go on now: what they append is a group at the end of that very turn.
        self._resuming = True
        self._loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        self._resuming = False
        if self._due is not None and not self._closed:
            if self._due <= self._loop.time():
                self._hand_over()
            else:
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
        if committed.journal != self.journal:
            self.spares.pop(group.spare, None)
            self.journal_since_ns = group.at.mono_ns
            if self.journal:
                self.closed_journals[self.journal] = self.journal_allocated
        self.reusable.update(committed.sound)
        self.closed_journals |= dict.fromkeys(committed.abandoned, 0)
        self._judge()
        self.journal, self.journal_bytes = committed.journal, committed.journal_bytes
        self.journal_allocated = committed.journal_allocated
        self._changed()

    def _degrade(self, group: Group, failure: BaseException) -> None:
        for entry in group.entries:
            numbers = Ranges(((entry.first, entry.first + len(entry.records)),))
            self._lanes[entry.lane].explain(Explained.SHED, numbers)
        # Where it is a spare again, the chores will find it.
        self.spares.pop(group.spare, None)
        if not self.degraded:
            self.degraded = str(failure) or repr(failure)
            self._shut = True
            self._changed()
            self._resources.observer.observe(events.SpoolDegraded(self.degraded))
        self._rotate = True
        if self._retry is not None:
            self._retry.cancel()
        if not self._closed:
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._wake, _AT_ONCE)
