"""What every disk promises, real and simulated."""

from pathlib import Path

import pytest

from mesh.adapters.system import SystemDisk
from mesh.ports import Disk
from schemas.errors import DiskFailed, Refused, StoreInUse
from simulator.disk import SimDisk


@pytest.fixture(params=["system", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    """One empty disk of each kind."""
    return SystemDisk(tmp_path) if request.param == "system" else SimDisk()


def put(disk: Disk, path: str, content: bytes) -> None:
    """A new file with this content."""
    file = disk.open(path, "create")
    file.write(content, 0)
    file.sync()
    file.close()


def get(disk: Disk, path: str) -> bytes:
    """The content of a file."""
    file = disk.open(path, "read")
    try:
        return file.read(0, 1 << 20)
    finally:
        file.close()


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000])
def test_what_was_written_is_read(disk: Disk, size: int) -> None:
    """A file gives back its bytes and its length, whatever the length is to a block."""
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    put(disk, "a", content)
    assert get(disk, "a") == content
    assert disk.size("a") == size


def test_a_write_lands_at_its_offset(disk: Disk) -> None:
    """A write replaces what stood there and leaves the rest; a gap reads as zeros."""
    put(disk, "a", b"abcdef")
    file = disk.open("a", "update")
    file.write(b"XY", 2)
    file.write(b"Z", 5000)
    file.write(b"", 9000)
    assert file.size() == 5001
    assert file.read(0, 8) == b"abXYef\0\0"
    assert file.read(4094, 1000) == bytes(906) + b"Z"
    file.close()


def test_a_read_is_short_only_at_the_end(disk: Disk) -> None:
    """Fewer bytes than asked for come only where the file ends, and none behind its end."""
    put(disk, "a", b"x" * 5000)
    file = disk.open("a", "read")
    assert len(file.read(0, 5000)) == 5000
    assert len(file.read(4000, 5000)) == 1000
    assert file.read(5000, 10) == b""
    assert file.read(99_999, 10) == b""
    assert file.read(10, 0) == b""
    file.close()


def test_truncating_cuts_and_zeroes(disk: Disk) -> None:
    """What was cut off never comes back: a file made longer again reads as zeros there."""
    put(disk, "a", b"x" * 6000)
    file = disk.open("a", "update")
    file.truncate(100)
    assert file.size() == 100
    file.truncate(200)
    assert file.read(0, 6000) == b"x" * 100 + bytes(100)
    file.close()


def test_create_refuses_what_is_there(disk: Disk) -> None:
    """Mode create never touches an existing file."""
    put(disk, "a", b"old")
    with pytest.raises(FileExistsError):
        disk.open("a", "create")
    assert get(disk, "a") == b"old"


@pytest.mark.parametrize("mode", ["update", "read"])
@pytest.mark.parametrize("path", ["a", "folder/a"])
def test_opening_what_is_not_there_makes_nothing(disk: Disk, mode: str, path: str) -> None:
    """Modes update and read never make a file."""
    with pytest.raises(FileNotFoundError):
        disk.open(path, mode)
    assert disk.list("") == []


def test_a_file_for_reading_is_not_written(disk: Disk) -> None:
    """Mode read refuses changes."""
    put(disk, "a", b"old")
    file = disk.open("a", "read")
    with pytest.raises(DiskFailed):
        file.write(b"new", 0)
    file.close()
    assert get(disk, "a") == b"old"


def test_a_closed_file_is_closed(disk: Disk) -> None:
    """Closing twice is fine; using it afterwards is a typed error, never another file's bytes."""
    put(disk, "a", b"old")
    file = disk.open("a", "update")
    file.close()
    file.close()
    other = disk.open("a", "update")
    for use in (lambda: file.write(b"x", 0), lambda: file.read(0, 1), file.sync, file.size):
        with pytest.raises(DiskFailed):
            use()
    other.close()
    assert get(disk, "a") == b"old"


def test_folders_are_made_with_those_above(disk: Disk) -> None:
    """Making a folder makes those above it, and is fine when it is there."""
    disk.make_directory("lanes/alarms/1")
    disk.make_directory("lanes/alarms/1")
    disk.make_directory("")
    put(disk, "lanes/alarms/1/a", b"x")
    for folder in ("", "lanes", "lanes/alarms", "lanes/alarms/1"):
        disk.sync_directory(folder)
    assert disk.list("lanes") == ["alarms"]
    assert disk.list("lanes/alarms/1") == ["a"]


def test_names_are_listed_sorted(disk: Disk) -> None:
    """A listing is sorted; no folder is an empty listing."""
    for name in ("b", "a", "c10", "c2"):
        put(disk, name, b"")
    assert disk.list("") == ["a", "b", "c10", "c2"]
    assert disk.list("nowhere") == []
    assert disk.list("nowhere/below") == []


def test_rename_replaces(disk: Disk) -> None:
    """The target means the source's bytes, the source is gone; across folders, too."""
    disk.make_directory("folder")
    put(disk, "a", b"new")
    put(disk, "b", b"old")
    disk.rename("a", "b")
    assert disk.list("") == ["b", "folder"]
    disk.rename("b", "folder/c")
    assert disk.list("") == ["folder"]
    assert get(disk, "folder/c") == b"new"
    disk.rename("folder/c", "folder/c")
    assert get(disk, "folder/c") == b"new"


def test_renaming_what_is_not_there(disk: Disk) -> None:
    """A missing source is told as such, and the target stays."""
    put(disk, "b", b"old")
    with pytest.raises(FileNotFoundError):
        disk.rename("a", "b")
    with pytest.raises(FileNotFoundError):
        disk.rename("b", "nowhere/b")
    assert get(disk, "b") == b"old"


def test_unlink_removes_the_name_not_the_open_file(disk: Disk) -> None:
    """An open file stays readable when its name goes; no name is fine."""
    put(disk, "a", b"still here")
    file = disk.open("a", "read")
    disk.unlink("a")
    disk.unlink("a")
    disk.unlink("nowhere/a")
    assert disk.list("") == []
    assert file.read(0, 100) == b"still here"
    file.close()
    with pytest.raises(FileNotFoundError):
        disk.size("a")


def test_a_folder_is_no_file(disk: Disk) -> None:
    """Where a file is meant, a folder is a typed error, and the other way round."""
    disk.make_directory("folder")
    put(disk, "file", b"x")
    with pytest.raises(DiskFailed):
        disk.open("folder", "read")
    with pytest.raises(DiskFailed):
        disk.open("folder", "update")
    with pytest.raises(DiskFailed):
        disk.unlink("folder")
    with pytest.raises(DiskFailed):
        disk.size("folder")
    with pytest.raises(DiskFailed):
        disk.rename("file", "folder")
    with pytest.raises(DiskFailed):
        disk.list("file")
    with pytest.raises(DiskFailed):
        disk.open("file/below", "create")
    with pytest.raises(DiskFailed):
        disk.make_directory("file")
    with pytest.raises(DiskFailed):
        disk.sync_directory("nowhere")
    with pytest.raises(DiskFailed):
        disk.open("nowhere/a", "create")
    assert disk.list("") == ["file", "folder"]


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a/", "a\0b", "folder/.."]
)
def test_no_path_leaves_the_root(disk: Disk, path: str) -> None:
    """A path that is not names below the root is refused by each operation, before it begins."""
    disk.make_directory("folder")
    uses = (
        lambda: disk.open(path, "create"),
        lambda: disk.open(path, "read"),
        lambda: disk.rename("folder", path),
        lambda: disk.rename(path, "a"),
        lambda: disk.unlink(path),
        lambda: disk.size(path),
        lambda: disk.lock(path),
    )
    for use in uses:
        with pytest.raises(Refused, match="bad_name"):
            use()
    if path:
        for use in (disk.make_directory, disk.sync_directory, disk.list):
            with pytest.raises(Refused, match="bad_name"):
                use(path)
    assert disk.list("") == ["folder"]


def test_free_space_shrinks(disk: Disk) -> None:
    """Free space is a number of bytes that a large file lowers."""
    before = disk.free_bytes()
    put(disk, "a", bytes(1 << 20) + b"x")
    assert 0 < disk.free_bytes() < before


def test_a_lock_has_one_holder(disk: Disk) -> None:
    """A second lock is refused until the first is given back; giving back twice is fine."""
    disk.lock("LOCK")
    with pytest.raises(StoreInUse, match="LOCK is locked by process"):
        disk.lock("LOCK")
    disk.lock("OTHER")
    disk.unlock("LOCK")
    disk.unlock("LOCK")
    disk.lock("LOCK")
    disk.unlock("LOCK")
    disk.unlock("OTHER")
    assert disk.list("") == ["LOCK", "OTHER"]


def test_a_message_says_operation_path_and_cause(disk: Disk) -> None:
    """Whoever reads the message knows what was tried, on what, and what the system said."""
    disk.make_directory("folder")
    with pytest.raises(DiskFailed, match=r"unlink .*folder: Is a directory \(EISDIR\)"):
        disk.unlink("folder")
