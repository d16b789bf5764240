"""The section ``[[uplinks]]``: one way upstream, and what it may carry.

The first uplink is the preferred one; a lane uses the next one where the first is down, outside its
windows, out of budget, or too costly for it.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, field_validator, model_validator

from mesh.transfer.schedule import LinkRule, Window
from nodes.endpoint_section import Endpoint, Identifier
from nodes.section import BYTES_MAX
from schemas.limits import BATCH_BYTES_MAX, KIB, MIB, PART_BYTES_MIN
from schemas.messages import Lane

__all__ = ["UPLINKS_MAX", "UplinkSection"]

UPLINKS_MAX: Final = 8
_WINDOWS_MAX: Final = 32
_RATE_MIN: Final = 128
_DAY_BYTES_MIN: Final = MIB
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(r"(?:([a-z,\s-]+?)\s+)?(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")
_HOUR_MINUTES: Final = 60
_DAY_MINUTES: Final = 24 * _HOUR_MINUTES
_WINDOW_TOLD: Final = (
    '"Mon-Fri 22:00-06:00", "Sat,Sun 00:00-24:00" or "12:00-13:30" would be right, in UTC'
)

assert _DAY_BYTES_MIN > BATCH_BYTES_MAX, "a day's budget takes any part"


class UplinkSection(Endpoint):
    """One way upstream: a NATS server with JetStream, or an MQTT broker, as the URL says."""

    name: Identifier
    reconnect_seconds_max: Annotated[
        float,
        Field(ge=0.25, le=3600, description="longest pause between attempts, 0.25 to 3600"),
    ] = 15.0
    max_rate: Annotated[
        ByteSize | None,
        Field(
            ge=_RATE_MIN,
            le=BYTES_MAX,
            description='bytes a second, at least 128, as a number or as text such as "8 KiB"',
        ),
    ] = None
    burst: Annotated[
        ByteSize,
        Field(
            ge=PART_BYTES_MIN,
            le=BYTES_MAX,
            description="what may go at once after a rest, at least 512 bytes, as a number or as "
            'text such as "64 KiB"',
        ),
    ] = ByteSize(64 * KIB)
    daily_bytes: Annotated[
        ByteSize | None,
        Field(
            ge=_DAY_BYTES_MIN,
            le=BYTES_MAX,
            description="what it may carry on a day in UTC, at least 1 MiB, as a number or as text "
            'such as "500 MiB"',
        ),
    ] = None
    windows: Annotated[
        tuple[str, ...],
        Field(max_length=_WINDOWS_MAX, description=f"when it may be used: {_WINDOW_TOLD}"),
    ] = ()
    least_lane: Annotated[
        Lane | None,
        Field(
            description="the least urgent lane that is worth its cost, one of "
            f"{', '.join(Lane)}; without it all are"
        ),
    ] = None

    @classmethod
    def _schemes(cls) -> Mapping[str, bool]:
        return {"nats": True, "tls": False, "mqtt": True, "mqtts": False}

    @field_validator("windows")
    @classmethod
    def _check_windows(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for text in windows:
            _window(text)
        return windows

    @model_validator(mode="after")
    def _check_there(self) -> Self:
        if self.url is None:
            raise ValueError(
                'url is missing: "nats://host:4222", "tls://host:4222", "mqtt://host:1883" or '
                '"mqtts://host:8883"'
            )
        return self

    @property
    def kind(self) -> Literal["jetstream", "mqtt"]:
        """What listens there, by the URL's scheme."""
        mqtt = self.url is not None and urlsplit(self.url).scheme.startswith("mqtt")
        return "mqtt" if mqtt else "jetstream"

    def rule(self) -> LinkRule:
        """How it may be used, as the schedule takes it."""
        return LinkRule(
            self.name,
            None if self.max_rate is None else float(self.max_rate),
            int(self.burst),
            None if self.daily_bytes is None else int(self.daily_bytes),
            tuple(map(_window, self.windows)),
            self.least_lane,
        )


def _window(text: str) -> Window:
    """A window of text such as ``Mon-Fri 22:00-06:00``.

    Raises:
        ValueError: what would be right.
    """
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no window: {_WINDOW_TOLD}")
    start, stop = _minute(match[2], match[3]), _minute(match[4], match[5])
    if start >= _DAY_MINUTES or stop > _DAY_MINUTES:
        raise ValueError(f"{text!r}: a day goes from 00:00 to 24:00: {_WINDOW_TOLD}")
    if start == stop:
        raise ValueError(f"{text!r} begins when it ends; 00:00-24:00 is a whole day")
    return Window(_days(match[1] or "mon-sun", text), start, stop)


def _minute(hours: str, minutes: str) -> int:
    # Minutes of 60 and above are no time of any day.
    within = int(minutes)
    return int(hours) * _HOUR_MINUTES + within if within < _HOUR_MINUTES else _DAY_MINUTES + 1


def _days(names: str, text: str) -> frozenset[int]:
    days: set[int] = set()
    for span in names.split(","):
        first, dash, last = (name.strip() for name in span.partition("-"))
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ValueError(f"{text!r}: {span.strip()!r} is no day: {_WINDOW_TOLD}")
        start = _DAYS.index(first)
        length = (_DAYS.index(last) - start) % len(_DAYS) if dash else 0
        days |= {(start + ahead) % len(_DAYS) for ahead in range(length + 1)}
    return frozenset(days)
