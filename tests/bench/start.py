"""From process start to first decision, with no network and a backlog of a million records."""

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import orjson
import paho.mqtt.client as mqtt
import typer

from mesh.adapters.system import SystemClock, SystemDisk, boot_id, entropy, machine_id
from mesh.spool.batch import Labels
from mesh.spool.spool import Resources, Spool, SpoolSettings
from schemas import wire
from schemas.messages import Event, Lane, Severity
from tests.bench import model
from tests.brokers import nats_mqtt

__all__ = ["first_decision_seconds", "main", "make_backlog"]

_GROUP = 2000


class _Silent:
    def observe(self, event: object) -> None:
        """Says nothing."""


async def make_backlog(folder: Path, records: int, noise: int = 0) -> None:
    """Fills a spool with records that no network ever took, and leaves it as a kill would.

    Args:
        folder: of the spool.
        records: how many.
        noise: how many characters in each that do not shrink much.
    """
    rng = random.Random(7)
    folder.mkdir(parents=True)  # noqa: ASYNC240 - nothing else runs yet
    resources = Resources(
        SystemDisk(folder),
        SystemClock(),
        ThreadPoolExecutor(1),
        ThreadPoolExecutor(1),
        entropy,
        boot_id(),
        machine_id() or bytes(16),
        _Silent(),
    )
    spool = await Spool.open(resources, SpoolSettings(Labels("bench", "edge-1")))
    async with asyncio.TaskGroup() as tasks:
        chores = tasks.create_task(spool.maintain())
        for start in range(0, records, _GROUP):
            group = [
                wire.encode(
                    Event(
                        *(n, n, "backlog", Severity.NOTICE),
                        f"record {n} {rng.randbytes(noise // 2).hex()}",
                        {"n": str(n)},
                    )
                )
                for n in range(start, min(start + _GROUP, records))
            ]
            await spool.append(Lane.EVENTS, group).settled
        chores.cancel()


def fill_in_child(folder: Path, records: int, noise: int = 0) -> None:
    """Fills a spool in a process that ends without closing it."""
    arguments = (folder, records, noise)
    child = multiprocessing.get_context("spawn").Process(target=_fill, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 0


def _fill(folder: Path, records: int, noise: int) -> None:
    asyncio.run(make_backlog(folder, records, noise))
    os._exit(0)


def first_decision_seconds(root: Path, port: int) -> float:
    """Seconds from starting an edge on the spool below ``root/edge`` to its first decision."""
    model.write(root / "bench.onnx")
    config = root / "edge.toml"
    config.write_text(
        f"""\
[node]
site = "bench"
name = "edge-1"
state_directory = "{root}/edge"
[broker]
url = "mqtt://127.0.0.1:{port}"
[[decisions]]
name = "bench"
topics = ["plant/+/telemetry"]
model = "{root}/bench.onnx"
[[uplinks]]
name = "nowhere"
url = "nats://127.0.0.1:9"
""",
        encoding="utf-8",
    )
    heard = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="prober")
    client.on_message = lambda *_: heard.set()
    client.connect("127.0.0.1", port)
    client.subscribe("mesh/v1/bench/edge-1/decision/bench", 0)
    client.loop_start()
    payload = orjson.dumps(dict.fromkeys(model.FIELDS, 0.5))
    started = time.monotonic()
    with (root / "edge.log").open("ab") as log:
        command = [sys.executable, "-m", "nodes", "edge", "--config", str(config)]
        edge = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while not heard.wait(0.01):
            assert edge.poll() is None, (root / "edge.log").read_text("utf-8", "replace")[-2000:]
            assert time.monotonic() < started + 60, "no decision in a minute"
            client.publish("plant/pump-1/telemetry", payload, 0)
        return time.monotonic() - started
    finally:
        edge.send_signal(signal.SIGKILL)
        edge.wait()
        client.disconnect()
        client.loop_stop()


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    records: Annotated[int, typer.Option(help="in the backlog")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="starts")] = 5,
) -> None:
    """Times an edge from process start to first decision, offline, with a backlog."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        root = Path(folder)
        fill_in_child(root / "edge" / "spool", records)
        with contextlib.redirect_stdout(sys.stderr), nats_mqtt(root) as broker:
            seconds = sorted(first_decision_seconds(root, broker.port) for _ in range(rounds))
    outcome = {
        "records": records,
        "rounds": rounds,
        "first_decision_seconds_median": round(seconds[len(seconds) // 2], 3),
        "first_decision_seconds_max": round(seconds[-1], 3),
    }
    print(orjson.dumps(outcome, option=orjson.OPT_INDENT_2).decode() if json else outcome)
