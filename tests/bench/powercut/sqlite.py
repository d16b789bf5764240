"""SQLite on the bench, in WAL mode: one commit a record, acknowledged when ``COMMIT`` returns.

``synchronous=FULL`` promises that a commit survives a power cut, ``NORMAL`` only that the database
does (sqlite.org/pragma.html, "synchronous"). It has one writer at a time, so its producers take
turns on one connection. As a program: ``python -m tests.bench.powercut.sqlite FILE SYNCHRONOUS SEED
ROUND``.
"""

import itertools
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from tests.bench.powercut.work import PRODUCERS, Name, Told, Verdict, compare, record
from tests.bench.powercut.writer import Writer, say, writing

__all__ = ["Sqlite"]

_FILE: Final = "records.db"


class Sqlite:
    """A database with one table.

    Args:
        seed: of the records.
        synchronous: ``FULL`` or ``NORMAL``.
    """

    lasting = False

    def __init__(self, seed: int, synchronous: str) -> None:
        self.name = f"SQLite WAL/{synchronous}"
        self._seed = seed
        self._synchronous = synchronous

    def obstacle(self) -> str:
        """Why it cannot be tried; never."""
        return ""

    @contextmanager
    def running(
        self, root: Path, scratch: Path, cut_round: int, settle: Callable[[], None]
    ) -> Iterator[Writer]:
        """Makes the table durable, then runs the writer."""
        with closing(_connect(root / _FILE, self._synchronous)) as database:
            database.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, data BLOB)")
        settle()
        arguments = (root / _FILE, self._synchronous, self._seed, cut_round)
        with writing(scratch / "sqlite.log", "sqlite", arguments) as writer:
            yield writer

    def judge(self, root: Path, scratch: Path, told: Told) -> Verdict:
        """Opens the database, lets it check itself, and reads all of it."""
        del scratch
        try:
            with closing(_connect(root / _FILE, self._synchronous)) as database:
                ((health,),) = database.execute("PRAGMA integrity_check(1)")
                rows = [row[0] for row in database.execute("SELECT data FROM records")]
        except sqlite3.Error as problem:
            health, rows = repr(problem), []
        verdict = compare(self._seed, told, rows)
        if health == "ok":
            return verdict
        return Verdict(verdict.acknowledged, verdict.lost, opened=False, note=health)


def _connect(file: Path, synchronous: str) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={synchronous}")
    return database


def _work(file: Path, synchronous: str, seed: int, cut_round: int) -> None:
    with closing(_connect(file, synchronous)) as database:
        for turn in itertools.count():
            number, producer = divmod(turn, PRODUCERS)
            data = record(seed, Name(cut_round, producer, number))
            # Outside a transaction a statement is one, and has committed when it returns.
            database.execute("INSERT INTO records (data) VALUES (?)", (data,))
            say("A", producer, number)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
