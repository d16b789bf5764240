"""``holdfast gateway``: its configuration, and a real one between an edge's spool and a server."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from nodes import config
from nodes.commands.gateway import check_renewal
from schemas.errors import ConfigurationInvalid

_SAMPLE = Path("nodes/samples/gateway.toml")


def _load(tmp_path: Path, text: str) -> str:
    file = tmp_path / "gateway.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationInvalid) as wrong:
        config.load(file, {}).for_gateway()
    return str(wrong.value)


def test_the_sample_is_right() -> None:
    """It holds what a gateway needs, and printing it tells all keys."""
    settings = config.load(_SAMPLE, {}).for_gateway()
    assert settings.gateway.name == "gateway-1"
    assert settings.gateway.mqtt() is None
    assert [uplink.name for uplink in settings.uplinks] == ["headquarters"]
    assert "jetstream_bytes_max" in config.describe(config.load(_SAMPLE, {}))


_RIGHT = """
[gateway]
site = "demo"
name = "gw"
state_directory = "gw"
"""
_PLAIN = 'url = "nats://127.0.0.1:4223"\nmqtt_url = "mqtt://127.0.0.1:1884"\n'
_SECURE = 'url = "nats://127.0.0.1:4223"\nmqtt_url = "mqtts://broker.example:8883"\n'
_UPLINK = """
[[uplinks]]
name = "hq"
url = "nats://127.0.0.1:4222"
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"[gateway] is missing"),
        (_RIGHT + "embedded = true", "[[uplinks]] is missing"),
        (_RIGHT + _UPLINK, "edges need a way to it"),
        (_RIGHT + 'embedded = true\nurl = "nats://127.0.0.1:1"' + _UPLINK, "not both"),
        (_RIGHT + 'embedded = true\nlisten = "0.0.0.0"' + _UPLINK, "allow_plaintext"),
        (_RIGHT + 'mqtt_url = "mqtt://far.example:1883"' + _UPLINK, "allow_plaintext"),
        (_RIGHT + 'mqtt_url = "http://far.example"' + _UPLINK, "mqtt://host:port"),
        (_RIGHT + 'mqtt_url = "http://far.example"' + _UPLINK, "gateway.mqtt_url"),
        (_RIGHT + 'mqtt_url = "mqtt://gw:secret@127.0.0.1"' + _UPLINK, "password_file"),
        (_RIGHT + _PLAIN + 'ca_file = "ca.pem"' + _UPLINK, "URL of tls://"),
        (_RIGHT + _SECURE + 'certificate_file = "gw.pem"' + _UPLINK, "go together"),
        (_RIGHT + 'embedded = true\nbytes_max = "1 MiB"' + _UPLINK, "80 MiB to 1 EiB"),
        (_RIGHT + "embedded = true\nmax_age_days = 0" + _UPLINK, "hundredth of a day"),
    ],
)
def test_what_is_wrong_is_told_with_what_would_be_right(
    tmp_path: Path, text: str, told: str
) -> None:
    """Each key by name, all of it before anything is started."""
    assert told in _load(tmp_path, text)


def test_a_broker_for_edges_has_the_sections_credentials(tmp_path: Path) -> None:
    """One user for both ways in."""
    file = tmp_path / "gateway.toml"
    broker = 'mqtt_url = "mqtt://127.0.0.1:1884"\nusername = "gw"\n'
    file.write_text(_RIGHT + broker + _UPLINK, encoding="utf-8")
    section = config.load(file, {}).for_gateway().gateway
    mqtt = section.mqtt()
    assert mqtt is not None
    assert (mqtt.host, mqtt.port, mqtt.username) == ("127.0.0.1", 1884, "gw")


@pytest.mark.parametrize(
    ("ways", "secure"),
    [
        (_SECURE, [False, True]),
        ('url = "tls://hall.example"\nmqtt_url = "mqtt://127.0.0.1"\n', [True, False]),
    ],
)
def test_one_way_in_may_use_tls_and_the_other_stay_on_this_machine(
    tmp_path: Path, ways: str, secure: list[bool]
) -> None:
    """The files are those of the way that uses TLS."""
    file = tmp_path / "gateway.toml"
    file.write_text(_RIGHT + ways + 'ca_file = "ca.pem"' + _UPLINK, encoding="utf-8")
    section = config.load(file, {}).for_gateway().gateway
    mqtt = section.mqtt()
    assert mqtt is not None
    assert [section.tls, mqtt.tls] == secure
    assert mqtt.ca_file == (tmp_path / "ca.pem" if mqtt.tls else None)


@pytest.mark.parametrize(
    ("ways", "uplink", "told"),
    [
        ("embedded = true\nclient_port = 4222", "nats://127.0.0.1:4222", True),
        ("embedded = true\nclient_port = 4222", "nats://localhost", True),
        ("embedded = true\nclient_port = 4223", "nats://127.0.0.1:4222", False),
        ("embedded = true", "nats://127.0.0.1:4222", False),
        ('url = "tls://hall.example:4222"', "tls://hall.example", True),
        ('mqtt_url = "mqtt://127.0.0.1"', "mqtt://localhost:1883", True),
        ('mqtt_url = "mqtt://127.0.0.1:4222"', "nats://127.0.0.1:4222", False),
    ],
)
def test_an_uplink_that_leads_back_is_refused(
    tmp_path: Path,
    ways: str,
    uplink: str,
    told: bool,  # noqa: FBT001 - a table
) -> None:
    """Nobody is his own next holder, whatever this machine is called."""
    file = tmp_path / "gateway.toml"
    file.write_text(f'{_RIGHT}{ways}\n[[uplinks]]\nname = "hq"\nurl = "{uplink}"\n', "utf-8")
    settings = config.load(file, {}).for_gateway()
    with pytest.raises(ConfigurationInvalid, match=uplink) if told else nullcontext():
        settings.gateway.check_uplinks(settings.uplinks)


def test_a_renewal_needs_the_files_of_both_ways_in(tmp_path: Path) -> None:
    """What a new beginning would fail at leaves the gateway as it is."""
    file = tmp_path / "gateway.toml"
    file.write_text(_RIGHT + "embedded = true" + _UPLINK, encoding="utf-8")
    now = config.load(file, {}).for_gateway()
    broker = 'embedded = true\nmqtt_url = "mqtts://127.0.0.1"\nca_file = "nowhere.pem"\n'
    file.write_text(_RIGHT + broker + _UPLINK, encoding="utf-8")
    with pytest.raises(ConfigurationInvalid, match=r"nowhere\.pem"):
        check_renewal(now, config.load(file, {}).for_gateway())
