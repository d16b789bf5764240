"""Entries: what does not verify is found, whatever it is, and the next one that does is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.transfer.custody.entry import (
    ENTRY_HEAD_BYTES,
    Broken,
    Draft,
    Entry,
    Kind,
    is_of_another_version,
    pack,
    parse_head,
    scan,
)
from schemas.errors import Damaged
from schemas.messages import Instant

STORE = b"S" * 16
AT = Instant(7, 0)

_drafts = st.lists(st.builds(Draft, st.sampled_from(Kind), st.binary(max_size=40)), max_size=6)


def _written(drafts: list[Draft], journal: int = 3, store: bytes = STORE) -> bytes:
    data = b""
    for draft in drafts:
        data += pack(store, journal, len(data), draft, AT) + draft.body
    return data


def _read(data: bytes) -> list[Draft | None]:
    return [
        None if isinstance(item, Broken) else Draft(item[0].kind, item[1])
        for item in scan(data, STORE, 3)
    ]


@given(_drafts, st.integers(0, 64))
def test_what_was_written_is_read(drafts: list[Draft], zeros: int) -> None:
    """In order, each with its kind; zeros behind the last one are its end."""
    assert _read(_written(drafts) + bytes(zeros)) == drafts


@given(_drafts.filter(bool), st.data())
def test_no_flipped_bit_passes(drafts: list[Draft], data: st.DataObject) -> None:
    """Row 8: what is read is a part of what was written, in order, and the damage is told."""
    written = bytearray(_written(drafts))
    bit = data.draw(st.integers(0, 8 * len(written) - 1))
    written[bit // 8] ^= 1 << bit % 8
    found = _read(bytes(written))
    assert None in found
    whole = [item for item in found if item is not None]
    assert len(whole) == len(drafts) - 1
    rest = iter(drafts)
    assert all(item in rest for item in whole), "in their order"


@given(_drafts, st.data())
def test_a_cut_takes_what_is_behind_it(drafts: list[Draft], data: st.DataObject) -> None:
    """Row 4: at any byte."""
    written = _written(drafts)
    end = data.draw(st.integers(0, len(written)))
    whole = [item for item in _read(written[:end]) if item is not None]
    assert whole == drafts[: len(whole)]
    assert sum(ENTRY_HEAD_BYTES + len(item.body) for item in whole) <= end


@given(_drafts.filter(bool))
def test_an_entry_of_another_place_is_none(drafts: list[Draft]) -> None:
    """Rows 7 and 11: of another journal, another store, or moved within its file."""
    assert not any(_read(_written(drafts, journal=4)))
    assert not any(_read(_written(drafts, store=b"T" * 16)))
    assert not any(_read(b"\1" + _written(drafts)))


def test_a_later_version_is_told_from_damage() -> None:
    """Row 48: a whole head of another version is no damage, and no entry."""
    head = bytearray(pack(STORE, 3, 0, Draft(Kind.HEAD, b""), AT))
    assert not is_of_another_version(bytes(head))
    head[4] = 2
    assert not is_of_another_version(bytes(head)), "its checksum does not hold"
    import zlib  # noqa: PLC0415

    later = bytes(head[:60]) + zlib.crc32(bytes(head[:60])).to_bytes(4, "little")
    assert is_of_another_version(later)
    with pytest.raises(Damaged, match="version 2"):
        parse_head(later)


def test_a_head_says_where_it_stands() -> None:
    """Offsets, lengths, time."""
    entry = parse_head(pack(STORE, 3, 128, Draft(Kind.BATCH, b"body"), AT))
    assert isinstance(entry, Entry)
    assert (entry.offset, entry.body_offset, entry.end) == (128, 192, 196)
    assert (entry.journal, entry.at, entry.store) == (3, AT, STORE)
    assert entry.verifies(b"body")
    assert not entry.verifies(b"bodx")
