"""The search for a crash that makes the spool lie: what it covers, and that it finds lies."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import orjson
import pytest
import typer
from typer.testing import CliRunner

from mesh.ports import Disk
from mesh.spool import epochs, journal, recovery, retention, spool, store
from mesh.spool.age import running_offset_ns
from mesh.spool.chores import Chores
from mesh.spool.journal import END, Journal, JournalContent
from mesh.spool.losses import Losses
from mesh.spool.releases import Releases, clear
from mesh.spool.sealing import SealedJournal
from schemas.limits import PAST_EPOCHS_MAX
from schemas.messages import Epoch, Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import StoreIdentity
from simulator.clock import START_WALL_NS
from simulator.crash.command import crash
from simulator.crash.explore import Found, explore
from simulator.crash.history import Ending, Release, Step, Store, draw
from simulator.crash.operations import Operation
from simulator.crash.survey import Survey, survey
from simulator.crash.times import Wall
from simulator.disk import SimDisk

SEEDS_MAX = 80
"""Within so many seeds whatever is planted is found."""


def violations(make: type[SimDisk] = SimDisk) -> Iterator[Found]:
    """What the seeds find, one after another."""
    for seed in range(SEEDS_MAX):
        yield from explore(seed, make).outcome.found


def first(make: type[SimDisk] = SimDisk) -> str:
    """The first violation that is found."""
    found = next(violations(make), None)
    assert found is not None, f"nothing was found in {SEEDS_MAX} seeds"
    return str(found)


# --- what is looked at ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sound_spool_never_lies_and_each_operation_is_cut() -> None:
    """Rows 5, 6, 13, 16, 21, 22: on no disk that a crash leaves does the spool lie."""
    total = Survey()
    for outcome in survey(range(SEEDS_MAX), 1):
        total.add(outcome)
    assert not total.found
    assert total.states > 5 * SEEDS_MAX, "a history is cut several times"
    assert total.states == sum(total.by_operation.values())
    assert min(total.by_operation.values()) > SEEDS_MAX // 4, total.by_operation


def test_no_disk_counts_twice() -> None:
    """A disk that two seeds or two cuts leave is one state."""
    total = Survey()
    outcome = explore(3).outcome
    assert len({state.digest for state in outcome.states}) == len(outcome.states)
    total.add(outcome)
    total.add(outcome)
    assert (total.seeds, total.states) == (2, len(outcome.states))


def test_the_same_seed_is_the_same_history() -> None:
    """A seed replays exactly: the same steps, changes and disks, and other ones for another."""
    assert draw(5) == draw(5) != draw(6)
    assert explore(5) == explore(5) != explore(6)


def test_the_outcome_does_not_depend_on_the_processes() -> None:
    """Whoever explores a seed, it comes to the same."""
    assert list(survey(range(10), 2)) == list(survey(range(10), 1))


def test_each_kind_of_step_and_ending_is_drawn() -> None:
    """Appends, releases and their loss, faults, full disks, links, clocks; each end of a life."""
    histories = [draw(seed) for seed in range(200)]
    lives = [life for history in histories for life in history.lives]
    steps = [step for life in lives for step in life.steps]
    assert {type(step) for step in steps} == set(get_args(Step))
    assert {life.ending for life in lives} == set(Ending)
    assert {life.store for life in lives} == set(Store), "it rots, and is removed"
    assert {life.wake.wall for life in lives} == set(Wall), "ten years ahead and back, and 1970"
    assert {life.wake.boot for life in lives} == {True, False}
    assert {step.epochs_back for step in steps if isinstance(step, Release)} >= {0, 1, 2}
    machines = [len({life.machine for life in history.lives}) for history in histories]
    assert max(machines) > PAST_EPOCHS_MAX + 1, "more lives than are kept"
    assert Counter(machines)[2] > 20, "a store moves to another machine"


# --- planted: each must be found ------------------------------------------------------------------


class _ForgetsJournals(SimDisk):
    """Leaves out the sync of the folder of journals."""

    def sync_directory(self, path: str) -> None:
        """Syncs the others."""
        if path != "journal":
            super().sync_directory(path)


class _ForgetsShelves(SimDisk):
    """Leaves out the sync of the folders of batches."""

    def sync_directory(self, path: str) -> None:
        """Syncs the others."""
        if path.count("/") != 2:
            super().sync_directory(path)


class _ForgetsLanes(SimDisk):
    """Leaves out the sync of the folders above those of batches."""

    def sync_directory(self, path: str) -> None:
        """Syncs the others."""
        if path.count("/") != 1:
            super().sync_directory(path)


@pytest.mark.parametrize("make", [_ForgetsJournals, _ForgetsShelves, _ForgetsLanes])
def test_a_sync_of_a_folder_that_is_left_out_is_found(make: type[SimDisk]) -> None:
    """Row 21, planted: a journal, a batch or its folder may lose its name."""
    assert "acknowledged and lost" in first(make)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: frames are written, and nobody waits for them."""

    def append(self: Journal, data: bytes) -> int:
        offset = self.size
        self._file.write(data, offset)
        self.size = offset + len(data) - len(END)
        return offset

    monkeypatch.setattr(Journal, "append", append)


@pytest.mark.usefixtures("hasty")
def test_an_acknowledgement_before_the_sync_is_found() -> None:
    """Row 2, planted: what was acknowledged is not durable."""
    assert "acknowledged and lost" in first()


def test_unlinking_before_the_cursor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 22, planted: what was released goes before the cursor says so."""
    flush = Releases.flush

    async def hasty(self: Releases) -> None:
        if self._unlink:
            await clear(self._disk, self._worker, list(self._unlink), self._unlink)
            await flush(self)

    monkeypatch.setattr(Releases, "flush", hasty)
    assert "nothing was damaged" in first()


def test_a_reclaim_that_does_not_shrink_the_cursor_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 35, planted: what a holder has lost is pending, and released again after a restart."""
    to_say = Releases._to_say

    def forgetful(self: Releases) -> dict[str, Ranges]:
        said = to_say(self)
        for key, numbers in self._cursor.released.items():
            said[key] = said.get(key, Ranges()) | numbers
        return said

    monkeypatch.setattr(Releases, "_to_say", forgetful)
    found = first()
    assert "released without a receipt" in found or "acknowledged and lost" in found


def test_a_cursor_that_shrinks_before_a_loss_is_stated_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 35, planted: what is there no more is neither released nor forgotten at a crash."""
    note_loss = Releases.note_loss

    def hasty(
        self: Releases, epoch: Epoch, lane: Lane, holder: str, back: Ranges, gone: Ranges
    ) -> None:
        note_loss(self, epoch, lane, holder, back, gone)
        self._withheld.clear()

    monkeypatch.setattr(Releases, "note_loss", hasty)
    found = first()
    assert "nothing was damaged" in found or "acknowledged and lost" in found


def test_a_loss_that_nobody_states_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 35, planted: what is there no more leaves the cursor without a word."""
    monkeypatch.setattr(Losses, "note_forgotten", lambda *_: None)
    assert "nowhere" in first()


def test_a_number_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: numbering goes on at the last durable record, not at the reservation."""
    monkeypatch.setattr(recovery, "_reserved", lambda *_: 0)
    monkeypatch.setattr(recovery, "_head_lost", lambda *_, **__: False)
    found = first()
    assert "was handed out already" in found or "was handed out twice" in found


def test_giving_up_before_it_is_stated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what does not fit is unlinked while no durable header says so."""
    evict = Chores._evict

    async def hasty(self: Chores) -> None:
        rotate, self._pump.rotate = self._pump.rotate, lambda: None  # type: ignore[method-assign]
        try:
            await evict(self)
        finally:
            self._pump.rotate = rotate  # type: ignore[method-assign]

    monkeypatch.setattr(Chores, "_evict", hasty)
    found = first()
    assert "acknowledged and lost" in found or "is called so" in found


def test_an_old_life_that_goes_before_the_new_one_is_stated_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 25, planted: the old journals are unlinked before ``STORE`` says where they ended."""
    write = store.write

    def hasty(disk: Disk, identity: StoreIdentity) -> None:
        for number in journal.numbers(disk):
            header = journal.read_header(disk, number)
            if header is not None and header.epoch != identity.epoch:
                disk.unlink(journal.journal_path(number))
        write(disk, identity)

    monkeypatch.setattr(store, "write", hasty)
    first()


def test_an_old_life_that_is_not_sealed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 25, planted: what was fresh when a life ended goes with its journals."""
    nothing = SealedJournal(dict.fromkeys(Lane, ()), dict.fromkeys(Lane, ()))
    monkeypatch.setattr(epochs.sealing, "seal", lambda *_: nothing)
    found = first()
    assert "unaccounted" in found or "acknowledged and lost" in found


def test_statements_that_begin_anew_with_a_life_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a receiver takes an old statement of a past epoch for the newest one."""
    monkeypatch.setattr(epochs, "_told_to", lambda life, *_: life)
    found = first()
    assert "two statements are" in found or "the account says" in found


def test_an_age_that_a_clock_step_makes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 30, planted: the wall clock is believed, whoever set it."""

    def credulous(journals: Sequence[JournalContent], now: Instant, boot: bytes) -> int:
        return running_offset_ns(journals, now, boot) + max(0, now.wall_ns - START_WALL_NS)

    monkeypatch.setattr(spool, "running_offset_ns", credulous)
    assert "too young to be given up" in first()


def test_a_lane_that_refuses_and_yet_gives_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: all lanes yield when the spool is full."""
    monkeypatch.setattr(retention, "_yielding", lambda _: list(Lane))
    assert "alarms refuses when it is full, and gave up" in first()


@pytest.mark.usefixtures("hasty")
def test_a_violation_says_where() -> None:
    """Seed, cut, operation and image are told, so that it can be replayed."""
    found = next(one for one in violations() if one.state is not None)
    assert str(found).startswith(f"seed {found.seed}, power cut before change ")
    assert f"in {found.state.operation}, image {found.state.image}: {found.what}" in str(found)
    assert found in explore(found.seed).outcome.found, "and again"


# --- the command ----------------------------------------------------------------------------------


def _run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(crash)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout


def test_the_sum_is_one_json_object() -> None:
    """``--json``: states, seeds, violations, and states by operation."""
    code, said = _run("--seeds", "3", "--first", "2", "--jobs", "1", "--json")
    total = orjson.loads(said)
    assert (code, total["seeds"], total["violations"], total["found"]) == (0, 3, 0, [])
    assert total["by_operation"].keys() == {str(name) for name in Operation}
    assert sum(total["by_operation"].values()) == total["states"] > 0


def test_a_seed_is_replayed_call_by_call() -> None:
    """``--seed``: what was drawn, each change of the disk, where it was cut, and the verdict."""
    code, said = _run("--seed", "1")
    assert code == 0
    assert "seed 1: Bounds(" in said
    assert "append       write journal/0000000000000001" in said
    assert "-- cut in " in said
    assert "1 seeds, 0 violations" in said


@pytest.mark.usefixtures("hasty")
def test_a_lie_is_a_failure() -> None:
    """Exit code 1 and the violation, for a person and as JSON."""
    found = next(violations())
    code, said = _run("--seed", str(found.seed))
    assert (code, f"violation: {found}" in said) == (1, True)
    code, said = _run("--seed", str(found.seed), "--json")
    assert (code, str(found) in orjson.loads(said)["found"]) == (1, True)


@pytest.mark.integration
def test_python_m_simulator_has_the_command(tmp_path: Path) -> None:
    """The package is a command, with processes of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "simulator", "crash", "--seeds", "2", "--jobs", "2", "--json"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert orjson.loads(ended.stdout)["seeds"] == 2
