"""The archive: one row for each record, in Parquet files. The only importer of DuckDB.

::

    archive/site=<site>/lane=<lane>/day=<day>/<name>.parquet    committed
    staging/<name>/<site>.<lane>.<day>.parquet                  written, not yet committed
    workers/<worker>                                            locked by the worker that runs
    quarantine/<digest>.batch                                   refused, kept to be looked at

The day is that of ``committed_at``, UTC: when the origin had the record's batch on its disk. All
rows of a batch lie in one day.

Columns of every lane: ``site, node, epoch, lane, seq, kind, committed_at, clock_trusted, boot``;
then what the records of the lane say, typed, as ``nodes.headquarters.fields`` names it, from
``wall_at`` and ``mono_ns`` on; then ``record``, the canonical bytes, over which chains can be
checked again. A record whose layout is not known here has kind ``unknown``, its bytes, and nulls.
The identity ``(node, epoch, lane, seq)`` stands in at most one row of all committed files. Each
file says in its key-value metadata which identities it holds, and the chain where its batches end
(``nodes.headquarters.index``), so that ledgers can be made from the files again.

Crash safety. ``stage`` writes files that nobody reads and syncs them with their folder. What
commits them is not here: it is the ledger that names ``<name>``. ``publish`` then renames each
staged file to its place and syncs the folders; done twice, or by two workers at once, it changes
nothing, so whoever comes next finishes what a crash left. ``discard`` removes what no ledger names.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from nodes.headquarters.arrow import Table
from nodes.headquarters.columns import (
    Column,
    Flags,
    Numbers,
    Sizes,
    Texts,
    Words,
    join,
    spread,
    validity,
)
from nodes.headquarters.fields import KINDS, no_fields
from nodes.headquarters.index import FileIndex, LaneKey, index_of, read_index, write_index
from nodes.headquarters.rows import Rows, Shown, show
from schemas import wire
from schemas.errors import DiskFailed, Refused
from schemas.messages import Account, BatchHeader, Epoch, Lane
from schemas.ranges import Ranges

__all__ = ["Archive", "ArchivedLane", "Rows"]

ArchivedLane = tuple[str, str, str, str, Ranges]
"""Site, node, epoch and lane as text, and the numbers that have a row."""

_QUARANTINE_FILES_MAX: Final = 1000
_DAY_NS: Final = 86_400_000_000_000
_START: Final = date(1970, 1, 1)
# Texts that are few make small dictionaries; looking for larger ones costs time, and gains nothing.
_OPTIONS: Final = (
    "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 2048"
)
_KEY: Final = "holdfast"


class Archive:
    """A folder of Parquet files. Blocking: called in an executor, by one thread at a time.

    Any number of them may work on one folder, which may lie on a shared file system.

    Args:
        root: the folder; made when it is not there.

    Raises:
        DiskFailed: it cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / "staging"
        self._archive = root / "archive"
        self._places: set[Path] = set()
        self._indexed: dict[str, Mapping[LaneKey, FileIndex]] = {}
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
            self._archive.mkdir(exist_ok=True)
            _sync(root)
            _sync(root.parent)
        except OSError as error:
            raise DiskFailed(f"the archive {root} cannot be made: {error.strerror}") from error
        self._database = duckdb.connect(":memory:")
        self._database.execute("SET threads = 1")

    def close(self) -> None:
        """Gives the database back."""
        self._database.close()

    def stage(self, name: str, rows: Iterable[Rows]) -> None:
        """Writes rows into staged files, one for each site, lane and day; durable on return.

        Args:
            name: of this commit; an identifier that is never used again.
            rows: at least one record.

        Raises:
            DiskFailed: nothing was committed, and the same name may be staged again.
        """
        groups: dict[str, list[Rows]] = {}
        for item in rows:
            header = item.header
            place = f"{header.site}.{header.lane}.{_day(header.last_wall_ns)}"
            groups.setdefault(place, []).append(item)
        folder = self._staging / name
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for place, group in sorted(groups.items()):
                path = folder / f"{place}.parquet"
                self._write(path, group)
                _sync(path)
            _sync(folder)
            _sync(self._staging)
        except (OSError, duckdb.Error) as error:
            raise DiskFailed(f"staging {name} in {self._staging} failed: {error}") from error

    def publish(self, name: str) -> None:
        """Puts the files of a commit into their places.

        Does nothing where that was done before, and does no harm where another worker does it now.

        Raises:
            DiskFailed: not all are there; calling it again goes on.
        """
        folder = self._staging / name
        try:
            for path in _files(folder):
                site, lane, day, _ = path.name.split(".")
                place = self._archive / f"site={site}" / f"lane={lane}" / f"day={day}"
                if place not in self._places:
                    # Also one that is there: whoever made it may not have come to the syncs.
                    place.mkdir(parents=True, exist_ok=True)
                    for above in (place.parent, place.parent.parent, self._archive):
                        _sync(above)
                    self._places.add(place)
                _rename(path, place / f"{name}.parquet")
                _sync(place)
            _remove(folder)
            _sync(self._staging)
        except OSError as error:
            raise DiskFailed(f"publishing {name} in {self._archive} failed: {error}") from error

    def staged(self) -> list[str]:
        """The names of all commits that are staged and not wholly published.

        Raises:
            DiskFailed: the folder cannot be read.
        """
        try:
            return sorted(path.name for path in self._staging.iterdir() if path.is_dir())
        except OSError as error:
            raise DiskFailed(f"reading {self._staging} failed: {error}") from error

    def holds(self, name: str) -> bool:
        """Whether files of a commit are there, staged or published."""
        if (self._staging / name).is_dir():
            return True
        return any(self._archive.glob(f"site=*/lane=*/day=*/{name}.parquet"))

    def index(self) -> dict[LaneKey, FileIndex]:
        """What all committed files hold, by lane. Reads the ends of files that it has not read yet.

        Raises:
            DiskFailed: a file cannot be read.
        """
        try:
            there = {
                str(path): path for path in self._archive.glob("site=*/lane=*/day=*/*.parquet")
            }
            for gone in self._indexed.keys() - there.keys():
                del self._indexed[gone]
            for name in sorted(there.keys() - self._indexed.keys()):
                self._indexed[name] = self._read_index(there[name])
        except (OSError, duckdb.Error) as error:
            raise DiskFailed(f"reading the archive {self._archive} failed: {error}") from error
        found: dict[LaneKey, list[FileIndex]] = {}
        for lanes in self._indexed.values():
            for key, held in lanes.items():
                found.setdefault(key, []).append(held)
        return {key: FileIndex.union(parts) for key, parts in found.items()}

    def identities(self) -> list[ArchivedLane]:
        """All numbers that have a row.

        Raises:
            DiskFailed: a file cannot be read.
        """
        return sorted(
            (site, node, str(epoch), str(lane), held.numbers)
            for (site, node, epoch, lane), held in self.index().items()
        )

    def accounts(self) -> list[tuple[str, str, Epoch, Account]]:
        """The newest statement of each life about each lane and epoch that was archived.

        Returns:
            Site, node, the life that states it, and the account.

        Raises:
            DiskFailed: a file cannot be read.
        """
        files = [str(path) for path in self._archive.glob("site=*/lane=account/day=*/*.parquet")]
        if not files:
            return []
        query = """
            SELECT site, node, epoch, arg_max(record, statement)
            FROM read_parquet(?, hive_partitioning = false)
            WHERE kind = 'account'
            GROUP BY site, node, epoch, about_lane, about_epoch
        """
        try:
            rows = self._database.execute(query, [files]).fetchall()
            found = [(*origin, Epoch.parse(epoch), wire.decode(it)) for *origin, epoch, it in rows]
        except (duckdb.Error, Refused, ValueError) as error:
            raise DiskFailed(f"reading the archive {self._archive} failed: {error}") from error
        return [
            (site, node, epoch, it) for site, node, epoch, it in found if isinstance(it, Account)
        ]

    def discard(self, name: str) -> None:
        """Removes staged files that no ledger names."""
        shutil.rmtree(self._staging / name, ignore_errors=True)

    def quarantine(self, payload: bytes) -> str:
        """Keeps what was refused, under its digest, while there are not too many.

        Returns where, or ``""``.
        """
        folder = self._root / "quarantine"
        path = folder / f"{sha256(payload).hexdigest()[:32]}.batch"
        try:
            folder.mkdir(exist_ok=True)
            if path.exists():
                return str(path)
            if sum(1 for _ in folder.iterdir()) >= _QUARANTINE_FILES_MAX:
                return ""
            beside = path.with_suffix(".part")
            beside.write_bytes(payload)
            _sync(beside)
            beside.rename(path)
            _sync(folder)
        except OSError:
            return ""
        return str(path)

    def _write(self, path: Path, group: Sequence[Rows]) -> None:
        table = _table(group)
        self._database.register("rows", table)
        try:
            # The path is ours: identifiers of the grammar below a configured folder. So is the
            # index: JSON of identifiers and numbers, which has no single quote.
            target = str(path).replace("'", "''")
            index = write_index(index_of(group))
            self._database.execute(
                f"COPY (SELECT * FROM rows) TO '{target}'"  # noqa: S608
                f" ({_OPTIONS}, KV_METADATA {{{_KEY}: '{index}'}})"
            )
        finally:
            self._database.unregister("rows")
            table.close()

    def _read_index(self, path: Path) -> Mapping[LaneKey, FileIndex]:
        site, lane = (part.partition("=")[2] for part in path.parts[-4:-2])
        query = "SELECT value FROM parquet_kv_metadata(?) WHERE key = ?"
        told = self._database.execute(query, [str(path), _KEY.encode()]).fetchall()
        try:
            return read_index(bytes(told[0][0]).decode() if told else "", site, lane)
        except (Refused, UnicodeDecodeError):
            # Written by somebody else, a tool that joined small files say: its rows tell.
            return self._count(path, site)

    def _count(self, path: Path, site: str) -> Mapping[LaneKey, FileIndex]:
        query = """
            SELECT node, epoch, lane, min(seq), max(seq) + 1
            FROM (
                SELECT node, epoch, lane, seq, seq - dense_rank() OVER (
                    PARTITION BY node, epoch, lane ORDER BY seq) AS run
                FROM read_parquet(?, hive_partitioning = false)
            )
            GROUP BY node, epoch, lane, run
        """
        spans: dict[LaneKey, list[tuple[int, int]]] = {}
        for node, epoch, lane, first, stop in self._database.execute(query, [str(path)]).fetchall():
            key = (site, str(node), Epoch.parse(epoch), Lane(lane))
            spans.setdefault(key, []).append((int(first), int(stop)))
        return {key: FileIndex(Ranges.of(runs)) for key, runs in spans.items()}


def _table(group: Sequence[Rows]) -> Table:
    """All columns of a file, for batches of one lane."""
    shown = [show(rows) for rows in group]
    counts = np.array([len(rows) for rows in group], np.int64)
    headers = [rows.header for rows in group]
    fields = _identity(group, headers, counts)
    fields["kind"] = join([it.kinds for it in shown])
    fields["committed_at"] = _each(counts, [it.last_wall_ns for it in headers], times=True)
    fields["clock_trusted"] = Numbers(np.repeat([it.clock_trusted for it in headers], counts))
    fields["boot"] = _same([it.boot.hex() for it in headers], counts)
    known = np.concatenate([_known(it, len(rows)) for it, rows in zip(shown, group, strict=True)])
    bits = validity(known)
    said = {
        name: join([spread(it.fields[name], it.known) for it in shown])
        for name in no_fields(KINDS[headers[0].lane])
    }
    data = b"".join([rows.opened.raw for rows in group])
    sizes = np.concatenate([np.diff(rows.opened.bounds) for rows in group])
    return Table(
        [
            *(column.field(name) for name, column in fields.items()),
            *(column.field(name, bits) for name, column in said.items()),
            Texts(data, sizes, binary=True).field("record"),
        ]
    )


def _identity(
    group: Sequence[Rows], headers: Sequence[BatchHeader], counts: Sizes
) -> dict[str, Column]:
    numbers = [np.arange(a, b, dtype=np.uint64) for rows in group for a, b in rows.seqs.spans]
    return {
        "site": _same([header.site for header in headers], counts),
        "node": _same([header.node for header in headers], counts),
        "epoch": _same([str(header.epoch) for header in headers], counts),
        "lane": _same([str(header.lane) for header in headers], counts),
        "seq": Numbers(np.concatenate(numbers)),
    }


def _same(words: Sequence[str], counts: Sizes) -> Words:
    return Words(tuple(words), np.repeat(np.arange(len(words)), counts))


def _each(counts: Sizes, values: Sequence[int], *, times: bool) -> Numbers:
    return Numbers(np.repeat(np.array(values, np.int64), counts), times)


def _known(shown: Shown, count: int) -> Flags:
    return np.ones(count, np.bool_) if shown.known is None else shown.known


def _day(wall_ns: int) -> str:
    return (_START + timedelta(days=wall_ns // _DAY_NS)).isoformat()


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _rename(path: Path, place: Path) -> None:
    try:
        path.rename(place)
    except FileNotFoundError:
        if not place.exists():
            raise


def _remove(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
