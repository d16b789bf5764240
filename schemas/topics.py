"""Builds and parses local topics and upstream subjects. Nobody else joins strings.

Local topics have six levels, ``mesh/v1/<site>/<node>/<channel>/<name>``; upstream subjects say the
same words with dots, ``mesh.v1.<site>.<node>.up.<lane>`` and ``mesh.v1.<site>.<node>.down.<name>``.
At an upstream MQTT broker a subject is a topic: slashes take the place of its dots.
An identifier matches ``[a-z0-9][a-z0-9_-]{0,62}``: no wildcard, separator, blank or letter case can
hide in it, so it is safe in a path, a topic and a subject. Sensors keep topics of their own, which
only have to be valid MQTT topics (MQTT 3.1.1, section 4.7).
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from schemas.errors import Refused, RefusedBecause
from schemas.limits import TOPIC_BYTES_MAX

__all__ = [
    "RECEIPT_PREFIX",
    "Channel",
    "LocalTopic",
    "PartSubject",
    "Subject",
    "check_filter",
    "check_identifier",
    "check_topic",
    "is_identifier",
    "matches",
    "upstream_filter",
]

RECEIPT_PREFIX: Final = "receipt-"
"""The name under which a receipt goes down is this and its lane."""

_IDENTIFIER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_PREFIX: Final = ("mesh", "v1")
_LEVELS: Final = 6
_NONCHARACTER: Final = 0xFFFE
_NONCHARACTERS: Final = range(0xFDD0, 0xFDF0)


class Channel(StrEnum):
    """What a local topic is for."""

    DECISION = "decision"
    STATE = "state"
    HEALTH = "health"
    EVENT = "event"
    LOG = "log"
    METRIC = "metric"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class LocalTopic:
    """A topic of the local broker that Holdfast owns: ``mesh/v1/<site>/<node>/<channel>/<name>``.

    Raises:
        Refused: ``bad_name``, when a part is not an identifier.
    """

    site: str
    node: str
    channel: Channel
    name: str

    def __post_init__(self) -> None:
        for what, value in (("site", self.site), ("node", self.node), ("name", self.name)):
            check_identifier(what, value)

    def __str__(self) -> str:
        return "/".join((*_PREFIX, self.site, self.node, self.channel, self.name))

    @classmethod
    def parse(cls, text: str) -> "LocalTopic":
        """The topic that the text names.

        Raises:
            Refused: ``bad_name``, when it is none of ours.
        """
        levels = text.split("/")
        if len(levels) != _LEVELS or tuple(levels[:2]) != _PREFIX:
            raise Refused(
                RefusedBecause.BAD_NAME,
                f"topic {text!r} is not mesh/v1/<site>/<node>/<channel>/<name>",
            )
        _, _, site, node, channel, name = levels
        try:
            return cls(site, node, Channel(channel), name)
        except ValueError as unknown:
            known = ", ".join(Channel)
            raise Refused(
                RefusedBecause.BAD_NAME, f"topic {text!r}: the channel is none of {known}"
            ) from unknown


@dataclass(frozen=True, slots=True)
class Subject:
    """An upstream subject.

    ``mesh.v1.<site>.<node>.<way>.<name>``, ``way`` being ``up`` or ``down``.

    Raises:
        Refused: ``bad_name``, when a part is not an identifier or the way is neither.
    """

    site: str
    node: str
    way: str
    name: str

    def __post_init__(self) -> None:
        if self.way not in {"up", "down"}:
            raise Refused(
                RefusedBecause.BAD_NAME, f"subject way {self.way!r} is neither up nor down"
            )
        for what, value in (("site", self.site), ("node", self.node), ("name", self.name)):
            check_identifier(what, value)

    def __str__(self) -> str:
        return ".".join((*_PREFIX, self.site, self.node, self.way, self.name))

    @classmethod
    def parse(cls, text: str) -> "Subject":
        """The subject that the text names.

        Raises:
            Refused: ``bad_name``, when it is none of ours.
        """
        tokens = text.split(".")
        if len(tokens) != _LEVELS or tuple(tokens[:2]) != _PREFIX:
            raise Refused(
                RefusedBecause.BAD_NAME,
                f"subject {text!r} is not mesh.v1.<site>.<node>.<way>.<name>",
            )
        return cls(*tokens[2:])

    @property
    def topic(self) -> str:
        """The same words with slashes: where an upstream MQTT broker has it."""
        return "/".join((*_PREFIX, self.site, self.node, self.way, self.name))

    @classmethod
    def parse_topic(cls, text: str) -> "Subject":
        """The subject whose ``topic`` the text is.

        Raises:
            Refused: ``bad_name``, when it is none of ours.
        """
        levels = text.split("/")
        if len(levels) != _LEVELS or tuple(levels[:2]) != _PREFIX:
            raise Refused(
                RefusedBecause.BAD_NAME,
                f"topic {text[:80]!r} is not mesh/v1/<site>/<node>/<way>/<name>",
            )
        return cls(*levels[2:])


def upstream_filter(way: str, site: str | None, node: str | None) -> str:
    """The MQTT filter of all that goes one way.

    Args:
        way: ``up`` or ``down``.
        site: of one site; ``None`` for every site.
        node: of one node; ``None`` for every node.

    Raises:
        Refused: ``bad_name``, when site or node is no identifier.
    """
    for what, name in (("site", site), ("node", node)):
        if name is not None:
            check_identifier(what, name)
    return "/".join((*_PREFIX, site or "+", node or "+", way, "+"))


@dataclass(frozen=True, slots=True)
class PartSubject:
    """Where a part of a batch waits for the others.

    ``mesh.v1.<site>.<node>.part.<digest>.<offset>``, the digest in hex.

    Args:
        site: of the batch's origin.
        node: the batch's origin.
        digest: of the batch, 32 bytes.

    Raises:
        Refused: ``bad_name``, when site or node is not an identifier.
    """

    site: str
    node: str
    digest: bytes

    def __post_init__(self) -> None:
        for what, value in (("site", self.site), ("node", self.node)):
            check_identifier(what, value)

    def at(self, offset: int) -> str:
        """The subject of the part that begins at an offset."""
        return f"{self._stem}.{offset}"

    @property
    def every(self) -> str:
        """The subjects of all parts of the batch."""
        return f"{self._stem}.*"

    @property
    def _stem(self) -> str:
        return ".".join((*_PREFIX, self.site, self.node, "part", self.digest.hex()))


def is_identifier(text: str) -> bool:
    """Whether the text matches ``[a-z0-9][a-z0-9_-]{0,62}``."""
    return _IDENTIFIER.fullmatch(text) is not None


def check_identifier(what: str, text: str) -> str:
    """The text itself, when it is an identifier.

    Args:
        what: names it in the message, for example ``site``.
        text: the candidate.

    Raises:
        Refused: ``bad_name``.
    """
    if not is_identifier(text):
        raise Refused(
            RefusedBecause.BAD_NAME,
            f"{what} {text[:80]!r} must be 1 to 63 of a-z, 0-9, _ and -, the first no _ or -",
        )
    return text


def check_topic(text: str) -> str:
    """The text itself, when it can be published under (MQTT 3.1.1, sections 1.5.3 and 4.7).

    Raises:
        Refused: ``bad_name``.
    """
    if not text or len(text.encode("utf-8", "replace")) > TOPIC_BYTES_MAX:
        raise Refused(
            RefusedBecause.BAD_NAME,
            f"topic of {len(text)} characters, where 1 to {TOPIC_BYTES_MAX} bytes belong",
        )
    for character in text:
        if character in "+#" or _is_forbidden(character):
            raise Refused(
                RefusedBecause.BAD_NAME,
                f"topic {text[:80]!r} holds {character!r}, which a topic must not",
            )
    return text


def check_filter(text: str) -> str:
    """The text itself, when it is a valid MQTT topic filter.

    ``+`` alone in a level, ``#`` alone in the last.

    Raises:
        Refused: ``bad_name``.
    """
    levels = text.split("/")
    for index, level in enumerate(levels):
        if ("#" in level and (level != "#" or index != len(levels) - 1)) or (
            "+" in level and level != "+"
        ):
            raise Refused(
                RefusedBecause.BAD_NAME,
                f"filter {text[:80]!r}: + must fill a level, # the last one",
            )
    check_topic(text.replace("+", "x").replace("#", "x"))
    return text


def matches(topic_filter: str, topic: str) -> bool:
    """Whether the filter selects the topic (MQTT 3.1.1, section 4.7; ``$`` topics only by name)."""
    if topic[:1] == "$" and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)


def _is_forbidden(character: str) -> bool:
    """Control characters and non-characters, which MQTT lets a receiver refuse, and surrogates."""
    code = ord(character)
    return (
        unicodedata.category(character) in {"Cc", "Cs"}
        or code & 0xFFFE == _NONCHARACTER
        or code in _NONCHARACTERS
    )
