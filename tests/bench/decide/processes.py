"""The processes that are measured: a broker, an echo or an edge on it, a headquarters."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from tests.bench.decide.load import SOURCE, answered
from tests.brokers import RunningBroker, free_port, mosquitto, nats_mqtt

__all__ = ["DECIDED", "ECHOED", "broker", "drain", "echo", "edge"]

ECHOED = "bench/echoed"
DECIDED = "mesh/v1/bench/edge-1/decision/bench"


@contextmanager
def broker(kind: str, root: Path) -> Iterator[RunningBroker]:
    """A broker of a kind, ``nats`` or ``mosquitto``."""
    # Bounds so high that no reading is dropped while the measured process is behind.
    if kind == "mosquitto":
        options = "max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 0\n"
        with mosquitto(root, options=options) as running:
            yield running
    else:
        options = 'max_pending: 2GB\nwrite_deadline: "300s"\n'
        with nats_mqtt(root, mqtt="ack_wait: 300s", options=options) as running:
            yield running


@contextmanager
def echo(root: Path, port: int, qos: int) -> Iterator[tuple[int, int]]:
    """An echo that answers: its process id, and how often it was asked."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.decide.echo",
        "--port",
        str(port),
        "--qos",
        str(qos),
    ]
    command += ["--source", SOURCE, "--target", ECHOED]
    with _process(command, root / "echo.log") as process:
        yield process.pid, answered(port, ECHOED)


@contextmanager
def edge(root: Path, port: int, qos: int, uplink: int | None) -> Iterator[tuple[int, int]]:
    """An edge that decides: its process id, and how often it was asked."""
    config = root / "edge.toml"
    uplinks = f'[[uplinks]]\nname = "up"\nurl = "nats://127.0.0.1:{uplink}"\n' if uplink else ""
    config.write_text(
        f"""\
[node]
site = "bench"
name = "edge-1"
state_directory = "{root}/edge"
[broker]
url = "mqtt://127.0.0.1:{port}"
[spool]
bytes_max = "4 GiB"
[[decisions]]
name = "bench"
topics = ["{SOURCE}"]
qos = {qos}
publish_qos = {qos}
model = "{root}/bench.onnx"
confidence_min = 0.05
valid_for_ms = 5000
[decisions.input_range]
f0 = [-100.0, 100.0]
[decisions.output_range]
margin = [-100.0, 100.0]
{uplinks}""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "nodes", "edge", "--config", str(config)]
    with _process(command, root / "edge.log") as process:
        yield process.pid, 0 if uplink else answered(port, DECIDED)


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
        if process.poll() is not None:
            raise AssertionError(f"{command} ended:\n{log.read_text('utf-8', 'replace')[-2000:]}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def drain(root: Path, port: int, qos: int) -> int:
    """Gives the edge a headquarters, lets it drain, and counts the decisions in the archive."""
    server = free_port()
    config = root / "headquarters.toml"
    config.write_text(
        f"""\
[headquarters]
name = "headquarters"
archive_directory = "{root}/archive"
embedded = true
client_port = {server}
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "nodes", "headquarters", "--config", str(config)]
    with _process(command, root / "headquarters.log"), edge(root, port, qos, server):
        deadline = time.monotonic() + 120
        before = -1
        while (archived := _archived(root)) != before or archived == 0:
            assert time.monotonic() < deadline, "the backlog did not drain"
            before = archived
            time.sleep(5)
    shutil.rmtree(root / "edge")
    return archived


def _archived(root: Path) -> int:
    files = [str(path) for path in (root / "archive" / "archive").rglob("*.parquet")]
    if not files:
        return 0
    with duckdb.connect(":memory:") as database:
        ((distinct, rows),) = database.execute(
            "SELECT count(DISTINCT (epoch, seq)), count(*) FROM read_parquet(?) "
            "WHERE lane = 'decisions'",
            [files],
        ).fetchall()
    assert distinct == rows, f"{rows - distinct} rows too many"
    return int(rows)
