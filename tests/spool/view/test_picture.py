"""Pictures: what an onlooker sees fits together, whatever the owner does meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from mesh.ports import DiskFile, OpenMode
from mesh.spool.journal import journal_path, numbers
from mesh.spool.spool import Spool
from mesh.spool.view.onlooker import ReadOnlyDisk
from mesh.spool.view.picture import take
from mesh.spool.view.sight import look
from mesh.spool.view.verdict import examine
from schemas.errors import DiskReadOnly, Overloaded, StoreUnusable
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import SMALL, opened, play, record

Operation = Callable[[SimDisk], object]


class Recorded(SimDisk):
    """A disk that notes all that changes it, each write in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._opened: list[_RecordedFile] = []

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """Opens a file, and notes that it was made."""
        file = super().open(path, mode)
        if mode == "create":
            self.operations.append(lambda disk: disk.open(path, "create").close())
        self._opened.append(_RecordedFile(file, path, self.operations))
        return self._opened[-1]

    def make_directory(self, path: str) -> None:
        """Notes it."""
        super().make_directory(path)
        self.operations.append(lambda disk: disk.make_directory(path))

    def rename(self, source: str, target: str) -> None:
        """Notes it."""
        super().rename(source, target)
        for file in self._opened:
            file.follow(source, target)
        self.operations.append(lambda disk: disk.rename(source, target))

    def unlink(self, path: str) -> None:
        """Notes it."""
        super().unlink(path)
        self.operations.append(lambda disk: disk.unlink(path))


class _RecordedFile(DiskFile):
    """A file that notes what is written to it."""

    def __init__(self, file: DiskFile, path: str, operations: list[Operation]) -> None:
        self._file = file
        self._path = path
        self._operations = operations

    def follow(self, source: str, target: str) -> None:
        """A file that is open when it is renamed is written under its new name."""
        self._path = target if self._path == source else self._path

    def write(self, data: bytes, offset: int) -> None:
        """Writes, and notes both halves."""
        self._file.write(data, offset)
        half = len(data) // 2
        for part, at in ((data[:half], offset), (data[half:], offset + half)):
            self._operations.append(partial(_write, path=self._path, data=part, offset=at))

    def read(self, offset: int, size: int) -> bytes:
        """As the file says."""
        return self._file.read(offset, size)

    def sync(self) -> None:
        """As the file does."""
        self._file.sync()

    def size(self) -> int:
        """As the file says."""
        return self._file.size()

    def truncate(self, size: int) -> None:
        """No spool does."""
        raise AssertionError(size)

    def close(self) -> None:
        """Gives it back."""
        self._file.close()


def _write(disk: SimDisk, *, path: str, data: bytes, offset: int) -> None:
    file = disk.open(path, "update")
    file.write(data, offset)
    file.close()


class Busy(ReadOnlyDisk):
    """A disk whose owner does something before each call of an onlooker."""

    def __init__(self, disk: SimDisk, operations: list[Operation], each: int) -> None:
        super().__init__(disk)
        self._sim = disk
        self._operations = iter(operations)
        self._each = each

    def act(self) -> None:
        """The owner's turn."""
        for _, operation in zip(range(self._each), self._operations, strict=False):
            operation(self._sim)

    def open(self, path: str, mode: OpenMode) -> DiskFile:
        """After the owner's turn."""
        self.act()
        return super().open(path, mode)

    def list(self, path: str) -> list[str]:
        """After the owner's turn."""
        self.act()
        return super().list(path)

    def size(self, path: str) -> int:
        """After the owner's turn."""
        self.act()
        return super().size(path)


def _life() -> list[Operation]:
    """All that a busy life changes on a disk: rotating, sealing, releasing, evicting."""
    disk = Recorded()

    async def main(_: Random) -> None:
        async with opened(disk, replace(SMALL, bytes_max=65_536)) as spool:
            for turn in range(12):
                for lane in (Lane.EVENTS, Lane.LOGS):
                    appended = spool.append(lane, [record(f"{lane} {turn}")] * 3)
                    assert await appended.settled
                if turn % 3 == 2:
                    _release(spool, turn)
                    await spool._chores.do()

    play(main)
    names = " ".join(name for name in disk.contents() if name.startswith("lanes"))
    assert "lanes/events" in names, "something is on the shelf"
    return disk.operations


def _release(spool: Spool, turn: int) -> None:
    spool.release(Lane.EVENTS, Ranges(((0, spool.durable(Lane.EVENTS) - turn % 2),)), "hq")
    spool.release(Lane.LOGS, Ranges(((2, 5),)), "hq")


@pytest.mark.parametrize("each", [1, 5])
def test_no_hole_is_seen_that_is_none(each: int) -> None:
    """Beside an owner that does something before each of our calls, one look suffices.

    Whatever he does: begins and unlinks journals, seals, releases, evicts, unlinks batches, writes
    the cursor; and each of his writes is seen half done.
    """
    for busy in _moments(each):
        with look(busy, busy.act) as sight:
            for lane, found in sight.survey.lanes.items():
                holes = found.newly.get(Explained.DAMAGED, Ranges())
                below = Ranges.of([(0, sight.end(lane))])
                assert not holes & below, f"{lane}: {holes}, below {below}"


@pytest.mark.parametrize("each", [3])
def test_a_check_beside_a_busy_owner_finds_nothing(each: int) -> None:
    """Frames on their way, torn slots, batches that go: none of it is damage."""
    for busy in _moments(each):
        verdict = examine(busy, busy.act, running=True)
        assert verdict.sound, [str(finding) for finding in verdict.findings]


def _moments(each: int) -> Iterator[Busy]:
    """The owner at each moment of a busy life, going on with it while we look."""
    operations = _life()
    for count in range(len(operations)):
        disk = _replayed(operations, count)
        if disk.list("journal"):
            yield Busy(disk, operations[count:], each)


def _replayed(operations: list[Operation], count: int) -> SimDisk:
    disk = SimDisk()
    for operation in operations[:count]:
        operation(disk)
    return disk


def test_what_is_seen_is_a_moment_that_was() -> None:
    """No number is seen that the owner had not yet written when the look ended."""
    operations = _life()
    for count in range(40, len(operations), 7):
        busy = Busy(_replayed(operations, count), operations[count:], 1)
        with look(busy, busy.act) as sight:
            ends = {lane: sight.end(lane) for lane in Lane}
            pending = {lane: sight.held(lane) - sight.survey.lanes[lane].released for lane in Lane}
        busy._each = len(operations)
        busy.act()
        with look(busy, busy.act) as later:
            for lane in Lane:
                assert ends[lane] <= later.end(lane)
                assert pending[lane].end <= ends[lane]


def test_an_owner_who_never_rests_is_told_so() -> None:
    """A picture is tried a bounded number of times: whoever asks is sent away, not kept."""
    disk = SimDisk()
    disk.make_directory("journal")
    numbers = iter(range(1, 10_000))

    def rotate(disk: SimDisk) -> None:
        number = next(numbers)
        disk.open(f"journal/{number:016d}", "create").close()
        disk.unlink(f"journal/{number - 1:016d}")

    turns: list[Operation] = [rotate] * 5_000
    with pytest.raises(Overloaded):
        take(Busy(disk, turns, 3), lambda: None)


def test_a_journal_whose_blocks_are_used_again_is_gone() -> None:
    """Row 7: what another journal wrote over it is never read as its own."""
    disk = SimDisk()
    _ = [operation(disk) for operation in _life()]
    picture = take(disk, lambda: None)
    path = journal_path(numbers(picture)[0])
    whole = disk.contents()[path]
    file = picture.open(path, "read")
    assert file.read(0, 1 << 20) == whole
    disk.rename(path, "journal/spare9")
    assert file.read(0, 1 << 20) == whole
    _write(
        disk,
        path="journal/spare9",
        data=b"HFjr another head, longer than the old one" * 3,
        offset=0,
    )
    with pytest.raises(FileNotFoundError):
        file.read(0, 1 << 20)
    picture.close()


def test_a_journal_that_grows_is_still_itself() -> None:
    """Appending changes nothing of what was there, however short it is."""
    disk = SimDisk()
    _ = [operation(disk) for operation in _life()]
    picture = take(disk, lambda: None)
    path = journal_path(numbers(picture)[-1])
    whole = disk.contents()[path]
    _write(disk, path=path, data=b"more", offset=len(whole))
    assert picture.open(path, "read").read(0, 1 << 20) == whole + b"more"
    picture.close()


def test_nothing_can_be_changed_through_it() -> None:
    """An onlooker's disk refuses whatever would change something, and takes no lock."""
    disk = SimDisk()
    _ = [operation(disk) for operation in _life()]
    before = disk.image_hash()
    with look(disk, lambda: None) as sight:
        picture = sight.picture
        for change in (
            lambda: picture.open("journal/0000000000000099", "create"),
            lambda: picture.open("STORE", "update"),
            lambda: picture.make_directory("x"),
            lambda: picture.rename("STORE", "STORE.old"),
            lambda: picture.unlink("STORE"),
            lambda: picture.sync_directory(""),
            lambda: picture.lock("LOCK"),
            lambda: picture.open("STORE", "read").write(b"x", 0),
            lambda: picture.open("STORE", "read").truncate(0),
            lambda: picture.open("STORE", "read").sync(),
            lambda: picture.open(f"journal/{picture.list('journal')[0]}", "read").write(b"x", 0),
        ):
            with pytest.raises(DiskReadOnly):
                change()
    assert disk.image_hash() == before


def test_where_there_is_no_spool_that_is_said() -> None:
    """An empty folder, or none, is no spool: nothing is made there."""
    with pytest.raises(StoreUnusable, match="no spool"):
        look(SimDisk(), lambda: None)
