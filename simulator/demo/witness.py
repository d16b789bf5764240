"""The witness.

A process of its own that runs the plant, hears what the edges say, and writes everything down.

It is the outside from which the account is computed: it knows which readings were published, since
it published them; which decisions appeared, since it heard them on the local broker; and which
batches crossed into headquarters, since it listens at its server, and at that of the gateway where
there is one. It reads no counter of any party.
It ties a decision to its reading by the input digest, which it computes itself from the window of
readings that it published: so it knows not only that there was a decision, but that it was made
from these readings.

Orders come as JSON lines on standard input, ``{"do": "start" | "stop" | "mark", "what": …}``;
standing is told as JSON lines on standard output, twice a second. It ends when its standard input
does.
"""

import asyncio
import itertools
import random
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import orjson
import typer

from mesh.adapters.jetstream.tap import Tap
from mesh.adapters.mqtt.broker import MqttBroker
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Publication
from nodes.edge.model import Contract
from nodes.edge.runtime import OnnxModel
from schemas.errors import LinkDown, Refused
from schemas.messages import BatchHeader, Receipt, Stage
from simulator.actuator import Actuator, Complained
from simulator.demo.crossing import Crossing
from simulator.plant import Plant, PlantReading

__all__ = ["Witness", "main"]

_TICK_SECONDS: Final = 0.01
_STANDING_SECONDS: Final = 0.5
_FLAW_EVERY: Final = 250
_LATENCIES_KEPT: Final = 2000
_MS: Final = 1_000_000
# What a batch and a receipt are called in the log: at headquarters, and at a gateway.
_AWAY: Final = ("batch", "receipt")
_THERE: Final = ("handed over", "held")
FLAWS: Final = ("not JSON", "not a number", "missing field", "wrong type")


class Witness:
    """Publishes readings, hears decisions, listens at headquarters, writes it all down.

    Args:
        broker: the local broker.
        tap: at headquarters' server.
        gateway_tap: at the gateway's server, where there is a gateway.
        plant: where readings come from.
        contract: what the edge's model says of itself: fields, and readings in a window.
        rate: readings a second, all pumps together.
        rng: for flaws.
        log: where to write.
    """

    def __init__(
        self,
        broker: MqttBroker,
        tap: Tap,
        gateway_tap: Tap | None,
        plant: Plant,
        contract: Contract,
        rate: float,
        rng: random.Random,
        log: Path,
    ) -> None:
        self._broker = broker
        self._tap = tap
        self._gateway_tap = gateway_tap
        self._plant = plant
        self._fields = contract.fields
        self._window = contract.window or 1
        self._windows: dict[str, deque[bytes]] = {}
        self._rate = rate
        self._rng = rng
        self._log = log.open("ab", buffering=1 << 16)
        self._clock = SystemClock()
        self._actuator = Actuator(
            {"normal": "run", "anomaly": "slow down"}, safe="stop", silence_seconds=2.0
        )
        self._running = asyncio.Event()
        self._published_ns: dict[str, int] = {}
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._counts = dict.fromkeys(
            ("readings", "unpublished", "flawed", "decided", "complaints"), 0
        )
        self._health: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._verdict = ""
        self._headquarters = Crossing(Stage.ARCHIVED)
        self._gateway = Crossing(Stage.HELD)
        self._newest: dict[str, int] = {}

    async def run(self) -> None:
        """Witnesses until standard input ends."""
        self._broker.subscribe(
            {
                "mesh/v1/+/+/decision/+": 1,
                "mesh/v1/+/+/health/+": 0,
                "mesh/v1/+/+/state/+": 0,
            }
        )
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(self._publish()),
                tasks.create_task(self._hear()),
                tasks.create_task(self._listen(self._tap, self._headquarters)),
                tasks.create_task(self._tell()),
            ]
            if self._gateway_tap is not None:
                work.append(tasks.create_task(self._listen(self._gateway_tap, self._gateway)))
            async for order in _orders():
                self._obey(order)
            for task in work:
                task.cancel()
        self._log.close()

    def _obey(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "start":
                self._running.set()
            case "stop":
                self._running.clear()
            case _:
                pass  # a mark only
        self._write({"mark": order.get("what", order["do"])})
        self._log.flush()

    def _write(self, line: dict[str, Any], ns: int | None = None) -> None:
        stamp = self._clock.now().mono_ns if ns is None else ns
        self._log.write(orjson.dumps({**line, "ns": stamp}) + b"\n")

    # --- the plant -----------------------------------------------------------------------------

    async def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        readings = iter(self._plant.readings())
        while True:
            await self._running.wait()
            started = loop.time()
            for number in itertools.count(1):
                due = started + number * _TICK_SECONDS
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not self._running.is_set():
                    break
                wanted = int(number * _TICK_SECONDS * self._rate) - int(
                    (number - 1) * _TICK_SECONDS * self._rate
                )
                await self._publish_group([next(readings) for _ in range(wanted)])

    async def _publish_group(self, group: list[PlantReading]) -> None:
        publications = []
        for reading in group:
            flaw = "" if self._rng.randrange(_FLAW_EVERY) else self._rng.choice(FLAWS)
            now = self._clock.now()
            payload = self._payload(reading, now.wall_ns // _MS, flaw)
            publications.append(Publication(reading.topic, payload))
            digest = "" if flaw else self._digest(reading)
            if digest:
                self._published_ns[digest] = now.mono_ns
            self._counts["readings"] += 1
            self._counts["flawed"] += bool(flaw)
            self._write(
                {
                    "reading": reading.number,
                    "topic": reading.topic,
                    "digest": digest,
                    "flaw": flaw,
                },
                now.mono_ns,
            )
        try:
            await self._broker.publish(publications)
        except LinkDown:
            self._counts["unpublished"] += len(group)

    def _digest(self, reading: PlantReading) -> str:
        """What a decision on this reading must give as its input digest.

        Empty while no window is full.
        """
        rows = self._windows.setdefault(reading.topic, deque(maxlen=self._window))
        rows.append(np.array([reading.fields[name] for name in self._fields], np.float32).tobytes())
        return sha256(b"".join(rows)).hexdigest()[:32] if len(rows) == self._window else ""

    @staticmethod
    def _payload(reading: PlantReading, wall_ms: int, flaw: str) -> bytes:
        fields: dict[str, object] = {**reading.fields, "t": wall_ms, "n": reading.number}
        match flaw:
            case "not JSON":
                return b"\x00 pump " + orjson.dumps(fields)
            case "not a number":
                return orjson.dumps(fields).replace(b'"current":', b'"current":NaN,"was":')
            case "missing field":
                del fields["pressure"]
            case "wrong type":
                fields["voltage"] = "230 V"
            case _:
                pass  # a good one
        return orjson.dumps(fields)

    # --- what it hears ---------------------------------------------------------------------------

    async def _hear(self) -> None:
        async for group in self._broker.groups():
            for delivery in group:
                self._take(delivery.topic, delivery.payload, delivery.received.mono_ns)
            self._broker.acknowledge(group)

    def _take(self, topic: str, payload: bytes, ns: int) -> None:
        document = orjson.loads(payload)
        _, _, _, name, channel, _ = topic.split("/")
        node = self._nodes.setdefault(name, {"decided": 0, "online": False, "health": {}})
        match channel:
            case "decision":
                node["decided"] += 1
                self._take_decision(document, ns)
            case "health":
                self._health = node["health"] = document
            case _:
                if document["online"] and document["session"] != self._state.get("session"):
                    self._write({"mark": "edge online"}, ns)
                self._state = document
                node["online"] = bool(document["online"])

    def _take_decision(self, decision: dict[str, Any], ns: int) -> None:
        identity, digest = decision["identity"], decision["input_digest"]
        published = self._published_ns.pop(digest, None)
        latency = None if published is None else (ns - published) / _MS
        if latency is not None:
            self._latencies.append(latency)
        self._counts["decided"] += 1
        self._verdict = decision["verdict"]
        lane = f"{identity['epoch']}/{identity['lane']}"
        self._newest[lane] = max(self._newest.get(lane, 0), identity["seq"] + 1)
        outcome = self._actuator.receive(decision, self._clock.now().wall_ns)
        self._counts["complaints"] += isinstance(outcome, Complained)
        self._write(
            {
                "decision": identity["seq"],
                "epoch": identity["epoch"],
                "lane": identity["lane"],
                "digest": digest,
                "verdict": decision["verdict"],
                "ms": latency,
            },
            ns,
        )

    async def _listen(self, tap: Tap, crossing: Crossing) -> None:
        loop = asyncio.get_running_loop()
        async for message in tap.messages():
            try:
                told = crossing.take(message, loop.time())
            except Refused as refused:
                self._write({"refused": str(refused)})
                continue
            if told is not None:
                names = _THERE if crossing is self._gateway else _AWAY
                self._write_crossed(told, *names)

    def _write_crossed(self, told: BatchHeader | Receipt, batch: str, receipt: str) -> None:
        lane = {"epoch": str(told.epoch), "lane": told.lane}
        if isinstance(told, Receipt):
            self._write({receipt: told.watermark, **lane})
        else:
            self._write({batch: [told.first, told.last], **lane})

    # --- what it tells ---------------------------------------------------------------------------

    async def _tell(self) -> None:
        away, there = self._headquarters, self._gateway
        while True:
            self._log.flush()
            recent = sorted(self._latencies)
            standing = {
                **self._counts,
                "batches": away.batches,
                "shed": self._broker.state.shed,
                "missed": self._tap.missed,
                "p50": recent[len(recent) // 2] if recent else None,
                "p99": recent[len(recent) * 99 // 100] if recent else None,
                "verdict": self._verdict,
                "listening": self._is_listening(),
                "online": bool(self._state.get("online")),
                "session": self._state.get("session", ""),
                "caught_up": all(
                    away.watermarks.get(lane, 0) >= newest for lane, newest in self._newest.items()
                ),
                "health": self._health,
                "nodes": self._nodes,
                "archived": away.count,
                "at_gateway": there.ahead_of(away),
                "delivered": away.watermarks,
                "duplicates": away.again,
            }
            sys.stdout.buffer.write(orjson.dumps(standing) + b"\n")
            sys.stdout.buffer.flush()
            await asyncio.sleep(_STANDING_SECONDS)

    def _is_listening(self) -> bool:
        taps = [tap for tap in (self._tap, self._gateway_tap) if tap is not None]
        return self._broker.state.connected and all(tap.connected for tap in taps)


async def _orders() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield orjson.loads(line)


def main(
    mqtt: Annotated[str, typer.Option(help="host:port of the local broker")],
    nats: Annotated[str, typer.Option(help="URL of headquarters' server")],
    log: Annotated[Path, typer.Option(help="where to write")],
    model: Annotated[Path, typer.Option(help="the edge's model, for fields and window")],
    rate: Annotated[float, typer.Option(help="readings a second")] = 500.0,
    seed: Annotated[int, typer.Option(help="of the plant")] = 7,
    pumps: Annotated[int, typer.Option(help="of the plant")] = 2,
    gateway: Annotated[str | None, typer.Option(help="URL of a gateway's server")] = None,
) -> None:
    """Runs a plant, hears its edges, listens at headquarters, and writes everything down."""

    async def witness() -> None:
        host, _, port = mqtt.rpartition(":")
        rng = random.Random(seed)  # noqa: S311 - a plant, not a secret
        settings = MqttSettings(host, int(port), f"witness-{seed}")
        contract = OnnxModel.load(model).contract
        names = [f"pump-{number}" for number in range(1, pumps + 1)]
        plant = Plant(seed=seed, pumps=names, rate=rate / pumps)
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(MqttBroker(settings, SystemClock(), rng))
            tap = await stack.enter_async_context(Tap(nats, "mesh.v1.>"))
            beside = None
            if gateway is not None:
                beside = await stack.enter_async_context(Tap(gateway, "mesh.v1.>"))
            await Witness(broker, tap, beside, plant, contract, rate, rng, log).run()

    asyncio.run(witness())


if __name__ == "__main__":
    typer.run(main)
