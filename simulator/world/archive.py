"""The archive of a simulated headquarters: identities and bytes, and what a crash takes of them.

``ArchiveDisk`` outlives the workers that use it; ``SimArchive`` is one worker's hand on it, with
the methods of ``nodes.headquarters.archive.Archive``. A staged file is *written* and then *synced*;
what was not synced when the power goes is gone. Publishing moves file by file, so a worker may die
between two.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

from nodes.headquarters.index import FileIndex, LaneKey, index_of
from nodes.headquarters.rows import Rows
from schemas import wire
from schemas.messages import Account, Epoch, Lane
from schemas.ranges import Ranges
from simulator.crash.annals import Violation, ranges
from simulator.world.place import Place
from simulator.world.process import Fuse

__all__ = ["ArchiveDisk", "SimArchive"]

_NONE: Final = Ranges()


class _File(NamedTuple):
    """One staged file: records by place, and its index."""

    records: dict[Place, list[tuple[int, bytes]]]
    chains: dict[Place, FileIndex]


@dataclass(slots=True)
class ArchiveDisk:
    """What lies in the archive's folder.

    Args:
        rows: the records that have a row, by place and number.
        staged: files by commit, and by site and lane.
        unsynced: commits whose files are not durable yet.
        files: the names of commits that were published, at least in part.
        quarantine: what was refused and kept, by name.
        check: is told of each row that is published.
        spans: the numbers that have a row, by place.
        statements: the newest archived account of each place, by the life that states it.
        chains: the chains at the bounds of batches, by place and number.
    """

    rows: dict[Place, dict[int, bytes]] = field(default_factory=dict)
    staged: dict[str, dict[tuple[str, Lane], _File]] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    quarantine: dict[str, bytes] = field(default_factory=dict)
    check: Callable[[Place, int, bytes], None] = lambda _key, _number, _record: None
    spans: dict[Place, Ranges] = field(default_factory=dict)
    statements: dict[tuple[Place, Epoch], Account] = field(default_factory=dict)
    chains: dict[Place, dict[int, bytes]] = field(default_factory=dict)

    def numbers(self, place: Place) -> Ranges:
        """The numbers of a place that have a row."""
        return self.spans.get(place, _NONE)

    def index(self) -> dict[LaneKey, FileIndex]:
        """What all published files hold, by place."""
        return {place: FileIndex(self.numbers(place), self.chains[place]) for place in self.rows}

    def accounts(self) -> list[tuple[str, str, Epoch, Account]]:
        """The newest archived account of each place by each life that states one."""
        return [
            (*place.origin, epoch, account) for (place, epoch), account in self.statements.items()
        ]

    def publish(self, file: _File) -> None:
        """Takes the rows of one staged file.

        Raises:
            Violation: an identity would have a second row.
        """
        for place, records in file.records.items():
            there = self.rows.setdefault(place, {})
            for number, record in records:
                self.check(place, number, record)
                if number in there:
                    raise Violation(f"{place}/{number} has two rows")
                there[number] = record
                if place[3] is Lane.ACCOUNT:
                    self._hear(place, wire.decode_as(Account, record))
            self.spans[place] = self.numbers(place) | ranges(number for number, _ in records)
            self.chains.setdefault(place, {}).update(file.chains[place].chains)

    def cut_power(self) -> None:
        """What was not synced is gone."""
        for name in self.unsynced:
            self.staged.pop(name, None)
        self.unsynced.clear()

    def copy(self) -> "ArchiveDisk":
        """A backup: the same files, which change apart from these."""
        return ArchiveDisk(
            {place: dict(rows) for place, rows in self.rows.items()},
            {name: dict(files) for name, files in self.staged.items()},
            set(self.unsynced),
            set(self.files),
            dict(self.quarantine),
            self.check,
            spans=dict(self.spans),
            statements=dict(self.statements),
            chains={place: dict(chains) for place, chains in self.chains.items()},
        )

    def put_back(self, backup: "ArchiveDisk") -> None:
        """Everything is as in the backup, but for what was set aside."""
        older = backup.copy()
        self.rows, self.staged, self.files = older.rows, older.staged, older.files
        self.unsynced = older.unsynced
        self.spans, self.statements, self.chains = older.spans, older.statements, older.chains

    def _hear(self, place: Place, account: Account) -> None:
        key = Place(*place.origin, account.epoch, account.lane), place.epoch
        known = self.statements.get(key)
        if known is None or account.number > known.number:
            self.statements[key] = account


class SimArchive:
    """One worker's hand on the archive.

    Args:
        disk: what lies there.
        fuse: burns with each call and each step of one.
    """

    def __init__(self, disk: ArchiveDisk, fuse: Fuse) -> None:
        self._disk = disk
        self._fuse = fuse

    def __repr__(self) -> str:
        return f"<SimArchive {len(self._disk.rows)} places, {len(self._disk.staged)} staged>"

    def close(self) -> None:
        """There is nothing to give back."""

    def stage(self, name: str, rows: Iterable[Rows]) -> None:
        """Writes rows into staged files; durable on return."""
        self._fuse.burn()
        groups: dict[tuple[str, Lane], list[Rows]] = {}
        for item in rows:
            groups.setdefault((item.header.site, item.header.lane), []).append(item)
        files = {where: _file(group) for where, group in groups.items()}
        self._disk.staged[name] = files
        self._disk.unsynced.add(name)
        self._fuse.burn()
        self.sync(name)
        self._fuse.burn()

    def sync(self, name: str) -> None:
        """Makes the staged files of a commit durable."""
        self._disk.unsynced.discard(name)

    def publish(self, name: str) -> None:
        """Puts the files of a commit into their places, one after another."""
        files = self._disk.staged.get(name)
        if files is None:
            return
        for where in sorted(files):
            self._fuse.burn()
            self._disk.files.add(name)
            self._disk.publish(files.pop(where))
        self._fuse.burn()
        del self._disk.staged[name]

    def staged(self) -> list[str]:
        """The names of all commits that are staged and not wholly published."""
        self._fuse.burn()
        return sorted(self._disk.staged)

    def holds(self, name: str) -> bool:
        """Whether files of a commit are there, staged or published."""
        return name in self._disk.staged or name in self._disk.files

    def index(self) -> dict[LaneKey, FileIndex]:
        """What all published files hold, by place."""
        return self._disk.index()

    def accounts(self) -> list[tuple[str, str, Epoch, Account]]:
        """The newest statements."""
        return self._disk.accounts()

    def discard(self, name: str) -> None:
        """Removes staged files that no ledger names."""
        self._fuse.burn()
        self._disk.staged.pop(name, None)
        self._disk.unsynced.discard(name)

    def quarantine(self, payload: bytes) -> str:
        """Keeps what was refused, under its digest."""
        name = sha256(payload).hexdigest()[:32]
        self._disk.quarantine[name] = payload
        return name


def _file(group: Iterable[Rows]) -> _File:
    rows = list(group)
    records: dict[Place, list[tuple[int, bytes]]] = {}
    for item in rows:
        records.setdefault(Place.of(item.header), []).extend(
            zip(item.seqs, item.records, strict=True)
        )
    return _File(records, {Place(*place): found for place, found in index_of(rows).items()})
