"""What connections have in common: a URL, who we are there, and how far it is trusted.

Secrets never stand in a section: there is the path of a file, which is read when it is needed.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from nodes.section import Section
from schemas.errors import Refused
from schemas.topics import check_identifier

__all__ = ["PLAINTEXT", "Endpoint", "Identifier", "Name", "Port", "is_loopback"]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "nats": 4222, "tls": 4222}
_PORT_MAX: Final = 65_535

PLAINTEXT: Final = (
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


Identifier = Annotated[
    str, AfterValidator(_identifier), Field(description="1 to 63 of a-z, 0-9, _ and -")
]
Name = Annotated[str, Field(min_length=1, max_length=256, description="1 to 256 characters")]
Port = Annotated[int, Field(ge=0, le=_PORT_MAX, description="a port; 0 for a free one")]


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
            parts = _split(url, cls._schemes())
            exposed = cls._schemes()[parts.scheme] and not is_loopback(parts.hostname or "")
            if exposed and not others.data.get("allow_plaintext"):
                raise ValueError(PLAINTEXT)
        return url

    @classmethod
    def _schemes(cls) -> Mapping[str, bool]:
        """The schemes of its URL, and whether each is plain, without TLS."""
        return {"nats": True, "tls": False}

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        if self.url is not None and not self.tls and (self.ca_file or self.certificate_file):
            secure = " or ".join(
                f"{scheme}://" for scheme, plain in self._schemes().items() if not plain
            )
            raise ValueError(f"ca_file and certificate_file need a URL of {secure}")
        return self

    @property
    def tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.url is not None and not self._schemes()[urlsplit(self.url).scheme]

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


def _split(url: str, schemes: Mapping[str, bool]) -> SplitResult:
    """The parts of a URL of one of some schemes.

    Raises:
        ValueError: what would be right. The URL is not in it: it may hold a password.
    """
    right = " or ".join(f"{scheme}://host:port" for scheme in schemes) + " would be right"
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
