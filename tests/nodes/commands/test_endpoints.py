"""Where a command on the machine of a receiving end finds its server."""

from pathlib import Path

import pytest

from nodes.commands.endpoints import receiving_urls
from nodes.gateway_section import GatewaySection
from nodes.settings import HeadquartersSection
from schemas.errors import ConfigurationInvalid


def _headquarters(**more: object) -> HeadquartersSection:
    given = {"name": "hq", "archive_directory": Path("archive"), **more}
    return HeadquartersSection.model_validate(given)


def _gateway(**more: object) -> GatewaySection:
    given = {"site": "hall", "name": "gate", "state_directory": Path("gate"), **more}
    return GatewaySection.model_validate(given)


def test_all_servers_of_a_cluster_will_do() -> None:
    """The first one may be the one that is down."""
    section = _headquarters(url="tls://a:4222", further_urls=["tls://b:4222"])
    assert receiving_urls(section) == ("tls://a:4222", "tls://b:4222")


@pytest.mark.parametrize(
    ("listen", "host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")]
)
def test_an_embedded_server_is_found_on_this_machine(listen: str, host: str) -> None:
    """Whatever address it listens on for others."""
    section = _headquarters(embedded=True, listen=listen, client_port=4222, allow_plaintext=True)
    assert receiving_urls(section) == (f"nats://{host}:4222",)


def test_what_nobody_could_find_is_told() -> None:
    """A free port; and a gateway that takes over MQTT alone."""
    with pytest.raises(ConfigurationInvalid, match=r"headquarters\.client_port is 0"):
        receiving_urls(_headquarters(embedded=True))
    with pytest.raises(ConfigurationInvalid, match=r"gateway\.url is missing"):
        receiving_urls(_gateway(mqtt_url="mqtt://127.0.0.1:1883"))
