"""A report: what a running node says of its own health, asked of the local broker.

Asked briefly, and only read: the broker keeps the node's newest health document. Where nobody
answers that is said, for the files tell everything else.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.adapters.mqtt.broker import MqttBroker
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.registry import TinyRegistry
from mesh.adapters.system import SystemClock, SystemDisk, entropy
from mesh.spool.view.onlooker import ReadOnlyDisk
from nodes.commands.endpoints import password, tls_context
from nodes.commands.process import LogObserver
from nodes.settings import BrokerSection, NodeSection, Settings
from schemas.errors import ConfigurationInvalid, DiskFailed, LinkDown, MeshError
from schemas.topics import Channel, LocalTopic

__all__ = ["Report", "ask", "read_report"]

_ASK_SECONDS_MAX: Final = 2.0
_MS: Final = 1_000_000
_INTERVALS_MISSED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What the node says.

    Args:
        silent: why nothing is known from it; empty when it answers.
        at_ms: when it said so, UTC.
        degraded: why its spool takes nothing; empty when it does.
        lanes: what it says of its lanes.
    """

    silent: str
    at_ms: int = 0
    degraded: str = ""
    lanes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.silent:
            return f"not known: {self.silent}"
        return f"yes: {self.degraded}" if self.degraded else "no"


def ask(settings: Settings) -> Report:
    """What the node of this configuration says now, within two seconds."""
    node, broker = settings.node, settings.broker
    if node is None or broker is None:
        return Report("the configuration names no node with a local broker")
    try:
        payload = asyncio.run(_health(node, broker))
    except MeshError as error:
        return Report(f"the node does not answer ({error})")
    now_ms = SystemClock().now().wall_ns // _MS
    return read_report(payload, now_ms, settings.health.interval_seconds)


def read_report(payload: bytes, now_ms: int, interval_seconds: float) -> Report:
    """What a health document says, whoever published it.

    Args:
        payload: the document.
        now_ms: the time, UTC.
        interval_seconds: how often the node publishes one.
    """
    try:
        document = orjson.loads(payload)
        at_ms, spool = document["at"], document["spool"]
        degraded, lanes = spool["degraded"], spool["lanes"]
    except (ValueError, KeyError, TypeError):
        return Report(f"the node's health is not readable: {len(payload)} bytes")
    if not (isinstance(at_ms, int) and isinstance(degraded, str) and isinstance(lanes, dict)):
        return Report("the node's health is not readable: values of other types")
    silent_seconds = (now_ms - at_ms) / 1000
    if silent_seconds > _INTERVALS_MISSED_MAX * interval_seconds:
        return Report(f"the node has said nothing for {silent_seconds:.0f} s")
    return Report("", at_ms, degraded, lanes)


async def _health(node: NodeSection, broker: BrokerSection) -> bytes:
    settings = MqttSettings(
        broker.host,
        _port(node, broker),
        f"holdfast-spool-{entropy(4).hex()}",
        broker.username,
        password(broker) or None,
        tls_context(broker),
        protocol=broker.protocol,
        session_seconds=0,
    )
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    topic = str(LocalTopic(node.site, node.name, Channel.HEALTH, "node"))
    async with MqttBroker(settings, SystemClock(), rng) as client:
        client.subscribe({topic: 0})
        try:
            async with asyncio.timeout(_ASK_SECONDS_MAX):
                async for group in client.groups():
                    return group[-1].payload
        except TimeoutError:
            raise LinkDown(client.state.reason or "it has published no health") from None
    raise LinkDown("the broker went away")


def _port(node: NodeSection, broker: BrokerSection) -> int:
    """As a running edge wrote it down; read without changing anything, unlike an edge would."""
    if not broker.embedded:
        return broker.port
    if broker.mqtt_port:
        return broker.mqtt_port
    disk = ReadOnlyDisk(SystemDisk(node.state_directory))
    try:
        told = TinyRegistry(disk, "registry.json", LogObserver()).get("broker") or {}
    except DiskFailed as failure:
        raise LinkDown(f"its broker's port is not known: {failure}") from failure
    port = told.get("mqtt_port")
    if not isinstance(port, int):
        raise ConfigurationInvalid(("no edge has told its broker's port",))
    return port
