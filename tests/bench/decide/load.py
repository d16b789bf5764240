"""The load on an edge or an echo: floods that saturate it, and a prober that times single readings.

It comes from ``mosquitto_pub -l`` and goes to ``mosquitto_sub -C``, both C programs.
"""

import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import paho.mqtt.client as mqtt

from tests.bench import model

__all__ = ["SOURCE", "Flood", "answered", "flood", "latencies"]

SOURCE = "plant/pump-1/telemetry"
_RATE = 2000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Flood:
    """One flood: messages a second, CPU µs a message, CPU over wall."""

    per_s: float
    us_cpu: float
    saturation: float


def _payload() -> bytes:
    return orjson.dumps(dict.fromkeys(model.FIELDS, 0.5))


def answered(port: int, target: str) -> int:
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
        client.publish(SOURCE, _payload(), 0)
    time.sleep(1.0)  # lets the answers to all of them pass, before anything is timed
    client.disconnect()
    client.loop_stop()
    return next(count)


def flood(port: int, pid: int, payloads: Path, count: int, qos: int, target: str) -> Flood:
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
            source = ["mosquitto_pub", *where, "-q", str(qos), "-t", SOURCE, "-l"]
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
    return Flood(count / wall, cpu / count * 1e6, cpu / wall)


def _cpu(pid: int) -> float:
    """CPU seconds of a process, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def latencies(port: int, qos: int, target: str, seconds: float = 5.0) -> list[float]:
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
        client.publish(SOURCE, payload, qos)
    deadline = time.monotonic() + 30
    while len(heard) < count:
        assert time.monotonic() < deadline, f"{len(heard)} of {count} answers came"
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    return [(back - out) * 1000 for out, back in zip(sent, heard, strict=True)]
