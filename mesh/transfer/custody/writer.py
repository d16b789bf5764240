"""The writer: makes groups of entries durable. Runs in the writer thread, nowhere else.

A group costs one write and one sync. A journal of which a sync failed is never synced again: the
kernel may have dropped what it could not write, and would then report success (Rebello et al., "Can
Applications Recover from fsync Failures?", USENIX ATC 2020). The group, still in memory, goes to a
new journal.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from mesh.ports import Disk
from mesh.transfer.custody.entry import Draft, Entry, Kind
from mesh.transfer.custody.journal import FOLDER, Journal, journal_path
from schemas import wire
from schemas.errors import DiskFailed, DiskFull
from schemas.messages import Instant
from schemas.stored import CustodyHead, CustodyLane

__all__ = ["RESERVE_BYTES", "Writer", "Written"]

RESERVE_BYTES: Final = 1 << 20
"""What a store keeps for a full disk, so that releases can still be stated and space be freed."""
_RESERVE: Final = f"{FOLDER}/reserve"


class Written(NamedTuple):
    """What a group became: where its entries stand, and how the open journal stands."""

    entries: Sequence[Entry]
    journal: int
    size: int


class Writer:
    """Owns the open journal.

    Args:
        disk: the folder of the store.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._journal: Journal | None = None

    @property
    def is_open(self) -> bool:
        """Whether something can be appended."""
        return self._journal is not None

    def append(self, drafts: Sequence[Draft], at: Instant) -> Written:
        """Appends a group to the open journal; durable on return.

        Raises:
            DiskFull: nothing was appended; while ``is_open`` a smaller group may fit.
            DiskFailed: nobody knows; the journal is closed.
        """
        journal = self._journal
        assert journal is not None, "a journal was begun"
        try:
            entries = journal.append(drafts, at)
        except DiskFull:
            self._cut_back(journal)
            raise
        except BaseException:
            self.close()
            raise
        return Written(entries, journal.number, journal.size)

    def begin(
        self,
        head: CustodyHead,
        lanes: Sequence[CustodyLane],
        drafts: Sequence[Draft],
        at: Instant,
    ) -> Written:
        """Begins a journal with a snapshot and a group; all of it durable on return.

        Raises:
            DiskFailed: nothing was begun, and no journal is open.
        """
        self.close()
        snapshot = [Draft(Kind.HEAD, wire.encode(head))]
        snapshot += [Draft(Kind.LANE, wire.encode(lane)) for lane in lanes]
        self._journal, entries = Journal.create(self._disk, head, [*snapshot, *drafts], at)
        return Written(entries[len(snapshot) :], head.number, self._journal.size)

    def remove(self, numbers: Sequence[int]) -> list[int]:
        """Removes journals that nobody needs; returns those that are gone."""
        gone = []
        for number in numbers:
            try:
                self._disk.unlink(journal_path(number))
            except DiskFailed:
                break
            gone.append(number)
        return gone

    def reserve(self) -> None:
        """Sees to it that there is a reserve; where there is no room for one, there is none."""
        if _RESERVE.rpartition("/")[2] in self._disk.list(FOLDER):
            return
        try:
            file = self._disk.open(_RESERVE, "create")
        except DiskFailed:
            return
        try:
            file.write(bytes(RESERVE_BYTES), 0)
        except DiskFailed:
            self.spend_reserve()
        finally:
            file.close()

    def spend_reserve(self) -> None:
        """Gives the reserve's space to what must be written now."""
        try:
            self._disk.unlink(_RESERVE)
        except DiskFailed:
            return

    def close(self) -> None:
        """Gives the open journal's file back."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _cut_back(self, journal: Journal) -> None:
        try:
            journal.cut_back()
        except DiskFailed:
            self.close()
