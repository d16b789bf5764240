"""``holdfast spool``: what it prints, what it ends with, and that it changes nothing."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mesh.spool.journal import END
from mesh.spool.view.inspection import INSPECTED_BYTES_MAX
from nodes.commands.owner import Owner, owner_in, owner_of
from nodes.commands.reported import read_report
from nodes.commands.spool import _since, app
from schemas.limits import BLOCK_BYTES
from schemas.messages import Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.processes import ROOT
from tests.spool.world import CALM, SMALL, opened, play, record

NOBODY = 65_534


def _store(folder: Path, *, rotating: bool = True, close: bool = True) -> Path:
    """A spool with five pending events, of which one has an escape sequence, and a log line."""
    disk = SimDisk()

    async def main(_: random.Random) -> None:
        settings = SMALL if rotating else CALM
        async with opened(disk, settings, maintain=False, close=close) as spool:
            for text in ("released", "one", "two", "three \x1b[31m\r\n", "four", "five"):
                assert await spool.append(Lane.EVENTS, [record(text)]).settled
            while rotating and spool._pump.closed_journals:
                await spool._chores.do()
            assert await spool.append(Lane.LOGS, [record("a log line")]).settled
            spool.release(Lane.EVENTS, Ranges(((0, 1),)), "hq")
            await spool._chores.flush()

    play(main)
    for path, data in disk.contents().items():
        place = folder / "spool" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder / "spool"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _file(store: Path, folder: str) -> Path:
    files = (path for path in (store / folder).rglob("*") if path.is_file())
    return max(path for path in files if not path.name.startswith("spare"))


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def _tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_changes_anything(tmp_path: Path, *, as_json: bool) -> None:
    """No lock, no new file, no byte: every name and every time is what it was."""
    store = _store(tmp_path, close=False)
    before = _tree(tmp_path)
    extra = ["--json"] if as_json else []
    for command in (["status"], ["check"], ["export"], ["export", "--released"]):
        done = _run(*command, "-d", store, *extra)
        assert done.exit_code == 0, done.output
    for path in store.rglob("*"):
        if path.parent.name == "journal" or path.suffix == ".batch":
            assert _run("inspect", path, "--records", *extra).exit_code == 0
    assert _tree(tmp_path) == before


def test_status_tells_each_lane(tmp_path: Path) -> None:
    """A row for each lane; the same numbers as JSON, losses with their ranges."""
    store = _store(tmp_path, close=False)
    text = _run("status", "-d", store).output
    assert all(lane in text for lane in Lane)
    assert "no process owns it" in text
    document = json.loads(_run("status", "-d", store, "--json").output)
    events = document["lanes"]["events"]
    assert (events["pending_records"], events["end"]) == (5, 6)
    assert events["released"] == {"records": 1, "numbers": "0"}
    assert events["holders"] == {"hq": 1}
    assert events["losses"] == {}
    assert list(events["losses_at_next_opening"]) == ["void"]
    assert document["owner"] == {"known": True, "pid": None}
    assert document["goes_first"] == [
        {"lane": "events", "epoch": document["epoch"], "numbers": "1", "bytes": BLOCK_BYTES}
    ]


def test_status_takes_the_quota_from_the_configuration(tmp_path: Path) -> None:
    """With ``--config`` the folder, the quota and the broker to ask are known."""
    _store(tmp_path / "state")
    path = tmp_path / "edge.toml"
    path.write_text(
        f'[node]\nsite = "hall"\nname = "pump"\nstate_directory = "{tmp_path}/state"\n'
        '[spool]\nbytes_max = "64 MiB"\n'
    )
    document = json.loads(_run("status", "-c", path, "--json").output)
    assert document["bytes_max"] == 64 << 20
    assert document["degraded"] is None
    assert "no node runs" in document["degraded_unknown_because"]


def test_check_ends_with_1_and_names_what_is_damaged(tmp_path: Path) -> None:
    """Row 8: the file, the lane, the numbers, and what the node will do."""
    store = _store(tmp_path)
    done = _run("check", "-d", store)
    assert (done.exit_code, done.output.split(":")[0]) == (0, "sound")
    batch = _file(store, "lanes/events")
    _flip(batch, 40)
    done = _run("check", "-d", store)
    assert done.exit_code == 1
    assert str(batch.relative_to(store)) in done.output
    assert "events 4" in done.output
    assert "quarantine" in done.output
    document = json.loads(_run("check", "-d", store, "--json").output)
    assert document["sound"] is False
    assert document["findings"][0]["lost"] == {"events": {"records": 1, "numbers": "4"}}


def test_export_prints_records_as_json_lines(tmp_path: Path) -> None:
    """Identity, lane, number, epoch, time, and the record's own fields; controls are escaped."""
    store = _store(tmp_path)
    done = _run("export", "-d", store, "--lane", "events", "--from", 2, "--to", 4)
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seq"] for line in lines] == [2, 3, 4]
    assert lines[1]["record"]["text"] == "three \x1b[31m\r\n"
    assert "\x1b" not in done.stdout
    assert lines[0]["identity"] == f"pump/{lines[0]['epoch']}/events/2"
    assert (lines[0]["kind"], lines[0]["time"]) == ("event", "1970-01-01T00:00:00.000Z")
    everything = [json.loads(line) for line in _run("export", "-d", store).stdout.splitlines()]
    lanes = [line["lane"] for line in everything if line["lane"] != "account"]
    assert lanes == ["events"] * 5 + ["logs"]
    since = ["--since", "2020-01-01T00:00:00Z", "--lane", "events"]
    assert _run("export", "-d", store, *since).stdout == ""


def test_export_goes_on_past_damage(tmp_path: Path) -> None:
    """Row 10: what cannot be read is told on standard error, the rest follows; it ends with 1."""
    store = _store(tmp_path)
    _flip(_file(store, "lanes/events"), -2)
    done = _run("export", "-d", store, "--lane", "events")
    assert done.exit_code == 1
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == [1, 2, 3, 5]
    assert "events 4" in done.stderr


def test_export_into_a_pipe_that_closes_is_quiet(tmp_path: Path) -> None:
    """``| head`` ends it, without a word."""
    store = _store(tmp_path)
    command = f"{sys.executable} -m nodes spool export -d {store} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["lane"] == "account"


def test_inspect_shows_frames_and_records(tmp_path: Path) -> None:
    """A journal and a batch, as lines and as JSON lines."""
    store = _store(tmp_path)
    batch = _file(store, "lanes/events")
    text = _run("inspect", batch, "--records").output
    assert "batch of" in text
    assert "events     4-4 (1)" in text
    assert '"text":"four"' in text
    lines = [json.loads(line) for line in _run("inspect", batch, "--json").output.splitlines()]
    assert lines[0]["kind"] == "batch"
    assert (lines[1]["first"], lines[1]["last"], lines[1]["wrong"]) == (4, 4, "")
    journal = _file(store, "journal")
    lines = [json.loads(line) for line in _run("inspect", journal, "--json").output.splitlines()]
    assert lines[0]["head"]["number"] == int(journal.name)
    assert lines[-2]["control"]["kind"] == "closed"
    assert lines[-1]["kind"] == "unused"


def test_inspect_ends_with_1_for_damage_and_0_for_a_torn_tail(tmp_path: Path) -> None:
    """Rows 4, 8: what a crash leaves at the end is in good order; a frame that changed is not."""
    store = _store(tmp_path, rotating=False)
    journal = _file(store, "journal")
    whole = journal.read_bytes()
    journal.write_bytes(whole.removesuffix(END) + b"HFfr torn")
    done = _run("inspect", journal)
    assert done.exit_code == 0
    assert "no whole frame header" in done.output
    journal.write_bytes(whole.replace(b"three", b"seven"))
    done = _run("inspect", journal)
    assert done.exit_code == 1
    assert "lost: 3" in done.output


def test_what_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    """A clear message: too large, another program's, not there."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(INSPECTED_BYTES_MAX + 1)
    done = _run("inspect", large)
    assert done.exit_code == 1
    assert str(INSPECTED_BYTES_MAX) in done.stderr
    other = tmp_path / "other"
    other.write_bytes(b"SQLite format 3")
    done = _run("inspect", other)
    assert done.exit_code == 1
    assert "neither a journal nor a batch" in done.stderr
    assert _run("inspect", tmp_path / "nowhere").exit_code == 2


def test_what_a_person_gets_wrong(tmp_path: Path) -> None:
    """No folder or two: usage. No spool there: configuration, and nothing is made."""
    assert _run("status").exit_code == 2
    assert _run("check", "-d", tmp_path, "-c", tmp_path / "x").exit_code == 2
    assert _run("export", "-d", tmp_path, "--since", "yesterday").exit_code == 2
    for command in ("status", "check", "export"):
        done = _run(command, "-d", tmp_path / "nowhere")
        assert done.exit_code == 78
        assert str(tmp_path / "nowhere") in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_another_user_reads_where_he_may_and_is_told_where_not(
    tmp_path: Path, command: str
) -> None:
    """With permission to read and nothing else all is told; without it 77 names the file."""
    store = _store(tmp_path)
    place = [str(_file(store, "journal"))] if command == "inspect" else ["-d", str(store)]
    arguments = [sys.executable, "-m", "nodes", "spool", command, *place]
    if os.geteuid() == 0:
        # Root without its capabilities is an ordinary user who owns none of these files.
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed, and root may read everything")
        arguments = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *arguments]
        for path in (store, *store.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    for path in (store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (store / "journal").chmod(0)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    store.chmod(0o700)
    (store / "journal").chmod(0o700)
    assert done.returncode == 77, done.stderr
    assert str(store / "journal") in done.stderr
    assert "node's user" in done.stderr


LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  READ 12 fe:00:77 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF
4: FLOCK  ADVISORY  WRITE 15 fe:01:78 0 EOF
"""


@pytest.mark.parametrize(
    ("device", "inode", "noted", "owner"),
    [
        ((0xFE, 0), 77, None, 13),
        ((0xFE, 1), 78, None, 15),
        ((0xFE, 0), 78, None, None),
        ((0xFE, 0), 78, 15, 15),
        ((0xFE, 0), 79, 15, None),
    ],
    ids=["holder", "other device", "same inode elsewhere", "overlay", "free"],
)
def test_the_owner_is_who_holds_the_lock(
    device: tuple[int, int], inode: int, noted: int | None, owner: int | None
) -> None:
    """Row 26: an exclusive flock, held and not waited for, on this very file."""
    assert owner_in(LOCKS, device, inode, noted) == owner


def test_a_lock_that_is_held_is_seen_without_being_touched(tmp_path: Path) -> None:
    """Row 26: as the kernel lists it; the pid that the file names is not believed alone."""
    (tmp_path / "LOCK").write_text("4711\n")
    assert owner_of(tmp_path) == Owner(known=True)
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'r+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "LOCK")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert owner_of(tmp_path) == Owner(known=True, pid=holder.pid)
        assert holder.stdin is not None
        holder.stdin.close()
    assert owner_of(tmp_path) == Owner(known=True)


def _health(**spool: object) -> bytes:
    return json.dumps({"at": 100_000, "spool": {"degraded": "", "lanes": {}, **spool}}).encode()


@pytest.mark.parametrize(
    ("payload", "now_ms", "told"),
    [
        (_health(), 101_000, "no"),
        (_health(degraded="disk full"), 101_000, "yes: disk full"),
        (_health(), 900_000, "not known: the node has said nothing for 800 s"),
        (_health(degraded=3), 101_000, "not known: the node's health is not readable"),
        (b"{}", 0, "not known: the node's health is not readable"),
        (b"[1]", 0, "not known: the node's health is not readable"),
        (b"\xff", 0, "not known: the node's health is not readable"),
    ],
)
def test_what_a_node_says_of_itself_is_told_as_long_as_it_is_fresh(
    payload: bytes, now_ms: int, told: str
) -> None:
    """Anybody may publish anything there, and a retained document outlives its node."""
    assert str(read_report(payload, now_ms, 10)).startswith(told)


def test_a_moment_is_rfc_3339_or_a_time_ago() -> None:
    """Both say UTC where nothing else is said."""
    assert _since("2026-11-23T16:00:00Z") == _since("2026-11-23T16:00:00") == 1_795_449_600 * 10**9
    assert _since("2026-11-23T17:00:00+01:00") == 1_795_449_600 * 10**9
    hour, day = _since("1h"), _since("1d")
    assert hour is not None
    assert day is not None
    assert 22.9 * 3600e9 < hour - day < 23.1 * 3600e9
