"""Parts of batches, and how they come together again."""

from hashlib import sha256
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ports import Part
from mesh.transfer.parts import Assembly, check_part, cut
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Lane


def whole(number: int, size: int, node: str = "pump") -> Part:
    """A batch of random bytes."""
    data = Random(number).randbytes(size)
    return Part("hall", node, Lane.EVENTS, sha256(data).digest(), 0, size, data)


@given(
    size=st.integers(1, 2000),
    sizes=st.lists(st.integers(20, 700), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_parts_of_any_cutting_in_any_order_make_the_batch_once(
    size: int, sizes: list[int], seed: int
) -> None:
    """Whatever cuttings are mixed, repeated and shuffled, what comes out is the batch."""
    batch = whole(seed, size)
    parts = [part for each in sizes for part in cut(batch, each)]
    Random(seed).shuffle(parts)
    assembly = Assembly()
    made = [data for part in parts if (data := assembly.take(part, 0.0)) is not None]
    assert made
    assert set(made) == {batch.payload}


def test_a_whole_batch_passes_through() -> None:
    """Nothing waits where nothing is missing."""
    assembly = Assembly()
    batch = whole(1, 1000)
    assert assembly.take(batch, 0.0) == batch.payload
    assert assembly.held_bytes == 0


def test_batches_of_several_nodes_do_not_mix() -> None:
    """The same digest from another node is another batch."""
    assembly = Assembly()
    here, there = whole(1, 100), whole(1, 100, "valve")
    first, last = cut(here, 50)
    assert assembly.take(first, 0.0) is None
    assert assembly.take(next(cut(there, 50)), 0.0) is None
    assert assembly.take(last, 0.0) == here.payload


def test_what_waits_is_bounded() -> None:
    """Of too much that is incomplete the oldest is forgotten, and counted."""
    assembly = Assembly(bytes_max=BATCH_BYTES_MAX)
    for number in range(10):
        first, _ = cut(whole(number, 200_000), 100_000)
        assembly.take(first, float(number))
    assert assembly.held_bytes <= BATCH_BYTES_MAX
    assert assembly.forgotten == 8
    _, last = cut(whole(9, 200_000), 100_000)
    assert assembly.take(last, 10.0) is not None


def test_what_waits_too_long_is_forgotten() -> None:
    """A batch whose next part does not come goes when another part comes."""
    assembly = Assembly(seconds_max=60.0)
    assembly.take(next(cut(whole(1, 100), 50)), 0.0)
    assembly.take(next(cut(whole(2, 100), 50)), 61.0)
    assert assembly.held_bytes == 50
    assert assembly.forgotten == 1


def test_bytes_that_do_not_have_their_digest_are_refused() -> None:
    """The whole is judged, and nothing of it stays."""
    assembly = Assembly()
    first, last = cut(whole(1, 100), 50)
    assembly.take(first, 0.0)
    with pytest.raises(Refused) as refused:
        assembly.take(last._replace(payload=bytes(50)), 0.0)
    assert refused.value.reason is RefusedBecause.BAD_CHECKSUM
    assert assembly.held_bytes == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": -1}, "out_of_range"),
        ({"offset": 60}, "out_of_range"),
        ({"payload": b""}, "out_of_range"),
        ({"digest": b"short"}, "out_of_range"),
        ({"total": BATCH_BYTES_MAX + 1}, "too_large"),
        ({"total": 2**60}, "too_large"),
    ],
)
def test_a_part_that_cannot_be_is_refused(change: dict[str, object], reason: str) -> None:
    """Offsets, lengths and digests are judged before anything is kept."""
    part = next(cut(whole(1, 100), 50))._replace(**change)  # type: ignore[arg-type]
    with pytest.raises(Refused) as refused:
        check_part(part)
    assert refused.value.reason == reason
