"""The sections of a configuration: what may stand in them, and what is right.

Every key is named here once, with its unit at its end, its default, and a description that says
what would be right: it is what a person reads when it is wrong. Unknown keys are refused. Sections
are frozen. ``nodes.config`` reads files and the environment, and says all errors at once.

Secrets never stand in a section: there is the path of a file, which is read when it is needed.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nodes.section import BYTES_MAX, DAY_MS, Milliseconds, Section
from nodes.spool_section import SpoolSection
from schemas.errors import ConfigurationInvalid, Refused
from schemas.limits import (
    MIB,
    MODEL_FIELDS_MAX,
    SOURCES_MAX,
    TOPIC_BYTES_MAX,
    WINDOW_READINGS_MAX,
)
from schemas.topics import check_filter, check_identifier

__all__ = [
    "BrokerSection",
    "DecisionSection",
    "EdgeSettings",
    "Endpoint",
    "HeadquartersSection",
    "HealthSection",
    "LogSection",
    "NodeSection",
    "Settings",
    "UplinkSection",
    "is_loopback",
]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "nats": 4222, "tls": 4222}
_PORT_MAX: Final = 65_535

_PLAINTEXT: Final = (
    "anybody on the network can read and change what is sent without TLS: use a URL with TLS, stay "
    "on 127.0.0.1, or say allow_plaintext = true"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _identifier(text: str) -> str:
    try:
        return check_identifier("it", text)
    except Refused as refused:
        raise ValueError(refused.detail) from refused


def _filter(text: str) -> str:
    try:
        return check_filter(text)
    except Refused as refused:
        raise ValueError(refused.detail) from refused


def _range(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = pair
    if not low <= high:
        raise ValueError("lowest first, then highest")
    return pair


Identifier = Annotated[
    str, AfterValidator(_identifier), Field(description="1 to 63 of a-z, 0-9, _ and -")
]
Filter = Annotated[
    str,
    AfterValidator(_filter),
    Field(
        max_length=TOPIC_BYTES_MAX, description="an MQTT topic filter, such as plant/+/telemetry"
    ),
]
Name = Annotated[str, Field(min_length=1, max_length=256, description="1 to 256 characters")]
Port = Annotated[int, Field(ge=0, le=_PORT_MAX, description="a port; 0 for a free one")]
Range = Annotated[
    tuple[float, float],
    AfterValidator(_range),
    Field(description="[lowest, highest], numbers"),
]
Qos = Annotated[int, Field(ge=0, le=1, description="0 or 1")]


class NodeSection(Section):
    """Who this is, and where it keeps its state."""

    site: Identifier
    name: Identifier
    state_directory: Annotated[Path, Field(description="a folder of this node alone")]
    region: Annotated[str, Field(max_length=256, description="a label for residency")] = ""
    tenant: Annotated[str, Field(max_length=256, description="a label for tenancy")] = ""
    drain_seconds: Annotated[
        float,
        Field(ge=0, le=3600, description="how long ending waits for the backlog, 0 to 3600"),
    ] = 10.0


class Endpoint(Section):
    """What connections have in common: a URL, who we are there, and how far it is trusted."""

    # Before the URL, which is judged by it.
    allow_plaintext: Annotated[
        bool, Field(description="true, where TLS is missing on purpose on a network")
    ] = False
    url: Annotated[str | None, Field(description="where to connect")] = None
    ca_file: Annotated[Path | None, Field(description="PEM file that verifies the server")] = None
    certificate_file: Annotated[Path | None, Field(description="PEM file of our certificate")] = (
        None
    )
    key_file: Annotated[Path | None, Field(description="PEM file of its key")] = None
    username: Annotated[Name | None, Field(description="who we are there")] = None
    password_file: Annotated[
        Path | None,
        Field(description="a file that holds the password and that others cannot read"),
    ] = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None, others: ValidationInfo) -> str | None:
        if url is not None:
            plain, _ = cls._schemes()
            parts = _split(url, cls._schemes())
            exposed = parts.scheme == plain and not is_loopback(parts.hostname or "")
            if exposed and not others.data.get("allow_plaintext"):
                raise ValueError(_PLAINTEXT)
        return url

    @classmethod
    def _schemes(cls) -> tuple[str, str]:
        """The plain scheme and the one with TLS."""
        return "nats", "tls"

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        if self.url is not None and not self.tls and (self.ca_file or self.certificate_file):
            raise ValueError(f"ca_file and certificate_file need a URL of {self._schemes()[1]}://")
        return self

    @property
    def tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.url is not None and urlsplit(self.url).scheme == self._schemes()[1]

    @property
    def host(self) -> str:
        """The URL's host; this machine where there is no URL."""
        return (self.url and urlsplit(self.url).hostname) or "127.0.0.1"

    @property
    def port(self) -> int:
        """The URL's port, or the one that belongs to its scheme; 0 where there is no URL."""
        if self.url is None:
            return 0
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]


class BrokerSection(Endpoint):
    """The local MQTT broker: one that is started beside the node, or one that is there."""

    embedded: Annotated[bool, Field(description="true starts a broker with the node")] = False
    mqtt_port: Annotated[Port, Field(description="of the embedded broker; 0 for a free one")] = 0
    data_directory: Annotated[
        Path | None, Field(description="of the embedded broker; below the state directory")
    ] = None
    server_binary: Annotated[
        Path | None, Field(description="path of nats-server, for the embedded broker")
    ] = None
    client_id: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    protocol: Annotated[
        Literal["auto", "5", "3.1.1"], Field(description='"auto", "5" or "3.1.1"')
    ] = "auto"
    keepalive_seconds: Annotated[int, Field(ge=1, le=65_535, description="1 to 65535")] = 30
    session_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=DAY_MS,
            description="how long the broker keeps QoS 1 messages for us; 0 for not at all",
        ),
    ] = 3600

    @classmethod
    def _schemes(cls) -> tuple[str, str]:
        return "mqtt", "mqtts"

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.embedded == (self.url is not None):
            raise ValueError('either embedded = true or url = "mqtt://…", one of the two')
        return self


class DecisionSection(Section):
    """One rule: which readings, which model, what is allowed."""

    name: Identifier
    topics: Annotated[
        tuple[Filter, ...], Field(min_length=1, max_length=64, description="MQTT topic filters")
    ]
    qos: Annotated[Qos, Field(description="0 or 1: how the readings are subscribed to")] = 0
    publish_qos: Annotated[Qos, Field(description="0 or 1: how decisions are published")] = 0
    model: Annotated[Path, Field(description="path of an ONNX file, or package:<package>/<path>")]
    fields: Annotated[
        tuple[Name, ...] | None,
        Field(
            min_length=1,
            max_length=MODEL_FIELDS_MAX,
            description="the names of the model's fields in order, where it does not say them",
        ),
    ] = None
    format: Annotated[
        Literal["json", "msgpack", "number"], Field(description='"json", "msgpack" or "number"')
    ] = "json"
    field: Annotated[
        dict[Name, Name],
        Field(
            default_factory=dict,
            description='where a field stands in a reading: {field = "key.within"}',
        ),
    ]
    time_field: Annotated[
        Name | None, Field(description="where a reading says its time, UTC milliseconds")
    ] = None
    window: Annotated[
        int | None,
        Field(
            ge=1,
            le=WINDOW_READINGS_MAX,
            description=f"readings in a window, 1 to {WINDOW_READINGS_MAX}",
        ),
    ] = None
    hop: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="a decision every so many readings, at least 1"),
    ] = 1
    valid_for_ms: Milliseconds = 1000
    stale_after_ms: Milliseconds | None = None
    silent_after_ms: Milliseconds | None = None
    slow_after_ms: Annotated[
        Milliseconds | None, Field(description="milliseconds; valid_for_ms when it is not said")
    ] = None
    confidence_min: Annotated[float, Field(ge=0, le=1, description="0 to 1")] = 0.0
    input_range: Annotated[
        dict[Name, Range],
        Field(default_factory=dict, description="field = [lowest, highest]"),
    ]
    output_range: Annotated[
        dict[Name, Range],
        Field(default_factory=dict, description="value = [lowest, highest]"),
    ]
    fallback: Annotated[Name, Field(description="the verdict when the model may not speak")] = (
        "fallback"
    )
    keep_readings: Annotated[bool, Field(description="true records the readings too")] = False
    sources_max: Annotated[int, Field(ge=1, le=SOURCES_MAX, description=f"1 to {SOURCES_MAX}")] = (
        SOURCES_MAX
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        several = self.fields is not None and len(self.fields) > 1
        if self.format == "number" and (self.time_field or self.field or several):
            raise ValueError(
                'format = "number" is one field: neither time_field, field nor several fields'
            )
        if self.stale_after_ms is not None and self.time_field is None:
            raise ValueError(
                "stale_after_ms needs time_field: without it nobody knows when a reading was taken"
            )
        return self


class UplinkSection(Endpoint):
    """One way upstream, to a NATS server with JetStream."""

    name: Identifier
    reconnect_seconds_max: Annotated[
        float,
        Field(ge=0.25, le=3600, description="longest pause between attempts, 0.25 to 3600"),
    ] = 15.0

    @model_validator(mode="after")
    def _check_there(self) -> Self:
        if self.url is None:
            raise ValueError('url is missing: "nats://host:4222" or "tls://host:4222"')
        return self


class HeadquartersSection(Endpoint):
    """The receiving end: its server, and where it keeps what has come."""

    name: Identifier
    archive_directory: Annotated[Path, Field(description="a folder for what has come")]
    embedded: Annotated[bool, Field(description="true starts a nats-server with it")] = False
    listen: Annotated[
        str, Field(min_length=1, description="address of the embedded server's listener")
    ] = "127.0.0.1"
    client_port: Annotated[Port, Field(description="of the embedded server; 0 for a free one")] = 0
    data_directory: Annotated[
        Path | None, Field(description="of the embedded server; below the archive by default")
    ] = None
    server_binary: Annotated[Path | None, Field(description="path of nats-server")] = None
    jetstream_bytes_max: Annotated[
        ByteSize,
        Field(
            ge=64 * MIB,
            le=BYTES_MAX,
            description='64 MiB to 1 EiB, as bytes or as text such as "10 GiB"',
        ),
    ] = ByteSize(10 << 30)
    linger_seconds: Annotated[
        float, Field(ge=0, le=3600, description="how long arrivals gather for one file, 0 to 3600")
    ] = 2.0

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.embedded == (self.url is not None):
            raise ValueError('either embedded = true or url = "nats://…", one of the two')
        if self.embedded and not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(f"listen = {self.listen!r}: {_PLAINTEXT}")
        return self


class LogSection(Section):
    """The log on the console and in the lane ``logs``."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description='"debug", "info", "warning" or "error"'),
    ] = "info"


class HealthSection(Section):
    """What the node says of itself."""

    interval_seconds: Annotated[
        float, Field(ge=0.1, le=3600, description="0.1 to 3600 seconds")
    ] = 10.0


class Settings(Section):
    """A whole configuration. Which sections must be there depends on the command."""

    node: NodeSection | None = None
    broker: BrokerSection | None = None
    spool: SpoolSection = SpoolSection.model_validate({})
    decisions: Annotated[tuple[DecisionSection, ...], Field(max_length=64)] = ()
    uplinks: Annotated[
        tuple[UplinkSection, ...], Field(max_length=1, description="at most one, for now")
    ] = ()
    headquarters: HeadquartersSection | None = None
    log: LogSection = LogSection()
    health: HealthSection = HealthSection()

    @field_validator("decisions", "uplinks")
    @classmethod
    def _check_names(
        cls, tables: tuple[DecisionSection | UplinkSection, ...]
    ) -> tuple[DecisionSection | UplinkSection, ...]:
        names = [table.name for table in tables]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice; each needs a name of its own")
        return tables

    @field_validator("decisions")
    @classmethod
    def _check_kept(
        cls, rules: tuple[DecisionSection, ...], others: ValidationInfo
    ) -> tuple[DecisionSection, ...]:
        spool: SpoolSection | None = others.data.get("spool")
        keeping = [rule.name for rule in rules if rule.keep_readings]
        if spool is not None and keeping and not spool.lanes.readings.enabled:
            raise ValueError(
                f"{', '.join(keeping)} keeps readings, and spool.lanes.readings.enabled = false "
                "takes none: one of the two would be right"
            )
        return rules

    def for_edge(self) -> "EdgeSettings":
        """The sections that an edge needs.

        Raises:
            ConfigurationInvalid: which are missing.
        """
        problems = []
        if self.node is None:
            problems.append("[node] is missing: an edge needs site and name")
        if self.broker is None:
            problems.append('[broker] is missing: embedded = true or url = "mqtt://127.0.0.1:1883"')
        if not self.decisions:
            problems.append("[[decisions]] is missing: an edge needs at least one rule")
        if problems or self.node is None or self.broker is None:
            raise ConfigurationInvalid(tuple(problems))
        return EdgeSettings(
            self.node,
            self.broker,
            self.spool,
            self.decisions,
            self.uplinks,
            self.log,
            self.health,
        )

    def for_headquarters(self) -> HeadquartersSection:
        """The section that headquarters needs.

        Raises:
            ConfigurationInvalid: it is missing.
        """
        if self.headquarters is None:
            raise ConfigurationInvalid(
                ("[headquarters] is missing: name, and embedded = true or url",)
            )
        return self.headquarters


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What ``holdfast edge`` needs, and all of it is there."""

    node: NodeSection
    broker: BrokerSection
    spool: SpoolSection
    decisions: tuple[DecisionSection, ...]
    uplinks: tuple[UplinkSection, ...]
    log: LogSection
    health: HealthSection


def _split(url: str, schemes: tuple[str, str]) -> SplitResult:
    """The parts of a URL of one of two schemes.

    Raises:
        ValueError: what would be right. The URL is not in it: it may hold a password.
    """
    right = f"{schemes[0]}://host:port or {schemes[1]}://host:port would be right"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as wrong:
        raise ValueError(right) from wrong
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"no user and password in a URL: use username and password_file; {right}")
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in schemes or not parts.hostname or rest or port == 0:
        raise ValueError(right)
    return parts
