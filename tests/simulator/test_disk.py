"""The crash model: what a power cut may leave of data, lengths and names, and what never."""

import errno
import random
from collections.abc import Callable

import pytest

from schemas.errors import DiskFailed, DiskFull, DiskReadOnly
from simulator.disk import SimDisk, cut_everywhere
from simulator.disk_faults import PowerCut

BLOCK = 4096


def put(disk: SimDisk, path: str, content: bytes) -> None:
    """A file, its data synced, its name not."""
    file = disk.open(path, "create")
    file.write(content, 0)
    file.sync()
    file.close()


def settled(path: str, content: bytes) -> SimDisk:
    """A disk on which one file is durable, name and all."""
    disk = SimDisk()
    put(disk, path, content)
    disk.sync_directory("")
    return disk


def images(disk: SimDisk, block_bytes: int = BLOCK) -> list[dict[str, bytes]]:
    """What each possible disk shows."""
    found = disk.crash_images(random.Random(0), block_bytes=block_bytes)
    return [image.contents() for image in found]


def test_a_settled_disk_has_one_image() -> None:
    """What was synced, data and name, survives each crash."""
    disk = settled("a", b"kept")
    assert images(disk) == [{"a": b"kept"}]


def test_a_file_without_a_synced_name_may_vanish() -> None:
    """However often the file was synced: only a sync of its folder keeps its name."""
    disk = SimDisk()
    put(disk, "a", b"kept")
    assert images(disk) == [{}, {"a": b"kept"}]


def test_a_file_in_an_unsynced_folder_may_vanish() -> None:
    """The folder's own name needs a sync of the folder above."""
    disk = SimDisk()
    disk.make_directory("below")
    put(disk, "below/a", b"kept")
    disk.sync_directory("below")
    assert images(disk) == [{}, {"below/a": b"kept"}]
    disk.sync_directory("")
    assert images(disk) == [{"below/a": b"kept"}]


def test_a_rename_may_be_dropped_until_its_folder_is_synced() -> None:
    """Before: either file. After: the new one only. Never neither."""
    disk = settled("a", b"old")
    put(disk, "a.new", b"new")
    disk.sync_directory("")
    disk.rename("a.new", "a")
    assert images(disk) == [{"a": b"old", "a.new": b"new"}, {"a": b"new"}]
    disk.sync_directory("")
    assert images(disk) == [{"a": b"new"}]


def test_names_may_be_reordered() -> None:
    """A later unlink survives where an earlier rename does not, in one folder: data is lost."""
    disk = settled("journal", b"records")
    put(disk, "batch.new", b"records")
    disk.sync_directory("")
    disk.rename("batch.new", "batch")
    disk.unlink("journal")
    seen = images(disk)
    assert {"batch.new": b"records"} in seen
    assert {"batch": b"records", "journal": b"records"} in seen
    assert len(seen) == 4


def test_a_rename_between_folders_is_atomic() -> None:
    """The file has one name or the other; the sync that settles it is that of the new folder."""
    disk = SimDisk()
    disk.make_directory("below")
    put(disk, "a", b"x")
    disk.sync_directory("")
    disk.rename("a", "below/b")
    assert images(disk) == [{"a": b"x"}, {"below/b": b"x"}]
    disk.sync_directory("")
    assert images(disk) == [{"a": b"x"}, {"below/b": b"x"}]
    disk.sync_directory("below")
    assert images(disk) == [{"below/b": b"x"}]


def test_a_settled_rename_takes_along_the_name_before() -> None:
    """A file made in one folder and moved to another never has two names."""
    disk = SimDisk()
    disk.make_directory("below")
    disk.sync_directory("")
    put(disk, "a", b"x")
    disk.rename("a", "below/b")
    disk.sync_directory("below")
    assert images(disk) == [{"below/b": b"x"}]


def test_a_name_used_again_keeps_its_new_file() -> None:
    """A rename that is still pending takes its old name away from its own file only."""
    disk = settled("a", b"first")
    disk.make_directory("below")
    disk.sync_directory("")
    disk.rename("a", "below/b")
    put(disk, "a", b"second")
    disk.sync_directory("")
    assert images(disk) == [{"a": b"second"}, {"a": b"second", "below/b": b"first"}]


def test_an_unlinked_file_may_come_back() -> None:
    """Until the folder is synced."""
    disk = settled("a", b"x")
    disk.unlink("a")
    assert images(disk) == [{"a": b"x"}, {}]
    disk.sync_directory("")
    assert images(disk) == [{}]


def test_an_append_may_leave_zeros() -> None:
    """One block behind the end: nothing, its length as zeros, or itself."""
    disk = settled("a", b"x" * BLOCK)
    disk.open("a", "update").write(b"y" * BLOCK, BLOCK)
    assert images(disk) == [
        {"a": b"x" * BLOCK},
        {"a": b"x" * BLOCK + b"y" * BLOCK},
        {"a": b"x" * BLOCK + bytes(BLOCK)},
    ]


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_an_append_leaves_as_many_disks_as_it_can(blocks: int) -> None:
    """Each subset of n new blocks; without the last one also with and without the full length."""
    disk = settled("a", b"")
    disk.open("a", "update").write(b"y" * blocks * BLOCK, 0)
    assert len(images(disk)) == 3 * 2 ** (blocks - 1)


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_an_overwrite_leaves_as_many_disks_as_it_can(blocks: int) -> None:
    """Each subset of n blocks in place, of 512 bytes here, is torn in its own way."""
    disk = settled("a", b"x" * blocks * 512)
    disk.open("a", "update").write(b"y" * blocks * 512, 0)
    seen = images(disk, block_bytes=512)
    assert len(seen) == 2**blocks
    assert {"a": b"x" * 512 * (blocks - 1) + b"y" * 512} in seen


def test_an_overwrite_of_parts_of_blocks_tears_at_their_bounds() -> None:
    """Bytes 500 to 1100 lie in three blocks of 512."""
    disk = settled("a", b"x" * 2048)
    disk.open("a", "update").write(b"y" * 600, 500)
    shown = [image["a"] for image in images(disk, block_bytes=512)]
    assert len(shown) == 8
    assert b"x" * 500 + b"y" * 12 + b"x" * 1536 in shown
    assert b"x" * 1024 + b"y" * 76 + b"x" * 948 in shown


def test_writes_to_one_block_keep_their_order() -> None:
    """They go through one page: the later one never survives without the earlier."""
    disk = settled("a", b"0000")
    file = disk.open("a", "update")
    file.write(b"1", 0)
    file.write(b"2", 1)
    assert images(disk) == [{"a": b"0000"}, {"a": b"1000"}, {"a": b"1200"}]


def test_writes_to_two_blocks_do_not() -> None:
    """The later one survives without the earlier."""
    disk = settled("a", bytes(2 * BLOCK))
    file = disk.open("a", "update")
    file.write(b"1", 0)
    file.write(b"2", BLOCK)
    shown = [(image["a"][0], image["a"][BLOCK]) for image in images(disk)]
    assert sorted(shown) == [(0, 0), (0, 50), (49, 0), (49, 50)]


def test_rewriting_in_place_may_leave_nothing() -> None:
    """Truncating and writing anew, as a careless program does, can leave an empty file."""
    disk = settled("a", b"old contents")
    file = disk.open("a", "update")
    file.truncate(0)
    file.write(b"new", 0)
    shown = [image["a"] for image in images(disk)]
    assert b"" in shown
    assert b"new contents" in shown
    assert b"\0\0\0" in shown


@pytest.mark.parametrize("operations", [1, 2, 3, 4])
def test_few_operations_are_exhausted(operations: int) -> None:
    """Files of different folders made independently: each subset, once."""
    disk = SimDisk()
    for number in range(operations):
        put(disk, f"{number}", b"x")
    assert len(images(disk)) == 2**operations


def test_the_images_are_all_different() -> None:
    """No disk comes twice, and the hash tells them apart."""
    disk = settled("a", b"x" * 2 * BLOCK)
    put(disk, "b", b"")
    disk.open("a", "update").write(b"y" * 3 * BLOCK, 0)
    hashes = [image.image_hash() for image in disk.crash_images(random.Random(0))]
    assert len(set(hashes)) == len(hashes) == 2 * 4 * 3


def test_many_operations_are_sampled() -> None:
    """Beyond what can be exhausted: each prefix, torn writes, and a seed that says which."""

    def seen(seed: int) -> list[str]:
        disk = settled("a", b"")
        file = disk.open("a", "update")
        for number in range(40):
            file.write(bytes([number + 1]) * BLOCK, number * BLOCK)
        found = disk.crash_images(random.Random(seed), samples_max=300)
        contents = [image.contents()["a"] for image in found]
        whole = b"".join(bytes([number + 1]) * BLOCK for number in range(40))
        assert all(whole[: n * BLOCK] in contents for n in range(41))
        return [content.hex() for content in contents]

    first = seen(1)
    assert len(first) > 150
    assert first == seen(1)
    assert first != seen(2)


def test_one_long_write_is_torn() -> None:
    """Of a write of 200 blocks disks are shown that lack one in the middle, or all but one."""
    disk = settled("a", b"")
    disk.open("a", "update").write(b"y" * 200 * 512, 0)
    shown = [image["a"].count(b"y") for image in images(disk, block_bytes=512)]
    assert 199 * 512 in shown
    assert 512 in shown


def test_an_image_is_a_disk_of_its_own() -> None:
    """Work on an image changes neither its origin nor its siblings, and all of it is durable."""
    disk = SimDisk()
    put(disk, "a", b"x")
    disk.lock("LOCK")
    gone, kept = disk.crash_images(random.Random(0))
    kept.lock("LOCK")
    kept.open("a", "update").write(b"changed", 0)
    put(gone, "b", b"new")
    assert disk.contents() == {"a": b"x", "LOCK": b""}
    assert gone.contents() == {"b": b"new", "LOCK": b""}
    assert kept.contents() == {"a": b"changed", "LOCK": b""}


def test_one_crash_follows_its_seed() -> None:
    """The same seed leaves the same disk; other seeds leave others."""
    disk = settled("a", b"x" * 3 * BLOCK)
    disk.open("a", "update").write(b"y" * 3 * BLOCK, 0)
    drawn = [disk.crash(random.Random(seed)).image_hash() for seed in range(20)]
    assert drawn == [disk.crash(random.Random(seed)).image_hash() for seed in range(20)]
    assert len(set(drawn)) > 3


def replace_without(step: str) -> Callable[[SimDisk], None]:
    """Replaces a file by another one, leaving out one step."""

    def work(disk: SimDisk) -> None:
        file = disk.open("a.new", "create")
        file.write(b"new", 0)
        if step != "sync":
            file.sync()
        file.close()
        disk.rename("a.new", "a")
        if step != "sync_directory":
            disk.sync_directory("")
        disk.unlink("source")
        disk.sync_directory("")

    return work


@pytest.mark.parametrize("step", ["sync", "sync_directory", "nothing"])
def test_a_left_out_sync_is_found(step: str) -> None:
    """The source may go only when the copy is durable: each left-out sync is caught by an image."""

    def world() -> SimDisk:
        disk = settled("a", b"old")
        put(disk, "source", b"new")
        disk.sync_directory("")
        return disk

    lost = [
        image.contents()
        for disk in cut_everywhere(replace_without(step), world)
        for image in disk.crash_images(random.Random(0))
        if image.contents().get("source") != b"new" and image.contents().get("a") != b"new"
    ]
    assert bool(lost) == (step != "nothing")


def test_power_is_cut_before_each_change() -> None:
    """Every change has its cut, reads have none, and after it nothing can be asked any more."""

    def work(disk: SimDisk) -> None:
        file = disk.open("a", "create")
        file.write(b"x", 0)
        file.read(0, 1)
        file.sync()
        disk.sync_directory("")

    disks = [*cut_everywhere(work)]
    assert [disk.faults.counts.total() for disk in disks] == [0, 1, 3, 4, 5]
    with pytest.raises(PowerCut):
        disks[1].list("")
    assert not issubclass(PowerCut, Exception)


def test_a_failed_sync_stays_in_doubt() -> None:
    """Cache and later syncs pretend; a crash may keep the data or lose it; the file is told off."""
    disk = settled("a", b"old")
    disk.faults.fail("sync", after=1)
    file = disk.open("a", "update")
    file.sync()
    file.write(b"new", 0)
    with pytest.raises(DiskFailed, match=r"sync a: Input/output error \(EIO\)"):
        file.sync()
    with pytest.raises(DiskFailed, match="earlier sync failed"):
        file.sync()
    assert file.read(0, 3) == b"new"
    second = disk.open("a", "update")
    second.sync()
    assert images(disk) == [{"a": b"old"}, {"a": b"new"}]
    disk.drop_caches()
    assert second.read(0, 3) == b"old"
    assert images(disk) == [{"a": b"old"}]


def test_what_is_written_again_after_a_failed_sync_is_durable() -> None:
    """A new write over doubtful data, synced through another descriptor, wins for ever."""
    disk = settled("a", b"old")
    disk.faults.fail("sync")
    first = disk.open("a", "update")
    first.write(b"new", 0)
    with pytest.raises(DiskFailed):
        first.sync()
    second = disk.open("a", "update")
    second.write(b"NEW", 0)
    second.sync()
    assert images(disk) == [{"a": b"NEW"}]
    disk.drop_caches()
    assert second.read(0, 3) == b"NEW"


def test_a_failed_sync_of_a_folder_leaves_its_names_pending() -> None:
    """Nothing is known, until a later sync of the folder succeeds."""
    disk = SimDisk()
    put(disk, "a", b"x")
    disk.faults.fail("sync_directory")
    with pytest.raises(DiskFailed):
        disk.sync_directory("")
    assert images(disk) == [{}, {"a": b"x"}]


def test_a_full_disk_takes_what_fits() -> None:
    """Capacity counts blocks of 4 KiB; overwriting needs none; unlinking gives them back."""
    disk = SimDisk(capacity_bytes=3 * BLOCK)
    put(disk, "a", b"x")
    assert disk.free_bytes() == 2 * BLOCK
    file = disk.open("b", "create")
    with pytest.raises(DiskFull, match="ENOSPC"):
        file.write(b"y" * 3 * BLOCK, 0)
    assert file.size() == 2 * BLOCK
    assert disk.free_bytes() == 0
    file.write(b"z" * 2 * BLOCK, 0)
    disk.unlink("b")
    assert disk.free_bytes() == 0
    file.close()
    assert disk.free_bytes() == 2 * BLOCK


@pytest.mark.parametrize("operation", ["create", "write", "rename", "make_directory", "unlink"])
def test_a_planted_fault_strikes_once_and_where_it_should(operation: str) -> None:
    """On its operation, its path, its turn; then it is spent."""
    disk = settled("a", b"x")
    path = {"create": "c", "make_directory": "d"}.get(operation, "a")
    disk.faults.fail(operation, errno.ENOSPC, after=1, path=path)

    def use() -> None:
        match operation:
            case "create":
                put(disk, "other", b"")
                disk.unlink("other")
                disk.open("c", "create").close()
                disk.unlink("c")
            case "write":
                disk.open("a", "update").write(b"yy", 0)
            case "rename":
                disk.rename("a", "b")
                disk.rename("b", "a")
            case "make_directory":
                disk.make_directory("other")
                disk.make_directory("d")
            case _:
                disk.unlink("a")

    use()
    with pytest.raises(DiskFull):
        use()
    use()


def test_a_failed_write_leaves_its_first_half() -> None:
    """Any part may have been written: here the first half is."""
    disk = settled("a", b"0000")
    disk.faults.fail("write")
    with pytest.raises(DiskFailed):
        disk.open("a", "update").write(b"1111", 0)
    assert disk.contents() == {"a": b"1100"}


def test_a_read_only_disk_refuses_changes_only() -> None:
    """Reading goes on; each change says why it cannot be."""
    disk = settled("a", b"x")
    file = disk.open("a", "update")
    disk.faults.read_only = True
    changes = (
        lambda: file.write(b"y", 0),
        lambda: file.truncate(0),
        lambda: disk.open("b", "create"),
        lambda: disk.rename("a", "b"),
        lambda: disk.unlink("a"),
        lambda: disk.make_directory("c"),
    )
    for change in changes:
        with pytest.raises(DiskReadOnly, match="EROFS"):
            change()
    assert file.read(0, 1) == b"x"
    assert disk.list("") == ["a"]


def test_a_bad_extent_fails_reads_that_touch_it() -> None:
    """Other bytes of the file are given back; the damage is still there after a crash."""
    disk = settled("a", b"x" * 3 * BLOCK)
    disk.damage_extent("a", BLOCK, 512)
    (image,) = disk.crash_images(random.Random(0))
    for seen in (disk, image):
        file = seen.open("a", "read")
        assert file.read(0, BLOCK) == b"x" * BLOCK
        assert file.read(BLOCK + 512, BLOCK) == b"x" * BLOCK
        for offset, size in ((0, BLOCK + 1), (BLOCK + 511, 1), (0, 3 * BLOCK)):
            with pytest.raises(DiskFailed, match="EIO"):
                file.read(offset, size)


def test_a_flipped_bit_is_flipped_on_the_medium() -> None:
    """The same bit, in the cache and after a crash; twice is not at all."""
    disk = settled("a", b"\0\0")
    disk.flip_bit("a", 11)
    assert disk.contents() == {"a": b"\0\x08"}
    assert images(disk) == [{"a": b"\0\x08"}]
    disk.flip_bit("a", 11)
    assert images(disk) == [{"a": b"\0\0"}]


def test_a_stall_spends_time_and_succeeds() -> None:
    """The call does what it should, after telling how long it took."""
    spent: list[float] = []
    disk = SimDisk(spend=spent.append)
    disk.faults.stall("sync", 30, after=1)
    put(disk, "a", b"x")
    put(disk, "b", b"x")
    put(disk, "c", b"x")
    assert spent == [30]
    assert disk.contents() == {"a": b"x", "b": b"x", "c": b"x"}


def test_every_call_is_recorded_and_the_record_is_bounded() -> None:
    """Operation, path and size in order; the oldest are forgotten, the counts are not."""
    disk = SimDisk()
    put(disk, "a", b"xyz")
    disk.sync_directory("")
    assert [(call.operation, call.path, call.size) for call in disk.faults.calls] == [
        ("create", "a", 0),
        ("write", "a", 3),
        ("sync", "a", 0),
        ("sync_directory", "", 0),
    ]
    for _ in range(10_000):
        disk.list("")
    assert len(disk.faults.calls) == 10_000
    assert disk.faults.counts["write"] == 1
    assert disk.faults.written_bytes == 3


def test_files_that_are_gone_take_no_memory() -> None:
    """A thousand files made and unlinked leave few behind, open ones stay readable."""
    disk = SimDisk()
    put(disk, "open", b"still here")
    file = disk.open("open", "read")
    disk.unlink("open")
    for number in range(1000):
        put(disk, "a", b"%d" % number)
        disk.unlink("a")
        disk.sync_directory("")
    assert len(disk._medium.seen.files) < 100
    assert file.read(0, 100) == b"still here"
