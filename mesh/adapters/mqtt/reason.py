"""Reason codes of MQTT 5 (section 2.4) that a broker answers a publication with, in words. Pure.

A broker of MQTT 3.1.1 knows none: its answer is always taken for success.
"""

from typing import Final

__all__ = [
    "FAILURE_CODE_MIN",
    "IMPLEMENTATION_SPECIFIC",
    "NOT_AUTHORISED",
    "NO_SUBSCRIBERS",
    "PACKET_TOO_LARGE",
    "QUOTA_EXCEEDED",
    "in_words",
]

NO_SUBSCRIBERS: Final = 0x10
FAILURE_CODE_MIN: Final = 0x80
IMPLEMENTATION_SPECIFIC: Final = 0x83
NOT_AUTHORISED: Final = 0x87
PACKET_TOO_LARGE: Final = 0x95
QUOTA_EXCEEDED: Final = 0x97

_WORDS: Final = {
    NO_SUBSCRIBERS: "nobody is subscribed",
    0x80: "unspecified error",
    IMPLEMENTATION_SPECIFIC: "implementation specific error",
    NOT_AUTHORISED: "not authorised",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    PACKET_TOO_LARGE: "packet too large",
    QUOTA_EXCEEDED: "quota exceeded",
    0x99: "payload format invalid",
}


def in_words(code: int) -> str:
    """What a reason code says, for a person."""
    return f"{_WORDS.get(code, 'unknown reason')} ({code:#04x})"
