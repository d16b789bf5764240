"""Uplinks and lanes in a configuration: what may be said, and what is said of what is wrong."""

from pathlib import Path

import pytest

from mesh.transfer.schedule import LaneRule, LinkRule, Window
from nodes.config import describe, load
from nodes.settings import Settings
from schemas.errors import ConfigurationInvalid
from schemas.limits import KIB, MIB
from schemas.messages import Lane


def _load(folder: Path, text: str) -> Settings:
    path = folder / "config.toml"
    path.write_text(text)
    return load(path, {})


def _uplink(**keys: str) -> str:
    table = {"name": '"up"', "url": '"tls://h"', **keys}
    return "[[uplinks]]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())


def _problems(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationInvalid) as invalid:
        _load(folder, text)
    return "\n".join(invalid.value.problems)


def test_an_uplink_without_limits_is_a_rule_without_limits(tmp_path: Path) -> None:
    """What a configuration does not say is not limited."""
    (uplink,) = _load(tmp_path, _uplink()).uplinks
    assert uplink.rule() == LinkRule("up")


def test_all_that_can_be_said_of_an_uplink(tmp_path: Path) -> None:
    """Sizes as text or numbers, windows as people write them."""
    text = _uplink(
        max_rate='"8 KiB"',
        burst="2048",
        daily_bytes='"500 MiB"',
        windows='["Mon-Fri 22:00-06:00", "sat, sun 00:00 - 24:00",'
        '"Fri-Mon 1:30-2:00", "3:00-4:00"]',
        least_lane='"alarms"',
    )
    (uplink,) = _load(tmp_path, text).uplinks
    assert uplink.rule() == LinkRule(
        "up",
        8.0 * KIB,
        2048,
        500 * MIB,
        (
            Window(frozenset(range(5)), 1320, 360),
            Window(frozenset({5, 6}), 0, 1440),
            Window(frozenset({4, 5, 6, 0}), 90, 120),
            Window(frozenset(range(7)), 180, 240),
        ),
        Lane.ALARMS,
    )


@pytest.mark.parametrize(
    ("url", "kind", "port"),
    [
        ("nats://127.0.0.1", "jetstream", 4222),
        ("tls://h", "jetstream", 4222),
        ("mqtt://127.0.0.1", "mqtt", 1883),
        ("mqtts://h:99", "mqtt", 99),
        ("MQTTS://h", "mqtt", 8883),
    ],
)
def test_the_scheme_says_what_listens_there(tmp_path: Path, url: str, kind: str, port: int) -> None:
    """NATS with JetStream, or an MQTT broker; each has its own port."""
    (uplink,) = _load(tmp_path, _uplink(url=f'"{url}"')).uplinks
    assert (uplink.kind, uplink.port) == (kind, port)
    assert uplink.tls is (url.lower().startswith(("tls", "mqtts")))


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("url", '"http://h"', "nats://host:port or tls://host:port or mqtt://host:port"),
        ("url", '"mqtt://h"', "without TLS"),
        ("max_rate", '"fast"', "bytes a second, at least 128"),
        ("max_rate", "0", "bytes a second, at least 128"),
        ("burst", "1", "at least 512 bytes"),
        ("daily_bytes", '"1 KiB"', "at least 1 MiB"),
        ("windows", '"22:00-06:00"', "when it may be used"),
        ("windows", '["22-6"]', "'22-6' is no window: \"Mon-Fri 22:00-06:00\""),
        ("windows", '["Mo 22:00-06:00"]', "'mo' is no day"),
        ("windows", '["Mon-Tues 22:00-06:00"]', "'mon-tues' is no day"),
        ("windows", '["Mon, 22:00-06:00"]', "'' is no day"),
        ("windows", '["24:00-06:00"]', "a day goes from 00:00 to 24:00"),
        ("windows", '["22:60-23:00"]', "a day goes from 00:00 to 24:00"),
        ("windows", '["22:00-24:01"]', "a day goes from 00:00 to 24:00"),
        ("windows", '["22:00-22:00"]', "00:00-24:00 is a whole day"),
        ("least_lane", '"urgent"', "one of account, alarms, decisions"),
        ("dayly_bytes", "1", "unknown key; daily_bytes would be right"),
    ],
)
def test_what_is_wrong_with_an_uplink_is_said(
    tmp_path: Path, key: str, value: str, right: str
) -> None:
    """With the key, and what would be right."""
    told = _problems(tmp_path, _uplink(**{key: value}))
    assert f"uplinks[0].{key}" in told
    assert right in told


def test_several_uplinks(tmp_path: Path) -> None:
    """Up to eight, each with a name of its own, and all that is wrong at once."""
    eight = "".join(_uplink(name=f'"up{number}"') for number in range(8))
    assert [uplink.name for uplink in _load(tmp_path, eight).uplinks][::7] == ["up0", "up7"]
    assert "at most 8 tables" in _problems(tmp_path, eight + _uplink())
    assert "up stands twice" in _problems(tmp_path, _uplink() * 2)
    told = _problems(tmp_path, _uplink(burst="1") + _uplink(least_lane='"x"', windows='["y"]'))
    assert len(told.splitlines()) == 3


def test_lanes_have_rules_without_being_asked(tmp_path: Path) -> None:
    """The last lane has a share, and so has a lane whose newest goes first."""
    rules = _load(tmp_path, "").transfer.lane_rules()
    assert set(rules) == set(Lane)
    assert rules[Lane.LOGS].share == 0.05
    assert rules[Lane.METRICS] == LaneRule(0.1, live=True, linger_seconds=5.0)
    assert rules[Lane.ALARMS] == LaneRule()


def test_a_lane_that_goes_live_gets_a_share(tmp_path: Path) -> None:
    """Unless it is said which, since its newest would wait behind the history of the others."""
    live = "[transfer.lanes.readings]\nlive = true\n"
    assert _load(tmp_path, live).transfer.lane_rules()[Lane.READINGS].share == 0.1
    settled = _load(tmp_path, live + "share = 0.0\nlinger_ms = 20\n").transfer
    assert settled.lane_rules()[Lane.READINGS] == LaneRule(0.0, live=True, linger_seconds=0.02)


@pytest.mark.parametrize(
    ("table", "right"),
    [
        ("[transfer.lanes.alarms]\nshare = 0.2", "share = 0 would be right"),
        ("[transfer.lanes.logs]\nshare = 0", "share = 0.01 at least would be right"),
        ("[transfer.lanes.logs]\nshare = 1", "0 to 0.9"),
        ("[transfer.lanes.logs]\nlinger_ms = -1", "0 to 600000 milliseconds"),
        ("[transfer.lanes.logs]\nlive = 7", "true or false"),
        ("[transfer.lanes.logs]\nshare = 0.5\n[transfer.lanes.events]\nshare = 0.4", "events 0.4"),
        ("[transfer.lanes.log]\nshare = 0.5", "unknown key; logs would be right"),
        ("[transfer.lanes]\nlogs = 3", "a table of keys would be right"),
        ("transfer = 3", "transfer"),
        ("[transfer]\nlanes = 3", "a table for each lane would be right"),
    ],
)
def test_what_is_wrong_with_a_lane_is_said(tmp_path: Path, table: str, right: str) -> None:
    """With the key, and what would be right."""
    told = _problems(tmp_path, table + "\n")
    assert right in told
    assert "transfer" in told


def test_what_is_described_loads_again(tmp_path: Path) -> None:
    """Uplinks with all their keys, and the lanes in force."""
    text = _uplink(max_rate="9000", windows='["Sat 01:00-02:00"]', least_lane='"events"')
    text += _uplink(name='"other"') + "[transfer.lanes.metrics]\nlive = false\n"
    settings = _load(tmp_path, text)
    assert "[transfer.lanes.metrics]" in describe(settings)
    assert _load(tmp_path, describe(settings)) == settings
