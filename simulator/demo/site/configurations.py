"""The configurations of a site, which read as a user's would."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["EDGES", "GATEWAY", "PUMPS", "SITE", "SiteFiles", "SitePorts", "edge_of", "write_site"]

SITE: Final = "harbour"
EDGES: Final = ("edge-1", "edge-2", "edge-3")
GATEWAY: Final = "gateway-1"
_PUMPS_EACH: Final = 2
PUMPS: Final = _PUMPS_EACH * len(EDGES)


def edge_of(topic: str) -> str:
    """Which edge reads a pump's topic, ``plant/pump-<number>/telemetry``."""
    number = int(topic.split("/")[1].removeprefix("pump-"))
    return EDGES[(number - 1) // _PUMPS_EACH]


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The configuration files of a run.

    Args:
        edges: one each.
        gateway: the gateway's.
        workers: of headquarters, one each.
    """

    edges: tuple[Path, ...]
    gateway: Path
    workers: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class SitePorts:
    """Where the parties find each other, on loopback.

    Args:
        mqtt: the plant's broker.
        gateway: the gateway's server.
        wan: the near ends of the WAN, one for each server of the cluster.
        cluster: its far ends: the servers.
    """

    mqtt: int
    gateway: int
    wan: Sequence[int]
    cluster: Sequence[int]


def write_site(root: Path, ports: SitePorts) -> SiteFiles:
    """Writes the configurations of a run.

    Args:
        root: the run's folder.
        ports: where the parties find each other.
    """
    edges = tuple(
        _written(
            root / f"{name}.toml",
            _EDGE.format(
                site=SITE, name=name, mqtt=ports.mqtt, gateway=ports.gateway, topics=_topics(index)
            ),
        )
        for index, name in enumerate(EDGES)
    )
    url, further = _urls(ports.wan)
    gateway = _written(
        root / "gateway.toml",
        _GATEWAY.format(site=SITE, name=GATEWAY, port=ports.gateway, url=url, further=further),
    )
    url, further = _urls(ports.cluster)
    workers = tuple(
        _written(
            root / f"worker-{number}.toml", _WORKER.format(number=number, url=url, further=further)
        )
        for number in (1, 2)
    )
    return SiteFiles(edges, gateway, workers)


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _topics(index: int) -> str:
    first = index * _PUMPS_EACH + 1
    pumps = range(first, first + _PUMPS_EACH)
    return ", ".join(f'"plant/pump-{number}/telemetry"' for number in pumps)


def _urls(ports: Sequence[int]) -> tuple[str, str]:
    first, *others = (f'"nats://127.0.0.1:{port}"' for port in ports)
    return first, ", ".join(others)


_EDGE: Final = """\
[node]
site = "{site}"
name = "{name}"
state_directory = "{name}"

[broker]
url = "mqtt://127.0.0.1:{mqtt}"

[health]
interval_seconds = 1

[[uplinks]]
name = "gateway"
url = "nats://127.0.0.1:{gateway}"
reconnect_seconds_max = 1

[[decisions]]
name = "pump-health"
topics = [{topics}]
qos = 0
model = "package:simulator/models/pump.onnx"
valid_for_ms = 2000
confidence_min = 0.6
"""

_GATEWAY: Final = """\
[gateway]
site = "{site}"
name = "{name}"
state_directory = "gateway"
embedded = true
client_port = {port}

[[uplinks]]
name = "wan"
url = {url}
further_urls = [{further}]
reconnect_seconds_max = 1
"""

_WORKER: Final = """\
[headquarters]
name = "headquarters"
worker = "worker-{number}"
archive_directory = "archive"
url = {url}
further_urls = [{further}]
replicas = 3
ack_seconds = 5
linger_seconds = 0.2
"""
