"""A spool against SQLite, JetStream and a bare loop, in one run on one disk.

All take turns in short passes, so that what disturbs the machine disturbs them alike; each figure
is the median over the passes, each ratio the median over the passes of ours to theirs in the same
pass. ``tests.bench.spool.peers`` says what exactly each of them does.

Ours is a spool with its threads and chores as an edge builds it, its link up, receipts coming about
a second after a record became durable. A spool begins each journal in the blocks of one that nobody
needs any more, so before each pass it appends, unmeasured, until enough of them lie ready, as after
some hours; what it did during the passes is told as ``journals_begun``. What is measured is whole:
from 64 coroutines that each append a record of 200 bytes to their going on once it is durable.

``bulk_spool`` appends 1,000 records at once, in bursts of 80 MiB, which is what fits into the
journals that lie ready; between two bursts it waits, uncounted, until receipts have come for the
last one. ``bulk_spool_unceasing`` does not wait, so that most of its journals are new files, and
some are sealed meanwhile: the bare loop has no such duties, and its ratio is told for completeness.

``disk_steady`` is the bare loop's slowest pass over its fastest one, ``bare_group_ms`` what a group
takes it. Where the former is below about a half, or the latter is many times what the disk can do,
somebody else was using the machine, and the ratios are worth nothing.
"""

import asyncio
import gc
import importlib
import json as json_text
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from nats.js import JetStreamContext

from mesh.spool.spool import Spool
from tests.bench.spool import peers
from tests.bench.spool.load import (
    BULK_RECORDS,
    PRODUCERS,
    RECORD_BYTES,
    Appends,
    JournalsDisk,
    append_awaited,
    append_bulk,
    append_bursts,
    fill,
    opened,
    ready,
    receipts,
    sample_records,
)
from tests.bench.spool.speeds import speeds, written
from tests.spool import wear

__all__ = ["main"]

MATCHING = "overwriting"
"""How a journal's file is prepared: ``appending`` grows it, ``overwriting`` fills written blocks.

The bare loop that does the same is the one to compare with.
"""

_Contest = Callable[[Path], Awaitable[Appends]]


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    passes: Annotated[int, typer.Option(help="turns that each of them gets")] = 9,
    seconds: Annotated[float, typer.Option(help="length of one turn")] = 1.0,
    folder: Annotated[Path | None, typer.Option(help="where: on the disk to be measured")] = None,
) -> None:
    """Measures durable appends, speeds and what is written, beside others' on the same disk."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=folder) as root:
        outcome = asyncio.run(_measure(Path(root), passes, seconds))
    outcome |= _columns()
    outcome["wear"] = wear.report()
    print(json_text.dumps(outcome, indent=2) if json else _table(outcome))


async def _measure(root: Path, passes: int, seconds: float) -> dict[str, object]:
    async with peers.jetstream_server(root / "jetstream") as server:
        contests = _contests(server, seconds)
        found: dict[str, list[Appends]] = {name: [] for name in contests}
        for turn in range(passes):
            for name, contest in contests.items():
                gc.collect()
                with tempfile.TemporaryDirectory(prefix=f"{turn}-", dir=root) as folder:
                    found[name].append(await contest(Path(folder)))
    outcome = _summary(found)
    measured = await speeds(root)
    online = await written(root / "online", seconds, online=True)
    offline = await written(root / "offline", seconds, online=False)
    return outcome | {
        "write_amplification_online": online.bytes_ratio,
        "write_amplification_offline": offline.bytes_ratio,
        "written_online": asdict(online),
        "written_offline": asdict(offline),
        "seal_mb_per_s": round(measured.seal, 1),
        "open_mb_per_s": round(measured.open_groups, 1),
        "open_single_record_frames_mb_per_s": round(measured.open_single, 1),
        "passes": passes,
        "seconds_a_pass": seconds,
    }


def _contests(server: JetStreamContext, seconds: float) -> dict[str, _Contest]:
    records = sample_records()
    group, bulk = b"".join(records[:PRODUCERS]), b"".join(records[:BULK_RECORDS])
    producing = partial(append_awaited, records=records, seconds=seconds)
    bursts = partial(append_bursts, records=records, seconds=seconds / 2)
    sustained = partial(append_bulk, records=records, seconds=seconds)

    def awaited(spool: Spool, _: JournalsDisk) -> Awaitable[Appends]:
        return producing(spool)

    def alone(spool: Spool, _: JournalsDisk) -> Awaitable[Appends]:
        return producing(spool, producers=1)

    def unceasing(spool: Spool, _: JournalsDisk) -> Awaitable[Appends]:
        return sustained(spool)

    ours = partial(_ours, records)
    record = records[0]
    # What is compared stands side by side, so that both meet the same disk.
    return {
        "jetstream": lambda _: peers.jetstream(server, record, seconds),
        "sqlite": partial(peers.sqlite, record=record, seconds=seconds),
        "sqlite_grouped": partial(peers.sqlite_grouped, record=record, seconds=seconds),
        "spool": partial(ours, awaited),
        "bare_appending": partial(_bare, group, PRODUCERS, seconds, overwriting=False),
        "bare_overwriting": partial(_bare, group, PRODUCERS, seconds, overwriting=True),
        "queued_appending": partial(
            peers.queued, record=record, seconds=seconds, overwriting=False
        ),
        "queued_overwriting": partial(
            peers.queued, record=record, seconds=seconds, overwriting=True
        ),
        "bulk_bare_appending": partial(_bare, bulk, BULK_RECORDS, seconds, overwriting=False),
        "bulk_bare_overwriting": partial(_bare, bulk, BULK_RECORDS, seconds, overwriting=True),
        "bulk_spool": partial(ours, bursts),
        "bulk_spool_two_callers": partial(ours, partial(bursts, callers=2)),
        "bulk_spool_unceasing": partial(ours, unceasing),
        "spool_offline": partial(ours, awaited, online=False),
        "spool_alone": partial(ours, alone),
    }


async def _ours(
    records: Sequence[bytes],
    load: Callable[[Spool, JournalsDisk], Awaitable[Appends]],
    folder: Path,
    *,
    online: bool = True,
) -> Appends:
    disk = JournalsDisk(folder / "spool")
    async with opened(disk) as spool, asyncio.TaskGroup() as tasks:
        spool.set_linked(up=True)
        await fill(spool, records)
        receiving = tasks.create_task(receipts(spool))
        await ready(disk)
        disk.forget()
        if not online:
            receiving.cancel()
            spool.set_linked(up=False)
        outcome = await load(spool, disk)
        receiving.cancel()
    return replace(outcome, journals=(disk.reused, disk.spared, disk.new))


async def _bare(
    group: bytes, records: int, seconds: float, folder: Path, *, overwriting: bool
) -> Appends:
    work = partial(peers.bare, folder, group, records, seconds, overwriting=overwriting)
    return await asyncio.to_thread(work)


def _summary(found: Mapping[str, list[Appends]]) -> dict[str, object]:
    def ratios(ours: str, theirs: str) -> list[float]:
        pairs = zip(found[ours], found[theirs], strict=True)
        return [one.per_s / other.per_s for one, other in pairs]

    compared = {
        "ratio_to_sqlite": ratios("spool", "sqlite"),
        "ratio_to_sqlite_grouped": ratios("spool", "sqlite_grouped"),
        "ratio_to_jetstream": ratios("spool", "jetstream"),
        "ratio_to_bare": ratios("spool", f"bare_{MATCHING}"),
        "bulk_ratio_to_bare": ratios("bulk_spool", f"bulk_bare_{MATCHING}"),
        "bulk_two_callers_ratio_to_bare": ratios("bulk_spool_two_callers", f"bulk_bare_{MATCHING}"),
        "bulk_unceasing_ratio_to_bare": ratios("bulk_spool_unceasing", f"bulk_bare_{MATCHING}"),
        "queued_ratio_to_bare": ratios(f"queued_{MATCHING}", f"bare_{MATCHING}"),
    }
    return {
        **{name: round(median(each), 3) for name, each in compared.items()},
        "commit_ms_p50": _percentile_ms(found["spool"], 0.5),
        "commit_ms_p99": _percentile_ms(found["spool"], 0.99),
        "commit_alone_ms_p50": _percentile_ms(found["spool_alone"], 0.5),
        "commit_alone_ms_p99": _percentile_ms(found["spool_alone"], 0.99),
        "disk_steady": _steadiness(found[f"bare_{MATCHING}"]),
        "bare_matching": MATCHING,
        "bare_group_ms": round(
            median(1e3 * PRODUCERS / one.per_s for one in found[f"bare_{MATCHING}"]), 3
        ),
        "journals_begun": {
            name: dict(
                zip(
                    ("reused", "spared", "new"),
                    map(sum, zip(*(one.journals for one in found[name]), strict=True)),
                    strict=True,
                )
            )
            for name in found
            if "spool" in name
        },
        "record_bytes": RECORD_BYTES,
        "producers": PRODUCERS,
        "records_per_s": {name: round(median(one.per_s for one in found[name])) for name in found},
        "records_per_s_min": {name: round(min(one.per_s for one in found[name])) for name in found},
        "records_per_s_max": {name: round(max(one.per_s for one in found[name])) for name in found},
        "ratios_min": {name: round(min(each), 3) for name, each in compared.items()},
        "ratios_max": {name: round(max(each), 3) for name, each in compared.items()},
    }


def _steadiness(passes: list[Appends]) -> float:
    """The slowest pass over the fastest one of a loop that does the same each time."""
    return round(min(one.per_s for one in passes) / max(one.per_s for one in passes), 3)


def _percentile_ms(passes: list[Appends], share: float) -> float:
    """The median over the passes of each one's percentile."""
    return round(
        median(sorted(one.latencies)[int(len(one.latencies) * share)] * 1e3 for one in passes), 3
    )


def _columns() -> dict[str, object]:
    """Bytes a row of real sensor data; another bench measures them."""
    try:
        skab = importlib.import_module("tests.bench.skab")
        return {"skab_bytes_per_row": skab.measure()["skab_bytes_per_row"]}
    except (ImportError, FileNotFoundError) as missing:
        return {"skab_bytes_per_row": None, "skab_note": f"not measured: {missing}"}


def _table(outcome: Mapping[str, object]) -> str:
    lines = []
    for key, value in outcome.items():
        if isinstance(value, Mapping):
            lines += [f"{key}:", *(f"  {name:30} {one}" for name, one in value.items())]
        else:
            lines.append(f"{key:32} {value:,}" if isinstance(value, int) else f"{key:32} {value}")
    return "\n".join(lines)
