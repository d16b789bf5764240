"""What is urgent, over a narrow link that is busy with history.

An edge has a backlog of 100 MB and a link of 64 kbit/s, a proxy that lets so many bytes through.
Measured: from an alarm (the broker brought a message under a name that is no topic) to its row at
headquarters, by the alarm's own time; how old live metrics are when their rows appear, over a
minute; and the latency of decisions
meanwhile, beside that of the same edge without a link and without a backlog. Rows are looked for in
the archive, by this process.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import duckdb
import orjson
import paho.mqtt.client as mqtt
import typer

from simulator.wan import WanProxy
from tests.bench import model
from tests.bench.decide.load import answered, latencies
from tests.bench.decide.processes import DECIDED
from tests.bench.start import fill_in_child
from tests.brokers import free_port, nats_mqtt

__all__ = ["main"]

_RATE = 64_000 / 8
_RECORDS_PER_MB = 900
_NOISE = 2000
_AT = "epoch(wall_at)"
_ALARMS = 5
_REFUSED = "plant/\ufdd0/telemetry"
"""A topic that an edge refuses, which it tells as an alarm."""
_LIVE_SECONDS = 60.0
_WITHIN_SECONDS = 120.0


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    megabytes: Annotated[int, typer.Option(help="of backlog")] = 100,
) -> None:
    """Times alarms, live metrics and decisions beside a backlog on 64 kbit/s."""
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder,
        contextlib.redirect_stdout(sys.stderr),
    ):
        outcome = asyncio.run(_measure(Path(folder), megabytes))
    print(orjson.dumps(outcome, option=orjson.OPT_INDENT_2).decode() if json else outcome)


async def _measure(root: Path, megabytes: int) -> dict[str, Any]:
    model.write(root / "bench.onnx")
    spool = root / "edge" / "spool"
    await asyncio.to_thread(fill_in_child, spool, megabytes * _RECORDS_PER_MB, _NOISE)
    backlog = sum(path.stat().st_size for path in spool.rglob("*") if path.is_file())
    server = free_port()
    with nats_mqtt(root) as broker:
        with _edge(root, "calm", broker.port, None):
            await asyncio.to_thread(answered, broker.port, DECIDED)
            unloaded = await asyncio.to_thread(latencies, broker.port, 0, DECIDED)
        async with WanProxy("127.0.0.1", 0, "127.0.0.1", server) as wan:
            wan.throttle(_RATE)
            with _headquarters(root, server), _edge(root, "edge", broker.port, wan.port):
                await asyncio.to_thread(answered, broker.port, DECIDED)
                await _until_rows(root, "metrics")
                started, before = time.monotonic(), wan.counts().bytes_up
                alarms = [await _alarm(root, broker.port, n) for n in range(_ALARMS)]
                live = await _live(root)
                carried = (wan.counts().bytes_up - before) / (time.monotonic() - started)
                loaded = await asyncio.to_thread(latencies, broker.port, 0, DECIDED)
    return {
        "backlog_mb": round(backlog / 1e6, 1),
        "link_bytes_per_second": round(carried),
        "alarm_seconds": round(max(alarms), 2),
        "alarm_seconds_median": round(median(alarms), 2),
        "alarm_seconds_each": [round(seconds, 2) for seconds in alarms],
        "live_seconds": round(max(live), 2),
        "live_seconds_median": round(median(live), 2),
        "decide_ms_p50": round(median(loaded), 3),
        "decide_ms_p50_unloaded": round(median(unloaded), 3),
    }


async def _alarm(root: Path, port: int, number: int) -> float:
    """Seconds from an alarm, as it says itself, to its row."""
    known = _newest(root, "alarms")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"raiser-{number}")
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.publish(_REFUSED, b"0", 0)
    deadline = time.monotonic() + _WITHIN_SECONDS
    while (raised := _newest(root, "alarms")) <= known:
        assert time.monotonic() < deadline, "no row of the alarm"
        await asyncio.sleep(0.02)
    seconds = time.time() - raised
    client.disconnect()
    client.loop_stop()
    await asyncio.sleep(3.0)
    return seconds


async def _live(root: Path) -> list[float]:
    """How old live metrics are when their rows appear, the oldest of each time; seconds."""
    ages: list[float] = []
    newest = _newest(root, "metrics")
    until = time.monotonic() + _LIVE_SECONDS
    while time.monotonic() < until:
        query = f"SELECT coalesce(min(epoch(wall_at)), 0) FROM archived WHERE {_AT} > {newest!r}"
        oldest = _ask(root, query, "metrics")
        if oldest:
            ages.append(time.time() - oldest)
            newest = _newest(root, "metrics")
        await asyncio.sleep(0.05)
    assert ages, "no metric came"
    return ages


def _newest(root: Path, lane: str) -> float:
    """When the newest record of a lane that has a row was made; seconds of UTC."""
    return _ask(root, f"SELECT coalesce(max({_AT}), 0) FROM archived", lane)


def _ask(root: Path, query: str, lane: str) -> float:
    files = [str(path) for path in (root / "archive" / "archive").rglob("*.parquet")]
    files = [path for path in files if f"lane={lane}/" in path]
    if not files:
        return 0
    with duckdb.connect(":memory:") as database:
        archived = database.read_parquet(files, hive_partitioning=False)  # noqa: F841 - the query names it
        ((value,),) = database.execute(query).fetchall()
        return float(value)


async def _until_rows(root: Path, lane: str) -> None:
    deadline = time.monotonic() + _WITHIN_SECONDS
    while not _newest(root, lane):
        assert time.monotonic() < deadline, f"no row of lane {lane}"
        await asyncio.sleep(0.2)


@contextmanager
def _headquarters(root: Path, port: int) -> Iterator[None]:
    config = root / "headquarters.toml"
    config.write_text(
        f"""\
[headquarters]
name = "headquarters"
archive_directory = "{root}/archive"
embedded = true
client_port = {port}
linger_seconds = 0.05
""",
        encoding="utf-8",
    )
    with _process("headquarters", config, root / "headquarters.log"):
        yield


@contextmanager
def _edge(root: Path, name: str, mqtt_port: int, uplink: int | None) -> Iterator[None]:
    config = root / f"{name}.toml"
    uplinks = f'[[uplinks]]\nname = "up"\nurl = "nats://127.0.0.1:{uplink}"\n' if uplink else ""
    config.write_text(
        f"""\
[node]
site = "bench"
name = "edge-1"
state_directory = "{root}/{name}"
[broker]
url = "mqtt://127.0.0.1:{mqtt_port}"
[health]
interval_seconds = 1
[[decisions]]
name = "bench"
topics = ["plant/+/telemetry"]
model = "{root}/bench.onnx"
valid_for_ms = 5000
{uplinks}""",
        encoding="utf-8",
    )
    with _process("edge", config, root / f"{name}.log"):
        yield


@contextmanager
def _process(role: str, config: Path, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "nodes", role, "--config", str(config)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
    finally:
        # A backlog that takes hours is not waited for.
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
