"""The operation under way, told from what a spool asks of its disk."""

import errno

import pytest

from mesh.spool.events import Evicted
from schemas.errors import DiskFailed
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.crash.history import draw
from simulator.crash.operations import Operation, Watched, numbers_of
from simulator.crash.player import Player

BATCH = "lanes/logs/1-00000000000000aa/00000000000000000000-00000000000000000004.batch"
JOURNAL = "journal/0000000000000002"
SPARE = "journal/spare"


class Log:
    """What was under way before each change."""

    def __init__(self, *, there: bool = True) -> None:
        self.under_way: list[Operation] = []
        self.faults = Watched(lambda _, operation: self.under_way.append(operation))
        self.faults.begin_life(there=there)

    def do(self, *calls: str) -> list[str]:
        """Asks for changes; returns the operations that they belong to."""
        before = len(self.faults.changes)
        for call in calls:
            operation, _, path = call.partition(" ")
            self.faults.begin(operation, path)  # type: ignore[arg-type]
        return [change.operation.value for change in self.faults.changes[before:]]


BEGIN = (f"create {JOURNAL}", f"write {JOURNAL}", f"sync {JOURNAL}", "sync_directory journal")
SHELVE = (
    f"create {BATCH}.new",
    f"write {BATCH}.new",
    f"sync {BATCH}.new",
    f"rename {BATCH}.new",
    "sync_directory lanes/logs/1-00000000000000aa",
)
BEGIN_IN_SPARE = (
    f"open {SPARE}",
    f"write {SPARE}",
    f"sync {SPARE}",
    f"rename {SPARE}",
    "sync_directory journal",
)
RESTATE = (
    "create STORE.new",
    "write STORE.new",
    "sync STORE.new",
    "rename STORE.new",
    "sync_directory ",
)


@pytest.mark.parametrize(
    ("calls", "belong"),
    [
        (BEGIN, ["rotate"] * 4),
        ((*BEGIN, f"write {JOURNAL}", f"sync {JOURNAL}"), ["rotate"] * 4 + ["append"] * 2),
        ((*BEGIN, *SHELVE, "unlink journal/0000000000000001"), ["rotate"] * 4 + ["seal"] * 6),
        (
            (*BEGIN, "write cursor", "sync cursor", f"unlink {BATCH}"),
            ["rotate"] * 4 + ["release"] * 3,
        ),
        ((f"unlink {BATCH}.new", "sync_directory lanes", "create cursor"), ["open"] * 3),
        ((f"create {SPARE}", f"write {SPARE}", f"sync {SPARE}"), ["rotate"] * 3),
        (
            (*BEGIN_IN_SPARE, f"write {SPARE}", f"sync {SPARE}"),
            ["rotate"] * 4 + ["append"] * 2,
        ),
        (
            (*BEGIN_IN_SPARE, f"create {SPARE}", f"write {SPARE}", f"sync {SPARE}"),
            ["rotate"] * 7,
        ),
        (
            (*BEGIN, "rename journal/0000000000000001", "sync_directory journal"),
            ["rotate"] * 4 + ["seal"] * 2,
        ),
        (RESTATE, ["epoch_change"] * 5),
        (("make_directory journal", "sync_directory ", "unlink STORE.new"), ["open"] * 3),
    ],
)
def test_a_change_belongs_to_an_operation(calls: tuple[str, ...], belong: list[str]) -> None:
    """By what it touches, and by what came before it."""
    assert Log().do(*calls) == belong


def test_a_store_that_is_made_changes_no_epoch() -> None:
    """``STORE`` written where none was is the opening of a new store."""
    assert Log(there=False).do("create STORE.new", "write STORE.new") == ["open"] * 2


@pytest.mark.parametrize("begin", [BEGIN, BEGIN_IN_SPARE])
def test_what_is_given_up_is_stated_and_unlinked(begin: tuple[str, ...]) -> None:
    """The journal that states a loss, and the unlinks after it; then journals rotate again."""
    log = Log()
    log.faults.note(Evicted(Lane.LOGS, "0-4, 7"))
    changes = sum(not call.startswith("open") for call in begin)
    assert log.do(*begin, f"unlink {BATCH}") == ["evict"] * (changes + 1)
    assert log.do(*begin) == ["rotate"] * changes
    other = BATCH.replace("04.batch", "05.batch")
    assert log.do(f"unlink {other}") == ["release"], "which was not given up"


def test_what_is_given_up_of_a_past_epoch_is_stated_in_store() -> None:
    """``STORE`` that states a loss in mid-life changes no epoch."""
    log = Log()
    log.do(*BEGIN)
    log.faults.note(Evicted(Lane.LOGS, "0-4"))
    assert log.do(*RESTATE, *BEGIN) == ["evict"] * (len(RESTATE) + len(BEGIN))
    log.do(f"unlink {BATCH}", *BEGIN)
    assert log.do(*RESTATE) == ["epoch_change"] * len(RESTATE), "given up by a receipt"


def test_what_a_holder_has_lost_is_reclaimed_until_that_is_durable() -> None:
    """The journal that states what is forgotten, the cursor; then receipts release again."""
    log = Log()
    log.do(*BEGIN)
    log.faults.note_reclaim()
    assert log.do(*BEGIN, "write cursor", "sync cursor") == ["reclaim"] * 6
    assert log.do(*RESTATE) == ["reclaim"] * len(RESTATE), "of a past epoch"
    log.faults.note_settled()
    assert log.do("write cursor", "sync cursor", f"unlink {BATCH}") == ["release"] * 3
    assert log.do(*BEGIN) == ["rotate"] * 4


def test_numbers_are_read_as_they_are_told() -> None:
    """The text of a set of numbers, the empty one too."""
    for spans in ((), ((0, 1),), ((0, 5), (7, 8), (9, 20))):
        assert numbers_of(str(Ranges(spans))) == Ranges(spans)


def test_after_its_last_sync_nothing_is_under_way() -> None:
    """Between write and sync an append is under way; after the sync it has ended."""
    log = Log()
    log.do(*BEGIN, f"write {JOURNAL}", f"sync {JOURNAL}", f"write {JOURNAL}", f"sync {JOURNAL}")
    assert [name.value for name in log.under_way] == [
        *["rest", "rotate", "rotate", "rotate"],
        *["rest", "append", "rest", "append"],
    ]


def test_after_a_failed_sync_it_is_still_under_way() -> None:
    """What could not be synced is not settled."""
    log = Log()
    log.do(*BEGIN, f"write {JOURNAL}")
    log.faults.fail("sync", errno.EIO)
    with pytest.raises(DiskFailed):
        log.do(f"sync {JOURNAL}")
    log.do("create journal/0000000000000003")
    assert log.under_way[-1] is Operation.APPEND


def test_a_real_history_does_all_of_it() -> None:
    """The operations of some seeds: each comes up."""
    done: set[Operation] = set()
    for seed in range(40):
        player = Player(draw(seed))
        player.play()
        done |= {change.operation for change in player.faults.changes}
    assert done == set(Operation) - {Operation.REST}
