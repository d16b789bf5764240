"""What a connection needs beside its URL: addresses, who we are there, whom to trust."""

import ssl
from typing import Final

from mesh.adapters.registry import TinyRegistry
from mesh.adapters.system import SystemDisk
from nodes.commands.process import LogObserver
from nodes.config import secret
from nodes.endpoint_section import Endpoint
from nodes.gateway_section import GatewaySection
from nodes.settings import EdgeSettings, HeadquartersSection, NodeSection
from schemas.errors import ConfigurationInvalid

__all__ = ["broker_address", "password", "receiving_urls", "registry", "tls_context"]

_NAMED_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - listened on by others


def password(endpoint: Endpoint) -> str:
    """The password, read now; empty when there is none.

    Raises:
        ConfigurationInvalid: its file cannot be used.
    """
    return secret(endpoint.password_file) if endpoint.password_file else ""


def tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    """How to verify the server, and who we are; ``None`` for a URL without TLS.

    Raises:
        ConfigurationInvalid: a certificate cannot be read.
    """
    if not endpoint.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=endpoint.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if endpoint.certificate_file:
            context.load_cert_chain(endpoint.certificate_file, endpoint.key_file)
    except (OSError, ssl.SSLError) as error:
        names = [endpoint.ca_file, endpoint.certificate_file, endpoint.key_file]
        told = ", ".join(str(name) for name in names if name)
        raise ConfigurationInvalid((f"{told}: cannot be used for TLS: {error}",)) from error
    return context


def receiving_urls(section: HeadquartersSection | GatewaySection) -> tuple[str, ...]:
    """The servers of a receiving end, as seen from its own machine.

    Raises:
        ConfigurationInvalid: there is none, or it was started on a port that nobody else knows.
    """
    if section.urls:
        return section.urls
    where = "gateway" if isinstance(section, GatewaySection) else "headquarters"
    if not section.embedded:
        problem = f"{where}.url is missing: over MQTT alone nothing is taken that is carried"
        raise ConfigurationInvalid((problem,))
    if not section.client_port:
        problem = (
            f"{where}.client_port is 0, a port that nobody else knows: give the embedded server a "
            "fixed one"
        )
        raise ConfigurationInvalid((problem,))
    host = _NAMED_HERE.get(section.listen, section.listen)
    return (f"nats://{host}:{section.client_port}",)


def broker_address(settings: EdgeSettings) -> tuple[str, int]:
    """Host and port of the local broker; of an embedded one as the running edge wrote them down.

    Raises:
        ConfigurationInvalid: the broker is embedded on a free port, and no edge has told which.
    """
    broker = settings.broker
    if not broker.embedded:
        return broker.host, broker.port
    if broker.mqtt_port:
        return broker.host, broker.mqtt_port
    told = registry(settings.node).get("broker") or {}
    port = told.get("mqtt_port")
    if not isinstance(port, int):
        raise ConfigurationInvalid(
            ("broker.mqtt_port is 0 and no edge has run here: start it, or give it a fixed port",)
        )
    return broker.host, port


def registry(node: NodeSection) -> TinyRegistry:
    """The node's small documents, in its state directory."""
    disk = SystemDisk(node.state_directory)
    disk.make_directory("")
    return TinyRegistry(disk, "registry.json", LogObserver())
