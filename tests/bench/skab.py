"""``python -m tests.bench.skab``: what a row of real pump data takes at rest, to the byte.

The rows of each CSV file of SKAB (a test stand with a pump; eight sensors, about once a second) as
readings in canonical bytes, in frames of a few hundred records, packed into batches. What is
counted is whole batch files: headers, the numbers of the records, both clocks and the topic.

One file is one batch, except where it has more than a batch may hold; then it is cut where the
spool would cut. Each batch is opened again and compared before it is counted.
"""

import csv
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from mesh.spool import batch
from mesh.spool.batch import Batch, Labels
from mesh.spool.columns import chunks, series
from mesh.spool.frame import CHAIN_START, FrameHeader, Owner, pack
from mesh.spool.packing import Packer
from schemas import wire
from schemas.limits import BATCH_RAW_BYTES_MAX, FRAMES_PER_BATCH_MAX
from schemas.messages import Codec, Epoch, Instant, Lane, Reading

__all__ = ["FOLDER", "Table", "batches", "load", "measure", "readings"]

FOLDER: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "skab"
TOPIC: Final = "hall/pump-1"
FRAME_RECORDS: Final = 200
_LABELS: Final = Labels("hall-3", "pump-1")
_NOT_SENSORS: Final = frozenset(("datetime", "anomaly", "changepoint"))
_UPTIME_NS: Final = 7 * 86_400 * 10**9
_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Table:
    """One CSV file: a reading a row, and its length as JSON lines."""

    name: str
    rows: tuple[Reading, ...]

    @property
    def json_bytes(self) -> int:
        """As JSON lines: the time and each sensor by name."""
        return sum(
            len(orjson.dumps({"time": _iso(row.wall_ns), "topic": row.topic, **row.values})) + 1
            for row in self.rows
        )


def _iso(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def load(folder: Path = FOLDER) -> list[Table]:
    """The seven files, by name; the monotonic clock is the wall clock less a constant."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = [_reading(row) for row in csv.DictReader(file, delimiter=";")]
        boot = rows[0].wall_ns - _UPTIME_NS
        rows = [replace(row, mono_ns=row.wall_ns - boot) for row in rows]
        found.append(Table(path.name, tuple(rows)))
    assert found, f"no data below {folder}"
    return found


def _reading(row: dict[str, str]) -> Reading:
    when = datetime.strptime(row["datetime"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    values = {name: float(text) for name, text in row.items() if name not in _NOT_SENSORS}
    return Reading(int(when.timestamp()) * 10**9, 0, TOPIC, values)


def readings(rows: Sequence[Reading]) -> list[bytes]:
    """Their canonical bytes."""
    return [wire.encode(row) for row in rows]


def frames(
    records: Sequence[bytes], frame_records: int, at: Sequence[Instant], lane: Lane = Lane.READINGS
) -> tuple[list[FrameHeader], list[bytes]]:
    """Frames as the spool would write them, each at the time of its last record."""
    owner = Owner(bytes(range(16)), Epoch(1, 0x1234_5678_9ABC_DEF0), bytes(range(16, 32)))
    headers, bodies, before, first = [], [], CHAIN_START, 1
    for start in range(0, len(records), frame_records):
        part = records[start : start + frame_records]
        body = b"".join(part)
        when = at[start + len(part) - 1]
        _, header = pack(owner, 1, lane, first, len(part), body, before, when)
        headers.append(header)
        bodies.append(body)
        first, before = header.stop, header.chain_after
    return headers, bodies


def runs(
    headers: Sequence[FrameHeader], bodies: Sequence[bytes]
) -> Iterator[tuple[Sequence[FrameHeader], Sequence[bytes]]]:
    """Cuts frames where the spool cuts: at what a batch may hold."""
    start = size = 0
    for index, body in enumerate(bodies):
        full = size + len(body) > BATCH_RAW_BYTES_MAX or index - start == FRAMES_PER_BATCH_MAX
        if index > start and full:
            yield headers[start:index], bodies[start:index]
            start, size = index, 0
        size += len(body)
    yield headers[start:], bodies[start:]


def batches(
    rows: Sequence[Reading], frame_records: int = FRAME_RECORDS, *, rows_only: bool = False
) -> list[Batch]:
    """Readings as batches, each opened again and compared."""
    records = readings(rows)
    at = [Instant(row.wall_ns, row.mono_ns) for row in rows]
    made = [
        batch.pack(_LABELS, *run, rows_only=rows_only)
        for run in runs(*frames(records, frame_records, at))
    ]
    opened = [record for item in made for record in batch.open_records(batch.parse(item.data))]
    assert opened == records, "the same bytes come back"
    return made


def _size(made: Sequence[Batch]) -> int:
    return sum(len(item.data) for item in made)


def _minutes(rows: Sequence[Reading]) -> list[list[Reading]]:
    found: dict[int, list[Reading]] = {}
    for row in rows:
        found.setdefault(row.wall_ns // (60 * 10**9), []).append(row)
    return list(found.values())


def _live(rows: Sequence[Reading], generator: random.Random) -> list[Reading]:
    """Times as a node would take them: a millisecond of jitter, two clocks read one by one."""
    found = []
    for row in rows:
        late = int(generator.gauss(2e6, 1e6))
        between = int(generator.uniform(80, 250))
        found.append(replace(row, wall_ns=row.wall_ns + late, mono_ns=row.mono_ns + late + between))
    return found


def _per_row(tables: Sequence[Table], **how: Any) -> float:  # noqa: ANN401 - those of ``batches``
    rows = sum(len(table.rows) for table in tables)
    return sum(_size(batches(table.rows, **how)) for table in tables) / rows


def _sensors(tables: Sequence[Table], change: Callable[[float], float]) -> tuple[float, float]:
    """Bytes a row of the sensors alone, as series and as plain pcodec makes them."""
    ours = plain = rows = 0
    for table in tables:
        for item in batches(table.rows):
            found = [wire.decode_as(Reading, record) for record in batch.open_records(item)]
            rows += len(found)
            for name in found[0].values:
                column = np.array([change(row.values[name]) for row in found])
                ours += len(series.write(column.view(np.uint64)))
                plain += len(chunks.write_floats(column))
    return ours / rows, plain / rows


def _speeds(table: Table) -> dict[str, object]:
    """Packing and opening one full batch: in this process, and in the packer's child."""
    rows = table.rows[:1200]
    run = frames(readings(rows), FRAME_RECORDS, [Instant(it.wall_ns, it.mono_ns) for it in rows])
    raw = sum(map(len, run[1]))
    made = batch.pack(_LABELS, *run)
    told: list[str] = []
    packer = Packer(told.append)
    began = time.perf_counter()
    assert packer.pack(_LABELS, *run) == made, told
    first = time.perf_counter() - began
    status = Path(f"/proc/{packer.child_pid}/status").read_text(encoding="ascii")
    rss = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    found = {
        "skab_pack_mb_per_second": raw / _best(lambda: batch.pack(_LABELS, *run)) / 1e6,
        "skab_pack_rows_mb_per_second": raw
        / _best(lambda: batch.pack(_LABELS, *run, rows_only=True))
        / 1e6,
        "skab_open_mb_per_second": raw / _best(lambda: batch.open_records(made)) / 1e6,
        "skab_pack_cpu_ms": 1e3 * _best(lambda: batch.pack(_LABELS, *run), time.thread_time),
        "skab_packer_cpu_ms": 1e3 * _best(lambda: packer.pack(_LABELS, *run), time.thread_time),
        "skab_packer_ms": 1e3 * _best(lambda: packer.pack(_LABELS, *run)),
        "skab_packer_first_seconds": first,
        "skab_packer_rss_mb": int(rss) / 1024,
    }
    packer.close()
    return found


def _best(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of a few dozen calls: what the machine's other work does not add."""
    times = []
    for _ in range(30):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def measure() -> dict[str, object]:
    """All figures; bytes a row count whole batch files and are summed over the seven files."""
    tables = load()
    rows = sum(len(table.rows) for table in tables)
    dice = random.Random(_SEED)
    live = [Table(table.name, tuple(_live(table.rows, dice))) for table in tables]
    minutes = sum(_size(batches(part)) for table in tables for part in _minutes(table.rows))
    live_minutes = sum(_size(batches(part)) for table in live for part in _minutes(table.rows))
    made = {table.name: batches(table.rows) for table in tables}
    found: dict[str, object] = {
        "skab_bytes_per_row": sum(map(_size, made.values())) / rows,
        "skab_by_file": {
            table.name: {
                "rows": len(table.rows),
                "batches": len(made[table.name]),
                "bytes_per_row": _size(made[table.name]) / len(table.rows),
            }
            for table in tables
        },
        "skab_columns_only": all(
            item.header.codec is Codec.COLUMNS for items in made.values() for item in items
        ),
        "skab_rows_codec_bytes_per_row": _per_row(tables, rows_only=True),
        "skab_json_bytes_per_row": sum(table.json_bytes for table in tables) / rows,
        "skab_one_minute_bytes_per_row": minutes / rows,
        "skab_live_bytes_per_row": _per_row(live),
        "skab_live_one_minute_bytes_per_row": live_minutes / rows,
        "skab_largest_frames_bytes_per_row": _per_row(tables, frame_records=550),
        "skab_single_record_frames_bytes_per_row": _per_row(tables, frame_records=1),
    }
    prints: dict[str, Callable[[float], float]] = {
        "six_digits": lambda value: value,
        "float32": lambda value: float(np.float32(value)),
        "all_digits": lambda value: value * math.pi,
    }
    for name, change in prints.items():
        ours, plain = _sensors(tables, change)
        found[f"skab_sensors_{name}_bytes_per_row"] = ours
        found[f"skab_sensors_{name}_plain_pcodec_bytes_per_row"] = plain
    return found | _speeds(tables[0])


def main() -> None:
    """Prints the figures as JSON."""
    json.dump(measure(), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
