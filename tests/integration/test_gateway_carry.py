"""A stick between an edge without any link, a gateway, and headquarters behind it."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.brokers import free_port, nats_mqtt
from tests.integration.chain import (
    Party,
    archived,
    carry,
    edge_configuration,
    gateway_configuration,
    headquarters_configuration,
    is_settled,
    pending_of,
    publish_readings,
    until,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

READINGS = 500


def edge_with_a_backlog(folder: Path, stack: ExitStack) -> Path:
    """The configuration of an edge without any link, which has run and decided."""
    plant = stack.enter_context(nats_mqtt(folder / "plant"))
    edge = Party("edge", edge_configuration(folder, plant.port), "decides pump", stack)
    edge.start()
    publish_readings(folder, plant.port, READINGS)
    until(lambda: pending_of(edge.config)["decisions"] == READINGS, "all decided")
    edge.end()
    return edge.config


def test_a_stick_is_brought_to_a_gateway(tmp_path: Path) -> None:
    """Rows 36 and 43: its receipts release the edge's spool, headquarters gets it later, once.

    The same stick comes to the gateway twice, and to headquarters itself: no row comes twice.
    """
    stick, copy = tmp_path / "stick", tmp_path / "copy"
    stick.mkdir()
    port, way = free_port(), free_port()
    hq = headquarters_configuration(tmp_path / "hq", port)
    config = gateway_configuration(
        tmp_path / "gw", f"nats://127.0.0.1:{port}", f"embedded = true\nclient_port = {way}"
    )
    with ExitStack() as stack:
        edge = edge_with_a_backlog(tmp_path, stack)
        pending = pending_of(edge)
        assert carry("out", stick, edge)["taken"]["decisions"]["records"] == READINGS
        shutil.copytree(stick, copy)

        gateway = Party("gateway", config, "takes custody", stack)
        gateway.start()
        for medium in (stick, stick, copy):
            (node,) = carry("in", medium, config)["nodes"]
            assert node["without_receipt"] == []
            assert {(one["holder"], one["stage"]) for one in node["receipts"]} == {("gw", "held")}
        done = carry("in", stick, edge)
        assert done["refused"] == []
        assert done["released"]["decisions"] == READINGS
        left = pending_of(edge)
        assert not any(left[lane] for lane in left if lane not in {"account", "events"}), left

        headquarters = Party("headquarters", hq, "taking batches", stack)
        headquarters.start()
        until(lambda: archived(hq, "decisions")[0] == READINGS, "the gateway forwards it")
        (node,) = carry("in", copy, hq)["nodes"]
        assert node["without_receipt"] == []
        sent = sum(pending.values())
        until(lambda: archived(hq) == (sent, sent), "each number has a row, and one alone")
        assert is_settled(hq)
