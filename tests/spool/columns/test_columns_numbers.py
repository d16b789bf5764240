"""The parts of columns: varints, chunks, decimals, series. All exact, all bounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.spool.columns import chunks, decimals, series
from mesh.spool.columns.chunks import HEAD, Reader
from mesh.spool.columns.decimals import Fixed, Ranks
from mesh.spool.columns.varints import Source, signed, unsigned
from schemas.errors import Refused, RefusedBecause
from tests.spool.columns.numbers import BITS

_INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 2**64 - 1), _INT64)
def test_varints_come_back(one: int, two: int) -> None:
    """Any 64 bits, with and without a sign; nothing is left."""
    source = Source(unsigned(one) + signed(two))
    assert (source.unsigned(), source.signed()) == (one, two)
    source.finish()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 10, b"\xff" * 9 + b"\x02"])
def test_a_varint_that_is_none_is_refused(data: bytes) -> None:
    """Cut short, or of more than 64 bits."""
    with pytest.raises(Refused):
        Source(data).unsigned()


def test_a_source_gives_no_more_than_it_has() -> None:
    """And says when something is left, or a number is above its bound."""
    with pytest.raises(Refused):
        Source(b"ab").take(3)
    with pytest.raises(Refused):
        Source(b"ab").finish()
    with pytest.raises(Refused) as refused:
        Source(b"\x08").unsigned(7)
    assert refused.value.reason is RefusedBecause.TOO_LARGE


def _integers(values: np.ndarray) -> np.ndarray:
    source = Source(chunks.write(values))
    found = Reader(source, HEAD).integers(len(values))
    source.finish()
    return found


@given(
    st.one_of(
        st.lists(_INT64, min_size=1, max_size=100),
        st.lists(st.integers(0, 5).map(lambda n: n * 10**9 + 7), min_size=1, max_size=100),
        st.builds(
            lambda first, step, n: [(first + step * i + 2**63) % 2**64 - 2**63 for i in range(n)],
            _INT64,
            _INT64,
            st.integers(1, 100),
        ),
    )
)
def test_integers_come_back(values: list[int]) -> None:
    """Any: lines, multiples, and such whose differences overflow."""
    words = np.array(values, np.int64).view(np.uint64)
    assert np.array_equal(_integers(words), words)


def test_a_line_costs_its_ends() -> None:
    """Whatever its length; and whole seconds cost the bits of seconds."""
    assert len(chunks.write(np.arange(10**5, dtype=np.uint64) * np.uint64(10**9))) < 16
    seconds = np.cumsum(np.random.default_rng(1).integers(1, 3, 1000)).astype(np.uint64)
    assert len(chunks.write(seconds * np.uint64(10**9))) < len(chunks.write(seconds)) + 10


@given(st.lists(BITS, min_size=1, max_size=200))
def test_a_series_comes_back(bits: list[int]) -> None:
    """To the bit, whatever the way."""
    words = np.array(bits, np.uint64)
    source = Source(series.write(words))
    assert np.array_equal(series.read(source, Reader(source, HEAD), len(words)), words)
    source.finish()


@pytest.mark.parametrize(
    ("values", "way"),
    [
        (np.random.default_rng(1).normal(size=200), 0),
        (np.round(np.random.default_rng(1).normal(50, 10, 200), 3), 1),
        (np.array([float(f"{v:.6g}") for v in np.random.default_rng(1).lognormal(0, 2, 200)]), 2),
        (np.random.default_rng(1).choice(np.random.default_rng(2).normal(size=20), 300), 3),
        (np.append(np.round(np.random.default_rng(1).normal(50, 10, 200), 3), np.nan), 17),
    ],
    ids=["floats", "fixed", "ranks", "choice", "exceptions"],
)
def test_each_way_is_taken_where_it_is_shortest(values: np.ndarray, way: int) -> None:
    """Noise, thermometers, six digits across decades, a valve, a gap in the signal."""
    words = values.view(np.uint64)
    data = series.write(words)
    assert data[0] == way
    source = Source(data)
    assert np.array_equal(series.read(source, Reader(source, HEAD), len(words)), words)


@given(st.lists(st.tuples(st.integers(-999_999, 999_999), st.integers(-12, 12)), min_size=1))
def test_decimals_of_six_digits_all_fit_ranks(parts: list[tuple[int, int]]) -> None:
    """Across any decades and signs, zero included; and ranks have the order of the numbers."""
    values = np.array([float(f"{mantissa}e{power}") for mantissa, power in parts]) + 0.0
    found = decimals.ranks(values)
    assert found is not None
    assert found.fits.all()
    assert isinstance(found.way, Ranks)
    assert found.way.digits <= 6
    assert np.array_equal(decimals.floats(found.way, found.integers), values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(found.integers.view(np.int64)[order]) >= 0).all()


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.integers(0, 9))
def test_decimals_of_some_places_all_fit_fixed(mantissas: list[int], places: int) -> None:
    """With at most so many places, found without being told."""
    values = np.array([mantissa / 10**places for mantissa in mantissas]) + 0.0
    found = decimals.fixed(values)
    assert found is not None
    assert found.fits.all()
    assert isinstance(found.way, Fixed)
    assert found.way.places <= places
    assert np.array_equal(decimals.floats(found.way, found.integers), values)


@given(st.lists(BITS, min_size=1, max_size=60))
def test_what_is_said_to_fit_fits(bits: list[int]) -> None:
    """To the bit: a NaN or a minus zero is never called a decimal."""
    words = np.array(bits, np.uint64)
    for found in (
        decimals.fixed(words.view(np.float64)),
        decimals.ranks(words.view(np.float64)),
    ):
        if found is not None and found.fits.any():
            back = decimals.floats(found.way, found.integers[found.fits]).view(np.uint64)
            assert np.array_equal(back, words[found.fits])


@given(st.integers(1, 15), st.integers(-400, 400), st.lists(_INT64, min_size=1, max_size=20))
def test_ranks_out_of_bounds_are_refused(digits: int, exponent: int, ranks: list[int]) -> None:
    """Whatever a stranger writes: floats, or a refusal."""
    words = np.array(ranks, np.int64).view(np.uint64)
    try:
        assert len(decimals.floats(Ranks(digits, exponent), words)) == len(ranks)
    except Refused as refused:
        assert refused.reason is RefusedBecause.OUT_OF_RANGE  # noqa: PT017 - either is right


@given(st.binary(max_size=60), st.integers(0, 300))
def test_noise_is_no_series(noise: bytes, count: int) -> None:
    """The only exception is ``Refused``, and what opens has the length that was asked for."""
    source = Source(noise)
    try:
        assert len(series.read(source, Reader(source, HEAD), count)) == count
    except Refused:
        return


@pytest.mark.parametrize("count", [0, 1, 255, 256, 299, 301, 600])
def test_a_chunk_holds_what_its_reader_expects(count: int) -> None:
    """More or fewer numbers than were written are refused, whatever the library makes of it."""
    noise = np.random.default_rng(1).integers(0, 2**40, 300, np.uint64)
    with pytest.raises(Refused):
        Reader(Source(chunks.write(noise)), HEAD).integers(count)
    with pytest.raises(Refused):
        Reader(Source(chunks.write_floats(np.sqrt(np.arange(300.0)))), HEAD).floats(count)


def test_an_exception_beyond_the_column_is_refused() -> None:
    """At the place one behind the last value."""
    one = np.array([7], np.uint64)
    for place, fine in ((4, True), (5, False)):
        where = chunks.write(np.array([place], np.uint64))
        data = b"\x11\x01" + where + chunks.write(one) + b"\0" + chunks.write(one)
        source = Source(data)
        if fine:
            assert series.read(source, Reader(source, HEAD), 5)[4] == 7
            continue
        with pytest.raises(Refused) as refused:
            series.read(source, Reader(source, HEAD), 5)
        assert refused.value.reason is RefusedBecause.OUT_OF_RANGE


@pytest.mark.parametrize("head", [b"", b"\x09\x00", HEAD + b"\0"])
def test_another_pcodec_is_refused(head: bytes) -> None:
    """A format that the library does not know, or more bytes than it reads."""
    with pytest.raises(Refused) as refused:
        Reader(Source(b""), head)
    assert refused.value.reason is RefusedBecause.BAD_VERSION
