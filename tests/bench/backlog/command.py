"""A backlog of gigabytes: how soon its spool is open, and how much memory it takes to drain it.

One process builds the backlog and is killed, another one opens and drains it: see
``tests.bench.backlog.build`` and ``tests.bench.backlog.drain``. What was drained is compared with
what was appended and not released, number by number.
"""

import json as json_text
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from mesh.spool.journal import FOLDER as JOURNALS
from schemas.limits import JOURNAL_BYTES_MAX
from schemas.ranges import Ranges
from tests.bench.spool.load import RECORD_BYTES
from tests.processes import ROOT

__all__ = ["FULL_JOURNAL_FRAMES", "Outcome", "main", "measure"]

FULL_JOURNAL_FRAMES = (JOURNAL_BYTES_MAX - (64 << 10)) // (128 + RECORD_BYTES)
_SERIES_POINTS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a backlog was opened and drained.

    Args:
        open_seconds: until the spool was open.
        first_append_seconds: until a record was durable, from the same beginning.
        peak_rss_mb: the most memory that the process ever had.
        drained_records: how many records came out, each number once, in order.
        drained_batches: in how many batches.
        drain_seconds: in how long.
        drain_mb_per_s: megabytes on disk drained a second.
        append_while_draining_seconds_max: the slowest append meanwhile.
        rss_mb_before: memory before opening: the interpreter's and the modules'.
        rss_growth_mb: the median of the last quarter of the drain, less that of the second.
        rss_mb: memory over the time of the drain.
        backlog_bytes: of all files, before the drain.
        backlog_batches: batches on the shelves, before the drain.
        backlog_journals: journals, before the drain.
        single_record_frames: in the newest journal.
    """

    open_seconds: float
    first_append_seconds: float
    peak_rss_mb: float
    drained_records: int
    drained_batches: int
    drain_seconds: float
    drain_mb_per_s: float
    append_while_draining_seconds_max: float
    rss_mb_before: float
    rss_growth_mb: float
    rss_mb: list[float]
    backlog_bytes: int
    backlog_batches: int
    backlog_journals: int
    single_record_frames: int


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    size: Annotated[int, typer.Option("--bytes", help="of the backlog, on disk")] = 2 << 30,
    frames: Annotated[
        int, typer.Option(help="of one record, in the newest journal")
    ] = FULL_JOURNAL_FRAMES,
    folder: Annotated[Path | None, typer.Option(help="where: on the disk to be measured")] = None,
) -> None:
    """Opens and drains a large backlog, and watches the memory of the process."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=folder) as root:
        outcome = asdict(measure(Path(root) / "spool", size, frames))
    if json:
        print(json_text.dumps(outcome, indent=2))
        return
    for key, value in outcome.items():
        print(f"{key:24} {value:,}" if isinstance(value, int) else f"{key:24} {value}")


def measure(spool: Path, size: int, frames: int) -> Outcome:
    """Builds a backlog in a folder, drains it, and says how that went.

    Raises:
        AssertionError: not exactly what was pending was drained, or out of order.
    """
    told = json_text.loads(_child("build", spool, size, frames, ends=-signal.SIGKILL))
    files = [path for path in spool.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    seen = json_text.loads(_child("drain", spool, ends=0))
    records = 0
    for lane, (stop, released) in told.items():
        expected = Ranges(((0, stop),)) - Ranges.of([(start, end) for start, end in released])
        drained = Ranges.of([(start, end) for start, end in seen["drained"][lane]])
        assert drained == expected, f"{lane}: {expected} was pending, {drained} was drained"
        records += len(drained)
    rss = seen["rss_mb"]
    quarter = max(1, len(rss) // 4)
    return Outcome(
        seen["open_seconds"],
        seen["first_append_seconds"],
        seen["peak_rss_mb"],
        records,
        seen["batches"],
        seen["drain_seconds"],
        round(on_disk / seen["drain_seconds"] / 1e6, 1),
        seen["append_seconds_max"],
        seen["rss_mb_before"],
        round(median(rss[-quarter:]) - median(rss[quarter : 2 * quarter]), 1),
        rss[:: max(1, len(rss) // _SERIES_POINTS)],
        on_disk,
        sum(path.suffix == ".batch" for path in files),
        sum(path.parent.name == JOURNALS and path.name.isdecimal() for path in files),
        frames,
    )


def _child(module: str, *arguments: object, ends: int) -> str:
    command = [sys.executable, "-m", f"tests.bench.backlog.{module}", *map(str, arguments)]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert child.returncode == ends, f"{module} ended with {child.returncode}, not {ends}"
    return child.stdout
