"""Power cuts on a real file system, and the judge that says what they took."""

import os
from contextlib import closing
from pathlib import Path

import pytest

from schemas.ranges import Ranges
from tests.bench.powercut.disk import (
    FILE_SYSTEMS,
    VARIANTS,
    FileSystem,
    NotHere,
    obstacle,
    own_folder,
)
from tests.bench.powercut.holdfast import Found, Holdfast, Promises
from tests.bench.powercut.jetstream import JetStream
from tests.bench.powercut.rounds import Row, System, cut_rounds
from tests.bench.powercut.work import Name, Number, Told, compare, recognise, record

_SEED = 7
_REAL_DISK = Path("/var/tmp")
"""Where pytest keeps its folders may be in memory."""


def _number(seq: int) -> Number:
    return Number("1-a", "alarms", seq)


def _name(number: int) -> Name:
    return Name(0, 0, number)


def _told(count: int, released: tuple[tuple[str, str, int, int], ...] = ()) -> Told:
    return Told(tuple((_name(n), _number(n)) for n in range(count)), released)


def _found(*numbers: int, evicted: Ranges | None = None) -> Found:
    records = [(_number(n), record(_SEED, _name(n))) for n in numbers]
    return Found(records, {("1-a", "alarms"): evicted or Ranges()})


# --- the judge ---------------------------------------------------------------------------------


def test_a_missing_record_is_lost_unless_released_or_stated_as_evicted() -> None:
    """Each acknowledged record is there, or excused by a release or an account, or lost."""
    promises = Promises(_SEED)
    promises.take(_told(10, (("1-a", "alarms", 0, 2),)))
    verdict = promises.judge(_found(5, 6, 7, 8, evicted=Ranges(((2, 4),))))
    assert (verdict.released, verdict.evicted, verdict.lost, verdict.wrong) == (2, 2, 2, 0)


def test_what_was_found_once_must_be_found_again() -> None:
    """A record that nobody was told of, but that a cut has left, must survive the next cut."""
    promises = Promises(_SEED)
    assert promises.judge(_found(0, 1)).lost == 0
    assert promises.judge(_found(1)).lost == 1
    assert promises.judge(_found(1)).lost == 0, "a loss counts once"


def test_a_number_used_twice_is_wrong() -> None:
    """A number that was acknowledged with one record never names another one."""
    promises = Promises(_SEED)
    assert promises.take(_told(3)) == 0
    again = Told(((Name(1, 0, 0), _number(2)),))
    assert promises.take(again) == 1
    assert Promises(_SEED).take(_told(3)) == 0


def test_another_record_under_a_known_number_is_wrong_and_the_known_one_lost() -> None:
    """What is found under a number is what was acknowledged under it."""
    promises = Promises(_SEED)
    promises.take(_told(1))
    verdict = promises.judge(Found([(_number(0), record(_SEED, Name(1, 0, 0)))], {}))
    assert (verdict.wrong, verdict.lost) == (1, 1)


@pytest.mark.parametrize("numbers", [(1, 0), (0, 0)])
def test_records_out_of_order_or_twice_are_wrong(numbers: tuple[int, int]) -> None:
    """A producer's records stand once, and in the order in which it wrote them."""
    records = [(_number(seq), record(_SEED, _name(n))) for seq, n in enumerate(numbers)]
    assert Promises(_SEED).judge(Found(records, {})).wrong == 1


def test_numbers_that_nothing_accounts_for_are_wrong() -> None:
    """A silent gap is a fault, whether or not anybody awaited what stood there."""
    assert Promises(_SEED).judge(Found([], {}, unaccounted=3)).wrong == 3


def test_a_changed_bit_is_no_record_that_was_produced() -> None:
    """A record is recognised by all of its bytes."""
    data = record(_SEED, _name(5))
    assert len(data) == 200
    assert recognise(_SEED, data) == _name(5)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert recognise(_SEED, bytes(changed)) is None


def test_only_whole_lines_read_before_the_cut_acknowledge_and_all_releases_count() -> None:
    """A line that the cut left unfinished says nothing; a release counts whenever it is read."""
    told = Told.parse(
        4, b"A 1 0 1-a logs 7\nR 1-a logs 0 3\nA 1 1 1-a lo", b"gs 8\nR 1-a logs 3 5\n"
    )
    assert told.acknowledged == ((Name(4, 1, 0), Number("1-a", "logs", 7)),)
    assert told.released == (("1-a", "logs", 0, 3), ("1-a", "logs", 3, 5))


def test_of_a_peer_what_is_missing_is_lost_and_what_comes_twice_is_not_wrong() -> None:
    """Peers are judged on what they promise: at least once, each byte."""
    told = Told(tuple((_name(n), None) for n in range(3)))
    data = [record(_SEED, _name(n)) for n in (0, 0, 2)]
    verdict = compare(_SEED, told, [*data, b"else"])
    assert (verdict.acknowledged, verdict.lost, verdict.wrong) == (3, 1, 1)


def test_a_row_is_faultless_only_when_nothing_was_lost_wrong_or_closed() -> None:
    """One round that lost, opened not, or held something wrong is enough to fail the bench."""
    clean = Promises(_SEED).judge(_found(0))
    promises = Promises(_SEED)
    promises.take(_told(1))
    assert Row.of("ext4", "x", [clean]).faultless
    assert not Row.of("ext4", "x", [clean, promises.give_up()]).faultless
    assert not Row.of("ext4", "x", [clean, Promises(_SEED).judge(Found([], {}, 1))]).faultless


# --- the cuts ----------------------------------------------------------------------------------


def _cut(system: System, file_system: FileSystem, rounds: int) -> Row:
    """Cuts the power, or skips where that cannot be done."""
    reason = obstacle(_REAL_DISK)
    root_in_ci = os.environ.get("CI") == "true" and os.geteuid() == 0
    if reason:
        if root_in_ci:
            pytest.fail(reason)
        pytest.skip(reason)
    verdicts = []
    with own_folder(_REAL_DISK) as folder:
        try:
            with closing(
                cut_rounds(system, file_system, rounds, _SEED, folder, (0.3, 1.0))
            ) as cuts:
                verdicts = list(cuts)
        except NotHere as missing:
            if root_in_ci and file_system.kind == "ext4":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
    return Row.of(file_system.name, system.name, verdicts)


@pytest.mark.powercut
@pytest.mark.parametrize("file_system", FILE_SYSTEMS.values(), ids=FILE_SYSTEMS)
def test_no_power_cut_takes_what_was_acknowledged(file_system: FileSystem) -> None:
    """Rows 2, 3: after a cut the spool opens, and all that it acknowledged is there or stated."""
    row = _cut(Holdfast(_SEED), file_system, 2)
    assert row.acknowledged > 100
    assert row.faultless, row


@pytest.mark.powercut
@pytest.mark.parametrize("file_system", VARIANTS.values(), ids=VARIANTS)
def test_nor_on_ext4_as_others_make_and_mount_it(file_system: FileSystem) -> None:
    """Row 3: the same with ``data=writeback``, with ``nodelalloc``, and without a journal."""
    row = _cut(Holdfast(_SEED), file_system, 2)
    assert row.acknowledged > 100
    assert row.faultless, row


@pytest.mark.powercut
def test_a_spool_that_never_syncs_is_found_out() -> None:
    """The cut is a real one: acknowledging before the sync loses records, and the bench says so."""
    row = _cut(Holdfast(_SEED, "hasty"), FILE_SYSTEMS["ext4"], 1)
    assert row.acknowledged > 100
    assert row.lost > 0
    assert not row.faultless


@pytest.mark.powercut
@pytest.mark.integration
def test_a_broker_that_acknowledges_from_memory_loses_what_it_acknowledged() -> None:
    """A transport's acknowledgement is no custody: a default nats-server loses it in a cut."""
    row = _cut(JetStream(_SEED, always=False), FILE_SYSTEMS["ext4"], 1)
    assert row.opened == 1
    assert row.lost > 0
