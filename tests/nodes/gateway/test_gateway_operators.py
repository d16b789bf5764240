"""What an operator asks of a gateway: is its configuration right, and how do its links stand."""

import time
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.integration.chain import gateway_configuration, in_json
from tests.processes import holdfast, run

pytestmark = pytest.mark.integration


def test_links_tell_how_the_uplinks_of_a_gateway_stand(tmp_path: Path) -> None:
    """Before it has run there is nothing to tell; then its word, and that it has ended: 75."""
    uplink, way = f"nats://127.0.0.1:{free_port()}", f"mqtt://127.0.0.1:{free_port()}"
    file = gateway_configuration(tmp_path / "gw", uplink, f'mqtt_url = "{way}"')
    before = run("links", "--config", str(file))
    assert before.returncode == 75
    assert "no report of links" in before.stderr
    with holdfast(tmp_path / "gw.log", "gateway", "--config", str(file)):
        report = file.parent / "state" / "links.json"
        deadline = time.monotonic() + 20  # noqa: TID251 - a real process
        while not report.exists():
            assert time.monotonic() < deadline  # noqa: TID251 - a real process
            time.sleep(0.05)
        (link,) = in_json("links", "--config", str(file))["links"]
        assert (link["name"], link["up"]) == ("hq", False)
    after = run("links", "--config", str(file))
    assert after.returncode == 75
    assert "has ended" in after.stderr


def test_a_gateways_configuration_is_checked_as_one(tmp_path: Path) -> None:
    """Right: what is in force; wrong: 78, and not what an edge would need."""
    uplink, way = "nats://127.0.0.1:4222", "mqtt://127.0.0.1:1883"
    right = gateway_configuration(tmp_path / "gw", uplink, f'mqtt_url = "{way}"')
    said = in_json("config", "check", str(right))
    assert said["gateway"]["mqtt_url"] == way
    text = right.read_text()
    for wrong, told in (
        (text.partition("[[uplinks]]")[0], "[[uplinks]] is missing"),
        (text.replace(uplink, way), "its own next holder"),
    ):
        right.write_text(wrong)
        done = run("config", "check", str(right))
        assert done.returncode == 78, done.stderr
        assert told in done.stderr
