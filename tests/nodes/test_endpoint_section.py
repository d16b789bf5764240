"""Several servers in a configuration: those of one NATS cluster, any of which will do."""

from pathlib import Path

import pytest

from nodes.config import load
from schemas.errors import ConfigurationInvalid

ONE = "nats://127.0.0.1:4222"
TWO = "nats://127.0.0.1:4223"


def _headquarters(folder: Path, **keys: str) -> Path:
    table = {"name": '"hq"', "archive_directory": '"a"', **keys}
    path = folder / "config.toml"
    path.write_text("[headquarters]\n" + "".join(f"{key} = {it}\n" for key, it in table.items()))
    return path


def test_further_servers_follow_the_first(tmp_path: Path) -> None:
    """Headquarters, a gateway and an uplink say them alike; without any there is one."""
    path = _headquarters(tmp_path, url=f'"{ONE}"', further_urls=f'["{TWO}"]')
    assert load(path, {}).for_headquarters().urls == (ONE, TWO)
    path = _headquarters(tmp_path, url=f'"{ONE}"')
    assert load(path, {}).for_headquarters().urls == (ONE,)
    path = _headquarters(tmp_path, embedded="true")
    assert load(path, {}).for_headquarters().urls == ()
    path.write_text(
        '[gateway]\nsite = "s"\nname = "g"\nstate_directory = "g"\n'
        f'url = "{ONE}"\nfurther_urls = ["{TWO}"]\nmqtt_url = "mqtt://127.0.0.1"\n'
        f'[[uplinks]]\nname = "up"\nurl = "{TWO}"\nfurther_urls = ["{ONE}"]\n'
    )
    settings = load(path, {}).for_gateway()
    assert settings.gateway.urls == (ONE, TWO)
    assert settings.uplinks[0].urls == (TWO, ONE)
    mqtt = settings.gateway.mqtt()
    assert mqtt is not None
    assert mqtt.urls == ("mqtt://127.0.0.1",)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"url": f'"{ONE}"', "further_urls": f'["{ONE}"]'}, "one of them stands twice"),
        ({"url": f'"{ONE}"', "further_urls": '["tls://h"]'}, "nats:// would be right for all"),
        ({"url": f'"{ONE}"', "further_urls": '["nats://10.0.0.1"]'}, "allow_plaintext = true"),
        ({"url": f'"{ONE}"', "further_urls": '["here"]'}, "nats://host:port"),
        ({"embedded": "true", "further_urls": f'["{ONE}"]'}, "url is the first of the servers"),
        ({"url": '"nonsense"', "further_urls": f'["{ONE}"]'}, "headquarters.url"),
    ],
)
def test_what_is_wrong_with_them_is_said(tmp_path: Path, keys: dict[str, str], told: str) -> None:
    """All are reached in the same way, and trusted as far."""
    with pytest.raises(ConfigurationInvalid) as invalid:
        load(_headquarters(tmp_path, **keys), {})
    (problem,) = invalid.value.problems
    assert told in problem


def test_a_broker_has_no_others_beside_it(tmp_path: Path) -> None:
    """MQTT knows no clusters: further uplinks are how a second broker is named."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[[uplinks]]\nname = "up"\nurl = "mqtt://127.0.0.1"\nfurther_urls = ["mqtt://localhost"]\n'
    )
    with pytest.raises(ConfigurationInvalid, match="only servers of NATS have others beside them"):
        load(path, {})
