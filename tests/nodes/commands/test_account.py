"""``holdfast account``: every number that was handed out is somewhere, or the command says so."""

import asyncio
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mesh.adapters.jetstream.ledger import JetStreamLedgerStore, LedgerStoreSettings
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import LedgerStore
from mesh.transfer.ledger import partition_of
from nodes.commands.account import account, read_ledgers
from nodes.commands.account_lines import LaneAccount, accounts_of, document, is_settled
from nodes.commands.account_table import account_lines, account_table
from schemas import wire
from schemas.errors import LinkDown, Refused
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger
from simulator.ledger_store import MemoryLedgerStore
from tests.contract.link_worlds import session_settings

OLD, EPOCH = Epoch(1, 7), Epoch(2, 1)
SEEN_NS = 1_767_225_600_000_000_000
FULL = LaneLedger(
    "hall", "pump", EPOCH, Lane.EVENTS, Ranges(((0, 10),)), next_seq=10, seen_wall_ns=SEEN_NS
)


def _partition(*ledgers: LaneLedger) -> PartitionLedger:
    return PartitionLedger("hq", Epoch(1, 1), 0, ledgers)


def _account(ledger: LaneLedger) -> LaneAccount:
    (found,) = accounts_of([_partition(ledger)])
    return found


def _told(*ledgers: LaneLedger, width: int = 160) -> str:
    accounts = accounts_of([_partition(*ledgers)])
    console = Console(width=width)
    with console.capture() as capture:
        console.print(account_table(accounts))
    return capture.get() + "\n".join(account_lines(accounts))


_spans = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda it: (it[0], sum(it))), max_size=6
).map(Ranges.of)


@given(
    _spans,
    st.dictionaries(st.sampled_from(["void", "evicted"]), _spans),
    st.dictionaries(st.sampled_from(["hq", "gate", "ship"]), st.integers(0, 50)),
)
def test_every_number_is_counted_once(
    held: Ranges, explained: dict[str, Ranges], released: dict[str, int]
) -> None:
    """Produced is delivered, explained, pending with one custodian, or unaccounted."""
    ledger = replace(FULL, held=held, explained=explained, released=released, next_seq=50)
    found = _account(ledger)
    line = found.line
    parts = [*found.pending.values(), found.unaccounted]
    assert sum(map(len, parts)) == len(line.missing)
    assert set().union(*map(set, parts)) == set(line.missing)
    assert line.produced == (
        line.delivered
        + sum(line.explained.values())
        + found.pending_records
        + len(found.unaccounted)
    )
    assert all(number < released.get("hq", 0) for number in found.unaccounted)
    assert is_settled([found]) is not bool(found.unaccounted)


def test_what_a_custodian_released_is_pending_with_it() -> None:
    """The origin has the rest; what headquarters had once and does not hold, nobody has."""
    ledger = replace(
        FULL,
        held=Ranges(((4, 6),)),
        next_seq=20,
        released={"gate": 12, "hq": 2, "ship": 9},
        stated_wall_ns=SEEN_NS + 10**9,
    )
    found = _account(ledger)
    assert found.unaccounted == Ranges(((0, 2),))
    assert found.pending == {
        "ship": Ranges(((2, 4), (6, 9))),
        "gate": Ranges(((9, 12),)),
        "hall/pump": Ranges(((12, 20),)),
    }
    assert found.oldest == 2
    told = _told(ledger)
    assert "UNACCOUNTED 0-1" in told
    assert "9-11 pending with gate, last heard of 2026-01-01T00:00:01.000Z" in told
    assert "12-19 pending with the node itself, last heard of 2026-01-01T00:00:00.000Z" in told


def test_a_node_that_has_arrived_is_settled() -> None:
    """Nothing is open, and nothing is said beside the sums."""
    assert is_settled(accounts_of([_partition(FULL)]))
    assert _account(FULL).oldest is None
    told = _told(FULL)
    assert "1 nodes in 1 lives: 10 produced, 10 delivered, 0 pending" in told
    assert "pending with" not in told


def test_what_was_explained_is_told_with_its_reason() -> None:
    """It will not arrive, and the node has said why."""
    ledger = replace(FULL, next_seq=12, explained={"evicted": Ranges(((10, 12),))})
    assert "2 will not arrive: evicted" in _told(ledger)
    assert is_settled([_account(ledger)])


def test_the_same_number_for_other_records_is_an_alarm() -> None:
    """It is told with its numbers, and the account is not settled."""
    ledger = replace(FULL, disputed=Ranges(((3, 5),)))
    assert not is_settled([_account(ledger)])
    assert "ALARM: other records were offered under 3-4" in _told(ledger)


def test_lives_are_told_apart() -> None:
    """Those that are over are marked; the newest is the one with the highest counter."""
    over = replace(FULL, epoch=OLD)
    accounts = accounts_of([_partition(FULL, over)])
    assert [(it.ledger.epoch, it.present) for it in accounts] == [(OLD, False), (EPOCH, True)]
    assert "1 (over)" in _told(FULL, over)


def test_one_site_or_one_node_is_chosen() -> None:
    """The others are not counted."""
    ledgers = [
        replace(FULL, site=site, node=node) for site in ("hall", "yard") for node in ("a", "b")
    ]
    assert len(accounts_of([_partition(*ledgers)])) == 4
    assert len(accounts_of([_partition(*ledgers)], "yard")) == 2
    (one,) = accounts_of([_partition(*ledgers)], "yard", "b")
    assert (one.ledger.site, one.ledger.node) == ("yard", "b")


def test_of_very_many_lanes_those_that_need_a_look_come_first() -> None:
    """The table is bounded; the one lane with a loss is in it, and the sums are of all."""
    ledgers = [replace(FULL, node=f"n{number:04}") for number in range(2000)]
    ledgers[1999] = replace(ledgers[1999], held=Ranges(), released={"hq": 10})
    told = _told(*ledgers)
    assert len(told.splitlines()) < 260
    assert "hall/n1999" in told
    assert "1,800 lanes more" in told
    assert "19,990 delivered, 0 pending, 0 explained, 10 unaccounted" in told


def test_the_table_fits_its_terminal() -> None:
    """Whatever the names are, no line is wider than it."""
    long = replace(FULL, site="s" * 63, node="n" * 63, next_seq=10**15)
    for width in (80, 160):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(account_table(accounts_of([_partition(long)])))
        assert max(map(len, capture.get().splitlines())) <= width


def test_the_document_says_all_of_it() -> None:
    """By node, life and lane; ranges as text, times in ms."""
    ledger = replace(
        FULL,
        held=Ranges(((1, 3),)),
        explained={"void": Ranges(((3, 4),))},
        released={"hq": 1},
        duplicates=5,
    )
    told = orjson.loads(orjson.dumps(document(accounts_of([_partition(ledger)]))))
    assert {name: told[name] for name in ("produced", "delivered", "pending", "unaccounted")} == {
        "produced": 10,
        "delivered": 2,
        "pending": 6,
        "unaccounted": 1,
    }
    (node,) = told["nodes"]
    assert (node["site"], node["node"], node["epochs"]) == ("hall", "pump", [str(EPOCH)])
    (lane,) = node["lanes"]
    assert lane["pending"]["hall/pump"]["numbers"] == "4-9"
    assert lane["pending"]["hall/pump"]["last_heard"] == SEEN_NS // 10**6
    assert lane["unaccounted"] == {"records": 1, "numbers": "0", "more_ranges": 0}
    assert (lane["explained"], lane["duplicates"]) == ({"void": 1}, 5)
    assert (lane["oldest_undelivered"], lane["stated"]) == (4, None)


def test_a_torn_ledger_makes_no_endless_document() -> None:
    """Of very many gaps the first hundred are named, and the rest counted."""
    torn = replace(FULL, held=Ranges(tuple((2 * n, 2 * n + 1) for n in range(2000))), next_seq=4000)
    (node,) = document([_account(torn)])["nodes"]  # type: ignore[misc]
    gaps = node["lanes"][0]["gaps"]
    assert (gaps["records"], gaps["more_ranges"]) == (2000, 1900)
    assert len(gaps["numbers"]) < 1000
    assert "more ranges" in _told(torn)


async def _filled(store: LedgerStore, *ledgers: LaneLedger) -> None:
    for ledger in ledgers:
        number = partition_of(ledger.site, ledger.node)
        await store.compare_and_set(number, 0, wire.encode(_partition(ledger)))


def test_ledgers_are_read_from_their_partitions() -> None:
    """All of them, or the one that knows a node; those that there are."""

    async def read() -> None:
        store = MemoryLedgerStore(random.Random(1), 0.001)
        other = replace(FULL, node="fan")
        await _filled(store, FULL, other)
        assert len(await read_ledgers(store, range(256))) == 2
        (only,) = await read_ledgers(store, [partition_of("hall", "fan")])
        assert only.lanes == (other,)

    asyncio.run(read())


def test_a_store_that_does_not_answer_is_said() -> None:
    """As it is, and not as a group of failures; so is a ledger that is none."""

    async def read() -> None:
        store = MemoryLedgerStore(random.Random(1))
        await store.compare_and_set(3, 0, b"\xc1")
        with pytest.raises(Refused):
            await read_ledgers(store, range(256))
        store.down = True
        with pytest.raises(LinkDown):
            await read_ledgers(store, range(256))

    asyncio.run(read())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[log]\n", "[headquarters] is missing"),
        ('[headquarters]\nname = "hq"\nembedded = true\n', "client_port is 0"),
    ],
)
def test_a_configuration_that_names_no_server_is_said(
    tmp_path: Path, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 78."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        account(file)
    assert ended.value.code == 78
    assert problem in capsys.readouterr().err


@pytest.mark.integration
def test_the_command_asks_a_server(tmp_path: Path) -> None:
    """Exit code 0 where all is accounted for, 1 where something is lost, 2 for a wrong name."""
    file = tmp_path / "config.toml"
    command = [sys.executable, "-m", "nodes", "account", "--config", str(file)]

    async def ask(*arguments: str) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode, output

    async def serve() -> None:
        server = EmbeddedServer(ServerSettings("hq", tmp_path / "server"), random.Random(1))
        async with asyncio.timeout(60), server:
            file.write_text(f'[headquarters]\nname = "hq"\nurl = "{server.client_url}"\n')
            assert (await ask()) == (0, b"nothing has come yet\n")
            settings = LedgerStoreSettings(session_settings(server.client_url))
            async with JetStreamLedgerStore(settings, SystemClock(), random.Random(2)) as store:
                while not store.state.up:
                    await store.wait_changed(store.state)
                lost = replace(FULL, node="fan", held=Ranges(), released={"hq": 10})
                await _filled(store, FULL, lost)
            code, output = await ask("hall/pump", "--json")
            assert (code, orjson.loads(output)["delivered"]) == (0, 10)
            code, output = await ask("hall")
            assert code == 1
            assert b"UNACCOUNTED 0-9" in output
            assert (await ask("Hall/"))[0] == 2

    asyncio.run(serve())
