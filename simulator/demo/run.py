"""Carries out a demonstration.

Starts the parties, follows the script, waits for the drain, and asks the audit.

Processes: headquarters with its JetStream server; the WAN, a proxy in front of it; the local MQTT
broker, a nats-server of the plant's own, so that killing the edge does not silence the plant; the
edge; the witness. All listen on loopback, on ports chosen free, and all end with the run.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemDisk
from schemas.messages import Lane
from simulator.demo.audit import LaneAccount, audit
from simulator.demo.log import read
from simulator.demo.outcome import Outcome, judge
from simulator.demo.parties import Configurations, Party, PartyFailed, configurations, running
from simulator.demo.ports import free_ports
from simulator.demo.script import Act, Kill, Step, plan

__all__ = ["Progress", "Settings", "run"]

MODEL: Final = Path(__file__).parent.parent / "models" / "pump.onnx"
_READY_SECONDS: Final = 60.0
_DRAIN_SECONDS: Final = 90.0
_SAMPLE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked for.

    Args:
        root: an empty folder for everything that the run writes.
        seconds: how long the plant runs.
        outage: how long the network is cut.
        rate: readings a second.
        seed: of the plant.
        kill: which party is killed.
    """

    root: Path
    seconds: float
    outage: float
    rate: float
    seed: int
    kill: Kill


@dataclass(frozen=True, slots=True)
class Progress:
    """For the screen: what happens now."""

    elapsed: float
    note: str
    standing: dict[str, Any]
    up: bool = True


class _Stage:
    """The parties of one run."""

    def __init__(
        self, settings: Settings, files: Configurations, server_port: int, mqtt_port: int
    ) -> None:
        root = settings.root
        self.settings = settings
        self.headquarters = Party(
            "headquarters",
            ("-m", "nodes", "headquarters", "--config", str(files.headquarters)),
            root,
        )
        self.edge = Party("edge", ("-m", "nodes", "edge", "--config", str(files.edge)), root)
        self.witness = Party(
            "witness",
            (
                *("-m", "simulator.demo.witness", "--mqtt", f"127.0.0.1:{mqtt_port}"),
                *(
                    "--nats",
                    f"nats://127.0.0.1:{server_port}",
                    "--log",
                    str(root / "witness.jsonl"),
                ),
                *("--rate", str(settings.rate), "--seed", str(settings.seed)),
                *("--model", str(MODEL)),
            ),
            root,
        )
        self.up = True
        self.killed: set[str] = set()
        self.edge_memory_mb = 0.0
        self.rate = 0.0

    def check_alive(self) -> None:
        """Raises when a party ended that was not killed.

        Raises:
            PartyFailed: which one, and what it said last.
        """
        for party in (self.edge, self.headquarters, self.witness):
            if party.name not in self.killed:
                party.check_alive()


async def run(
    settings: Settings, show: Callable[[Progress], None]
) -> tuple[Outcome, dict[Lane, LaneAccount]]:
    """Runs a demonstration to its end.

    Args:
        settings: what is asked for.
        show: is told what happens, a few times a second.

    Raises:
        PartyFailed: a process ended, or did not become ready.
    """
    steps = plan(settings.seconds, settings.outage, settings.kill)
    (server_port,) = free_ports(1)
    wan = Party(
        "wan",
        ("-m", "simulator.wan", "--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{server_port}"),
        settings.root,
    )
    rng = random.Random(settings.seed)  # noqa: S311 - jitter, not a secret
    local = ServerSettings("plant", settings.root / "broker", mqtt_port=0, sync_always=False)
    show(Progress(0.0, "starting the local broker and the WAN", {}))
    async with EmbeddedServer(local, rng) as broker, running(wan):
        assert broker.mqtt_port is not None, "asked for"
        uplink_port = (await wan.hear())["port"]
        files = configurations(settings.root, broker.mqtt_port, uplink_port, server_port)
        stage = _Stage(settings, files, server_port, broker.mqtt_port)
        show(Progress(0.0, "starting headquarters, witness and edge", {}))
        async with running(stage.headquarters, stage.witness):
            await _until_ready(stage, lambda standing: bool(standing["listening"]))
            async with running(stage.edge):
                await _until_ready(stage, _is_online)
                await _play(stage, wan, steps, show)
                await _end(stage, show)
    seen = read(settings.root / "witness.jsonl")
    spool = SystemDisk(settings.root / "edge" / "spool")
    lanes = audit(seen, settings.root / "archive", (spool,))
    return judge(seen, lanes, stage.edge_memory_mb, settings.kill), lanes


async def _until_ready(stage: _Stage, ready: Callable[[dict[str, Any]], bool]) -> None:
    """Until the witness says so; whoever ends meanwhile is told of."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not ready(await stage.witness.hear()):
                stage.headquarters.check_alive()
                if stage.edge.started:
                    stage.edge.check_alive()
    except TimeoutError:
        late = stage.edge if stage.edge.started else stage.headquarters
        raise late.failed(f"was not ready after {_READY_SECONDS:.0f} s") from None


def _is_online(standing: dict[str, Any]) -> bool:
    """Whether the edge is online at its broker, with its links up."""
    links = standing["health"].get("links", [])
    return bool(standing["online"] and links and all(link["up"] for link in links))


async def _play(
    stage: _Stage, wan: Party, steps: tuple[Step, ...], show: Callable[[Progress], None]
) -> None:
    loop = asyncio.get_running_loop()
    await stage.witness.say({"do": "start", "what": "start"})
    started = loop.time()
    note = "deciding"
    try:
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(_listen(stage))
            for step in steps:
                while (left := started + step.at - loop.time()) > 0:
                    stage.check_alive()
                    standing = {**stage.witness.last, "per_second": stage.rate}
                    show(Progress(loop.time() - started, note, standing, stage.up))
                    stage.edge_memory_mb = max(stage.edge_memory_mb, stage.edge.memory_mb())
                    await asyncio.sleep(min(left, _SAMPLE_SECONDS))
                await _act(stage, wan, step.act)
                note = step.act.value
            listening.cancel()
    except* PartyFailed as failures:
        raise failures.exceptions[0] from None


async def _listen(stage: _Stage) -> None:
    """Keeps the witness's latest word, and the rate of decisions over about a second."""
    loop = asyncio.get_running_loop()
    before = (loop.time(), 0)
    while True:
        standing = await stage.witness.hear()
        now = (loop.time(), standing["decided"])
        if now[0] - before[0] >= 1.0:
            stage.rate = (now[1] - before[1]) / (now[0] - before[0])
            before = now


async def _act(stage: _Stage, wan: Party, act: Act) -> None:
    match act:
        case Act.CUT | Act.RESTORE:
            await wan.say({"do": "cut" if act is Act.CUT else "restore"})
            await wan.hear()
            stage.up = act is Act.RESTORE
        case Act.KILL_EDGE:
            stage.killed.add(stage.edge.name)
            stage.edge.kill()
        case Act.RESTART_EDGE:
            await stage.edge.start()
            stage.killed.clear()
        case Act.KILL_HEADQUARTERS:
            stage.killed.add(stage.headquarters.name)
            stage.headquarters.kill()
        case Act.RESTART_HEADQUARTERS:
            await stage.headquarters.start()
            stage.killed.clear()
        case Act.STOP:
            pass
    what = "stop" if act is Act.STOP else "mark"
    await stage.witness.say({"do": what, "what": act.value})


async def _end(stage: _Stage, show: Callable[[Progress], None]) -> None:
    """Waits for the drain, then lets the edge close in order, then headquarters."""
    seconds = stage.settings.seconds
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while not (await stage.witness.hear())["caught_up"]:
                stage.edge.check_alive()
                show(Progress(seconds, "draining", stage.witness.last))
    except TimeoutError:
        show(Progress(seconds, "the backlog did not drain", stage.witness.last))
    show(Progress(seconds, "closing the edge: its last account goes out", stage.witness.last))
    stage.edge.check_alive()
    stage.edge_memory_mb = max(stage.edge_memory_mb, stage.edge.memory_mb())
    code = await stage.edge.stop()
    if code:
        raise stage.edge.failed(f"ended with code {code}")
    await stage.headquarters.stop()
    await stage.witness.stop()
