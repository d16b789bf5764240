"""The carried directory: pulled out, copied, filled, spoiled, forged, brought back in any order."""

import asyncio
import errno
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.adapters.carrier.folder import CarriedFolder
from mesh.adapters.carrier.inbox import INBOX, CarriedReceipts, CarriedReceiptsUnread
from mesh.adapters.carrier.medium import SystemMedium
from mesh.adapters.carrier.outward import RESERVE_BYTES
from mesh.adapters.carrier.receipts import put_receipts, read_receipts
from mesh.adapters.carrier.unloading import loads, read
from mesh.adapters.system import SystemDisk
from mesh.ports import Part
from mesh.spool.journal import journal_path
from mesh.transfer.carried import FOLDER, RECEIPTS, Flaw, manifest_name
from mesh.transfer.delivery import DeliverySettings
from schemas.errors import DiskFailed, DiskFull, DiskReadOnly, LinkDown, Refused
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from simulator.clock import SimClock, VirtualLoop
from simulator.disk import SimDisk, cut_everywhere
from tests.adapters.carrier_world import (
    NODE,
    FatDisk,
    Numbers,
    Plain,
    carried,
    folder,
    loaded,
    spool_disk,
    unload,
)
from tests.nodes.forwards import forward
from tests.spool.world import CALM, Watcher, opened, play, record

IMAGES_MAX = 12
Make = Callable[[], SimDisk]


def held(spool: SimDisk) -> Numbers:
    """What a whole carrying of a spool takes."""
    stick = SimDisk()
    carried(spool, stick)
    return loaded(stick)


def covers(found: Numbers, wanted: Numbers) -> bool:
    """Whether all that is wanted is there."""
    return all(not numbers - found.get(key, Ranges()) for key, numbers in wanted.items())


def images_of(disk: SimDisk, seed: int) -> list[SimDisk]:
    """Some of the disks that a crash could leave: nothing unsynced, all of it, and some between."""
    generator = random.Random(seed)
    images = list(disk.crash_images(generator, samples_max=IMAGES_MAX))
    if len(images) > IMAGES_MAX:
        images = [images[0], *generator.sample(images[1:-1], IMAGES_MAX - 2), images[-1]]
    return images


# --- out ----------------------------------------------------------------------------------------


def test_all_that_waits_is_taken_the_most_urgent_first() -> None:
    """Batches from the shelf and frames from the journal; lanes in order, numbers in order."""
    spool, stick = spool_disk(), SimDisk()
    before = spool.image_hash()
    done = carried(spool, stick)
    assert spool.image_hash() == before, "an onlooker changes nothing"
    taken = [(file.lane.priority, file.first) for file in done.taken]
    assert taken == sorted(taken)
    assert {file.lane for file in done.taken} == {Lane.ACCOUNT, Lane.ALARMS, Lane.EVENTS, Lane.LOGS}
    assert (done.stay, done.flaws, done.there) == ([], [], 0)
    events = [numbers for (_, lane), numbers in loaded(stick).items() if lane is Lane.EVENTS]
    assert events == [Ranges(((0, 6),))]


def test_what_is_there_is_not_written_again() -> None:
    """Row 43: a second carrying writes no byte; one that finds more writes what is more."""
    spool, stick = spool_disk(), SimDisk()
    first = carried(spool, stick)
    written = stick.faults.written_bytes
    again = carried(spool, stick)
    assert stick.faults.written_bytes == written
    assert (again.there, again.taken) == (len(first.taken), [])
    assert again.manifest == first.manifest


def test_a_node_that_went_on_adds_what_is_more() -> None:
    """Frames that were carried are not packed again into a longer batch."""
    spool, stick = spool_disk(clean=False), SimDisk()
    carried(spool, stick)
    more = carried(spool_disk(more=True, clean=False), stick)
    assert [(file.lane, file.first, file.last) for file in more.taken] == [(Lane.EVENTS, 6, 7)]
    assert more.manifest is not None
    assert more.manifest.number == 2
    assert manifest_name(1) not in folder(stick).names()


def test_what_is_released_leaves_the_stick() -> None:
    """Its receipts came back: the batches go, once a manifest without them is durable."""
    stick = SimDisk()
    carried(spool_disk(), stick)
    carried(spool_disk(released=6), stick)
    assert all(lane is not Lane.EVENTS for _, lane in loaded(stick))
    assert not any(name.startswith("events.") for name in folder(stick).names())


def test_what_the_node_gave_up_stays_on_the_stick() -> None:
    """Delivered beats explained: a stick may hold what its node no longer does."""
    stick, empty = SimDisk(), SimDisk()
    before = carried(spool_disk(), stick)
    assert before.manifest is not None

    async def main(_: random.Random) -> None:
        async with opened(empty, CALM) as spool:
            assert await spool.append(Lane.EVENTS, [record("another life")]).settled

    play(main)
    wanted = loaded(stick)
    carried(empty, stick)
    assert covers(loaded(stick), wanted)
    assert covers(loaded(stick), held(empty))


@pytest.mark.parametrize("make", [SimDisk, FatDisk])
def test_a_stick_that_is_pulled_out_while_it_is_loaded(make: Make) -> None:
    """Rows 5, 6, 21 and 43: at every change; what a manifest names is whole, the rest comes again.

    On FAT too, where a renaming is two changes.
    """
    spool = spool_disk()
    wanted, images = held(spool), 0
    for cut, stick in enumerate(cut_everywhere(lambda disk: carried(spool, disk), make)):
        for image in images_of(stick, cut):
            images += 1
            assert covers(wanted, loaded(image)), "nothing is taken that was never carried"
            carried(spool, image)
            assert covers(loaded(image), wanted), f"cut {cut}"
            assert not any(name.endswith(".new") for name in folder(image).names())
    assert images > 200


@pytest.mark.parametrize("make", [SimDisk, FatDisk])
def test_a_stick_that_is_pulled_out_while_it_is_loaded_again(make: Make) -> None:
    """Rows 21, 22 and 43: what an earlier load holds, and nobody released, is never lost."""

    def half_loaded() -> SimDisk:
        stick = make()
        carried(spool_disk(), stick)
        # Something of ours that a crash left.
        folder(stick).put("events.0-2.0123456789abcdef.batch", b"torn")
        return stick

    spool = spool_disk(more=True, released=3)
    before = loaded(half_loaded())
    wanted = {
        key: numbers - Ranges(((0, 3),)) if key[1] is Lane.EVENTS else numbers
        for key, numbers in before.items()
    }
    cuts = 0
    for cut, stick in enumerate(cut_everywhere(lambda disk: carried(spool, disk), half_loaded)):
        cuts += 1
        for image in images_of(stick, cut):
            assert covers(loaded(image), wanted), f"cut {cut}"
    assert cuts > 15


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("sync", errno.EIO),
        ("sync", errno.ENOSPC),
        ("rename", errno.EIO),
        ("create", errno.ENOSPC),
    ],
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_stick_that_fails_in_the_middle(operation: str, error: int, after: int) -> None:
    """Rows 16, 17 and 18: what is there gets its manifest, the rest stays, and says why."""
    spool, stick = spool_disk(), SimDisk()
    stick.faults.fail(operation, error, after=after)  # type: ignore[arg-type]
    done = carried(spool, stick)
    assert len(done.taken) == after
    assert errno.errorcode[error] in done.stay[0].why
    assert not any(name.endswith(".new") for name in folder(stick).names())
    assert len(unload(stick)) == after
    carried(spool, stick)
    assert covers(loaded(stick), held(spool))


def test_a_stick_that_forgets_what_it_synced_is_found_out() -> None:
    """Row 12: what reads back otherwise is not called carried."""

    class Forgetful(Plain):
        def forget(self, path: str) -> None:
            if path.endswith(".batch.new"):
                stick.flip_bit(path, 8000)

    spool, stick = spool_disk(), SimDisk()
    tray = CarriedFolder(stick, Forgetful(stick), NODE)
    tray.prepare()
    with pytest.raises(DiskFailed, match="reads back otherwise"):
        tray.put("events.0-2.0123456789abcdef.batch", bytes(2000))
    assert tray.names() == []
    assert carried(spool, stick).stay == []


def test_a_full_stick_keeps_room_for_its_manifest() -> None:
    """Row 16: the urgent lanes are on it, the others stay for lack of space."""
    spool, stick = spool_disk(), SimDisk()
    stick.capacity_bytes = RESERVE_BYTES + 4 * 4096
    done = carried(spool, stick)
    assert [file.lane for file in done.taken][:1] == [Lane.ACCOUNT]
    assert 0 < len(done.taken) < 6
    assert {one.why for one in done.stay} == {"no more space"}
    assert len(unload(stick)) == len(done.taken)


def test_no_more_is_taken_than_was_asked_for() -> None:
    """A limit counts bytes of batches; what is beyond it stays."""
    done = carried(spool_disk(), SimDisk(), limit_bytes=1500)
    assert sum(file.size_bytes for file in done.taken) <= 1500
    assert done.taken
    assert done.stay


def test_a_stick_that_cannot_be_written() -> None:
    """Row 18: it is said at once, as what it is."""
    stick = SimDisk()
    stick.faults.read_only = True
    with pytest.raises(DiskReadOnly):
        carried(spool_disk(), stick)
    full = SimDisk()
    full.faults.fail("make_directory", errno.ENOSPC)
    with pytest.raises(DiskFull):
        carried(spool_disk(), full)


def test_a_spool_that_is_damaged_gives_the_rest() -> None:
    """Row 10: what cannot be read is named with its file; everything else is carried."""
    spool, stick = spool_disk(), SimDisk()
    path = next(path for path in spool.contents() if path.startswith("lanes/alarms/"))
    spool.flip_bit(path, 8 * (spool.size(path) - 5))
    done = carried(spool, stick)
    assert [flaw.path for flaw in done.flaws] == [path]
    assert not done.flaws[0].harmless
    assert any(lane is Lane.EVENTS for _, lane in loaded(stick))


def test_what_the_node_has_not_synced_is_synced_first() -> None:
    """Row 15: nothing leaves the house that a power cut could still take from it."""
    spool = spool_disk(clean=False)
    journals = [path for path in spool.contents() if path.startswith("journal/0")]
    carried(spool, SimDisk())
    synced = [call.path for call in spool.faults.calls if call.operation == "sync"]
    assert set(journals) <= set(synced)
    newest = max(journals)
    number = int(newest.rpartition("/")[2])
    spool.faults.fail("sync", path=journal_path(number))
    stick = SimDisk()
    done = carried(spool, stick)
    assert {one.why for one in done.stay} == {"the spool's disk does not make it durable"}
    assert any(lane is Lane.ALARMS for _, lane in loaded(stick)), "what is on the shelf is"


# --- in -----------------------------------------------------------------------------------------


def on_files(stick: SimDisk, root: Path) -> Path:
    """A simulated stick as files."""
    for path, data in stick.contents().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root / NODE


def told(root: Path) -> dict[str, str]:
    """What is not taken of a stick of files, by the last part of its path."""
    found, flaws = loads(SystemDisk(root), SystemMedium(root))
    all_flaws = [*flaws]
    for load in found:
        all_flaws += load.flaws
        for file in load.files:
            try:
                read(load, file)
            except (Refused, DiskFailed) as wrong:
                all_flaws.append(Flaw(file.name, str(wrong)))
    return {flaw.path.rpartition("/")[2]: flaw.what for flaw in all_flaws}


def test_what_is_not_ours_is_named_and_left_alone(tmp_path: Path) -> None:
    """Row 43 and refusal 28: foreign files, links, devices, folders; the load is taken."""
    stick = SimDisk()
    done = carried(spool_disk(), stick)
    node = on_files(stick, tmp_path)
    (tmp_path / FOLDER / "Holiday Photos").mkdir()
    (tmp_path / FOLDER / "hall.pump (2)").mkdir()
    (tmp_path / FOLDER / "hall.fan").symlink_to("/etc")
    (node / "passwd.batch").symlink_to("/etc/passwd")
    (node / "events.0-0.0123456789abcdef.batch").symlink_to("/etc/passwd")
    (node / "notes.txt").write_text("hello")
    (node / "sub").mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    flaws = told(tmp_path)
    assert set(flaws) == {
        *("Holiday Photos", "hall.pump (2)", "hall.fan", "passwd.batch", "notes.txt", "sub"),
        "events.0-0.0123456789abcdef.batch",
    }
    assert "symbolic link" in flaws["hall.fan"]
    assert "symbolic link" in flaws["passwd.batch"]
    found, _ = loads(SystemDisk(tmp_path), SystemMedium(tmp_path))
    (load,) = (load for load in found if load.node == "pump")
    assert {file.name for file in load.files} == {file.name for file in done.taken}
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_the_carried_folder_itself_is_not_a_link(tmp_path: Path) -> None:
    """Refusal 28: nothing below a link is read or written."""
    (tmp_path / FOLDER).symlink_to("/etc")
    with pytest.raises(Refused, match="symbolic link"):
        loads(SystemDisk(tmp_path), SystemMedium(tmp_path))
    tray = CarriedFolder(SystemDisk(tmp_path), SystemMedium(tmp_path), NODE)
    with pytest.raises(Refused, match="symbolic link"):
        tray.prepare()


def test_a_copy_that_was_not_finished(tmp_path: Path) -> None:
    """Row 43: without its manifest nothing is a load; with it, what is missing is named."""
    stick = SimDisk()
    done = carried(spool_disk(), stick)
    node = on_files(stick, tmp_path)
    (node / done.taken[0].name).unlink()
    (node / done.taken[1].name).write_bytes(b"half")
    (node / done.taken[2].name).unlink()
    os.mkfifo(node / done.taken[2].name)
    flaws = told(tmp_path)
    assert "not there" in flaws[done.taken[0].name]
    assert "digest" in flaws[done.taken[1].name]
    assert "not a regular file" in flaws[done.taken[2].name]
    assert len(flaws) == 3
    (node / manifest_name(1)).unlink()
    flaws = told(tmp_path)
    assert {flaws[file.name] for file in done.taken[1:]} == {
        "no whole manifest names it: it was not copied to its end"
    }


def test_a_folder_under_the_name_of_another_node(tmp_path: Path) -> None:
    """Refusal 15: a load speaks for the node in whose folder it lies, or it is refused."""
    stick = SimDisk()
    carried(spool_disk(), stick)
    node = on_files(stick, tmp_path)
    shutil.copytree(node, node.parent / "hall.fan")
    flaws = told(tmp_path)
    assert "hall/pump" in flaws[manifest_name(1)]
    found, _ = loads(SystemDisk(tmp_path), SystemMedium(tmp_path))
    assert {load.node: len(load.files) > 0 for load in found} == {"fan": False, "pump": True}


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Refusal 28: a file that grew beyond any batch, and a manifest beyond its bound."""
    stick = SimDisk()
    done = carried(spool_disk(), stick)
    node = on_files(stick, tmp_path)
    with (node / done.taken[0].name).open("r+b") as file:
        file.truncate(1 << 40)
    with (node / manifest_name(2)).open("wb") as file:
        file.truncate(1 << 40)
    found, _ = loads(SystemDisk(tmp_path), SystemMedium(tmp_path))
    (load,) = found
    assert ["too_large" in flaw.what for flaw in load.flaws] == [True]
    with pytest.raises(Refused, match=f"at most {BATCH_BYTES_MAX}"):
        read(load, next(file for file in load.files if file.name == done.taken[0].name))


def test_an_older_manifest_brings_nothing_wrong_back() -> None:
    """Row 43: copies of two loads in one folder, in any order: the batches of both are taken."""
    older, newer = SimDisk(), SimDisk()
    carried(spool_disk(), older)
    carried(spool_disk(more=True), newer)
    both = SimDisk()
    for stick, number in ((newer, 1), (older, 2)):
        for path, data in stick.contents().items():
            above, _, name = path.rpartition("/")
            both.make_directory(above)
            if name == manifest_name(1) and number != 1:
                continue
            if path not in both.contents():
                both.open(path, "create").write(data, 0)
    assert covers(loaded(both), loaded(newer))


# --- receipts -----------------------------------------------------------------------------------


def receipt(watermark: int, number: int = 1, **changes: object) -> Receipt:
    """Headquarters' word on the events of a life."""
    made = Receipt(
        *("hq", Epoch(9, 9), number, Stage.ARCHIVED, "hall", "pump", Epoch(1, 1), Lane.EVENTS),
        *(watermark, b"", 0),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def known(disk: SimDisk, path: str = f"{NODE}/{RECEIPTS}") -> list[Receipt]:
    """The receipts in a folder, the lowest watermark first."""
    found, _ = read_receipts(CarriedFolder(disk, Plain(disk), path), "hall", "pump")
    return sorted(found.values(), key=lambda one: one.watermark)


def test_the_newest_receipt_replaces_the_older_ones() -> None:
    """One file for each holder, its life, epoch and lane; an older one changes nothing."""
    disk = SimDisk()
    tray = folder(disk).within(RECEIPTS)
    other = receipt(2, lane=Lane.LOGS)
    put_receipts(tray, [receipt(3, 1), other])
    names = put_receipts(tray, [receipt(6, 2)])
    assert known(disk) == [other, receipt(6, 2)]
    assert put_receipts(tray, [receipt(3, 1)]) == names, "the later one says it too"
    assert known(disk) == [other, receipt(6, 2)]
    reborn = receipt(1, 1, life=Epoch(10, 10))
    put_receipts(tray, [reborn])
    assert known(disk) == [reborn, other, receipt(6, 2)], "of two lives neither is the later"


@pytest.mark.parametrize("make", [SimDisk, FatDisk])
def test_a_stick_that_is_pulled_out_while_receipts_are_put_back(make: Make) -> None:
    """Row 43: the receipt before or the one after is there, whole, at every change."""

    def begun() -> SimDisk:
        disk = make()
        put_receipts(folder(disk).within(RECEIPTS), [receipt(3, 1)])
        return disk

    def work(disk: SimDisk) -> None:
        put_receipts(folder(disk).within(RECEIPTS), [receipt(6, 2)])

    for cut, disk in enumerate(cut_everywhere(work, begun)):
        for image in images_of(disk, cut):
            found = known(image)
            assert found
            assert set(map(str, found)) <= {str(receipt(3, 1)), str(receipt(6, 2))}
    assert known(disk) == [receipt(6, 2)]


def test_receipts_that_are_not_this_nodes_are_named() -> None:
    """Refusal 15: foreign, rotten, renamed, none at all: named, and not handed on."""
    disk = SimDisk()
    tray = folder(disk).within(RECEIPTS)
    (mine,) = put_receipts(tray, [receipt(3)])
    (other,) = put_receipts(tray, [receipt(3, node="fan")])
    data = tray.read(mine, 10_000)
    tray.put("logs.0123456789abcdef.receipt", data)
    tray.put("events.fedcba9876543210.receipt", data[:-1])
    tray.put("notes.txt", b"hello")
    found, flaws = read_receipts(tray, "hall", "pump")
    assert list(found) == [mine]
    harmless = {flaw.path.rpartition("/")[2]: flaw.harmless for flaw in flaws}
    assert harmless == {
        other: False,
        "logs.0123456789abcdef.receipt": False,
        "events.fedcba9876543210.receipt": False,
        "notes.txt": True,
    }


# --- the inbox of a node ------------------------------------------------------------------------


class Thread(Executor):
    """Stands for a thread: on virtual time its calls run on the loop."""


def inbox(disk: SimDisk, watcher: Watcher) -> CarriedReceipts:
    """The link of a node, on the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return CarriedReceipts(*(disk, Plain(disk), Thread(), "hall", "pump", SimClock(loop), watcher))


def test_a_running_node_takes_what_is_put_into_its_inbox() -> None:
    """Within two seconds; the file goes an interval after the receipt was consumed."""
    disk, watcher = SimDisk(), Watcher()
    tray = CarriedFolder(disk, Plain(disk), INBOX)

    async def main(_: random.Random) -> None:
        async with opened(SimDisk(), CALM) as spool:
            link = inbox(disk, watcher)
            forwarder = forward("pump", spool, link, DeliverySettings(), watcher)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(forwarder.run())
                assert await spool.append(Lane.EVENTS, [record("one"), record("two")]).settled
                await asyncio.sleep(5)
                put_receipts(tray, [receipt(2, epoch=spool.epoch)])
                await asyncio.sleep(1.0)
                assert spool.released(Lane.EVENTS) == Ranges(((0, 2),))
                await asyncio.sleep(2)
                assert tray.names() == []
                running.cancel()

    play(main)


def test_what_is_not_consumed_stays_in_the_inbox() -> None:
    """Row 1: a node that ends in between finds the receipt again, and applies it again."""
    disk, watcher = SimDisk(), Watcher()
    tray = CarriedFolder(disk, Plain(disk), INBOX)
    names = put_receipts(tray, [receipt(2), receipt(4, lane=Lane.LOGS)])

    async def main(_: random.Random) -> None:
        reader = inbox(disk, watcher).receipts()
        first = await anext(reader)
        await reader.aclose()  # type: ignore[attr-defined]
        assert tray.names() == names
        link = inbox(disk, watcher)
        reader = link.receipts()
        assert await anext(reader) == first
        second = await anext(reader)
        await link.clear()
        assert known(disk, INBOX) == [second], "only the first was consumed"

    play(main)


def test_rubbish_in_the_inbox_is_told_once_and_passed_over() -> None:
    """It neither stops what is good, nor fills the log."""
    disk, watcher = SimDisk(), Watcher()
    tray = CarriedFolder(disk, Plain(disk), INBOX)
    put_receipts(tray, [receipt(2)])
    tray.put("logs.0123456789abcdef.receipt", b"rubbish")

    async def main(_: random.Random) -> None:
        async with asyncio.TaskGroup() as tasks:
            link = inbox(disk, watcher)

            async def take() -> None:
                async for found in link.receipts():
                    assert found == receipt(2)

            taking = tasks.create_task(take())
            await asyncio.sleep(30)
            taking.cancel()

    play(main)
    assert len(watcher.of(CarriedReceiptsUnread)) == 1
    assert tray.names() == ["logs.0123456789abcdef.receipt"]


def test_the_inbox_is_a_link_that_is_never_up() -> None:
    """It claims nothing: what is offered to it is not taken."""

    async def main(_: random.Random) -> None:
        link = inbox(SimDisk(), Watcher())
        assert not link.state.up
        link.reset("nothing comes of it")
        with pytest.raises(LinkDown):
            await link.send(Part("hall", "pump", Lane.LOGS, bytes(32), 0, 1, b"x"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await link.wait_changed(link.state)

    play(main)
