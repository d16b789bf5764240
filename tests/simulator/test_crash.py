"""The search for a crash that makes the spool lie: what it covers, and that it finds lies."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from mesh.spool import recovery
from mesh.spool.chores import Chores
from mesh.spool.journal import Journal
from simulator.crash.command import crash
from simulator.crash.explore import Found, explore
from simulator.crash.history import draw
from simulator.crash.operations import Operation
from simulator.crash.survey import Survey, survey
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
    """Appends, releases of all shapes, faults, full disks; lives that close, are killed, crash."""
    lives = [life for seed in range(100) for life in draw(seed).lives]
    steps = Counter(type(step).__name__ for life in lives for step in life.steps)
    assert steps.keys() == {"Append", "Release", "Rest", "Fail", "Fill"}
    assert {life.ending.value for life in lives} == {"closed", "killed", "crashed"}
    assert len({life.machine for life in lives}) > 1, "a store moves to another machine"


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
        self.size = offset + len(data)
        return offset

    monkeypatch.setattr(Journal, "append", append)


@pytest.mark.usefixtures("hasty")
def test_an_acknowledgement_before_the_sync_is_found() -> None:
    """Row 2, planted: what was acknowledged is not durable."""
    assert "acknowledged and lost" in first()


def test_unlinking_before_the_cursor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 22, planted: what was released goes before the cursor says so."""
    flush = Chores.flush

    async def hasty(self: Chores) -> None:
        await self._clear(list(self._unlink), self._unlink)
        await flush(self)

    monkeypatch.setattr(Chores, "flush", hasty)
    assert "nothing was damaged" in first()


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
    assert "acknowledged and lost" in first()


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
    code, said = _run("--seed", "3")
    assert code == 0
    assert "seed 3: Bounds(" in said
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
