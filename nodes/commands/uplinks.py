"""Builds the links of a configuration: what an edge and a gateway have in common."""

import random
from contextlib import AsyncExitStack

from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.mqtt.link import MqttLink, MqttLinkSettings
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.ports import Clock, Link
from nodes.commands.endpoints import password, tls_context
from nodes.endpoint_section import Endpoint
from nodes.settings import UplinkSection

__all__ = ["mqtt_settings", "open_link"]


async def open_link(
    uplink: UplinkSection,
    client_id: str,
    origin: tuple[str | None, str | None],
    clock: Clock,
    rng: random.Random,
    stack: AsyncExitStack,
) -> Link:
    """Opens the link of an uplink; it comes up by itself, and nothing waits for it.

    Args:
        uplink: what was configured; its URL says over what it goes.
        client_id: what an MQTT broker calls us; the same at each start, and nobody else's.
        origin: site and node whose receipts it brings; ``None`` for those of all.
        clock: for the time of changes.
        rng: for the jitter of reconnections.
        stack: closes it.

    Raises:
        MeshError: a file that it needs cannot be used.
    """
    if uplink.kind == "mqtt":
        there = MqttLinkSettings(uplink.name, mqtt_settings(uplink, client_id), *origin)
        return await stack.enter_async_context(MqttLink(there, clock, rng))
    session = SessionSettings(
        uplink.name,
        uplink.urls,
        uplink.username or "",
        password(uplink),
        tls_context(uplink),
        reconnect_seconds_max=uplink.reconnect_seconds_max,
    )
    return await stack.enter_async_context(
        JetStreamLink(LinkSettings(session, *origin), clock, rng)
    )


def mqtt_settings(endpoint: Endpoint, client_id: str) -> MqttSettings:
    """How to connect to an MQTT broker that carries batches.

    Raises:
        MeshError: a file that it needs cannot be used.
    """
    return MqttSettings(
        endpoint.host,
        endpoint.port,
        client_id,
        endpoint.username,
        password(endpoint) or None,
        tls_context(endpoint),
    )
