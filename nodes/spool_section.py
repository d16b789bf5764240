"""The section ``[spool]``: how much the queue may take, and how each of its lanes is kept.

What is not said of a lane is taken from ``mesh.spool.settings.DEFAULT_LANES``, which is made for
1 GiB: of a smaller spool each lane has the same share. So a section always holds what is in force,
and printing it tells the effective lanes.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.settings import DEFAULT_LANES
from nodes.section import BYTES_MAX, Milliseconds, Section
from schemas.limits import JOURNAL_BYTES_MAX, MIB
from schemas.messages import Lane

__all__ = ["LaneSection", "LanesSection", "SpoolSection"]

_SPOOL_BYTES: Final = 1 << 30
_SPOOL_BYTES_MIN: Final = 32 * MIB
_JOURNALS_BYTES: Final = 2 * JOURNAL_BYTES_MAX
_INTERVAL_MS: Final = 1000
_MS: Final = 1000
_AGE_SECONDS_MIN: Final = 60.0
_AGE_SECONDS_MAX: Final = 100 * 366 * 86_400.0
_AGE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*")
_SIZE: Final = TypeAdapter(ByteSize)
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _seconds(value: object) -> object:
    """A length of time in seconds, of text such as ``30 d``; anything else as it is."""
    match = _AGE.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else value


_Age = Annotated[float, Field(ge=_AGE_SECONDS_MIN, le=_AGE_SECONDS_MAX), BeforeValidator(_seconds)]


class LaneSection(Section):
    """How one lane is kept."""

    durability: Annotated[
        Literal["commit", "interval"],
        Field(
            description='"commit", so that each record is made durable at once, or "interval", so '
            "that what nobody awaits may wait for others"
        ),
    ]
    interval_ms: Annotated[
        Milliseconds | None,
        Field(description="how long it may wait at most, 1 to 86400000 milliseconds"),
    ] = None
    quota: Annotated[
        ByteSize | None,
        Field(
            ge=MIB,
            le=BYTES_MAX,
            description='1 MiB to 1 EiB, as bytes or as text such as "200 MiB"',
        ),
    ] = None
    max_age: Annotated[
        _Age | None,
        Field(
            description='a minute to 100 years, in seconds or as text such as "12 h" or "30 d"',
        ),
    ] = None
    when_full: Annotated[
        WhenFull,
        Field(
            description='"refuse", so that new records are refused and none is given up, or '
            '"evict-oldest"'
        ),
    ]
    enabled: Annotated[bool, Field(description="true or false: whether it takes records")] = True

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.durability == "commit" and self.interval_ms is not None:
            raise ValueError(
                'interval_ms belongs to durability = "interval"; leave one of them out'
            )
        if self.when_full is WhenFull.REFUSE and self.quota is None:
            raise ValueError(
                'when_full = "refuse" needs a quota: nothing of such a lane is ever given up, and '
                "without one it would take what all the others live on"
            )
        return self

    def settings(self, lane: Lane) -> LaneSettings:
        """As the spool takes them."""
        return LaneSettings(
            (self.interval_ms or 0) / _MS,
            DEFAULT_LANES[lane].reserved,
            None if self.quota is None else int(self.quota),
            self.max_age,
            self.when_full,
            self.enabled,
        )


_Table = Annotated[LaneSection, Field(description="a table of keys")]


class LanesSection(Section):
    """How each lane is kept."""

    account: _Table
    alarms: _Table
    decisions: _Table
    events: _Table
    metrics: _Table
    readings: _Table
    logs: _Table

    @field_validator("account")
    @classmethod
    def _check_account(cls, account: LaneSection) -> LaneSection:
        if not account.enabled or account.when_full is WhenFull.REFUSE:
            raise ValueError(
                'enabled = true and when_full = "evict-oldest" would be right: accounts explain '
                "what becomes of all the rest, so there must always be a newest one"
            )
        return account


class SpoolSection(Section):
    """The durable store-and-forward queue."""

    bytes_max: Annotated[
        ByteSize,
        Field(
            ge=_SPOOL_BYTES_MIN,
            le=BYTES_MAX,
            description='32 MiB to 1 EiB, as bytes or as text such as "2 GiB"',
        ),
    ] = ByteSize(_SPOOL_BYTES)
    headroom: Annotated[
        ByteSize,
        Field(
            ge=0,
            le=BYTES_MAX,
            description="what it leaves free on the file system, as bytes or as text such as "
            '"64 MiB"',
        ),
    ] = ByteSize(_JOURNALS_BYTES)
    retained_max: Annotated[
        ByteSize | None,
        Field(
            ge=0,
            le=BYTES_MAX,
            description="how much of what was released stays while there is space, as bytes or as "
            'text such as "256 MiB"; 0 for nothing',
        ),
    ] = None
    lanes: Annotated[LanesSection, Field(description="a table for each lane")]

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, tables: object) -> object:
        """The tables, over what is said of no lane. What is wrong in them stays as it is."""
        if not isinstance(tables, dict):
            return tables
        given = tables.get("lanes", {})
        if not isinstance(given, dict):
            return tables
        shrunk = min(1.0, _share(tables.get("bytes_max")))
        lanes: dict[str, object] = dict(given)
        for lane, settings in DEFAULT_LANES.items():
            table = given.get(lane, {})
            if isinstance(table, dict):
                lanes[lane] = {**_defaults(settings, shrunk, table), **table}
        return {**tables, "lanes": lanes}

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        refusing = {
            lane: settings.bytes_max or 0
            for lane, settings in self.lane_settings().items()
            if settings.when_full is WhenFull.REFUSE
        }
        needed = _JOURNALS_BYTES + int(self.lanes.account.quota or 0)
        room = self.bytes_max - needed
        if sum(refusing.values()) > room:
            quotas = ", ".join(f"{lane} {_size(taken)}" for lane, taken in refusing.items())
            raise ValueError(
                f"lanes that refuse when they are full may take {quotas}; of bytes_max = "
                f"{_size(self.bytes_max)} at most {_size(max(0, room))} is theirs, since "
                f"{_size(needed)} is for journals and accounts: lower their quotas or raise "
                "bytes_max"
            )
        return self

    def lane_settings(self) -> Mapping[Lane, LaneSettings]:
        """How each lane is kept, as the spool takes it."""
        return {lane: getattr(self.lanes, lane).settings(lane) for lane in Lane}

    @property
    def retained_bytes_max(self) -> int:
        """How much of what was released may stay: a quarter of the spool where nobody says."""
        return self.bytes_max // 4 if self.retained_max is None else int(self.retained_max)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, and may not be meant."""
        lanes = self.lanes
        told = []
        if not lanes.decisions.enabled:
            told.append(
                "spool.lanes.decisions is switched off: decisions are published, none is recorded, "
                "and each is stated as shed"
            )
        if not lanes.alarms.enabled:
            told.append("spool.lanes.alarms is switched off: nobody upstream hears of an alarm")
        return tuple(told)


def _size(count: int) -> str:
    return ByteSize(count).human_readable(separator=" ")


def _share(bytes_max: object) -> float:
    """How much of the usual size a spool has; all of it where that is not said, or wrong."""
    try:
        return _SIZE.validate_python(bytes_max) / _SPOOL_BYTES
    except ValidationError:
        return 1.0


def _defaults(
    settings: LaneSettings, share: float, table: Mapping[str, object]
) -> dict[str, object]:
    """What is in force of a lane as far as its table does not say it."""
    interval_ms = round(settings.linger_seconds * _MS)
    durability = table.get("durability", "interval" if "interval_ms" in table else None)
    if durability is None:
        durability = "interval" if interval_ms else "commit"
    defaults: dict[str, object] = {
        "durability": durability,
        "max_age": settings.age_seconds_max,
        "when_full": settings.when_full,
        "enabled": settings.enabled,
    }
    if durability == "interval":
        defaults["interval_ms"] = interval_ms or _INTERVAL_MS
    if settings.bytes_max is not None:
        defaults["quota"] = max(MIB, math.floor(settings.bytes_max * share))
    return defaults
