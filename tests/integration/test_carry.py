"""A stick between processes: an edge without any link, headquarters, and back."""

import shutil
import time
from pathlib import Path

import pytest

from tests.brokers import nats_mqtt
from tests.integration.chain import (
    archived,
    carry,
    files_of,
    headquarters_configuration,
    pending_of,
    wait_for,
)
from tests.integration.test_bad_start import configuration
from tests.integration.test_spool_mounts import command, mounted
from tests.processes import holdfast, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_a_stick_goes_there_and_back(tmp_path: Path) -> None:
    """Rows 36 and 43: out beside a running edge, in at headquarters, and the receipts release.

    Carried out twice writes nothing twice; the stick copied, and brought in twice, changes nothing.
    """
    stick, copy = tmp_path / "stick", tmp_path / "copy"
    stick.mkdir()
    with nats_mqtt(tmp_path / "broker") as broker:
        edge = configuration(tmp_path, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        log = tmp_path / "edge.log"
        with holdfast(log, "edge", "--config", str(edge)) as process:
            wait_for(log, "decides pump", process)
            taken = carry("out", stick, edge)
            assert taken["taken"]["account"]["records"] > 0
            assert process.poll() is None
        pending = pending_of(edge)
        rest = carry("out", stick, edge)
        assert rest["there_before"] == taken["batches"]
        before = files_of(stick)
        again = carry("out", stick, edge)
        assert again["taken"] == {}
        assert files_of(stick) == before
        assert pending_of(edge) == pending, "nothing that is carried is released"

    headquarters = headquarters_configuration(tmp_path / "hq")
    log = tmp_path / "hq.log"
    with holdfast(log, "headquarters", "--config", str(headquarters)) as process:
        wait_for(log, "taking batches", process)
        shutil.copytree(stick, copy)
        first = carry("in", stick, headquarters)["nodes"][0]
        assert first["without_receipt"] == []
        sent = sum(lane["records"] for lane in first["sent"].values())
        assert sent == sum(pending.values())
        assert archived(headquarters) == (sent, sent)
        for medium in (stick, copy):
            repeated = carry("in", medium, headquarters)["nodes"][0]
            assert repeated["without_receipt"] == []
        assert archived(headquarters) == (sent, sent), "each number once"

    done = carry("in", copy, edge)
    assert done["applied"]
    assert done["refused"] == []
    released = {lane: count for lane, count in pending.items() if count}
    # An opening states an account of each lane, and says so in an event.
    assert all(done["released"][lane] <= count for lane, count in released.items())
    left = pending_of(edge)
    assert all(left[lane] == 0 for lane in released if lane not in {"account", "events"}), left
    assert list((tmp_path / "state" / "carried").iterdir()) == []
    once_more = carry("in", stick, edge)
    assert once_more["refused"] == []
    assert carry("out", stick, edge)["batches"] <= 2, "what is released leaves the stick"


@pytest.mark.slow
def test_a_running_edge_takes_its_receipts(tmp_path: Path) -> None:
    """The node has the spool: it finds them in its inbox, releases, and goes on."""
    stick = tmp_path / "stick"
    stick.mkdir()
    headquarters = headquarters_configuration(tmp_path / "hq")
    log, hq_log = tmp_path / "edge.log", tmp_path / "hq.log"
    with (
        nats_mqtt(tmp_path / "broker") as broker,
        holdfast(hq_log, "headquarters", "--config", str(headquarters)) as holder,
    ):
        edge = configuration(tmp_path, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        with holdfast(log, "edge", "--config", str(edge)) as process:
            wait_for(log, "decides pump", process)
            wait_for(hq_log, "taking batches", holder)
            taken = carry("out", stick, edge)
            carry("in", stick, headquarters)
            done = carry("in", stick, edge)
            assert done["taken_by"] == process.pid
            again = carry("out", stick, edge)
            assert again["there_before"] >= taken["batches"]
            assert again["batches"] < again["there_before"] + len(again["taken"])
            assert process.poll() is None


def _loaded_spool(folder: Path) -> Path:
    """The configuration of an edge that has run, and records that wait for ever."""
    with nats_mqtt(folder / "broker") as broker:
        edge = configuration(folder, broker=f'url = "mqtt://127.0.0.1:{broker.port}"')
        log = folder / "edge.log"
        with holdfast(log, "edge", "--config", str(edge)) as process:
            wait_for(log, "decides pump", process)
    return edge


@pytest.mark.powercut
def test_a_stick_that_cannot_be_written(tmp_path: Path) -> None:
    """Row 18: a read-only stick ends with 77, and says which; the spool is as it was."""
    edge = _loaded_spool(tmp_path)
    before = files_of(tmp_path / "state")
    with mounted(tmp_path / "stick", "-t", "tmpfs", "-o", "ro", "tmpfs") as stick:
        done = run("carry", "out", str(stick), "--config", str(edge))
    assert done.returncode == 77, done.stderr
    assert str(stick) in done.stderr
    assert "read-only" in done.stderr
    assert files_of(tmp_path / "state") == before


@pytest.mark.powercut
def test_a_stick_that_is_full(tmp_path: Path) -> None:
    """Row 16: what does not fit stays, and 75 says that another stick takes the rest."""
    edge = _loaded_spool(tmp_path)
    with mounted(tmp_path / "stick", "-t", "tmpfs", "-o", "size=8200k", "tmpfs") as stick:
        done = carry("out", stick, edge, code=75)
        assert done["batches"] > 0
        assert {one["why"] for one in done["stays"]} == {"no more space"}
    roomy = tmp_path / "roomy"
    roomy.mkdir()
    assert carry("out", roomy, edge)["stays"] == []


@pytest.mark.powercut
def test_a_stick_that_becomes_read_only_on_its_way(tmp_path: Path) -> None:
    """Row 18: headquarters has the batches, and 77 says that the receipts are not on the stick."""
    edge, config = _loaded_spool(tmp_path), headquarters_configuration(tmp_path / "hq")
    log = tmp_path / "hq.log"
    with (
        mounted(tmp_path / "stick", "-t", "tmpfs", "tmpfs") as stick,
        holdfast(log, "headquarters", "--config", str(config)) as process,
    ):
        wait_for(log, "taking batches", process)
        carry("out", stick, edge)
        command("mount", "-o", "remount,ro", stick)
        done = run("carry", "in", str(stick), "--config", str(config))
        assert done.returncode == 77, done.stderr
        assert "the batches were delivered" in done.stderr
        command("mount", "-o", "remount,rw", stick)
        repeated = carry("in", stick, config)["nodes"][0]
        assert repeated["without_receipt"] == []
        rows, identities = archived(config)
        assert rows == identities == sum(lane["records"] for lane in repeated["sent"].values())


def test_headquarters_that_is_away(tmp_path: Path) -> None:
    """Row 33: nobody listens there: it ends with 75, names why, and the stick is as it was."""
    stick = tmp_path / "stick"
    stick.mkdir()
    edge = _loaded_spool(tmp_path)
    carry("out", stick, edge)
    before = files_of(stick)
    started = time.monotonic()  # noqa: TID251 - a real process
    done = carry("in", stick, headquarters_configuration(tmp_path / "hq"), "--wait", "2", code=75)
    assert time.monotonic() - started < 30  # noqa: TID251 - a real process
    assert "link is down" in done["nodes"][0]["gave_up"]
    assert files_of(stick) == before
