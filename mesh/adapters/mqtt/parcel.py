"""A part as the payload of one MQTT message. Pure.

MQTT 3.1.1 has no headers, so a parcel carries what the topic does not say in front of the part::

    magic (3) "HFP" | version (1) 0x01 | digest (32) | offset (4) | total (4) | bytes of the part

The digest is the SHA-256 of the whole batch; offset and total are counted in bytes, big-endian.
Site, node and lane are those of the topic, ``mesh/v1/<site>/<node>/up/<lane>``. The part's length
is what is left of the payload: MQTT frames it.
"""

import struct
from typing import Final

from mesh.ports import Part
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Lane
from schemas.topics import Subject

__all__ = ["PARCEL_HEAD_BYTES", "pack", "unpack"]

_HEAD: Final = struct.Struct(">3sB32sII")
_MAGIC: Final = b"HFP"
_VERSION: Final = 1
_SIZES: Final = range(2**32)

PARCEL_HEAD_BYTES: Final = _HEAD.size


def pack(part: Part) -> bytes:
    """The payload that carries a part.

    Raises:
        Refused: ``out_of_range``: a digest that is none, or numbers that cannot be written.
    """
    if len(part.digest) != 32 or part.offset not in _SIZES or part.total not in _SIZES:  # noqa: PLR2004, SHA-256
        raise Refused(
            RefusedBecause.OUT_OF_RANGE,
            f"a part at {part.offset} of {part.total}, with a digest of {len(part.digest)} bytes",
        )
    return _HEAD.pack(_MAGIC, _VERSION, part.digest, part.offset, part.total) + part.payload


def unpack(topic: str, payload: bytes) -> Part:
    """The part that a message carries; whether it can be one is left to ``check_part``.

    Raises:
        Refused: ``bad_name``, ``too_large``, ``malformed`` or ``bad_version``.
    """
    subject = Subject.parse_topic(topic)
    lane = next((lane for lane in Lane if lane == subject.name), None)
    if lane is None or subject.way != "up":
        raise Refused(RefusedBecause.BAD_NAME, f"topic {topic!r}: nothing goes up there")
    if len(payload) > PARCEL_HEAD_BYTES + BATCH_BYTES_MAX:
        raise Refused(
            RefusedBecause.TOO_LARGE,
            f"{len(payload)} bytes on {topic!r}; a batch has {BATCH_BYTES_MAX}",
        )
    if len(payload) < PARCEL_HEAD_BYTES or payload[: len(_MAGIC)] != _MAGIC:
        raise Refused(
            RefusedBecause.MALFORMED,
            f"{len(payload)} bytes on {topic!r} that begin with {payload[:4].hex() or 'nothing'},"
            f" not with {_MAGIC.hex()}",
        )
    _, version, digest, offset, total = _HEAD.unpack_from(payload)
    if version != _VERSION:
        raise Refused(
            RefusedBecause.BAD_VERSION, f"a parcel of version {version} on {topic!r}; known: 1"
        )
    return Part(
        subject.site, subject.node, lane, digest, offset, total, payload[PARCEL_HEAD_BYTES:]
    )
