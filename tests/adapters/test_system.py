"""What the real machine does where a simulation can only say what it should."""

import errno
import os
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.adapters import system
from mesh.adapters.system import (
    PLAUSIBLE_WALL_NS,
    SystemClock,
    SystemDisk,
    boot_id,
    disk_failure,
    entropy,
    machine_id,
)
from schemas.errors import DiskFailed, DiskFull, DiskReadOnly, StoreInUse

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def in_a_child(work: Callable[[], None]) -> None:
    """Runs it in a forked process, whose limits and user end with it; any exception fails."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that others left; the child takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        # Nothing of the test runner may run in the child: it says what went wrong, and ends.
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            os.write(write_end, repr(error).encode()[:4096])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as said:
        wrong = said.read().decode()
    os.waitpid(child, 0)
    assert not wrong, wrong


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    """The lock holds between processes, names its holder, and ends with it, even if killed."""
    code = (
        "import sys; from mesh.adapters.system import SystemDisk;"
        "SystemDisk(sys.argv[1]).lock('LOCK'); print('locked', flush=True); sys.stdin.read()"
    )
    disk = SystemDisk(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StoreInUse, match=rf"LOCK is locked by process {holder.pid};"):
            disk.lock("LOCK")
        holder.kill()
        holder.wait()
    disk.lock("LOCK")
    assert (tmp_path / "LOCK").read_text() == f"{os.getpid()}\n"
    disk.unlock("LOCK")


def test_a_file_beyond_its_limit_is_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE cuts a write short and then refuses it (EFBIG): full, and never half counted."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        file = SystemDisk(tmp_path).open("a", "create")
        with pytest.raises(DiskFull, match=r"write .*/a: File too large \(EFBIG\)"):
            file.write(b"x" * 10_000, 0)
        assert file.size() == 6000

    in_a_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_file_system_is_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC in the middle of a write, and at the creation of a file without an inode left."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=4", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        disk = SystemDisk(tmp_path)
        file = disk.open("a", "create")
        with pytest.raises(DiskFull, match="ENOSPC"):
            file.write(b"x" * 100_000, 0)
        assert disk.free_bytes() == 0
        disk.lock("LOCK")
        disk.unlock("LOCK")
        file.truncate(0)
        assert disk.free_bytes() > 0
        disk.open("b", "create").close()
        with pytest.raises(DiskFull, match=r"create .*ENOSPC"):
            disk.open("c", "create")
        file.close()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_folder_without_permission_is_read_only(tmp_path: Path) -> None:
    """An ordinary user without permission is told so, operation by operation."""
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o444)
    tmp_path.chmod(0o555)
    # Another user must be able to come to it.
    temporary = Path(tempfile.gettempdir())
    for folder in tmp_path.parents if os.geteuid() == 0 else ():
        if folder.is_relative_to(temporary) and folder != temporary:
            folder.chmod(0o755)

    def work() -> None:
        if os.geteuid() == 0:
            os.setresuid(NOBODY, NOBODY, NOBODY)
        disk = SystemDisk(tmp_path)
        changes = (
            lambda: disk.open("b", "create"),
            lambda: disk.open("a", "update"),
            lambda: disk.rename("a", "b"),
            lambda: disk.unlink("a"),
            lambda: disk.make_directory("c"),
            lambda: disk.lock("LOCK"),
        )
        for change in changes:
            with pytest.raises(DiskReadOnly, match="EACCES"):
                change()
        assert disk.open("a", "read").read(0, 1) == b"x"

    try:
        in_a_child(work)
    finally:
        tmp_path.chmod(0o700)


def test_no_descriptors_left_is_a_typed_error(tmp_path: Path) -> None:
    """EMFILE is a disk that failed, neither full nor missing; open files go on."""

    def work() -> None:
        disk = SystemDisk(tmp_path)
        file = disk.open("a", "create")
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
        opened = []

        def use_up() -> None:
            opened.extend(disk.open(f"{number}", "create") for number in range(10))

        with pytest.raises(DiskFailed, match="EMFILE") as caught:
            use_up()
        assert type(caught.value) is DiskFailed
        with pytest.raises(DiskFailed, match="EMFILE"):
            disk.sync_directory("")
        file.write(b"x", 0)
        file.sync()

    in_a_child(work)


def test_a_link_to_a_file_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link cannot lead a read or a write out of the root; its target stays."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a").symlink_to(tmp_path / "secret")
    disk = SystemDisk(root)
    for mode in ("read", "update"):
        with pytest.raises(DiskFailed, match="ELOOP"):
            disk.open("a", mode)
    with pytest.raises(FileExistsError):
        disk.open("a", "create")
    with pytest.raises(DiskFailed):
        disk.lock("a")
    with pytest.raises(DiskFailed):
        disk.size("a")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_named_pipe_does_not_hang_the_writer(tmp_path: Path) -> None:
    """What is no regular file is refused at once, never waited for."""
    os.mkfifo(tmp_path / "pipe")
    for mode in ("read", "update"):
        with pytest.raises(DiskFailed):
            SystemDisk(tmp_path).open("pipe", mode)


def test_a_short_write_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little the system takes and gives at once, all bytes arrive, in their places."""
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:7], at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 5), at))
    content = random.Random(0).randbytes(1000)
    file = SystemDisk(tmp_path).open("a", "create")
    file.write(content, 3)
    assert (tmp_path / "a").read_bytes() == bytes(3) + content
    assert file.read(3, 5000) == content
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(DiskFailed, match="nothing taken"):
        file.write(content, 0)
    file.close()


def test_a_file_never_syncs_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is not asked a second time, because its answer would prove nothing."""
    asked = []

    def fdatasync(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    file = SystemDisk(tmp_path).open("a", "create")
    with pytest.raises(DiskFailed, match=r"sync .*/a: Input/output error \(EIO\)"):
        file.sync()
    with pytest.raises(DiskFailed, match="earlier sync failed"):
        file.sync()
    assert len(asked) == 1
    file.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EROFS, DiskReadOnly),
        (errno.EACCES, DiskReadOnly),
        (errno.EPERM, DiskReadOnly),
        (errno.EIO, DiskFailed),
        (errno.EMFILE, DiskFailed),
        (None, DiskFailed),
    ],
)
def test_each_error_tells_what_to_do(number: int | None, kind: type[DiskFailed]) -> None:
    """Full, read-only or failed: one table, and the message names operation and path."""
    error = OSError("odd") if number is None else OSError(number, os.strerror(number))
    failed = disk_failure(error, "write", "/x/y")
    assert type(failed) is kind
    assert str(failed).startswith("write /x/y: ")


def test_files_are_for_owner_and_group(tmp_path: Path) -> None:
    """Others read nothing of what a node keeps."""
    disk = SystemDisk(tmp_path)
    disk.make_directory("folder")
    disk.open("folder/a", "create").close()
    assert (tmp_path / "folder").stat().st_mode & 0o007 == 0
    assert (tmp_path / "folder" / "a").stat().st_mode & 0o007 == 0


def test_a_root_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A medium that is not mounted must not be replaced by a folder of the same name."""
    disk = SystemDisk(tmp_path / "stick")
    assert disk.list("") == []
    with pytest.raises(DiskFailed):
        disk.open("a", "create")
    with pytest.raises(DiskFailed):
        disk.free_bytes()
    assert not (tmp_path / "stick").exists()
    disk.make_directory("")
    disk.open("a", "create").close()


@pytest.mark.parametrize(
    ("disciplined", "wall_ns", "trusted"),
    [
        (True, PLAUSIBLE_WALL_NS, True),
        (True, PLAUSIBLE_WALL_NS - 1, False),
        (True, 0, False),
        (False, PLAUSIBLE_WALL_NS, False),
    ],
)
def test_the_wall_clock_is_trusted_when_plausible_and_disciplined(
    monkeypatch: pytest.MonkeyPatch, *, disciplined: bool, wall_ns: int, trusted: bool
) -> None:
    """A time before this program was built is wrong; one that nobody vouches for may be."""
    monkeypatch.setattr(system, "_is_disciplined", lambda: disciplined)
    monkeypatch.setattr(system.time, "time_ns", lambda: wall_ns)
    assert SystemClock().now().trusted == trusted


@pytest.mark.parametrize(
    ("answer", "status", "error_us", "disciplined"),
    [
        (0, 0x0, 100, True),
        (5, 0x40, 16_000_000, False),  # never set by NTP since the boot
        (5, 0x40, 2_000, True),  # NTP went away, nobody set the clock since
        (-1, 0x40, 16_000_000, True),  # the kernel does not tell
    ],
)
def test_the_kernel_says_whether_its_clock_was_disciplined(
    monkeypatch: pytest.MonkeyPatch, *, answer: int, status: int, error_us: int, disciplined: bool
) -> None:
    """The flag alone does not make it untrusted: the estimated error tells of what was before."""

    def adjtimex(timex: object) -> int:
        system._TIMEX.pack_into(timex, 0, 0, 0, 0, 0, error_us, status)
        return answer

    monkeypatch.setattr(system, "_adjtimex", adjtimex)
    assert system._is_disciplined() == disciplined


def test_the_kernel_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the clock costs no system call most of the time."""
    asked = []
    mono_ns = 0
    monkeypatch.setattr(system, "_is_disciplined", lambda: bool(asked.append(mono_ns)) or True)
    monkeypatch.setattr(system.time, "monotonic_ns", lambda: mono_ns)
    clock = SystemClock()
    for mono_ns in range(0, 3_000_000_000, 100_000_000):
        assert clock.now().mono_ns == mono_ns
    assert asked == [0, 1_000_000_000, 2_000_000_000]


def test_the_machine_has_an_identity() -> None:
    """Boot and machine have 16 bytes each, the same at each look; entropy differs."""
    assert len(boot_id()) == 16
    assert boot_id() == boot_id()
    assert len(machine_id()) in {0, 16}
    assert machine_id() == machine_id()
    assert len(entropy(32)) == 32
    assert entropy(32) != entropy(32)


def test_the_machine_id_itself_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hashed with the board's serial number; without either there is no identity."""
    found: dict[str, bytes] = {}
    monkeypatch.setattr(
        system,
        "_first_bytes",
        lambda *paths: next((found[path] for path in paths if path in found), b""),
    )
    assert machine_id() == b""
    found["/etc/machine-id"] = b"3d1219c7c4c5404aaa1f6d2a48adfda4"
    alone = machine_id()
    assert bytes.fromhex("3d1219c7c4c5404aaa1f6d2a48adfda4") != alone
    found["/sys/firmware/devicetree/base/serial-number"] = b"100000003d1d1c36"
    assert machine_id() != alone


def test_a_machine_that_has_not_started_has_no_id(tmp_path: Path) -> None:
    """A placeholder, an empty or a missing file is passed over."""
    (tmp_path / "placeholder").write_bytes(b"uninitialized\n")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "good").write_bytes(b"abc\0\n")
    paths = [str(tmp_path / name) for name in ("missing", "placeholder", "empty", "good")]
    assert system._first_bytes(*paths) == b"abc"
    assert system._first_bytes(*paths[:3]) == b""
