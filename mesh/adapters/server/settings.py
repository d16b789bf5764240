"""What the embedded server is told, and the file that says it.

The file is the server's own configuration language. Two things in it are easy to get wrong:
``sync_interval`` must stand on a line of its own, or the parser takes the rest of the line for its
value; and the MQTT listener needs both JetStream and a server name, since it keeps sessions and
retained messages in streams.

Everything that the server writes lies in one folder: ``server.conf``, ``server.log`` (and the last
of its rotations), ``server.err`` for what it says before its log is open or when it crashes, and
``jetstream/``.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import ConfigurationInvalid
from schemas.limits import BATCH_BYTES_MAX
from schemas.topics import is_identifier

__all__ = ["Cluster", "ServerSettings", "render", "write_configuration"]

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_PORT_MAX: Final = 65_535
_ROUTE: Final = re.compile(r"[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The other servers that this one keeps its streams with, each stream on several of them.

    Args:
        name: of the cluster; an identifier, the same at all of its servers.
        port: where the others find this one; its own, so fixed.
        routes: where this one finds the others, as ``host:port``.
    """

    name: str
    port: int
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of an embedded server.

    Args:
        name: its ``server_name``; an identifier.
        directory: where its configuration, its log and its data lie; made when it is not there.
        binary: path of ``nats-server``; ``None`` looks on ``PATH``, then at the packaged one.
        host: address of its listeners; there is no TLS here, so loopback unless you know better.
        client_port: port of the NATS listener; 0 for a free one.
        mqtt_port: port of the MQTT listener; 0 for a free one, ``None`` for no MQTT.
        jetstream: whether it keeps streams; MQTT needs it.
        jetstream_bytes_max: how much its streams may keep on disk.
        jetstream_memory_bytes_max: how much its streams may keep in memory.
        cluster: the other servers that it shares streams with; ``None`` stands alone.
        sync_always: whether each write is synced before it is acknowledged.
        payload_bytes_max: the largest message that it takes.
        connections_max: how many clients it takes.
        log_bytes_max: size at which its log is rotated; one rotation is kept.
        start_seconds: how long it may take until it answers.
        stop_seconds: how long it may take to end before it is killed.
        restart_seconds_min: pause before the first restart.
        restart_seconds_max: the longest pause between two restarts.

    Raises:
        ConfigurationInvalid: all that is wrong at once.
    """

    name: str
    directory: Path
    binary: Path | None = None
    host: str = "127.0.0.1"
    client_port: int = 0
    mqtt_port: int | None = None
    jetstream: bool = True
    jetstream_bytes_max: int = 1024 * _MIB
    jetstream_memory_bytes_max: int = 16 * _MIB
    cluster: Cluster | None = None
    sync_always: bool = True
    payload_bytes_max: int = _MIB
    connections_max: int = 1024
    log_bytes_max: int = 4 * _MIB
    start_seconds: float = 20.0
    stop_seconds: float = 10.0
    restart_seconds_min: float = 0.2
    restart_seconds_max: float = 30.0

    def __post_init__(self) -> None:
        problems = tuple(_problems(self))
        if problems:
            raise ConfigurationInvalid(problems)

    @property
    def configuration_file(self) -> Path:
        """What the server reads at its start."""
        return self.directory / "server.conf"

    @property
    def log_file(self) -> Path:
        """What the server writes while it runs."""
        return self.directory / "server.log"

    @property
    def error_file(self) -> Path:
        """What the server says outside of its log: a bad configuration, a crash."""
        return self.directory / "server.err"


def render(settings: ServerSettings, client_port: int, mqtt_port: int | None) -> str:
    """The server's configuration file, with the ports that were chosen.

    Args:
        settings: all but the ports.
        client_port: port of the NATS listener, not 0.
        mqtt_port: port of the MQTT listener, not 0; ``None`` for no MQTT.
    """
    host = _quoted(settings.host)
    lines = [
        "# Written anew at every start of the embedded server.",
        f"server_name: {_quoted(settings.name)}",
        f"host: {host}",
        f"port: {client_port}",
        f"max_payload: {settings.payload_bytes_max}",
        f"max_connections: {settings.connections_max}",
        f"log_file: {_quoted(str(settings.log_file))}",
        f"logfile_size_limit: {settings.log_bytes_max}",
        "logfile_max_num: 2",
    ]
    if settings.jetstream:
        lines += [
            "jetstream {",
            f"  store_dir: {_quoted(str(settings.directory))}",
            f"  max_file_store: {settings.jetstream_bytes_max}",
            f"  max_memory_store: {settings.jetstream_memory_bytes_max}",
            *(["  sync_interval: always"] if settings.sync_always else []),
            "}",
        ]
    if settings.cluster is not None:
        lines += [
            "cluster {",
            f"  name: {_quoted(settings.cluster.name)}",
            f"  host: {host}",
            f"  port: {settings.cluster.port}",
            "  routes: [",
            *(f"    {_quoted(f'nats-route://{route}')}" for route in settings.cluster.routes),
            "  ]",
            "}",
        ]
    if mqtt_port is not None:
        # By default a QoS 1 message that was not acknowledged comes again only after 30 s.
        lines += ["mqtt {", f"  host: {host}", f"  port: {mqtt_port}", "  ack_wait: 5s", "}"]
    return "\n".join(lines) + "\n"


def write_configuration(settings: ServerSettings, client_port: int, mqtt_port: int | None) -> None:
    """Writes the configuration file, readable by its owner only: beside, then renamed.

    Raises:
        OSError: it cannot be written.
    """
    settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = settings.configuration_file.with_suffix(".new")
    # Taken away first, so that the mode below holds and no link planted here is followed.
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(render(settings, client_port, mqtt_port))
    beside.replace(settings.configuration_file)


def _problems(settings: ServerSettings) -> list[str]:
    problems = []
    if not is_identifier(settings.name):
        problems.append(
            f"server name {settings.name[:80]!r}: 1 to 63 of a-z, 0-9, _ and - are right"
        )
    if not settings.directory.is_absolute():
        problems.append(f"server directory {str(settings.directory)!r}: an absolute path is right")
    for what, text in (("directory", str(settings.directory)), ("host", settings.host)):
        if not text.isprintable():
            problems.append(f"server {what} {text!r}: only printable characters are right")
    for what, port in (("client", settings.client_port), ("mqtt", settings.mqtt_port)):
        if port is not None and not 0 <= port <= _PORT_MAX:
            problems.append(f"{what} port {port}: 0 to {_PORT_MAX} is right")
    if settings.client_port and settings.client_port == settings.mqtt_port:
        problems.append(f"client and mqtt port are both {settings.client_port}: two are needed")
    if settings.mqtt_port is not None and not settings.jetstream:
        problems.append("mqtt without jetstream: the MQTT listener keeps its sessions in streams")
    cluster = settings.cluster
    if cluster is not None:
        if not is_identifier(cluster.name):
            problems.append(
                f"cluster name {cluster.name[:80]!r}: 1 to 63 of a-z, 0-9, _ and - are right"
            )
        if not 0 < cluster.port <= _PORT_MAX:
            problems.append(f"cluster port {cluster.port}: 1 to {_PORT_MAX} is right")
        problems += [
            f"cluster route {route[:80]!r}: host:port is right"
            for route in cluster.routes
            if not _ROUTE.fullmatch(route)
        ]
    if settings.payload_bytes_max < BATCH_BYTES_MAX:
        problems.append(
            f"payload of {settings.payload_bytes_max} bytes: a batch takes {BATCH_BYTES_MAX}"
        )
    return problems


def _quoted(text: str) -> str:
    """A quoted string of the server's language, whose escapes are those of JSON that we use."""
    return json.dumps(text, ensure_ascii=False)
