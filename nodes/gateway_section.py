"""The section ``[gateway]``: whose site, where its edges connect, how much it may hold."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    ByteSize,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mesh.transfer.custody.settings import CUSTODY_BYTES_MIN
from nodes.endpoint_section import PLAINTEXT, Endpoint, Identifier, Port, is_loopback
from nodes.section import BYTES_MAX
from schemas.errors import ConfigurationInvalid
from schemas.limits import MIB

__all__ = ["GatewayMqttSection", "GatewaySection"]

_AGE_DAYS_MIN: Final = 0.01
_AGE_DAYS_MAX: Final = 100 * 366.0
_THIS_MACHINE: Final = "127.0.0.1"
_FILES: Final = frozenset({"ca_file", "certificate_file", "key_file"})


class GatewayMqttSection(Endpoint):
    """The broker over which edges may reach a gateway."""

    @classmethod
    def _schemes(cls) -> Mapping[str, bool]:
        return {"mqtt": True, "mqtts": False}


class GatewaySection(Endpoint):
    """A gateway: takes custody for the edges of a site, and forwards what it holds."""

    site: Identifier
    name: Annotated[
        Identifier, Field(description="what its receipts are signed with; never changes")
    ]
    state_directory: Annotated[Path, Field(description="a folder of this gateway alone")]
    bytes_max: Annotated[
        ByteSize,
        Field(
            ge=CUSTODY_BYTES_MIN,
            le=BYTES_MAX,
            description='80 MiB to 1 EiB, as bytes or as text such as "10 GiB": what it may hold; '
            "beyond it edges keep theirs",
        ),
    ] = ByteSize(10 << 30)
    max_age_days: Annotated[
        float | None,
        Field(
            ge=_AGE_DAYS_MIN,
            le=_AGE_DAYS_MAX,
            description="a hundredth of a day to 100 years: after that a batch goes back to its "
            "origin, which may still have it; without it none does",
        ),
    ] = None
    embedded: Annotated[bool, Field(description="true starts a nats-server with it")] = False
    listen: Annotated[
        str, Field(min_length=1, description="address of the embedded server's listener")
    ] = "127.0.0.1"
    client_port: Annotated[Port, Field(description="of the embedded server; 0 for a free one")] = 0
    data_directory: Annotated[
        Path | None, Field(description="of the embedded server; below the state directory")
    ] = None
    server_binary: Annotated[Path | None, Field(description="path of nats-server")] = None
    jetstream_bytes_max: Annotated[
        ByteSize,
        Field(
            ge=64 * MIB,
            le=BYTES_MAX,
            description='64 MiB to 1 EiB, as bytes or as text such as "1 GiB": what the streams '
            "may keep; a quarter of it may wait to be taken",
        ),
    ] = ByteSize(1 << 30)
    mqtt_url: Annotated[
        str | None,
        Field(description="a broker over which edges may come, too: mqtt:// or mqtts://"),
    ] = None

    @field_validator("mqtt_url")
    @classmethod
    def _check_mqtt_url(cls, url: str | None, others: ValidationInfo) -> str | None:
        if url is not None:
            allowed = others.data.get("allow_plaintext", False)
            try:
                GatewayMqttSection.model_validate({"allow_plaintext": allowed, "url": url})
            except ValidationError as wrong:
                # Told under this key, not under that of the other section.
                raise ValueError(wrong.errors()[0]["ctx"]["error"]) from None
        return url

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        # Both ways in share the files, and one that uses TLS is enough: ``mqtt`` judges them then.
        if not self._is_mqtt_secure:
            Endpoint.model_validate(self._shared())
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.embedded and self.url is not None:
            raise ValueError('either embedded = true or url = "nats://…", not both')
        if not self.embedded and self.url is None and self.mqtt_url is None:
            raise ValueError(
                'edges need a way to it: embedded = true, url = "nats://…" or mqtt_url = "mqtt://…"'
            )
        if self.embedded and not is_loopback(self.listen) and not self.allow_plaintext:
            raise ValueError(f"listen = {self.listen!r}: {PLAINTEXT}")
        self.mqtt()
        return self

    def mqtt(self) -> GatewayMqttSection | None:
        """The broker over which edges may come, with this section's credentials."""
        if self.mqtt_url is None:
            return None
        both = {**self._shared(), "url": self.mqtt_url, "further_urls": ()}
        if not self._is_mqtt_secure:
            # They are for the NATS server then, and of no use here.
            both |= dict.fromkeys(_FILES)
        return GatewayMqttSection.model_validate(both)

    def check_uplinks(self, uplinks: Iterable[Endpoint]) -> None:
        """Whether the ways out are others than the ways in.

        Raises:
            ConfigurationInvalid: which uplinks lead back here.
        """
        ways_in = [way for way in (self, self.mqtt()) if way is not None and way.url is not None]
        entrances = {_place(way) for way in ways_in}
        if self.embedded and self.client_port:
            entrances.add(("nats", _THIS_MACHINE, self.client_port))
        back = [
            f"uplinks: {uplink.url} is where edges come to this gateway, which would be its own "
            "next holder: the address of headquarters or of another gateway would be right"
            for uplink in uplinks
            if _place(uplink) in entrances
        ]
        if back:
            raise ConfigurationInvalid(tuple(back))

    def _shared(self) -> dict[str, object]:
        """What it says as an endpoint."""
        return {name: getattr(self, name) for name in Endpoint.model_fields}

    @property
    def _is_mqtt_secure(self) -> bool:
        return self.mqtt_url is not None and urlsplit(self.mqtt_url).scheme == "mqtts"


def _place(way: Endpoint) -> tuple[str, str, int]:
    """Which server of which kind a URL leads to, whatever this machine is called in it."""
    kind = "mqtt" if urlsplit(way.url or "").scheme.startswith("mqtt") else "nats"
    return kind, _THIS_MACHINE if is_loopback(way.host) else way.host, way.port
