"""The peers: what else carries these records from an edge to headquarters, durable at both ends.

A mosquitto whose bridge is to a second one, QoS 1, persistence on at both; and a nats-server as a
leaf, whose stream a hub's stream has for its source, both with ``sync_interval: always``. Each
record is a message of its own, in the bytes that the caller gives it. Each peer has
the whole backlog before its other end exists, and is timed from the first message that arrives
there to the last one, or for ``seconds_max``.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

from mesh.adapters.child import bound_to_parent
from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.system import SystemClock
from schemas.messages import Lane
from tests.brokers import RunningBroker, free_port

__all__ = ["Peer", "leaf", "mesh_server", "mosquitto_bridge"]

_CHUNK = 10_000
_PACKET_IDS = 65_535
_CONNECT = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04load"
_PUBACK_BYTES = 4
_POLL_SECONDS = 0.1
_READY_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer did: records a second, and bytes on the wire a record where they were counted."""

    records_per_s: float
    wire_bytes_per_record: float = 0.0


# --- mosquitto ------------------------------------------------------------------------------------


def mosquitto_bridge(root: Path, made: dict[Lane, list[bytes]], seconds_max: float) -> Peer:
    """Drains them over a mosquitto bridge."""
    port, far = free_port(), free_port()
    bridge = (
        f"connection up\naddress 127.0.0.1:{far}\ntopic bench/# out 1\ncleansession false\n"
        "restart_timeout 1\nnotifications false\n"
    )
    count = sum(map(len, made.values()))
    with ExitStack() as stack:
        near = stack.enter_context(_mosquitto(root / "near", port, bridge))
        _publish(port, made)
        # It stands still until somebody hears what comes.
        os.kill(near, signal.SIGSTOP)
        stack.enter_context(_mosquitto(root / "far", far, ""))
        where = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(far), "-V", "311", "-q", "0"]
        seen = root / "seen"
        with seen.open("wb") as output:
            # A line for each message: its length is how many came.
            hearing = subprocess.Popen([*where, "-t", "bench/#", "-F", "."], stdout=output)
        try:
            time.sleep(_POLL_SECONDS * 5)
            os.kill(near, signal.SIGCONT)
            per_s, arrived = _timed(lambda: seen.stat().st_size // 2, count, seconds_max)
            wire = _wire_bytes(near, far)
        finally:
            hearing.kill()
            hearing.wait()
    return Peer(per_s, wire / max(1, arrived))


@contextmanager
def _mosquitto(root: Path, port: int, more: str) -> Iterator[int]:
    """A mosquitto without bounds on what waits; gives its process id."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert binary is not None, "mosquitto is not installed"
    root.mkdir()
    user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
    configuration = root / "mosquitto.conf"
    configuration.write_text(
        f"persistence true\npersistence_location {root}/\nuser {user}\nset_tcp_nodelay true\n"
        "max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 0\n"
        f"listener {port} 127.0.0.1\nallow_anonymous true\n{more}"
    )
    with _running([binary, "-c", str(configuration)], port, root / "log") as pid:
        yield pid


def _publish(port: int, made: dict[Lane, list[bytes]]) -> None:
    """Publishes everything at QoS 1, as fast as it is acknowledged."""
    packets = [
        (b"bench/%b" % lane.encode(), record) for lane, kept in made.items() for record in kept
    ]
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(_CONNECT)
        _read(stream, _PUBACK_BYTES)  # a CONNACK is as long
        for start in range(0, len(packets), _CHUNK):
            chunk = packets[start : start + _CHUNK]
            data = b"".join(
                _packet(topic, record, (start + index) % _PACKET_IDS + 1)
                for index, (topic, record) in enumerate(chunk)
            )
            sender = threading.Thread(target=stream.sendall, args=(data,))
            sender.start()
            _read(stream, _PUBACK_BYTES * len(chunk))
            sender.join()


def _packet(topic: bytes, payload: bytes, number: int) -> bytes:
    body = len(topic).to_bytes(2) + topic + number.to_bytes(2) + payload
    length = bytearray()
    left = len(body)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return b"\x32" + bytes(length) + body


def _read(stream: socket.socket, size: int) -> None:
    while size:
        found = stream.recv(min(size, 1 << 16))
        assert found, "the broker hung up"
        size -= len(found)


def _wire_bytes(pid: int, port: int) -> int:
    """What TCP has carried between a process and a port, both ways, without its headers."""
    command = ["ss", "-tinHOp", f"dport = :{port}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(
        int(word.partition(":")[2])
        for line in told.splitlines()
        if f"pid={pid}," in line
        for word in line.split()
        if word.startswith(("bytes_acked:", "bytes_received:"))
    )


# --- nats-server ----------------------------------------------------------------------------------


def leaf(root: Path, made: dict[Lane, list[bytes]], seconds_max: float) -> Peer:
    """Drains them from a leaf's stream into a hub's."""
    near, far, between = free_port(), free_port(), free_port()
    remote = f'leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{between}" }}] }}\n'
    count = sum(map(len, made.values()))
    with _nats(root / "near", "near", near, remote, sync=False):
        asyncio.run(_load(near, made))
    with (
        _nats(
            root / "far", "far", far, f"leafnodes {{ listen: 127.0.0.1:{between} }}\n", sync=True
        ),
        _nats(root / "near", "near", near, remote, sync=True),
    ):
        return Peer(asyncio.run(_source(far, count, seconds_max)))


async def _load(port: int, made: dict[Lane, list[bytes]]) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream()
    await stream.add_stream(name="EDGE", subjects=["bench.>"])
    for lane, kept in made.items():
        for record in kept:
            await stream.publish_async(f"bench.{lane}", record, wait_stall=60.0)
    await stream.publish_async_completed()
    await client.close()


async def _source(port: int, count: int, seconds_max: float) -> float:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    shape = {
        "name": "HUB",
        "sources": [{"name": "EDGE", "external": {"api": "$JS.near.API"}}],
        "storage": "file",
        "num_replicas": 1,
    }
    await _call(client, "STREAM.CREATE.HUB", shape)
    begun, arrived = 0.0, 0
    deadline = time.monotonic() + seconds_max
    while arrived < count and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        arrived = (await _call(client, "STREAM.INFO.HUB", {}))["state"]["messages"]
        if arrived and not begun:
            begun, first = time.perf_counter(), arrived
    assert begun, "nothing came over the leaf"
    per_s = (arrived - first) / (time.perf_counter() - begun)
    await client.close()
    return per_s


@contextmanager
def mesh_server(root: Path) -> Iterator[str]:
    """A nats-server with the streams of the mesh, which nobody reads; gives its URL."""
    port = free_port()
    with _nats(root, "mesh", port, "", sync=True):
        url = f"nats://127.0.0.1:{port}"
        asyncio.run(_make_streams(url))
        yield url


async def _make_streams(url: str) -> None:
    """As headquarters makes them."""
    settings = IntakeSettings(SessionSettings("hq", (url,)), up_bytes_max=1 << 30)
    async with JetStreamIntake(settings, SystemClock(), random.Random(1)) as intake:
        async with asyncio.timeout(_READY_SECONDS_MAX):
            state = intake.state
            while not state.up:
                state = await intake.wait_changed(state)


async def _call(client: Client, subject: str, body: object) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=30)
    found: dict[str, Any] = json.loads(answer.data)
    assert "error" not in found, found
    return found


@contextmanager
def _nats(root: Path, name: str, port: int, more: str, *, sync: bool) -> Iterator[int]:
    root.mkdir(exist_ok=True)
    configuration = root / "nats.conf"
    # The parser takes the rest of the line for the value of sync_interval.
    always = "sync_interval: always\n" if sync else ""
    configuration.write_text(
        f'server_name: {name}\nlisten: 127.0.0.1:{port}\njetstream {{\nstore_dir: "{root}/store"\n'
        f"domain: {name}\n{always}}}\n{more}"
    )
    command = [str(Path(sys.executable).parent / "nats-server"), "-c", str(configuration)]
    with _running(command, port, root / "log") as pid:
        yield pid


# --- both -----------------------------------------------------------------------------------------


@contextmanager
def _running(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    broker = RunningBroker(list(bound_to_parent(command)), port, log)
    broker.start()
    try:
        assert broker._process is not None
        yield broker._process.pid
    finally:
        broker.end()


def _timed(look: Callable[[], int], count: int, seconds_max: float) -> tuple[float, int]:
    """Messages a second from the first to the last, or for so long; and how many came."""
    deadline = time.monotonic() + seconds_max
    while not (first := look()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(_POLL_SECONDS / 10)
    begun = time.perf_counter()
    deadline = time.monotonic() + seconds_max
    while (arrived := look()) < count and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS / 10)
    return (arrived - first) / (time.perf_counter() - begun), arrived
