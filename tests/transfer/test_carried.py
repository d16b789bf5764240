"""What is carried: manifests and receipts prove themselves, names lead nowhere, order is kept."""

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.spool.batch import Batch
from mesh.transfer.carried import (
    CarriedFile,
    Manifest,
    check_batch,
    file_of,
    is_batch_name,
    manifest_name,
    manifest_number,
    node_folder,
    node_of,
    numbers_of,
    read_manifest,
    read_receipt,
    receipt_name,
    sound_files,
    write_manifest,
    write_receipt,
)
from mesh.transfer.room import Room, Sized, Stay, plan, staying
from schemas.errors import Refused, RefusedBecause
from schemas.limits import (
    BATCH_BYTES_MAX,
    CARRIED_FILES_MAX,
    MANIFEST_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    SEQ_MAX,
)
from schemas.messages import Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from tests.nodes.headquarters.world import EPOCH, Sender

RECEIPT = Receipt(
    *("hq", Epoch(3, 9), 7, Stage.ARCHIVED, "hall", "pump", EPOCH, Lane.EVENTS),
    *(12, b"c" * 16, 12, Ranges(((20, 30),))),
)


def batches(count: int = 2) -> list[Batch]:
    """Consecutive batches of three events."""
    sender = Sender()
    return [sender.batch(3) for _ in range(count)]


def manifest(files: tuple[CarriedFile, ...]) -> Manifest:
    """A manifest of the node that sends."""
    return Manifest(
        number=4,
        site="hall",
        node="pump",
        store="53" * 16,
        created_ms=1_767_225_600_000,
        files=files,
    )


def forged(change: dict[str, Any], *, files: int = 1) -> bytes:
    """A manifest whose digest is right, and whose first file says something else."""
    good = write_manifest(manifest(tuple(map(file_of, batches(files)))))
    document = json.loads(good.partition(b"\n")[2])
    document["files"][0] |= change
    body = json.dumps(document).encode()
    return b"holdfast-manifest 1 %b\n" % sha256(body).hexdigest().encode() + body


def refused(data: bytes) -> Refused:
    """Why a manifest is not read."""
    with pytest.raises(Refused) as caught:
        read_manifest(data)
    return caught.value


def test_a_manifest_is_read_as_it_was_written() -> None:
    """All that it says comes back, and all of its files are sound."""
    written = manifest(tuple(map(file_of, batches())))
    found = read_manifest(write_manifest(written))
    assert found == written
    assert sound_files(found) == (list(written.files), [])
    numbers = numbers_of(found.files)
    assert numbers == {(str(EPOCH), Lane.EVENTS): Ranges(((0, 6),))}


@pytest.mark.parametrize("kind", ["manifest", "receipt"])
def test_each_bit_and_each_cut_is_found(kind: str) -> None:
    """Row 43: truncated anywhere, or one bit turned round: refused, never read as another."""
    if kind == "manifest":
        data = write_manifest(manifest((file_of(batches(1)[0]),)))
    else:
        data = write_receipt(RECEIPT)

    def read(changed: bytes) -> object:
        if kind == "manifest":
            return read_manifest(changed)
        return read_receipt(changed, RECEIPT_BYTES_MAX)

    read(data)
    for end in range(len(data)):
        with pytest.raises(Refused):
            read(data[:end])
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            read(bytes(changed))


def test_a_manifest_of_another_version_is_named() -> None:
    """A later program's manifest is refused for that, and for nothing else."""
    data = write_manifest(manifest(()))
    assert refused(data.replace(b"manifest 1 ", b"manifest 2 ", 1)).reason is (
        RefusedBecause.BAD_VERSION
    )
    assert refused(bytes(MANIFEST_BYTES_MAX + 1)).reason is RefusedBecause.TOO_LARGE
    assert refused(b"photograph").reason is RefusedBecause.MALFORMED
    assert refused(write_receipt(RECEIPT)).reason is RefusedBecause.MALFORMED


@pytest.mark.parametrize(
    "change",
    [{"colour": "red"}, {"first": -1}, {"first": "0"}, {"last": SEQ_MAX + 1}, {"lane": "gold"}],
    ids=["unknown key", "below zero", "a text", "beyond", "no lane"],
)
def test_a_manifest_that_says_nonsense_is_refused_whole(change: dict[str, Any]) -> None:
    """A digest proves the bytes; their types and bounds are judged all the same."""
    assert refused(forged(change)).reason is RefusedBecause.MALFORMED


@pytest.mark.parametrize(
    "name",
    [
        *("../events.0-2.0123456789abcdef.batch", "/etc/passwd", "events", "..", "."),
        *("a\\b", "CON", "receipts/x.receipt", "events.0-2.0123456789abcdef.batch"),
    ],
)
def test_a_name_that_is_not_the_files_own_is_refused(name: str) -> None:
    """Refusals 28 and 37: no name leads out of the folder, and a digest fits its name."""
    sound, flaws = sound_files(read_manifest(forged({"name": name}, files=2)))
    assert len(sound) == 1
    assert [flaw.path for flaw in flaws] == [name]
    assert not flaws[0].harmless


def test_a_name_twice_and_one_that_differs_in_letter_case_are_refused() -> None:
    """Refusal 28: FAT has one file for both; the first is taken, the other is named."""
    first = file_of(batches(1)[0])
    shouted = first.model_copy(update={"name": first.name.upper()})
    sound, flaws = sound_files(manifest((first, first, shouted)))
    assert sound == [first]
    assert "twice" in flaws[0].what
    assert "letter case" in flaws[1].what


def test_a_huge_file_is_refused_before_it_is_read() -> None:
    """Refusal 28: nobody allocates what a manifest asks for."""
    sound, flaws = sound_files(read_manifest(forged({"size_bytes": BATCH_BYTES_MAX + 1})))
    assert sound == []
    assert f"at most {BATCH_BYTES_MAX}" in flaws[0].what


def test_a_batch_is_the_one_that_its_manifest_names() -> None:
    """Another batch, another node's, a rotten one: refused; nothing is believed for its name."""
    one, other = batches()
    file = file_of(one)
    assert check_batch("hall", "pump", file, one.data).header == one.header
    for data in (other.data, one.data[:-1], one.data + b"\0", b""):
        with pytest.raises(Refused) as caught:
            check_batch("hall", "pump", file, data)
        assert caught.value.reason is RefusedBecause.BAD_CHECKSUM
    with pytest.raises(Refused) as caught:
        check_batch("hall", "fan", file, one.data)
    assert caught.value.reason is RefusedBecause.FOREIGN
    later = file.model_copy(update={"epoch": "2-0000000000000007"})
    with pytest.raises(Refused) as caught:
        check_batch("hall", "pump", later, one.data)
    assert caught.value.reason is RefusedBecause.FOREIGN


def test_a_receipt_is_read_as_it_was_written() -> None:
    """Canonical bytes behind a digest; named by what is in it."""
    data = write_receipt(RECEIPT)
    assert read_receipt(data, len(data)) == RECEIPT
    assert receipt_name(data, RECEIPT).startswith("events.")
    with pytest.raises(Refused):
        read_receipt(data, len(data) - 1)


@given(st.text(max_size=80))
def test_names_are_known_or_they_are_not(name: str) -> None:
    """What is taken for one of ours is written as we write it."""
    number = manifest_number(name)
    assert number is None or manifest_name(number) == name
    owner = node_of(name)
    assert owner is None or node_folder(*owner) == name
    assert not is_batch_name(name) or name.isascii()


def test_no_name_is_one_that_fat_cannot_hold() -> None:
    """At most 255 characters, one letter case, no colon; and a full folder fits into FAT's."""
    names = [manifest_name(1), receipt_name(write_receipt(RECEIPT), RECEIPT)]
    longest = file_of(batches(1)[0]).model_copy(
        update={"first": SEQ_MAX - 1, "last": SEQ_MAX, "lane": Lane.DECISIONS}
    )
    name = f"{longest.lane}.{longest.first}-{longest.last}.{'f' * 16}.batch"
    assert is_batch_name(name)
    for one in (*names, name, node_folder("s" * 63, "n" * 63)):
        assert len(one) <= 255
        assert one == one.casefold()
        assert not set(one) & set('"*/:<>?\\|')
    entries = 1 + -(-len(name) // 13)
    assert entries * CARRIED_FILES_MAX < 65_536


def test_the_largest_manifest_can_be_written_and_read() -> None:
    """One that cannot would leave a full stick without any."""
    file = file_of(batches(1)[0]).model_copy(
        update={"first": SEQ_MAX, "last": SEQ_MAX, "epoch": str(Epoch(2**64 - 1, 2**64 - 1))}
    )
    file = file.model_copy(update={"name": "n" * 80, "lane": Lane.DECISIONS})
    data = write_manifest(manifest((file,) * CARRIED_FILES_MAX))
    assert len(data) <= MANIFEST_BYTES_MAX
    assert len(read_manifest(data).files) == CARRIED_FILES_MAX


# --- the plan ---------------------------------------------------------------------------------


def piece(lane: Lane, size: int = 100) -> Sized:
    """Something of ten records."""
    return Sized(lane, 10, size)


def test_what_fits_is_taken_in_order() -> None:
    """The first that does not fit ends it: nothing overtakes."""
    waiting = [piece(Lane.ALARMS), piece(Lane.EVENTS, 900), piece(Lane.LOGS, 1)]
    planned = plan(waiting, Room(500, 10_000, 10))
    assert planned.take == (waiting[0],)
    assert [(one.lane, one.why, one.records) for one in planned.stay] == [
        (Lane.EVENTS, Stay.LIMIT, 10),
        (Lane.LOGS, Stay.LIMIT, 10),
    ]


@pytest.mark.parametrize(
    ("room", "why"),
    [
        (Room(250, 10_000, 10), Stay.LIMIT),
        (Room(None, 250, 10), Stay.SPACE),
        (Room(None, 9_000, 10, cluster_bytes=4096), Stay.SPACE),
        (Room(None, 10_000, 2), Stay.FILES),
    ],
)
def test_what_stays_says_why(room: Room, why: Stay) -> None:
    """By what was asked for, by space in whole clusters, by the number of files."""
    planned = plan([piece(Lane.EVENTS)] * 3, room)
    assert len(planned.take) == 2
    assert planned.stay == staying([piece(Lane.EVENTS)], why)


def test_all_is_taken_where_there_is_room_for_all() -> None:
    """Nothing stays, and nothing is said to."""
    planned = plan([piece(Lane.EVENTS)] * 3, Room(300, 300, 3))
    assert (len(planned.take), planned.stay) == (3, ())


@given(
    st.lists(st.tuples(st.sampled_from(Lane), st.integers(1, 5000)), max_size=20),
    st.one_of(st.none(), st.integers(0, 20_000)),
    st.integers(-5, 40_000),
    st.integers(0, 25),
    st.sampled_from([1, 512, 4096]),
)
def test_a_plan_never_exceeds_its_room(
    waiting: list[tuple[Lane, int]], limit: int | None, free: int, files: int, cluster: int
) -> None:
    """A plan is a beginning of what waits, within each bound, and accounts for the rest."""
    pieces = [piece(*one) for one in waiting]
    planned = plan(pieces, Room(limit, free, files, cluster))
    assert list(planned.take) == pieces[: len(planned.take)]
    assert limit is None or sum(one.size_bytes for one in planned.take) <= limit
    assert sum(-(-one.size_bytes // cluster) * cluster for one in planned.take) <= max(0, free)
    assert len(planned.take) <= files
    records = sum(one.records for one in planned.stay)
    assert records + sum(one.records for one in planned.take) == sum(o.records for o in pieces)
