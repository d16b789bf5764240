"""Opening: whose the store is, and what stands in it. Changes nothing but the folders.

Reads the snapshots from the newest journal backwards until one is whole, then the journals from the
oldest on: those before that snapshot by the heads of their batches, the others byte by byte. Memory
is bounded by one journal and by what is held. Nothing but another owner or another format stands in
the way of opening.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ports import Disk
from mesh.transfer.custody import quarantine
from mesh.transfer.custody.entry import is_of_another_version
from mesh.transfer.custody.journal import (
    FOLDER,
    Content,
    journal_path,
    numbers,
    read,
    read_snapshot,
    walk,
)
from mesh.transfer.custody.recovery import Found, Recovery
from schemas.errors import DiskFailed, StoreUnusable
from schemas.messages import Epoch, Instant

__all__ = ["LOCK", "Opened", "open_store"]

LOCK: Final = "LOCK"
_ID_BYTES: Final = 16
_LIFE_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening found.

    Args:
        store: id of the store.
        life: the holder's life from now on.
        reason: why that is a new one; empty where it is not.
        number: of the next journal.
        ends: up to where each journal counts.
        useless: journals that were begun and never counted.
        found: what is held.
    """

    store: bytes
    life: Epoch
    reason: str
    number: int
    ends: Mapping[int, int]
    useless: tuple[int, ...]
    found: Found


def open_store(
    disk: Disk, holder: str, machine: bytes, entropy: Callable[[int], bytes], now: Instant
) -> Opened:
    """Takes the lock, makes the folders, reads what there is.

    Args:
        disk: the folder of the store.
        holder: whose custody it is.
        machine: the machine, 16 bytes.
        entropy: random bytes, for ids.
        now: for ages.

    Raises:
        StoreInUse: another process has it.
        StoreUnusable: it is of another holder, or of a format that is not known here.
        DiskFailed: there is no writing here.
    """
    for folder in (FOLDER, quarantine.QUARANTINE):
        disk.make_directory(folder)
    disk.sync_directory("")
    disk.lock(LOCK)
    try:
        return _Reader(disk, holder, machine, entropy, now).read()
    except BaseException:
        disk.unlock(LOCK)
        raise


class _Reader:
    def __init__(
        self,
        disk: Disk,
        holder: str,
        machine: bytes,
        entropy: Callable[[int], bytes],
        now: Instant,
    ) -> None:
        self._disk = disk
        self._holder = holder
        self._machine = machine
        self._entropy = entropy
        self._recovery = Recovery(now)
        self._unreadable = False
        self._lives: list[Epoch] = []
        self._ends: dict[int, int] = {}
        self._useless: list[int] = []
        self._store: bytes | None = None

    def read(self) -> Opened:
        there = numbers(self._disk)
        base = self._base(there)
        known: dict[int, int] = {}
        if base is not None and base.head is not None:
            self._store = base.head.store
            known = {int(number): end for number, end in base.head.ends.items()}
        for number in there:
            if base is None or number >= base.number:
                self._read_all(number)
            elif number in known:
                self._read_heads(number, known[number])
            else:
                self._useless.append(number)
        found = self._recovery.finish()
        reason = self._reason(base, found, bool(there))
        life = base.head.life if base is not None and base.head is not None else None
        if life is None or reason:
            counter = max((one.counter for one in self._lives), default=0)
            random = int.from_bytes(self._entropy(_LIFE_BYTES), "little")
            life = Epoch(counter + 1, random)
        store = self._store or self._entropy(_ID_BYTES)
        number = max([0, *there, *known]) + 1
        return Opened(store, life, reason, number, self._ends, tuple(self._useless), found)

    def _base(self, there: list[int]) -> Content | None:
        """The newest journal whose snapshot is whole."""
        for number in reversed(there):
            try:
                self._check_version(number)
                content = read_snapshot(self._disk, number)
            except DiskFailed:
                continue
            if content.head is None:
                continue
            self._lives.append(content.head.life)
            if content.head.holder != self._holder:
                raise StoreUnusable(
                    f"the store is the custody of {content.head.holder!r}, not of"
                    f" {self._holder!r}: give the gateway its old name, or a folder of its own"
                )
            if content.is_complete:
                return content
        return None

    def _check_version(self, number: int) -> None:
        file = self._disk.open(journal_path(number), "read")
        try:
            head = file.read(0, 64)
        finally:
            file.close()
        if is_of_another_version(head):
            raise StoreUnusable(
                f"{journal_path(number)} is of another format: use the version of this program"
                " that wrote it, or move the folder away to begin a new store"
            )

    def _read_all(self, number: int) -> None:
        try:
            content = read(self._disk, number, self._store)
        except DiskFailed:
            self._unreadable = True
            return
        for broken, data in content.broken:
            quarantine.keep(self._disk, f"journal-{number:016d}-{broken.offset}", data)
        self._recovery.add(content)
        self._ends[number] = content.end
        if self._store is None and content.head is not None:
            self._store = content.head.store
        elif self._store is None and content.seen:
            self._store = content.seen[0].entry.store

    def _read_heads(self, number: int, end: int) -> None:
        assert self._store is not None, "the base says it"
        self._ends[number] = end
        try:
            self._recovery.add_older(walk(self._disk, number, self._store, end))
        except DiskFailed:
            # What is not found shows as a loss.
            return

    def _reason(self, base: Content | None, found: Found, there: bool) -> str:  # noqa: FBT001
        if not there:
            return "a new store"
        if base is None or base.head is None:
            return "no snapshot is whole"
        if base.head.machine != self._machine:
            return "it was copied to another machine"
        if found.lost:
            lost = ", ".join(f"{key} {numbers}" for key, numbers in found.lost.items())
            return f"lost: {lost}"[:1000]
        if found.damaged or self._unreadable:
            return "something does not verify"
        return ""
