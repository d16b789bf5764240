"""The section ``[transfer]``: how each lane is sent, over whatever uplink.

What is not said of a lane is taken from ``mesh.transfer.delivery.DEFAULT_LANE_RULES``, and a lane
whose newest goes first has a share, so that it does not wait behind the history of the others. So a
section always holds what is in force, and printing it tells the effective rules.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field, field_validator, model_validator

from mesh.transfer.delivery import DEFAULT_LANE_RULES
from mesh.transfer.schedule import LaneRule
from nodes.section import Section
from schemas.messages import Lane

__all__ = ["TransferLaneSection", "TransferLanesSection", "TransferSection"]

_MS: Final = 1000
_LINGER_MS_MAX: Final = 600_000
_LIVE_SHARE: Final = 0.1
_LOWEST: Final = tuple(Lane)[-1]
_LOWEST_SHARE: Final = 0.05
_LOWEST_SHARE_MIN: Final = 0.01
_SHARES_MAX: Final = 0.9


class TransferLaneSection(Section):
    """How one lane is sent."""

    live: Annotated[
        bool, Field(description="true or false: whether the newest goes first, history behind it")
    ]
    share: Annotated[
        float,
        Field(
            ge=0,
            le=_SHARES_MAX,
            description="0 to 0.9: which part of an uplink is its own while something of it waits",
        ),
    ]
    linger_ms: Annotated[
        int,
        Field(
            ge=0,
            le=_LINGER_MS_MAX,
            description="how long it gathers records for a batch, 0 to 600000 milliseconds",
        ),
    ]

    def rule(self) -> LaneRule:
        """As the schedule takes it."""
        return LaneRule(self.share, self.live, self.linger_ms / _MS)


_Table = Annotated[TransferLaneSection, Field(description="a table of keys")]


class TransferLanesSection(Section):
    """How each lane is sent."""

    account: _Table
    alarms: _Table
    decisions: _Table
    events: _Table
    metrics: _Table
    readings: _Table
    logs: _Table

    @field_validator("account", "alarms")
    @classmethod
    def _check_urgent(cls, lane: TransferLaneSection) -> TransferLaneSection:
        if lane.share:
            raise ValueError("share = 0 would be right: it goes before all the others anyway")
        return lane

    @field_validator("logs")
    @classmethod
    def _check_lowest(cls, lane: TransferLaneSection) -> TransferLaneSection:
        if lane.share < _LOWEST_SHARE_MIN:
            raise ValueError(
                f"share = {_LOWEST_SHARE_MIN:g} at least would be right: it is the least urgent "
                "lane, and without a share it could wait for ever"
            )
        return lane


class TransferSection(Section):
    """How lanes are sent."""

    lanes: Annotated[TransferLanesSection, Field(description="a table for each lane")]

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, tables: object) -> object:
        """The tables, over what is said of no lane. What is wrong in them stays as it is."""
        if not isinstance(tables, dict):
            return tables
        given = tables.get("lanes", {})
        if not isinstance(given, dict):
            return tables
        lanes: dict[str, object] = dict(given)
        for lane in Lane:
            table = given.get(lane, {})
            if isinstance(table, dict):
                lanes[lane] = {**_defaults(lane, table), **table}
        return {**tables, "lanes": lanes}

    @field_validator("lanes")
    @classmethod
    def _check_shares(cls, lanes: TransferLanesSection) -> TransferLanesSection:
        shares = {lane: getattr(lanes, lane).share for lane in Lane}
        total = sum(shares.values())
        if total > _SHARES_MAX + 1e-9:
            told = ", ".join(f"{lane} {share:g}" for lane, share in shares.items() if share)
            raise ValueError(
                f"the shares of {told} are {total:g} together; at most {_SHARES_MAX:g} would be "
                "right, so that what is urgent finds room"
            )
        return lanes

    def lane_rules(self) -> Mapping[Lane, LaneRule]:
        """How each lane is sent, as the schedule takes it."""
        return {lane: getattr(self.lanes, lane).rule() for lane in Lane}


def _defaults(lane: Lane, table: Mapping[str, object]) -> dict[str, object]:
    """What is in force of a lane as far as its table does not say it."""
    rule = DEFAULT_LANE_RULES.get(lane, LaneRule())
    live = table.get("live", rule.live)
    least = max(_LIVE_SHARE if live is True else 0.0, _LOWEST_SHARE if lane is _LOWEST else 0.0)
    share = 0.0 if lane in {Lane.ACCOUNT, Lane.ALARMS} else max(rule.share, least)
    return {"live": rule.live, "share": share, "linger_ms": round(rule.linger_seconds * _MS)}
