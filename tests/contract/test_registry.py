"""What the registry promises, on a real disk and on a simulated one."""

import errno
import random
from pathlib import Path

import pytest

from mesh.adapters.registry import REGISTRY_BYTES_MAX, RegistryDamaged, TinyRegistry
from mesh.adapters.system import SystemDisk
from mesh.ports import Disk
from schemas.errors import DiskFailed, DiskFull, DiskReadOnly, Refused
from simulator.disk import SimDisk, cut_everywhere


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def observe(self, event: object) -> None:
        """Keeps it."""
        self.events.append(event)


@pytest.fixture(params=["system", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    """One empty disk of each kind."""
    return SystemDisk(tmp_path) if request.param == "system" else SimDisk()


def opened(disk: Disk, notes: Notes | None = None) -> TinyRegistry:
    """A registry on this disk, as a process has it that starts."""
    return TinyRegistry(disk, "state/registry", notes or Notes())


def overwrite(disk: Disk, content: bytes) -> None:
    """Puts other bytes into the registry's file."""
    file = disk.open("state/registry", "update")
    file.truncate(0)
    file.write(content, 0)
    file.sync()
    file.close()


def test_documents_outlive_the_registry(disk: Disk) -> None:
    """What was put is there for the next one that opens the file."""
    registry = opened(disk)
    document = {"a": [1, 2.5, None, True, "ü\ud800"], "b": {"c": {}}}
    registry.put("one", document)
    registry.put("two", {})
    for seen in (registry, opened(disk)):
        assert seen.names() == ["one", "two"]
        assert seen.get("one") == document
        assert seen.get("two") == {}
        assert seen.get("three") is None


def test_put_replaces_the_whole_document(disk: Disk) -> None:
    """Nothing of the document before is left."""
    registry = opened(disk)
    registry.put("one", {"a": 1, "b": 2})
    registry.put("one", {"c": 3})
    assert registry.get("one") == {"c": 3}
    assert registry.names() == ["one"]


def test_removed_documents_stay_away(disk: Disk) -> None:
    """A removed document is gone for the next one as well; no document is fine."""
    registry = opened(disk)
    registry.put("one", {"a": 1})
    registry.put("two", {"a": 2})
    registry.remove("one")
    registry.remove("one")
    for seen in (registry, opened(disk)):
        assert seen.names() == ["two"]
        assert seen.get("one") is None


def test_a_document_is_a_copy(disk: Disk) -> None:
    """What a caller does to what it put or got changes nothing here."""
    registry = opened(disk)
    document = {"list": [1]}
    registry.put("one", document)
    document["list"].append(2)
    got = registry.get("one")
    assert got == {"list": [1]}
    got["list"] = []
    assert registry.get("one") == {"list": [1]}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"bytes", {1, 2}, object(), "x" * REGISTRY_BYTES_MAX]
)
def test_what_json_cannot_say_is_refused(disk: Disk, value: object) -> None:
    """A refused document changes nothing, in memory or on disk."""
    registry = opened(disk)
    registry.put("one", {"a": 1})
    with pytest.raises(Refused):
        registry.put("one", {"a": value})
    for seen in (registry, opened(disk)):
        assert seen.get("one") == {"a": 1}


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, b"holdfast-registry 1 00000000\n{}"])
def test_a_damaged_file_is_set_aside(disk: Disk, damage: bytes) -> None:
    """Damage is told, its bytes are kept, the registry begins empty and works."""
    opened(disk).put("one", {"a": 1})
    overwrite(disk, damage)
    notes = Notes()
    registry = opened(disk, notes)
    (event,) = notes.events
    assert isinstance(event, RegistryDamaged)
    assert event.set_aside == "state/registry.damaged-1"
    assert "do not verify" in event.reason
    assert disk.size(event.set_aside) == len(damage)
    assert registry.names() == []
    registry.put("two", {"b": 2})
    assert opened(disk, notes).names() == ["two"]
    assert len(notes.events) == 1


def test_damaged_files_are_numbered_and_bounded(disk: Disk) -> None:
    """The first eight are kept, the ninth is the latest."""
    for number in range(12):
        opened(disk).put("one", {"a": 1})
        overwrite(disk, b"%d" % number)
        opened(disk)
    names = disk.list("state")
    assert names == [f"registry.damaged-{n}" for n in range(1, 10)]
    file = disk.open("state/registry.damaged-9", "read")
    assert file.read(0, 10) == b"11"
    file.close()


def test_each_flipped_bit_is_found() -> None:
    """No single flipped bit is taken for a document."""
    whole = SimDisk()
    opened(whole).put("one", {"a": 1})
    (content,) = whole.contents().values()
    for bit in range(8 * len(content)):
        disk = next(whole.crash_images(random.Random(0)))
        disk.flip_bit("state/registry", bit)
        notes = Notes()
        assert opened(disk, notes).names() == []
        assert len(notes.events) == 1


def test_a_file_that_cannot_be_read_is_set_aside() -> None:
    """A bad sector is damage; its file is kept and does not stop the start."""
    disk, notes = SimDisk(), Notes()
    opened(disk).put("one", {"a": 1})
    disk.damage_extent("state/registry", 0, 1)
    registry = opened(disk, notes)
    assert [event.set_aside for event in notes.events] == ["state/registry.damaged-1"]
    registry.put("one", {"a": 2})
    assert opened(disk).get("one") == {"a": 2}


def test_a_file_that_cannot_be_opened_is_no_damage() -> None:
    """Missing descriptors or permission must not make a node forget what it knows."""
    disk = SimDisk()
    opened(disk).put("one", {"a": 1})
    disk.faults.fail("open", errno.EMFILE)
    with pytest.raises(DiskFailed):
        opened(disk)
    assert opened(disk).get("one") == {"a": 1}


def test_damage_on_a_read_only_disk_is_set_aside_later() -> None:
    """It starts empty, says that the file could not be moved, and moves it before it writes."""
    disk, notes = SimDisk(), Notes()
    opened(disk).put("one", {"a": 1})
    overwrite(disk, b"damaged")
    disk.faults.read_only = True
    registry = opened(disk, notes)
    assert [event.set_aside for event in notes.events] == [""]
    with pytest.raises(DiskReadOnly):
        registry.put("one", {"a": 2})
    disk.faults.read_only = False
    registry.put("one", {"a": 2})
    assert [event.set_aside for event in notes.events] == ["", "state/registry.damaged-1"]
    assert disk.contents()["state/registry.damaged-1"] == b"damaged"


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_a_failed_put_leaves_the_old_document(operation: str) -> None:
    """The old one stands, for this process, the next, and after any crash; the next put works."""
    disk = SimDisk()
    registry = opened(disk)
    registry.put("one", {"a": 1})
    disk.faults.fail(operation, errno.ENOSPC)
    with pytest.raises(DiskFull):
        registry.put("one", {"a": 2})
    assert registry.get("one") == {"a": 1}
    assert opened(disk).get("one") == {"a": 1}
    assert disk.list("state") == ["registry"]
    for image in disk.crash_images(random.Random(0)):
        assert opened(image).get("one") == {"a": 1}
    registry.put("one", {"a": 3})
    assert opened(disk).get("one") == {"a": 3}


def test_a_crash_anywhere_leaves_the_old_or_the_new() -> None:
    """Cut before each change of three puts, each possible disk opens undamaged.

    It shows the last document that was promised or the one that was being put.
    """
    promised: list[int] = []

    def work(disk: SimDisk) -> None:
        promised.clear()
        registry = opened(disk)
        for number in range(3):
            registry.put("one", {"number": number})
            promised.append(number)

    images = 0
    for disk in cut_everywhere(work):
        allowed = [{"number": promised[-1]} if promised else None, {"number": len(promised)}]
        for image in disk.crash_images(random.Random(0), block_bytes=512):
            notes = Notes()
            assert opened(image, notes).get("one") in allowed, (promised, disk, image.contents())
            assert notes.events == []
            images += 1
    assert promised == [0, 1, 2]
    assert images > 30
