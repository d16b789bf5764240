"""An edge that records everything, beside a bare paho echo on the same broker, in one run.

Load comes from ``mosquitto_pub -l`` and goes to ``mosquitto_sub -C``, both C programs. The broker
is filled while the measured process stands still; then it runs, with the broker and the sink as its
only neighbours. It must be saturated: its CPU seconds over wall seconds until the last message came
back at least 0.95. ``saturated`` says whether both were; a ratio of processes that were not is
worth nothing. Latency is measured apart, at 2,000 readings a second, by a prober that stamps each
reading and hears what comes back.

At the end the edge is given a headquarters, drains, and the rows of the archive are compared with
the decisions heard.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import duckdb
import orjson
import paho.mqtt.client as mqtt
import typer

from tests.bench import model
from tests.brokers import RunningBroker, free_port, mosquitto, nats_mqtt

__all__ = ["main"]

_SOURCE = "plant/pump-1/telemetry"
_ECHOED = "bench/echoed"
_DECIDED = "mesh/v1/bench/edge-1/decision/bench"
_SATURATED = 0.95
_RATE = 2000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one quality of service showed; medians over rounds."""

    broker: str
    messages: int
    rounds: int
    echo_per_s: float
    decide_per_s: float
    ratio: float
    echo_us_cpu: float
    decide_us_cpu: float
    cpu_ratio: float
    echo_saturation: float
    decide_saturation: float
    saturated: bool
    echo_ms_p50: float
    decide_ms_p50: float
    echo_ms_p99: float
    decide_ms_p99: float
    decisions: int
    archived: int


@dataclass(frozen=True, slots=True)
class _Flood:
    """One flood: messages a second, CPU µs a message, CPU over wall."""

    per_s: float
    us_cpu: float
    saturation: float


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    messages: Annotated[
        int, typer.Option(help="in each flood at QoS 0; a third at QoS 1")
    ] = 120_000,
    rounds: Annotated[int, typer.Option(help="floods of each")] = 3,
    broker: Annotated[str, typer.Option(help="nats or mosquitto")] = "nats",
) -> None:
    """Measures an edge against a bare echo, at QoS 0 and 1."""
    outcomes = {}
    for qos in (0, 1):
        # At QoS 1 all of them wait for their turn, and a client has 65,535 packet ids.
        count = messages if qos == 0 else min(messages // 3, 60_000)
        # A broker says at its end what its log says; standard output is for the outcome.
        with (
            tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder,
            contextlib.redirect_stdout(sys.stderr),
        ):
            outcomes[f"qos{qos}"] = asdict(_measure(Path(folder), qos, count, rounds, broker))
    if json:
        sys.stdout.buffer.write(orjson.dumps(outcomes, option=orjson.OPT_INDENT_2) + b"\n")
        return
    for name, outcome in outcomes.items():
        print(f"\n{name}, {outcome['messages']:,} messages, {outcome['rounds']} rounds")
        for key, value in outcome.items():
            print(f"  {key:18} {value:,.3f}" if isinstance(value, float) else f"  {key:18} {value}")


def _measure(root: Path, qos: int, count: int, rounds: int, kind: str) -> Outcome:
    payloads = root / "payloads"
    fields = ", ".join(f'"{name}": {n * 1.25 + 0.0625}' for n, name in enumerate(model.FIELDS))
    payloads.write_text((f"{{{fields}}}\n") * count, encoding="utf-8")
    model.write(root / "bench.onnx")
    with _broker(kind, root) as running:
        port = running.port
        with _echo(root, port, qos) as (pid, _):
            echo = [_flood(port, pid, payloads, count, qos, _ECHOED) for _ in range(rounds)]
            echo_ms = _latencies(port, qos, _ECHOED)
        with _edge(root, port, qos, uplink=None) as (pid, warmed):
            decide = [_flood(port, pid, payloads, count, qos, _DECIDED) for _ in range(rounds)]
            decide_ms = _latencies(port, qos, _DECIDED)
        archived = _drain(root, port, qos)
    decisions = warmed + count * rounds + len(decide_ms)
    saturation = [min(flood.saturation for flood in floods) for floods in (echo, decide)]
    rate = [median(flood.per_s for flood in floods) for floods in (echo, decide)]
    cpu = [median(flood.us_cpu for flood in floods) for floods in (echo, decide)]
    return Outcome(
        broker=kind,
        messages=count,
        rounds=rounds,
        echo_per_s=round(rate[0]),
        decide_per_s=round(rate[1]),
        ratio=round(rate[1] / rate[0], 3),
        echo_us_cpu=round(cpu[0], 1),
        decide_us_cpu=round(cpu[1], 1),
        cpu_ratio=round(cpu[0] / cpu[1], 3),
        echo_saturation=round(saturation[0], 3),
        decide_saturation=round(saturation[1], 3),
        saturated=min(saturation) >= _SATURATED,
        echo_ms_p50=_quantile(echo_ms, 0.5),
        decide_ms_p50=_quantile(decide_ms, 0.5),
        echo_ms_p99=_quantile(echo_ms, 0.99),
        decide_ms_p99=_quantile(decide_ms, 0.99),
        decisions=decisions,
        archived=archived,
    )


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[int(len(ordered) * share)], 3)


@contextmanager
def _broker(kind: str, root: Path) -> Iterator[RunningBroker]:
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
def _echo(root: Path, port: int, qos: int) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "tests.bench.echo", "--port", str(port), "--qos", str(qos)]
    command += ["--source", _SOURCE, "--target", _ECHOED]
    with _process(command, root / "echo.log") as process:
        yield process.pid, _answered(port, _ECHOED)


@contextmanager
def _edge(root: Path, port: int, qos: int, uplink: int | None) -> Iterator[tuple[int, int]]:
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
topics = ["{_SOURCE}"]
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
        yield process.pid, 0 if uplink else _answered(port, _DECIDED)


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


def _payload() -> bytes:
    return orjson.dumps(dict.fromkeys(model.FIELDS, 0.5))


def _answered(port: int, target: str) -> int:
    """Returns once a reading is answered: both ends are subscribed, and warm; and how many were."""
    heard = threading.Event()
    count = itertools.count()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="ready")

    def hear(*_: object) -> None:
        next(count)
        heard.set()

    client.on_message = hear
    client.connect("127.0.0.1", port)
    client.subscribe(target, 0)
    client.loop_start()
    deadline = time.monotonic() + 60
    while not heard.wait(0.2):
        assert time.monotonic() < deadline, f"nothing answers on {target}"
        client.publish(_SOURCE, _payload(), 0)
    time.sleep(1.0)  # lets the answers to all of them pass, before anything is timed
    client.disconnect()
    client.loop_stop()
    return next(count)


def _flood(port: int, pid: int, payloads: Path, count: int, qos: int, target: str) -> _Flood:
    """Lets the broker fill, then times the measured process until the last message came back.

    It stands still (SIGSTOP) while the generator works, so that the two do not share the machine,
    and always has more to do.
    """
    where = ["-h", "127.0.0.1", "-p", str(port), "-V", "311"]
    # The sink takes QoS 0, so that the broker has its time for the measured process.
    sink = subprocess.Popen(
        ["mosquitto_sub", *where, "-q", "0", "-t", target, "-C", str(count), "-N"],
        stdout=subprocess.DEVNULL,
    )
    time.sleep(0.5)  # subscribed
    os.kill(pid, signal.SIGSTOP)
    try:
        with payloads.open("rb") as lines:
            source = ["mosquitto_pub", *where, "-q", str(qos), "-t", _SOURCE, "-l"]
            subprocess.run(source, stdin=lines, check=True, timeout=300)
        time.sleep(0.3)  # the broker has taken the last of it
    finally:
        os.kill(pid, signal.SIGCONT)
    before, started = _cpu(pid), time.monotonic()
    # Waiting with a timeout polls, and would add up to 50 ms to what is measured.
    watchdog = threading.Timer(300, sink.kill)
    watchdog.start()
    code = sink.wait()
    watchdog.cancel()
    assert code == 0, "not all messages came back in 300 s"
    wall, cpu = time.monotonic() - started, _cpu(pid) - before
    return _Flood(count / wall, cpu / count * 1e6, cpu / wall)


def _cpu(pid: int) -> float:
    """CPU seconds of a process, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _latencies(port: int, qos: int, target: str, seconds: float = 5.0) -> list[float]:
    """Milliseconds from a reading to its answer, at ``_RATE`` a second; in order, one topic."""
    sent: list[float] = []
    heard: list[float] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="prober")
    client.max_inflight_messages_set(65_535)
    client.on_message = lambda *_: heard.append(time.perf_counter())
    client.connect("127.0.0.1", port)
    client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.subscribe(target, qos)
    client.loop_start()
    time.sleep(0.5)  # subscribed
    payload, count = _payload(), int(seconds * _RATE)
    started = time.perf_counter()
    for number in range(count):
        while (left := started + number / _RATE - time.perf_counter()) > 0:
            time.sleep(left)
        sent.append(time.perf_counter())
        client.publish(_SOURCE, payload, qos)
    deadline = time.monotonic() + 30
    while len(heard) < count:
        assert time.monotonic() < deadline, f"{len(heard)} of {count} answers came"
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    return [(back - out) * 1000 for out, back in zip(sent, heard, strict=True)]


def _drain(root: Path, port: int, qos: int) -> int:
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
    with _process(command, root / "headquarters.log"), _edge(root, port, qos, server):
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
