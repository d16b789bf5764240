"""``holdfast watch``: decisions and state as they come, from the local broker.

Needs no network beyond it.
"""

import asyncio
import random
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from mesh.adapters.mqtt.broker import MqttBroker
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.system import SystemClock, entropy
from nodes import config
from nodes.commands.endpoints import broker_address, password, tls_context
from nodes.commands.process import escaped, fail, told
from nodes.settings import EdgeSettings
from schemas.errors import LinkDown, MeshError

__all__ = ["watch"]

_CONNECT_SECONDS = 15.0
_MS = 1_000_000


def watch(
    file: Annotated[Path, typer.Option("--config", "-c", help="the edge's configuration (TOML)")],
    count: Annotated[int, typer.Option(help="end after so many messages; 0 for never")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print the messages as they are")] = False,
) -> None:
    """Shows decisions and state as they come. Ends with Ctrl-C."""
    try:
        settings = config.load(file).for_edge()
        asyncio.run(_watch(settings, count, json=json))
    except MeshError as error:
        fail(error)
    except KeyboardInterrupt:
        return


async def _watch(settings: EdgeSettings, count: int, *, json: bool) -> None:
    broker, node = settings.broker, settings.node
    host, port = broker_address(settings)
    mqtt = MqttSettings(
        host,
        port,
        f"holdfast-watch-{entropy(4).hex()}",
        broker.username,
        password(broker) or None,
        tls_context(broker),
        protocol=broker.protocol,
        session_seconds=0,
    )
    rng = random.Random(entropy(16))  # noqa: S311 - jitter, not a secret
    async with MqttBroker(mqtt, SystemClock(), rng) as client:
        prefix = f"mesh/v1/{node.site}/{node.name}"
        client.subscribe({f"{prefix}/decision/+": 0, f"{prefix}/state/+": 0})
        await _reached(client)
        shown = 0
        async for group in client.groups():
            for delivery in group:
                typer.echo(delivery.payload if json else _told(delivery.topic, delivery.payload))
                shown += 1
                if shown == count:
                    return


async def _reached(client: MqttBroker) -> None:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            state = client.state
            while not state.connected:
                state = await client.wait_changed(state)
    except TimeoutError:
        raise LinkDown(f"no local broker: {client.state.reason}; is the edge running?") from None


def _told(topic: str, payload: bytes) -> str:
    """A message for a person, harmless to a terminal, whatever it holds."""
    try:
        return escaped(_line(payload))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return escaped(f"unreadable message of {len(payload)} bytes on {topic}")


def _line(payload: bytes) -> str:
    """One message for a person."""
    document: dict[str, Any] = orjson.loads(payload)
    if "verdict" not in document:
        what = "online" if document["online"] else "OFFLINE"
        moment = told(document["since"] * _MS)
        return f"{moment}  {document['site']}/{document['node']} is {what}"
    values = " ".join(f"{name}={value:.3g}" for name, value in document["values"].items())
    reasons = f"  because {', '.join(document['reasons'])}" if document["reasons"] else ""
    replayed = "  (replayed)" if document["replay"] else ""
    return (
        f"{told(document['decided_at'] * _MS)}  {document['name']}  {document['topic']}"
        f"  {document['verdict']} {document['confidence']:.0%}  {values}{reasons}{replayed}"
    )
