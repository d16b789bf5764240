"""The demonstration of a site: what its judge must notice is planted, and must be noticed."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mesh.adapters.jetstream.link import DIGEST_HEADER, OFFSET_HEADER, TOTAL_HEADER
from mesh.adapters.jetstream.tap import Tapped
from nodes.commands.headquarters import WorkerPorts
from nodes.config import load
from nodes.headquarters.archive import Archive
from schemas.errors import Refused
from schemas.messages import Lane, Receipt, Stage
from schemas.wire import encode
from simulator.clock import run
from simulator.demo.audit import LaneAccount, audit
from simulator.demo.crossing import Crossing
from simulator.demo.log import Seen
from simulator.demo.site.configurations import (
    EDGES,
    GATEWAY,
    PUMPS,
    SiteFiles,
    SitePorts,
    edge_of,
    write_site,
)
from simulator.demo.site.outcome import Happened, SiteOutcome, judge_site
from simulator.demo.site.screen import live, verdict
from simulator.demo.site.script import CommitStep, SiteAct, site_plan
from simulator.demo.site.stage import SiteProgress
from simulator.demo.site.worker import Doom, doomed
from simulator.disk import SimDisk
from simulator.ledger_store import MemoryLedgerStore
from tests import processes
from tests.nodes.headquarters.world import CrashNow, Desk, Sender, identities, ingest
from tests.transfer.custody.world import EPOCH, KEY, Owed, batch_of, opened, play

SECOND = 1_000_000_000


# --- the worker that dies -------------------------------------------------------------------------


@pytest.mark.parametrize("step", CommitStep)
def test_a_doomed_worker_has_done_its_step_and_no_more(step: CommitStep, tmp_path: Path) -> None:
    """What each step leaves behind is there exactly when the worker dies after it or later."""
    desk, ledgers, archive = Desk(), MemoryLedgerStore(random.Random(0)), Archive(tmp_path)

    def end() -> None:
        raise CrashNow

    async def main() -> None:
        desk.put(Sender().batch(3))
        ports: Any = WorkerPorts(desk, ledgers, archive)  # type: ignore[arg-type]
        dressed = doomed(ports, Doom(step, end))
        async for arrivals in dressed.intake.batches():
            await ingest(dressed.intake, dressed.store, dressed.archive).ingest(arrivals)

    with pytest.raises(CrashNow):
        run(lambda _: main(), seconds_max=60.0)
    reached = list(CommitStep).index(step)
    done = {each: list(CommitStep).index(each) <= reached for each in CommitStep}
    assert bool(archive.staged() or identities(tmp_path)) is done[CommitStep.STAGE]
    assert any(stored.version for stored in ledgers._stored.values()) is done[CommitStep.COMMIT]
    assert bool(identities(tmp_path)) is done[CommitStep.PUBLISH]
    assert bool(desk.receipts) is done[CommitStep.RECEIPT]
    assert bool(desk.accepted) is done[CommitStep.ACCEPT]
    archive.close()


# --- what crosses ---------------------------------------------------------------------------------


def tapped(data: bytes, start: int = 0, stop: int | None = None) -> Tapped:
    """A part of a batch as a tap hears it; all of it, unless a span is given."""
    digest, end = hashlib.sha256(data), len(data) if stop is None else stop
    name = "up.events" if end == len(data) else f"part.{digest.hexdigest()}.{start}"
    headers = {
        DIGEST_HEADER: digest.hexdigest(),
        OFFSET_HEADER: str(start),
        TOTAL_HEADER: str(len(data)),
    }
    return Tapped(f"mesh.v1.hall.pump.{name}", data[start:end], headers)


def said(stage: Stage, watermark: int) -> Tapped:
    """A receipt as a tap hears it."""
    receipt = Receipt(
        *("holder", EPOCH, 1, stage, "hall", "pump", EPOCH, Lane.EVENTS, watermark, b"", 0)
    )
    return Tapped("mesh.v1.hall.pump.down.receipt-events", encode(receipt), {})


LANE = f"{EPOCH}/events"


def test_a_batch_has_crossed_once_all_of_it_was_heard() -> None:
    """Whole or in parts; numbers that come in another batch have crossed again."""
    crossing, first, second = Crossing(Stage.ARCHIVED), batch_of(0, 4).data, batch_of(2, 6).data
    assert crossing.take(tapped(first), 0.0) is not None
    assert crossing.take(tapped(second, 0, 100), 0.0) is None
    assert crossing.batches == 1
    assert crossing.take(tapped(second, 100), 0.0) is not None
    assert (crossing.batches, crossing.again[LANE]) == (2, 2)


def test_what_a_place_has_stated_is_told_by_its_own_receipts() -> None:
    """A gateway passes on what the archive says: that is no statement of the gateway's."""
    gateway, headquarters = Crossing(Stage.HELD), Crossing(Stage.ARCHIVED)
    for place in (gateway, headquarters):
        place.take(said(Stage.HELD, 7), 0.0)
        place.take(said(Stage.ARCHIVED, 5), 0.0)
    assert (gateway.count, headquarters.count) == (7, 5)
    assert gateway.ahead_of(headquarters) == 2
    assert headquarters.ahead_of(gateway) == 0


@pytest.mark.parametrize(
    "message",
    [
        Tapped("mesh.v1.hall", b"", {}),
        Tapped("mesh.v1.hall.pump.down.receipt-events", b"?", {}),
        Tapped("mesh.v1.hall.pump.up.events", b"?", {}),
        tapped(b"no batch"),
    ],
)
def test_what_makes_no_sense_is_refused(message: Tapped) -> None:
    """The witness writes it down, and goes on."""
    with pytest.raises(Refused):
        Crossing(Stage.HELD).take(message, 0.0)


# --- the audit ------------------------------------------------------------------------------------


def test_what_a_gateway_holds_is_pending_and_what_it_let_go_is_not(tmp_path: Path) -> None:
    """What the gateway released and no archive has is unaccounted for."""
    disk = SimDisk()

    async def main(_: random.Random) -> None:
        async with opened(disk) as custody:
            owed = Owed()
            await owed.give(custody, batch_of(0, 4), batch_of(4, 9))
            owed.release(custody, KEY, 4)

    play(main)
    line = audit(Seen(), tmp_path, (), {"gateway": disk})[Lane.EVENTS]
    assert (line.produced, line.pending, line.unaccounted) == (9, 5, 4)


# --- the judge ------------------------------------------------------------------------------------


def steady(*, silent: str = "", late: str = "") -> Seen:
    """Twenty readings a second at each edge for ten seconds, cut from 2 to 6.

    Args:
        silent: the edge that makes no decision in one second of the outage.
        late: the edge whose decisions take two seconds then.
    """
    seen = Seen(marks={SiteAct.CUT: 2 * SECOND, SiteAct.RESTORE: 6 * SECOND})
    for number in range(600):
        at = number * SECOND // 60
        topic = f"plant/pump-{number % PUMPS + 1}/telemetry"
        seen.readings[number], seen.topics[number] = (at, ""), topic
        spot = 3 * SECOND <= at < 4 * SECOND
        if spot and edge_of(topic) == silent:
            continue
        took = 2 * SECOND if spot and edge_of(topic) == late else SECOND // 100
        seen.decided.add(number)
        seen.answered[number] = at + took
        seen.decisions.append((at + took, ("1-0", "decisions"), number))
    seen.receipts["1-0", "decisions"] = [(8 * SECOND, 600)]
    return seen


def judged(seen: Seen, line: LaneAccount | None = None, died: int = 7) -> SiteOutcome:
    """A judgement over one lane."""
    return judge_site(seen, {Lane.EVENTS: line or LaneAccount()}, (), list(CommitStep)[:died])


def test_a_steady_run_is_as_it_must_be() -> None:
    """Each edge decided on what its own pumps said, in each second of the outage."""
    outcome = judged(steady())
    assert outcome.failures == ()
    assert (outcome.drain_seconds, outcome.decided, outcome.decided_during_outage) == (2, 600, 240)
    assert {edge.readings for edge in outcome.edges.values()} == {200}
    assert {edge.outage_rate_min for edge in outcome.edges.values()} == {1.0}


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_that_falls_silent_or_behind_fails_the_run(edge: str) -> None:
    """Though the others go on, and their sum hides it."""
    for seen in (steady(silent=edge), steady(late=edge)):
        (failure,) = judged(seen).failures
        assert failure.startswith(edge)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (LaneAccount(produced=1, unaccounted=1), "1 unaccounted"),
        (LaneAccount(produced=2, pending=2), "2 pending"),
        (LaneAccount(produced=3, delivered=3, archived_twice=1), "1 archived twice"),
    ],
)
def test_an_account_that_does_not_end_well_fails_the_run(line: LaneAccount, told: str) -> None:
    """Nothing may be lost, held back or doubled."""
    assert judged(steady(), line).failures == (told,)


def test_a_worker_that_did_not_die_after_each_step_fails_the_run() -> None:
    """A run that has not shown what it is for is no success."""
    assert judged(steady(), died=6).failures == ("worker-1 was not killed after accept",)


def test_a_backlog_without_receipts_fails_the_run() -> None:
    """Without a receipt nothing is known to have drained."""
    seen = steady()
    seen.receipts.clear()
    assert judged(seen).failures == ("the backlog did not drain",)


def test_a_decision_on_a_flawed_reading_fails_the_run() -> None:
    """What is no reading must not be decided on."""
    seen = steady()
    seen.readings[7] = (seen.readings[7][0], "not JSON")
    assert judged(seen).failures == ("1 flawed readings decided on",)


# --- the script and the configurations ------------------------------------------------------------


def test_all_is_killed_while_the_backlog_drains() -> None:
    """The network is cut first; an outage that does not fit is refused."""
    steps = site_plan(40, 10)
    assert [step.act for step in steps] == list(SiteAct)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    with pytest.raises(ValueError, match="needs a run of at least 18 s"):
        site_plan(12, 10)


def files(root: Path) -> SiteFiles:
    """The files of a run."""
    return write_site(root, SitePorts(1883, 4223, (5001, 5002, 5003), (6001, 6002, 6003)))


def test_each_pump_is_read_by_one_edge(tmp_path: Path) -> None:
    """The configurations are right, and the judge counts a pump to the edge that reads it."""
    read: dict[str, str] = {}
    for file in files(tmp_path).edges:
        edge = load(file, {}).for_edge()
        read |= {topic: edge.node.name for rule in edge.decisions for topic in rule.topics}
    topics = [f"plant/pump-{number + 1}/telemetry" for number in range(PUMPS)]
    assert read == {topic: edge_of(topic) for topic in topics}


def test_gateway_and_workers_know_all_servers_of_the_cluster(tmp_path: Path) -> None:
    """The gateway over the WAN, the workers beside them, each under its own name."""
    made = files(tmp_path)
    gateway = load(made.gateway, {}).for_gateway()
    assert gateway.gateway.name == GATEWAY
    (uplink,) = gateway.uplinks
    assert uplink.urls == tuple(f"nats://127.0.0.1:{port}" for port in (5001, 5002, 5003))
    workers = [load(file, {}).for_headquarters() for file in made.workers]
    assert {worker.worker for worker in workers} == {"worker-1", "worker-2"}
    assert {worker.urls for worker in workers} == {
        tuple(f"nats://127.0.0.1:{port}" for port in (6001, 6002, 6003))
    }
    assert {worker.replicas for worker in workers} == {3}


def test_a_site_is_killed_by_its_own_script() -> None:
    """An option that would do nothing is refused."""
    done = processes.run("demo", "--topology", "site", "--kill", "edge")
    assert done.returncode == 2
    assert "leave --kill away" in done.stderr


# --- the screen -----------------------------------------------------------------------------------


def shown(standing: dict[str, Any]) -> str:
    """A frame of the live screen as text."""
    now = SiteProgress(
        *(12.5, "cut", standing, False),
        *({"server-1": True, "gateway": False}, [Happened(12.0, "cut")]),
    )
    console = Console(width=100, no_color=True)
    with console.capture() as captured:
        console.print(live(now, 40.0))
    return captured.get()


def test_the_screen_tells_who_is_there_and_what_waits_where() -> None:
    """From the first moment on, when nobody has said anything yet."""
    assert "edge-2" in shown({})
    lane = {"pending_records": 5, "waiting_records": 2, "pending_bytes": 2048}
    health = {"spool": {"lanes": {"events": lane}}, "links": [{"up": False}]}
    node = {"decided": 1234, "online": True, "health": health}
    text = shown({"nodes": {"edge-1": node}, "at_gateway": 77, "archived": 88})
    for told in ("CUT", "server-1", "gateway", "1,234", "7", "2 KiB", "down", "77", "88", "12.0 s"):
        assert told in text


def test_the_verdict_names_what_is_not_as_it_must_be() -> None:
    """Beside the account and each edge."""
    console = Console(width=100, no_color=True)
    with console.capture() as captured:
        verdict(console, judged(steady(), died=6), {Lane.EVENTS: LaneAccount(7, 7)})
    text = captured.get()
    for told in (*EDGES, "events", "not as it must be", "was not killed after accept"):
        assert told in text
