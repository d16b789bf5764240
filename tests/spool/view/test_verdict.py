"""Verdicts: what is damaged is found, named to the number, and nothing is changed."""

import random
import zlib
from collections.abc import Callable

import pytest

from mesh.spool import cursor, store
from mesh.spool.frame import HEADER_BYTES
from mesh.spool.journal import END, SPARE
from mesh.spool.view.findings import Grade
from mesh.spool.view.verdict import Step, Verdict, examine
from schemas.errors import StoreUnusable
from schemas.limits import CURSOR_BYTES_MAX
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import CALM, SMALL, opened, play, record

TURNS = 4


def _written(*, rotating: bool = False, close: bool = True, release: int = 0) -> SimDisk:
    """A spool with ``TURNS`` frames of two events each, and as many of one log line each."""
    disk = SimDisk()

    async def main(_: random.Random) -> None:
        settings = SMALL if rotating else CALM
        async with opened(disk, settings, maintain=False, close=close) as spool:
            for turn in range(TURNS):
                events = [record(f"event {turn} {index}") for index in range(2)]
                assert await spool.append(Lane.EVENTS, events).settled
                assert await spool.append(Lane.LOGS, [record(f"log {turn}")]).settled
            if rotating:
                while spool._pump.closed_journals:
                    await spool._chores.do()
            if release:
                spool.release(Lane.EVENTS, Ranges(((0, release),)), "hq")
                await spool._chores.flush()

    play(main)
    return disk


def _check(disk: SimDisk, *, running: bool = False) -> Verdict:
    before = disk.image_hash()
    verdict = examine(disk, lambda: None, running=running)
    assert disk.image_hash() == before, "a check changes nothing"
    return verdict


def _lost(verdict: Verdict) -> dict[Lane, str]:
    lost: dict[Lane, Ranges] = {}
    for finding in verdict.findings:
        if finding.grade is Grade.DAMAGE:
            for lane, numbers in finding.lost.items():
                lost[lane] = lost.get(lane, Ranges()) | numbers
    return {lane: str(numbers) for lane, numbers in lost.items()}


def _files(disk: SimDisk, folder: str) -> list[str]:
    names = (path for path in disk.contents() if path.startswith(folder))
    return sorted(path for path in names if not path.startswith(SPARE))


def _rewrite(disk: SimDisk, path: str, data: bytes) -> None:
    disk.unlink(path)
    file = disk.open(path, "create")
    file.write(data, 0)
    file.close()


def _journal(disk: SimDisk) -> str:
    return _files(disk, "journal")[-1]


def _frame_at(disk: SimDisk, text: str) -> int:
    """Where the frame of this record begins in the newest journal."""
    data = disk.contents()[_journal(disk)]
    return data.rindex(b"HFfr", 0, data.index(text.encode()))


@pytest.mark.parametrize("rotating", [False, True])
@pytest.mark.parametrize("release", [0, 3])
def test_a_spool_that_was_closed_in_order_is_sound(*, rotating: bool, release: int) -> None:
    """Nothing is found, in journals, on shelves, nor in the cursor; all of it was read."""
    disk = _written(rotating=rotating, release=release)
    verdict = _check(disk)
    assert verdict.sound
    assert verdict.findings == ()
    assert verdict.journals == len(_files(disk, "journal"))
    assert verdict.batches == len(_files(disk, "lanes"))
    assert rotating == bool(verdict.batches)


def test_it_tells_how_far_it_has_come() -> None:
    """The steps end where all was read."""
    steps: list[Step] = []
    examine(_written(rotating=True), lambda: None, steps.append)
    assert steps[-1].done_bytes == steps[-1].total_bytes


def test_what_a_crash_leaves_in_good_order_is_no_damage() -> None:
    """Rows 1, 6: a reservation that was in use and a torn tail are remarks, with what follows."""
    disk = _written(close=False)
    path = _journal(disk)
    _rewrite(disk, path, disk.contents()[path].removesuffix(END) + b"HFfr" + bytes(600))
    verdict = _check(disk)
    assert verdict.sound
    assert {finding.grade for finding in verdict.findings} == {Grade.REMARK}
    told = " ".join(str(finding) for finding in verdict.findings)
    assert "torn tail" in told
    assert "may have been handed out" in told


def test_beside_a_running_node_a_reservation_is_in_use() -> None:
    """What a node has reserved is no loss while it runs."""
    assert _check(_written(close=False), running=True).findings == ()


def test_a_bit_flip_in_a_frame_costs_its_numbers() -> None:
    """Row 8: the file, the byte, the lane and the exact numbers are named."""
    disk = _written()
    offset = _frame_at(disk, "event 1 0")
    disk.flip_bit(_journal(disk), (offset + HEADER_BYTES + 5) * 8)
    verdict = _check(disk)
    assert not verdict.sound
    assert _lost(verdict) == {Lane.EVENTS: "2-3"}
    assert f"{_journal(disk)}: byte {offset}: " in str(verdict.findings[0])
    assert str(verdict.findings[0].lost[Lane.EVENTS]) == "2-3"
    assert len(verdict.findings) == 1


def test_a_bit_flip_in_a_header_costs_what_lies_between_its_neighbours() -> None:
    """Row 9: the numbers follow from the frames before and behind."""
    disk = _written()
    disk.flip_bit(_journal(disk), (_frame_at(disk, "event 1 0") + 9) * 8)
    verdict = _check(disk)
    assert not verdict.sound
    assert _lost(verdict) == {Lane.EVENTS: "2-3"}


def test_each_flipped_bit_of_a_journal_is_found() -> None:
    """Row 8: a sample of all bits; whatever is hit, something is said of that journal."""
    whole = _written()
    path = _journal(whole)
    for bit in random.Random(11).sample(range(len(whole.contents()[path]) * 8), 250):
        disk = _written()
        disk.flip_bit(path, bit)
        verdict = _check(disk)
        assert any(finding.file == path for finding in verdict.findings), bit


@pytest.mark.parametrize("where", [20, -3], ids=["header", "body"])
def test_a_bit_flip_in_a_batch_costs_the_batch(where: int) -> None:
    """Row 8: the file and its numbers, and that the rest is sound."""
    disk = _written(rotating=True)
    path = _files(disk, "lanes/events")[1]
    size = len(disk.contents()[path])
    disk.flip_bit(path, (where % size) * 8)
    verdict = _check(disk)
    assert _lost(verdict) == {Lane.EVENTS: "2-3"}
    damage = [finding for finding in verdict.findings if finding.grade is Grade.DAMAGE]
    assert [finding.file for finding in damage] == [path]
    assert "quarantine" in damage[0].then


def test_an_extent_that_cannot_be_read_is_damage() -> None:
    """Row 10: of a batch, and of a journal; the rest is judged all the same."""
    disk = _written(rotating=True)
    path = _files(disk, "lanes/events")[0]
    disk.damage_extent(path, 0, 16)
    assert _lost(_check(disk)) == {Lane.EVENTS: "0-1"}


def test_a_batch_that_an_operator_deleted_is_a_hole() -> None:
    """Row 24: the numbers that nobody explains are named."""
    disk = _written(rotating=True)
    disk.unlink(_files(disk, "lanes/events")[1])
    verdict = _check(disk)
    assert not verdict.sound
    assert _lost(verdict) == {Lane.EVENTS: "2-3"}


def test_a_batch_in_the_place_of_another_is_refused() -> None:
    """Row 11: what its header says must agree with where it stands."""
    disk = _written(rotating=True)
    events, logs = _files(disk, "lanes/events")[0], _files(disk, "lanes/logs")[0]
    _rewrite(disk, events, disk.contents()[logs])
    verdict = _check(disk)
    assert _lost(verdict) == {Lane.EVENTS: "0-1"}
    assert "renamed or moved" in str(verdict.findings)


def test_a_journal_of_another_store_is_refused() -> None:
    """Row 7: a folder that was put together from two stores."""
    mine, other = _written(rotating=True), SimDisk()

    async def main(_: random.Random) -> None:
        async with opened(other, SMALL, seed=5, maintain=False) as spool:
            assert await spool.append(Lane.EVENTS, [record("a"), record("b")]).settled

    play(main)
    _rewrite(mine, _journal(mine), other.contents()[_journal(other)])
    verdict = _check(mine)
    assert not verdict.sound
    assert any("another store" in finding.what for finding in verdict.findings)


def test_a_batch_whose_chain_does_not_go_on_is_an_alarm() -> None:
    """Row 11: the same numbers with other records, each batch whole in itself."""
    mine, other = _written(rotating=True), SimDisk()

    async def main(_: random.Random) -> None:
        async with opened(other, SMALL, maintain=False) as spool:
            for turn in range(TURNS):
                events = [record(f"OTHER {turn} {index}") for index in range(2)]
                assert await spool.append(Lane.EVENTS, events).settled
                assert await spool.append(Lane.LOGS, [record(f"log {turn}")]).settled
            await spool._chores.do()

    play(main)
    path = _files(mine, "lanes/events")[1]
    assert path in other.contents(), "the same seed makes the same store"
    _rewrite(mine, path, other.contents()[path])
    verdict = _check(mine)
    assert not verdict.sound
    assert all("chain" in finding.what for finding in verdict.findings)
    assert {finding.grade for finding in verdict.findings} == {Grade.DAMAGE}


def test_a_torn_slot_of_the_cursor_is_a_remark_and_two_are_damage() -> None:
    """Row 23: the other slot holds; without both, what is there is offered again."""
    disk = _written(release=3)
    data = bytearray(disk.contents()[cursor.PATH])
    slots = [at for at in (0, CURSOR_BYTES_MAX) if data[at : at + 4] == b"HFcu"]
    data = data.ljust(2 * CURSOR_BYTES_MAX, b"\0")
    other = (CURSOR_BYTES_MAX - slots[0]) if len(slots) == 1 else slots[0]
    data[other : other + 4] = b"torn"
    _rewrite(disk, cursor.PATH, bytes(data))
    verdict = _check(disk)
    assert verdict.sound
    assert [finding.file for finding in verdict.findings] == [cursor.PATH]
    for at in (0, CURSOR_BYTES_MAX):
        data[at : at + 4] = b"torn"
    _rewrite(disk, cursor.PATH, bytes(data))
    verdict = _check(disk)
    assert not verdict.sound
    assert "offered again" in str(verdict.findings[0])


def test_a_lost_cursor_is_a_remark() -> None:
    """Row 23: it costs nothing but a second sending."""
    disk = _written()
    disk.unlink(cursor.PATH)
    assert _check(disk).sound


def test_a_newest_journal_without_its_head_is_damage() -> None:
    """What was reserved last is not known: the node numbers higher, and that is said."""
    disk = _written()
    disk.flip_bit(_journal(disk), 20 * 8)
    verdict = _check(disk)
    assert not verdict.sound
    assert "2**32" in str(verdict.findings)


def test_batches_without_a_single_journal_are_damage() -> None:
    """Row 24: every journal was deleted; the batches are whole, what was reserved is not known."""
    disk = _written(rotating=True)
    for path in _files(disk, "journal"):
        disk.unlink(path)
    verdict = _check(disk)
    assert not verdict.sound
    assert verdict.batches
    assert "no journal with a whole head" in str(verdict.findings)


def test_a_damaged_store_file_is_damage_and_a_newer_one_is_refused() -> None:
    """Row 48: damage is a verdict; a format that is not known is no matter for one."""
    disk = _written()
    whole = disk.contents()["STORE"]
    _rewrite(disk, "STORE", b"\xff" + whole[1:])
    verdict = _check(disk)
    assert not verdict.sound
    assert verdict.findings[0].file == "STORE"
    head, body = whole[:4] + bytes([whole[4] + 1]) + whole[5:12], whole[16:]
    crc = zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little")
    _rewrite(disk, "STORE", head + crc + body)
    with pytest.raises(StoreUnusable):
        _check(disk)


def test_what_stands_beside_is_told_and_passed_over() -> None:
    """A batch that was being written, and foreign names: remarks, and what becomes of them."""
    disk = _written(rotating=True)
    folder = _files(disk, "lanes/events")[0].rpartition("/")[0]
    disk.make_directory("lanes/unknown")
    for name in (f"{folder}/{0:020d}-{1:020d}.batch.new", f"{folder}/notes.txt"):
        disk.open(name, "create").close()
    verdict = _check(disk)
    assert verdict.sound
    assert len(verdict.findings) == 3


def test_damage_that_was_stated_is_a_remark() -> None:
    """After the node has opened again and stated it, the verdict is sound: all is explained."""
    disk = _written()
    disk.flip_bit(_journal(disk), (_frame_at(disk, "event 1 0") + HEADER_BYTES + 5) * 8)
    assert not _check(disk).sound

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM) as spool:
            assert await spool.append(Lane.EVENTS, [record("after")]).settled

    play(main)
    verdict = _check(disk)
    assert verdict.sound, [str(finding) for finding in verdict.findings]
    assert store.identity(disk) is not None


@pytest.mark.parametrize(
    "harm",
    [
        lambda disk, path: disk.unlink(path),
        lambda disk, path: _rewrite(disk, path, b""),
        lambda disk, path: _rewrite(disk, path, disk.contents()[path][:100]),
    ],
    ids=["gone", "empty", "short"],
)
def test_the_verdict_names_what_the_next_opening_will_state(
    harm: Callable[[SimDisk, str], object],
) -> None:
    """Row 24: what it says is lost is what the spool then states as damaged, to the number."""
    disk = _written(rotating=True)
    path = _files(disk, "lanes/events")[2]
    harm(disk, path)
    said = _lost(_check(disk))
    stated: dict[Lane, str] = {}

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM) as spool:
            await spool.next_batch(Lane.EVENTS, 4)
            for lane, state in spool._lanes.items():
                if "damaged" in state.explained:
                    stated[lane] = str(state.explained["damaged"])

    play(main)
    assert said == stated == {Lane.EVENTS: "4-5"}
