"""The archive: one row for each record, in Parquet files. The only importer of DuckDB.

::

    archive/site=<site>/lane=<lane>/<name>.parquet      committed
    staging/<name>/<site>.<lane>.parquet                written, not yet committed
    quarantine/<digest>.batch                           refused, kept for a person to look at

Columns: ``site, node, epoch, lane, seq, kind, committed_at, clock_trusted, boot, record, text``.
``record`` is the canonical bytes, over which chains can be checked again; ``text`` the same as
JSON, for people and queries; a record whose layout is not known here has kind ``unknown`` and no
text. The identity ``(node, epoch, lane, seq)`` stands in at most one row of
all committed files.

Crash safety. ``stage`` writes files that nobody reads and syncs them with their folder. What
commits them is not here: it is the ledger that names ``<name>``. ``publish`` then renames each
staged file to its place and syncs the folders; done twice it changes nothing, so whoever comes next
finishes what a crash left. ``discard`` removes what no ledger names.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from schemas.documents import to_json
from schemas.errors import DiskFailed
from schemas.messages import BatchHeader
from schemas.ranges import Ranges
from schemas.wire import Message

__all__ = ["Archive", "ArchivedLane", "Rows", "rows_of"]

ArchivedLane = tuple[str, str, str, str, Ranges]
"""Site, node, epoch and lane as text, and the numbers that have a row."""

_Column = np.ndarray[tuple[int], np.dtype[np.generic]]
_QUARANTINE_FILES_MAX: Final = 1000
_COLUMNS: Final = (
    "site, node, epoch, lane, seq, kind, committed_at, clock_trusted, boot, record, text"
)


@dataclass(frozen=True, slots=True)
class Rows:
    """The new records of a batch.

    Args:
        header: the batch's header.
        seqs: their numbers.
        records: their canonical bytes.
        messages: the same, decoded; ``None`` where the layout is not known here.
    """

    header: BatchHeader
    seqs: tuple[int, ...]
    records: tuple[bytes, ...]
    messages: tuple[Message | None, ...]


def rows_of(
    header: BatchHeader,
    new: Ranges,
    records: Sequence[bytes],
    messages: Sequence[Message | None],
) -> Rows:
    """The records of a batch whose numbers are new.

    Args:
        header: of the batch.
        new: which of its numbers.
        records: all of its records, in the order of its numbers.
        messages: the same, decoded.
    """
    taken = [
        (seq, record, message)
        for seq, record, message in zip(header.present, records, messages, strict=True)
        if seq in new
    ]
    seqs, kept, decoded = zip(*taken, strict=True) if taken else ((), (), ())
    return Rows(header, seqs, kept, decoded)


class Archive:
    """A folder of Parquet files. Blocking: called in an executor, by one thread at a time.

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
        """Writes rows into staged files, one for each site and lane; durable on return.

        Args:
            name: of this commit; an identifier that is never used again.
            rows: at least one record.

        Raises:
            DiskFailed: nothing was committed, and the same name may be staged again.
        """
        groups: dict[tuple[str, str], list[Rows]] = {}
        for item in rows:
            groups.setdefault((item.header.site, item.header.lane), []).append(item)
        folder = self._staging / name
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for (site, lane), group in sorted(groups.items()):
                path = folder / f"{site}.{lane}.parquet"
                self._write(path, group)
                _sync(path)
            _sync(folder)
            _sync(self._staging)
        except (OSError, duckdb.Error) as error:
            raise DiskFailed(f"staging {name} in {self._staging} failed: {error}") from error

    def publish(self, name: str) -> None:
        """Puts the files of a commit into their places; does nothing where that was done before.

        Raises:
            DiskFailed: not all are there; calling it again goes on.
        """
        folder = self._staging / name
        try:
            if not folder.is_dir():
                return
            for path in sorted(folder.iterdir()):
                site, lane, _ = path.name.split(".")
                place = self._archive / f"site={site}" / f"lane={lane}"
                if place not in self._places:
                    # Also one that is there: whoever made it may not have come to the syncs.
                    place.mkdir(parents=True, exist_ok=True)
                    _sync(place.parent)
                    _sync(self._archive)
                    self._places.add(place)
                path.rename(place / f"{name}.parquet")
                _sync(place)
            folder.rmdir()
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
        return any(self._archive.glob(f"site=*/lane=*/{name}.parquet"))

    def identities(self) -> list[ArchivedLane]:
        """All numbers that have a row: site, node, epoch, lane, numbers. Reads every file's index.

        Raises:
            DiskFailed: a file cannot be read.
        """
        files = [str(path) for path in sorted(self._archive.rglob("*.parquet"))]
        if not files:
            return []
        query = """
            SELECT site, node, epoch, lane, min(seq), max(seq) + 1
            FROM (
                SELECT site, node, epoch, lane, seq, seq - dense_rank() OVER (
                    PARTITION BY site, node, epoch, lane ORDER BY seq) AS run
                FROM read_parquet(?, hive_partitioning = false)
            )
            GROUP BY site, node, epoch, lane, run
        """
        try:
            rows = self._database.execute(query, [files]).fetchall()
        except duckdb.Error as error:
            raise DiskFailed(f"reading the archive {self._archive} failed: {error}") from error
        spans: dict[tuple[str, str, str, str], list[tuple[int, int]]] = {}
        for site, node, epoch, lane, first, stop in rows:
            spans.setdefault((site, node, epoch, lane), []).append((int(first), int(stop)))
        return [(*key, Ranges.of(runs)) for key, runs in sorted(spans.items())]

    def discard(self, name: str) -> None:
        """Removes staged files that no ledger names."""
        shutil.rmtree(self._staging / name, ignore_errors=True)

    def quarantine(self, payload: bytes) -> str:
        """Keeps what was refused, under its digest, while there are not too many.

        Returns where, or ``""``.
        """
        folder = self._root / "quarantine"
        try:
            folder.mkdir(exist_ok=True)
            if sum(1 for _ in folder.iterdir()) >= _QUARANTINE_FILES_MAX:
                return ""
            path = folder / f"{sha256(payload).hexdigest()[:32]}.batch"
            path.write_bytes(payload)
        except OSError:
            return ""
        return str(path)

    def _write(self, path: Path, group: Sequence[Rows]) -> None:
        columns = _columns(group)
        self._database.register("rows", columns)
        try:
            # The path is ours: identifiers of the grammar below a configured folder.
            target = str(path).replace("'", "''")
            self._database.execute(
                f"COPY (SELECT {_COLUMNS} FROM rows) TO '{target}'"  # noqa: S608
                " (FORMAT parquet, COMPRESSION zstd)"
            )
        finally:
            self._database.unregister("rows")


def _columns(group: Sequence[Rows]) -> dict[str, _Column]:
    counts = [len(rows.seqs) for rows in group]
    messages = [message for rows in group for message in rows.messages]

    def each(look: Callable[[BatchHeader], object], kind: str) -> _Column:
        column: _Column = np.repeat(np.array([look(rows.header) for rows in group], kind), counts)
        return column

    return {
        "site": each(lambda header: header.site, "object"),
        "node": each(lambda header: header.node, "object"),
        "epoch": each(lambda header: str(header.epoch), "object"),
        "lane": each(lambda header: str(header.lane), "object"),
        "seq": np.array([seq for rows in group for seq in rows.seqs], np.uint64),
        "kind": np.array([_kind(message) for message in messages], np.object_),
        "committed_at": each(lambda header: header.last_wall_ns, "int64").astype("datetime64[ns]"),
        "clock_trusted": each(lambda header: header.clock_trusted, "bool"),
        "boot": each(lambda header: header.boot.hex(), "object"),
        "record": np.array([record for rows in group for record in rows.records], np.object_),
        "text": np.array([_text(message) for message in messages], np.object_),
    }


def _kind(message: Message | None) -> str:
    return "unknown" if message is None else type(message).__name__.lower()


def _text(message: Message | None) -> str:
    return "" if message is None else to_json(message).decode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
