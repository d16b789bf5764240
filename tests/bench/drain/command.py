"""A backlog from a spool to rows in Parquet, durable at both ends, against what else there is.

One run on one machine: records of three lanes wait in a spool; a process forwards them to the
nats-server of a headquarters (JetStream, ``sync_interval: always``), which verifies, archives and
receipts it. Timed from the moment the link is up until all of it is receipted, which is after the
rows are in their Parquet files. Everything has the settings that it has where nothing is
configured. The same records then cross as messages of their own (``tests.bench.drain.peers``), and
the same batches in a bare loop (``tests.bench.drain.forward``); ``--forward`` measures those two
alone, in half a minute.

A peer's rate does not depend on the length of its backlog, so the peers have ``peer_records`` of
the records at most. What a mosquitto would carry is the JSON that a node publishes; that the same
canonical bytes cross it as well, a record a message, shows how much of the difference is JSON's.
Forwarding and the bare loop take turns, and their medians count: each takes less than a second.
"""

import json as json_text
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import duckdb
import typer

from schemas.messages import Lane
from tests.bench.drain import peers
from tests.bench.drain.load import documents, fill, records
from tests.brokers import free_port
from tests.processes import ROOT, holdfast

__all__ = ["Forwarding", "Outcome", "forwarding", "main", "measure"]

_TICKS = os.sysconf("SC_CLK_TCK")
_READY_SECONDS_MAX = 60.0
_PEER_RECORDS_MAX = 200_000
_ROUNDS = 3
_ROUNDS_ALONE = 7


@dataclass(frozen=True, slots=True)
class Forwarding:
    """How fast a forwarder is by itself.

    Args:
        records: how many.
        forward_per_s: forwarded to a server, which nobody reads.
        bare_per_s: the same batches by a bare loop.
        forward_ratio_to_bare: 0.7 or more is the goal.
        forward_ratio_to_bare_best: of the best rounds of both, which other work disturbs least.
    """

    records: int
    forward_per_s: float
    bare_per_s: float
    forward_ratio_to_bare: float
    forward_ratio_to_bare_best: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the backlog was drained.

    Args:
        records: how many.
        peer_records: how many each peer had.
        records_per_s: from the spool to rows in Parquet.
        wire_bytes_per_record: what TCP carried for it, both ways.
        ingest_cpu_s_per_million: CPU seconds of the headquarters process.
        mosquitto_per_s: over the bridge, as JSON.
        mosquitto_wire_bytes_per_record: what TCP carried for it, both ways.
        mosquitto_canonical_per_s: over the bridge, as canonical bytes.
        mosquitto_canonical_wire_bytes_per_record: what TCP carried for it, both ways.
        leaf_per_s: over the leaf.
        forward_per_s: forwarded to a server, which nobody reads.
        bare_per_s: the same batches by a bare loop.
        ratio_to_mosquitto: of ``records_per_s``; 5 or more is the goal.
        bytes_ratio_to_mosquitto: how many times fewer bytes; 10 or more is the goal.
        ratio_to_mosquitto_canonical: of ``records_per_s``.
        bytes_ratio_to_mosquitto_canonical: how many times fewer bytes.
        ratio_to_leaf: of ``records_per_s``.
        forward_ratio_to_bare: 0.7 or more is the goal.
    """

    records: int
    peer_records: int
    records_per_s: float
    wire_bytes_per_record: float
    ingest_cpu_s_per_million: float
    mosquitto_per_s: float
    mosquitto_wire_bytes_per_record: float
    mosquitto_canonical_per_s: float
    mosquitto_canonical_wire_bytes_per_record: float
    leaf_per_s: float
    forward_per_s: float
    bare_per_s: float
    ratio_to_mosquitto: float
    bytes_ratio_to_mosquitto: float
    ratio_to_mosquitto_canonical: float
    bytes_ratio_to_mosquitto_canonical: float
    ratio_to_leaf: float
    forward_ratio_to_bare: float


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    count: Annotated[int, typer.Option("--records", help="in the backlog")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="how long a peer is watched at most")] = 60.0,
    folder: Annotated[Path | None, typer.Option(help="where: on the disk to be measured")] = None,
    forward: Annotated[bool, typer.Option("--forward", help="forwarding alone, in short")] = False,
) -> None:
    """Drains a backlog into Parquet, and over what else carries records."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=folder) as name:
        root = Path(name)
        outcome = asdict(forwarding(root, count) if forward else measure(root, count, seconds))
    if json:
        print(json_text.dumps(outcome, indent=2))
        return
    for key, value in outcome.items():
        print(f"{key:32} {value:,}")


def forwarding(root: Path, count: int) -> Forwarding:
    """Forwards a backlog of so many records, and hands the same batches to a bare loop."""
    fill(root / "spool", records(count))
    rounds = [(_forward(root, "accepted"), _forward(root, "bare")) for _ in range(_ROUNDS_ALONE)]
    ours, theirs = zip(*rounds, strict=True)
    forwarded, bare = statistics.median(ours), statistics.median(theirs)
    return Forwarding(
        records=count,
        forward_per_s=round(count / forwarded),
        bare_per_s=round(count / bare),
        forward_ratio_to_bare=round(bare / forwarded, 2),
        forward_ratio_to_bare_best=round(min(theirs) / min(ours), 2),
    )


def measure(root: Path, count: int, seconds_max: float) -> Outcome:
    """Drains a backlog of so many records, and lets the peers do the same.

    Raises:
        AssertionError: not each record has one row.
    """
    made = records(count)
    fill(root / "spool", made)
    # The drain releases, so it has a copy; draining it comes last for the page cache's sake.
    shutil.copytree(root / "spool", root / "drained")
    rounds = [(_forward(root, "accepted"), _forward(root, "bare")) for _ in range(_ROUNDS)]
    forwarded, bare = map(statistics.median, zip(*rounds, strict=True))
    drained, cpu = _drain(root, made)
    few = min(count, _PEER_RECORDS_MAX)
    canonical = peers.mosquitto_bridge(_folder(root / "canonical"), records(few), seconds_max)
    made = documents(few)
    mosquitto = peers.mosquitto_bridge(_folder(root / "mosquitto"), made, seconds_max)
    leaf = peers.leaf(_folder(root / "leaf"), made, seconds_max)
    per_s = count / drained["seconds"]
    wire = drained["wire_bytes"] / count
    return Outcome(
        records=count,
        peer_records=few,
        records_per_s=round(per_s),
        wire_bytes_per_record=round(wire, 2),
        ingest_cpu_s_per_million=round(cpu / count * 1e6, 2),
        mosquitto_per_s=round(mosquitto.records_per_s),
        mosquitto_wire_bytes_per_record=round(mosquitto.wire_bytes_per_record, 2),
        mosquitto_canonical_per_s=round(canonical.records_per_s),
        mosquitto_canonical_wire_bytes_per_record=round(canonical.wire_bytes_per_record, 2),
        leaf_per_s=round(leaf.records_per_s),
        forward_per_s=round(count / forwarded),
        bare_per_s=round(count / bare),
        ratio_to_mosquitto=round(per_s / mosquitto.records_per_s, 2),
        bytes_ratio_to_mosquitto=round(mosquitto.wire_bytes_per_record / wire, 2),
        ratio_to_mosquitto_canonical=round(per_s / canonical.records_per_s, 2),
        bytes_ratio_to_mosquitto_canonical=round(canonical.wire_bytes_per_record / wire, 2),
        ratio_to_leaf=round(per_s / leaf.records_per_s, 2),
        forward_ratio_to_bare=round(bare / forwarded, 2),
    )


def _forward(root: Path, how: str) -> float:
    """Seconds until a server that nobody reads has acknowledged all batches."""
    folder = _folder(root / how)
    with peers.mesh_server(folder) as url:
        # What is receipted is released, so each has a spool of its own.
        shutil.copytree(root / "spool", folder / "spool")
        seconds = _child(folder / "spool", url, how)["seconds"]
    shutil.rmtree(folder)
    return seconds


def _drain(root: Path, made: dict[Lane, list[bytes]]) -> tuple[dict[str, float], float]:
    """What the forwarding process says, and the CPU seconds of headquarters."""
    port = free_port()
    config = root / "headquarters.toml"
    config.write_text(
        f'[headquarters]\nname = "hq"\nembedded = true\nclient_port = {port}\n'
        f'archive_directory = "{root}/hq"\n'
    )
    with holdfast(root / "hq.log", "headquarters", "--config", str(config)) as process:
        _await_line(root / "hq.log", "taking batches")
        before = _cpu(process.pid)
        told = _child(root / "drained", f"nats://127.0.0.1:{port}", "receipts")
        cpu = _cpu(process.pid) - before
    # What the spool states of itself comes too.
    found = {lane: rows for lane, rows in _rows(root / "hq" / "archive").items() if lane in made}
    assert found == {str(lane): (len(kept), len(kept)) for lane, kept in made.items()}, found
    return told, cpu


def _rows(archive: Path) -> dict[str, tuple[int, int]]:
    """By lane: rows, and different numbers among them."""
    query = (
        "SELECT lane, count(*), count(DISTINCT seq)"
        f" FROM read_parquet('{archive}/**/*.parquet', union_by_name = true) GROUP BY lane"
    )
    with duckdb.connect(":memory:") as database:
        rows = database.execute(query).fetchall()
    return {lane: (count, distinct) for lane, count, distinct in rows}


def _await_line(log: Path, words: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS_MAX
    while words not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, f"{log}: {log.read_text()}"
        time.sleep(0.1)


def _child(folder: Path, url: str, how: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.drain.forward", str(folder), url, how]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json_text.loads(child.stdout)
    return told


def _cpu(pid: int) -> float:
    """CPU seconds of a process, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
