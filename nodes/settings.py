"""The sections of a configuration: what may stand in them, and what is right.

Every key is named here once, with its unit at its end, its default, and a description that says
what would be right: it is what a person reads when it is wrong. Unknown keys are refused. Sections
are frozen. ``nodes.config`` reads files and the environment, and says all errors at once.

Secrets never stand in a section: there is the path of a file, which is read when it is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nodes.endpoint_section import PLAINTEXT, Endpoint, Identifier, Name, Port, is_loopback
from nodes.gateway_section import GatewaySection
from nodes.section import BYTES_MAX, DAY_MS, Milliseconds, Section
from nodes.spool_section import SpoolSection
from nodes.transfer_section import TransferSection
from nodes.uplink_section import UPLINKS_MAX, UplinkSection
from schemas.errors import ConfigurationInvalid, Refused
from schemas.limits import (
    INTAKE_BATCHES_MAX,
    MIB,
    MODEL_FIELDS_MAX,
    SOURCES_MAX,
    TOPIC_BYTES_MAX,
    WINDOW_READINGS_MAX,
)
from schemas.topics import check_filter

__all__ = [
    "BrokerSection",
    "DecisionSection",
    "EdgeSettings",
    "Endpoint",
    "GatewaySection",
    "GatewaySettings",
    "HeadquartersSection",
    "HealthSection",
    "LogSection",
    "NodeSection",
    "Settings",
    "UplinkSection",
    "is_loopback",
]


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


Filter = Annotated[
    str,
    AfterValidator(_filter),
    Field(
        max_length=TOPIC_BYTES_MAX, description="an MQTT topic filter, such as plant/+/telemetry"
    ),
]
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
    def _schemes(cls) -> Mapping[str, bool]:
        return {"mqtt": True, "mqtts": False}

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
    worker: Annotated[
        Identifier, Field(description="this worker's name; each on one archive has its own")
    ] = "main"
    replicas: Annotated[
        int, Field(ge=1, le=5, description="servers that keep a new stream, 1 to 5")
    ] = 1
    stream_bytes_max: Annotated[
        ByteSize,
        Field(ge=64 * MIB, le=BYTES_MAX, description="what may wait before the stream refuses"),
    ] = ByteSize(512 * MIB)
    ack_seconds: Annotated[
        float,
        Field(
            ge=5, le=3600, description="after how long what a worker took comes again, 5 to 3600"
        ),
    ] = 60.0
    ack_pending_max: Annotated[
        int, Field(ge=1, le=65_536, description="batches out at all workers together, 1 to 65536")
    ] = 4 * INTAKE_BATCHES_MAX

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.embedded and self.stream_bytes_max > self.jetstream_bytes_max:
            raise ValueError("stream_bytes_max is more than jetstream_bytes_max, which holds it")
        if self.embedded == (self.url is not None):
            raise ValueError('either embedded = true or url = "nats://…", one of the two')
        if self.embedded and not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(f"listen = {self.listen!r}: {PLAINTEXT}")
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
        tuple[UplinkSection, ...],
        Field(max_length=UPLINKS_MAX, description=f"at most {UPLINKS_MAX} tables"),
    ] = ()
    transfer: TransferSection = TransferSection.model_validate({})
    headquarters: HeadquartersSection | None = None
    gateway: GatewaySection | None = None
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
            self.transfer,
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

    def for_gateway(self) -> "GatewaySettings":
        """The sections that a gateway needs.

        Raises:
            ConfigurationInvalid: which are missing.
        """
        problems = []
        if self.gateway is None:
            problems.append("[gateway] is missing: site, name, and embedded = true or url")
        if not self.uplinks:
            problems.append("[[uplinks]] is missing: a gateway needs a way to the next holder")
        if problems or self.gateway is None:
            raise ConfigurationInvalid(tuple(problems))
        return GatewaySettings(self.gateway, self.uplinks, self.transfer, self.log)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What ``holdfast gateway`` needs, and all of it is there."""

    gateway: GatewaySection
    uplinks: tuple[UplinkSection, ...]
    transfer: TransferSection
    log: LogSection


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """What ``holdfast edge`` needs, and all of it is there."""

    node: NodeSection
    broker: BrokerSection
    spool: SpoolSection
    decisions: tuple[DecisionSection, ...]
    uplinks: tuple[UplinkSection, ...]
    transfer: TransferSection
    log: LogSection
    health: HealthSection
