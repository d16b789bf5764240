"""Edges that reach a gateway over MQTT, and headquarters behind it: all of it real processes."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers import RunningBroker, free_port, mosquitto, nats_mqtt
from tests.integration.chain import (
    Party,
    archived,
    edge_configuration,
    gateway_configuration,
    headquarters_configuration,
    held_bytes,
    in_json,
    is_settled,
    lanes_of,
    pending_of,
    publish_readings,
    until,
    wait_for,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

READINGS = 2_000
SLOWLY = 'max_rate = "32 KiB"\nburst = "4 KiB"'
LONG = 10_000
PART_BYTES = 20_000
KINDS: dict[str, Callable[[Path], AbstractContextManager[RunningBroker]]] = {
    "mosquitto": mosquitto,
    "nats": nats_mqtt,
}


@dataclass
class Chain:
    """An edge, the broker by which it reaches the gateway, the gateway, headquarters."""

    broker: RunningBroker
    plant: RunningBroker
    edge: Party
    gateway: Party
    headquarters: Party

    def cut(self) -> None:
        """The gateway has been there; then the broker goes.

        What a broker takes before anybody has subscribed it may throw away, and say nothing.
        """
        self.headquarters.start()
        self.gateway.start()
        assert self.gateway.process is not None
        wait_for(self.gateway.log, f"{self.broker.port}', up=True", self.gateway.process)
        self.broker.end()

    def backlog(self, folder: Path, readings: int = READINGS) -> None:
        """The edge runs and decides while there is no way to the gateway, and goes on."""
        self.edge.start()
        publish_readings(folder, self.plant.port, readings)
        until(lambda: lanes_of(self.edge.config)["decisions"]["end"] == readings, "all decided")

    def settled(self, readings: int = READINGS) -> None:
        """All arrives; what the edge still says at its end, too, and each number has one row.

        What the edge released, it released on the word of whoever was heard first.
        """
        edge, hq = self.edge.config, self.headquarters.config
        until(lambda: not pending_of(edge)["decisions"], "the edge hears of it")
        assert set(lanes_of(edge)["decisions"]["holders"]) <= {"gw", "shore", "hq"}
        self.edge.end()
        pending = pending_of(self.edge.config)
        assert not any(pending.values()), pending
        until(lambda: is_settled(hq), "nothing is pending in the account")
        rows, identities = archived(hq)
        assert rows == identities
        assert archived(hq, "decisions") == (readings, readings)


@contextmanager
def chain(
    folder: Path,
    broker: AbstractContextManager[RunningBroker],
    *,
    ways_in: str = "",
    beside: tuple[str, ...] = (),
    extra: str = "",
) -> Iterator[Chain]:
    """The parties, configured and not started; their broker runs.

    Args:
        folder: for all of it.
        broker: by which the edge reaches the gateway.
        ways_in: how edges come beside that broker.
        beside: the edge's further uplinks, after the one to that broker.
        extra: further lines for each of them.
    """
    with ExitStack() as stack:
        way = stack.enter_context(broker)
        plant = stack.enter_context(nats_mqtt(folder / "plant"))
        url = f"mqtt://127.0.0.1:{way.port}"
        port = free_port()
        edge = edge_configuration(folder, plant.port, url, *beside, extra=extra)
        gateway = gateway_configuration(
            folder / "gw", f"nats://127.0.0.1:{port}", f'mqtt_url = "{url}"\n{ways_in}'
        )
        hq = headquarters_configuration(folder / "hq", port)
        yield Chain(
            way,
            plant,
            Party("edge", edge, "decides pump", stack),
            Party("gateway", gateway, "takes custody", stack),
            Party("headquarters", hq, "taking batches", stack),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_backlog_goes_over_a_broker_and_a_gateway(tmp_path: Path, kind: str) -> None:
    """MQTT as the gateway's only way in: what waited for the link arrives, each number once."""
    with chain(tmp_path, KINDS[kind](tmp_path / "way")) as parties:
        parties.cut()
        parties.backlog(tmp_path)
        parties.broker.start()
        parties.settled()
        assert held_bytes(parties.gateway.config) > PART_BYTES


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_dies_on_the_way_nothing_is_lost(tmp_path: Path, kind: str) -> None:
    """Rows 35, 38, 39: during the drain the broker, the gateway and headquarters are killed.

    The broker forgets what it had acknowledged, queued and retained. The gateway reads its
    configuration again, and is killed. While headquarters is away the gateway takes custody of all,
    and the edge may forget it.
    """
    with chain(tmp_path, KINDS[kind](tmp_path / "way"), extra=SLOWLY) as parties:
        parties.cut()
        parties.backlog(tmp_path, LONG)
        parties.broker.start()
        gateway = parties.gateway.config

        def came(more: int) -> None:
            enough = held_bytes(gateway) + more
            until(lambda: held_bytes(gateway) >= enough, "the gateway takes more")

        came(PART_BYTES)
        parties.broker.end(signal.SIGKILL)
        parties.broker.start()
        came(PART_BYTES)
        parties.gateway.renew()
        came(PART_BYTES)
        parties.gateway.end(signal.SIGKILL)
        parties.gateway.start()
        came(PART_BYTES)
        parties.headquarters.end(signal.SIGKILL)
        before = archived(parties.headquarters.config, "decisions")[0]
        assert before < LONG
        until(lambda: not pending_of(parties.edge.config)["decisions"], "the edge has released it")
        assert archived(parties.headquarters.config, "decisions")[0] == before
        parties.headquarters.start()
        parties.settled(LONG)


def test_the_other_way_in_takes_over(tmp_path: Path) -> None:
    """MQTT beside JetStream: the broker dies during the drain, and the rest comes the other way."""
    port = free_port()
    ways_in = f"embedded = true\nclient_port = {port}"
    beside, broker = (f"nats://127.0.0.1:{port}",), mosquitto(tmp_path / "way")
    with chain(tmp_path, broker, ways_in=ways_in, beside=beside, extra=SLOWLY) as parties:
        parties.backlog(tmp_path)
        parties.headquarters.start()
        parties.gateway.start()
        until(lambda: held_bytes(parties.gateway.config) > PART_BYTES, "it takes something")
        parties.broker.end(signal.SIGKILL)
        parties.settled()
        assert all(_sent(parties))


def test_both_ways_in_may_be_one_server(tmp_path: Path) -> None:
    """A nats-server with JetStream and MQTT hears on each way what comes over the other.

    Neither takes it for its own: each batch is taken once, and its receipts come down the same way.
    """
    way = f"nats://127.0.0.1:{(port := free_port())}"
    server = nats_mqtt(tmp_path / "way", options=f"listen: 127.0.0.1:{port}")
    with chain(tmp_path, server, ways_in=f'url = "{way}"', beside=(way,)) as parties:
        # What is less urgent than events goes over JetStream.
        edge = parties.edge.config
        first = '[[uplinks]]\nname = "up-0"'
        edge.write_text(edge.read_text().replace(first, f'{first}\nleast_lane = "events"'))
        parties.headquarters.start()
        parties.gateway.start()
        parties.backlog(tmp_path)
        parties.settled()
        assert all(_sent(parties))


def test_gateways_chain_over_brokers(tmp_path: Path) -> None:
    """A gateway whose uplink is a broker, too: the next gateway is to it what it is to an edge."""
    with (
        mosquitto(tmp_path / "far") as far,
        chain(tmp_path, mosquitto(tmp_path / "way")) as parties,
        ExitStack() as stack,
    ):
        near = parties.gateway.config
        url, shore = f"mqtt://127.0.0.1:{far.port}", near.read_text().rpartition('url = "')[2]
        near.write_text(near.read_text().replace(shore, f'{url}"\n'))
        config = gateway_configuration(
            tmp_path / "shore", shore.partition('"')[0], f'mqtt_url = "{url}"', name="shore"
        )
        next_one = Party("gateway", config, "takes custody", stack)
        parties.headquarters.start()
        parties.gateway.start()
        parties.backlog(tmp_path)
        until(lambda: not pending_of(parties.edge.config)["decisions"], "the gateway holds it")
        next_one.start()
        parties.settled()
        assert held_bytes(config) > PART_BYTES


def _sent(parties: Chain) -> list[int]:
    """What went over each of the edge's uplinks, as the edge said at its end."""
    # 75: the node has ended, and what it said last may be old.
    said = in_json("links", "--config", str(parties.edge.config), code=75)
    return [link["sent_bytes"] for link in said["links"]]
