"""``holdfast carry``: what it prints, what it ends with, what it believes of receipts."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.medium import SystemMedium
from mesh.adapters.carrier.receipts import put_receipts
from mesh.adapters.system import SystemDisk
from mesh.transfer.carried import FOLDER, RECEIPTS
from nodes.commands.carry import app
from schemas.messages import Epoch, Lane, Receipt, Stage
from tests.adapters.carrier_world import spool_disk

NODE = f"{FOLDER}/hall.pump"


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    """The configuration of a node with six events, three alarms and two log lines."""
    for path, data in spool_disk().contents().items():
        place = tmp_path / "state" / "spool" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    config = tmp_path / "edge.toml"
    config.write_text(
        f'[node]\nsite = "hall"\nname = "pump"\nstate_directory = "{tmp_path}/state"\n'
    )
    (tmp_path / "stick").mkdir()
    return config


def carry(*arguments: object) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Its JSON."""
    done = carry(*arguments, "--json")
    assert done.exit_code == code, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def bring(stick: Path, *receipts: Receipt) -> None:
    """Puts receipts onto a stick, as headquarters does."""
    tray = CarriedFolder(SystemDisk(stick), SystemMedium(stick), f"{NODE}/{RECEIPTS}")
    put_receipts(tray, receipts)


def epoch_on(stick: Path) -> Epoch:
    """The life that was carried out."""
    manifest = max((stick / NODE).glob("*.manifest"))
    files = json.loads(manifest.read_bytes().partition(b"\n")[2])["files"]
    return Epoch.parse(files[0]["epoch"])


def receipt(epoch: Epoch, lane: Lane, watermark: int) -> Receipt:
    """Headquarters' word."""
    made = ("hq", Epoch(9, 9), 1, Stage.ARCHIVED, "hall", "pump", epoch, lane, watermark, b"", 0)
    return Receipt(*made)


def pending(edge: Path) -> dict[str, Any]:
    """What a further carrying would take, by lane."""
    spare = edge.parent / "spare"
    spare.mkdir(exist_ok=True)
    before = {path for path in spare.rglob("*") if path.is_file()}
    taken: dict[str, Any] = told("out", spare, "-c", edge)["taken"]
    for path in {path for path in spare.rglob("*") if path.is_file()} - before:
        path.unlink()
    return {lane: counts["records"] for lane, counts in taken.items() if lane != "account"}


def test_out_tells_what_was_taken_and_that_nothing_is_released(edge: Path) -> None:
    """A line for each lane, with records and batches; the same as JSON."""
    done = carry("out", edge.parent / "stick", "-c", edge)
    assert done.exit_code == 0, done.output
    assert "taken: events: 6 records" in done.stdout
    assert "nothing is released until receipts come back" in done.stdout
    again = carry("out", edge.parent / "stick", "-c", edge)
    assert "nothing that was not there already" in again.stdout


def test_out_names_what_stays(edge: Path) -> None:
    """What is beyond the limit is told by lane, and is no failure."""
    done = carry("out", edge.parent / "stick", "-c", edge, "--limit", "1000")
    assert done.exit_code == 0, done.output
    assert "stays: logs: 2 records" in done.stdout
    assert "beyond the limit that was asked for" in done.stdout


@pytest.mark.parametrize("limit", ["much", "-5", "1 parsec"])
def test_a_size_that_is_none_is_a_usage_error(edge: Path, limit: str) -> None:
    """Told with what would be right."""
    done = carry("out", edge.parent / "stick", "-c", edge, "--limit", limit)
    assert done.exit_code == 2
    assert "500MB" in done.output


def test_a_medium_that_is_not_there_is_not_made(edge: Path) -> None:
    """A stick that is not mounted would else be a folder of the system."""
    done = carry("out", edge.parent / "nowhere", "-c", edge)
    assert done.exit_code == 2
    assert not (edge.parent / "nowhere").exists()


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_configuration_that_says_nothing_ends_with_78(tmp_path: Path, way: str) -> None:
    """Neither a node nor a holder: it says which sections would be right."""
    config = tmp_path / "empty.toml"
    config.write_text("")
    done = carry(way, tmp_path, "-c", config)
    assert done.exit_code == 78
    assert "[node]" in done.stderr


def test_a_headquarters_on_a_free_port_ends_with_78(tmp_path: Path) -> None:
    """Nobody can find it."""
    config = tmp_path / "hq.toml"
    config.write_text(
        f'[headquarters]\nname = "hq"\nembedded = true\narchive_directory = "{tmp_path}/archive"\n'
    )
    done = carry("in", tmp_path, "-c", config)
    assert done.exit_code == 78
    assert "client_port" in done.stderr


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("embedded = true", "client_port"),
        ('mqtt_url = "mqtt://127.0.0.1:1883"', "over MQTT alone"),
    ],
)
def test_a_gateway_without_a_server_of_its_own_ends_with_78(
    tmp_path: Path, keys: str, why: str
) -> None:
    """A gateway takes what is carried by itself, not by way of its uplink."""
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[gateway]\nsite = "hall"\nname = "gate"\nstate_directory = "{tmp_path}/state"\n{keys}\n'
        '[[uplinks]]\nname = "hq"\nurl = "nats://127.0.0.1:4222"\n'
    )
    done = carry("in", tmp_path, "-c", config)
    assert done.exit_code == 78
    assert why in done.stderr


def test_a_gateway_carries_nothing_out(tmp_path: Path) -> None:
    """Its custody goes over its uplinks: that is said, and not that some section is missing."""
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[gateway]\nsite = "hall"\nname = "gw"\nstate_directory = "{tmp_path}/gw"\n'
        "embedded = true\n"
    )
    done = carry("out", tmp_path, "--config", config)
    assert done.exit_code == 78
    assert "over its uplinks only" in done.stderr


def test_an_uplink_that_is_no_nats_server_ends_with_78(tmp_path: Path) -> None:
    """Without a node and a headquarters the uplink says where batches go."""
    config = tmp_path / "laptop.toml"
    config.write_text('[[uplinks]]\nname = "hq"\nurl = "mqtt://127.0.0.1:1883"\n')
    done = carry("in", tmp_path, "-c", config)
    assert done.exit_code == 78
    assert "nats://" in done.stderr


def test_receipts_release_where_no_node_runs(edge: Path) -> None:
    """What they state is released, durably; the inbox is empty; brought again nothing changes."""
    stick = edge.parent / "stick"
    told("out", stick, "-c", edge)
    epoch = epoch_on(stick)
    before = pending(edge)
    bring(stick, receipt(epoch, Lane.EVENTS, 4), receipt(epoch, Lane.LOGS, 2))
    done = told("in", stick, "-c", edge)
    assert done["applied"]
    assert (done["released"]["events"], done["released"]["logs"]) == (4, 2)
    assert list((edge.parent / "state" / "carried").iterdir()) == []
    after = pending(edge)
    assert "logs" not in after
    assert after["alarms"] == before["alarms"]
    again = told("in", stick, "-c", edge)
    assert not any(again["released"].values())


def test_receipts_that_come_back_in_the_wrong_order(edge: Path) -> None:
    """Row 36: the older stick after the newer one releases nothing, and takes nothing back."""
    newer, older = edge.parent / "stick", edge.parent / "older"
    older.mkdir()
    told("out", newer, "-c", edge)
    epoch = epoch_on(newer)
    bring(newer, replace(receipt(epoch, Lane.EVENTS, 6), number=8))
    bring(older, receipt(epoch, Lane.EVENTS, 2))
    assert told("in", newer, "-c", edge)["released"]["events"] == 6
    after = pending(edge)
    done = told("in", older, "-c", edge)
    assert (done["refused"], any(done["released"].values())) == ([], False)
    assert pending(edge)["alarms"] == after["alarms"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"watermark": 10**9}, "beyond_sent"),
        ({"epoch": Epoch(77, 77)}, "foreign"),
    ],
)
def test_a_receipt_that_is_not_believed_is_named(
    edge: Path, change: dict[str, Any], why: str
) -> None:
    """Refusal 15: the data is kept, the reason is told, and the exit code is 1."""
    stick = edge.parent / "stick"
    told("out", stick, "-c", edge)
    before = pending(edge)
    bring(stick, replace(receipt(epoch_on(stick), Lane.LOGS, 2), **change))
    done = told("in", stick, "-c", edge, code=1)
    assert why in done["refused"][0]
    assert pending(edge)["logs"] == before["logs"]


def test_a_receipt_for_another_node_stays_on_the_stick(edge: Path) -> None:
    """Refusal 15: it does not even reach the inbox."""
    stick = edge.parent / "stick"
    bring(stick, replace(receipt(Epoch(1, 1), Lane.LOGS, 2), node="fan"))
    done = carry("in", stick, "-c", edge)
    assert done.exit_code == 1
    assert "foreign" in done.stdout
    assert "no receipt for it lies here" in done.stdout
    assert not (edge.parent / "state" / "carried").exists()


def test_a_stick_without_receipts_changes_nothing(edge: Path) -> None:
    """Said, and no failure; the spool is not even opened."""
    before = {path: path.stat().st_mtime_ns for path in (edge.parent / "state").rglob("*")}
    done = carry("in", edge.parent / "stick", "-c", edge)
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in (edge.parent / "state").rglob("*")} == before


def test_receipts_wait_for_a_node_that_runs(edge: Path) -> None:
    """Row 26: another process has the spool: they lie in its inbox, and the lock is not tried."""
    stick, spool = edge.parent / "stick", SystemDisk(edge.parent / "state" / "spool")
    told("out", stick, "-c", edge)
    bring(stick, receipt(epoch_on(stick), Lane.LOGS, 2))
    spool.lock("LOCK")
    try:
        done = told("in", stick, "-c", edge)
    finally:
        spool.unlock("LOCK")
    assert not done["applied"]
    assert done["taken_by"] is None
    assert len(list((edge.parent / "state" / "carried").iterdir())) == 1
    applied = told("in", stick, "-c", edge)
    assert applied["released"]["logs"] == 2


def test_what_is_on_a_terminal_cannot_be_forged(edge: Path) -> None:
    """Refusal 36: a name with an escape sequence is shown as text."""
    stick = edge.parent / "stick"
    (stick / NODE).mkdir(parents=True)
    (stick / NODE / "evil\x1b[31m\nholdfast: fine").write_text("")
    done = carry("out", stick, "-c", edge)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\nholdfast: fine" not in done.stdout


def test_random_files_are_never_a_load(edge: Path) -> None:
    """Refusal 42: rubbish under our own names: named, and the loading goes on beside it."""
    stick, generator = edge.parent / "stick", random.Random(7)
    (stick / NODE).mkdir(parents=True)
    for name in ("events.0-5.0123456789abcdef.batch", "00000003.manifest"):
        (stick / NODE / name).write_bytes(generator.randbytes(5000))
    done = told("out", stick, "-c", edge)
    assert done["taken"]["events"]["records"] == 6
    assert done["manifest"] == 4
    assert sorted(path.name for path in (stick / NODE).glob("*.manifest")) == ["00000004.manifest"]
