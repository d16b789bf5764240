"""Windows: the same as a plain list of everything that each source said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.edge.window import Windows
from schemas.errors import Refused, RefusedBecause

GROUPS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=150), min_size=1, max_size=6)


@given(readings=st.integers(1, 9), hop=st.integers(1, 12), groups=GROUPS)
def test_windows_are_what_a_plain_history_gives(
    readings: int, hop: int, groups: list[list[int]]
) -> None:
    """Each window, its new inputs and what waits agree with a list of all readings."""
    windows = Windows(readings, 2, hop=hop)
    history: list[list[int]] = [[] for _ in range(4)]
    used: list[set[int]] = [set() for _ in range(4)]
    for _ in range(4):
        windows.add_source()
    number = 0
    for group in groups:
        rows = np.array([[number + i, -(number + i)] for i in range(len(group))], np.float32)
        expected = []
        for place, source in enumerate(group):
            history[source].append(number + place)
            count = len(history[source])
            if count >= readings and (count - readings) % hop == 0:
                window = history[source][-readings:]
                expected.append((place, window, len(set(window) - used[source])))
                used[source] |= set(window)
        number += len(group)
        due = windows.push(group, rows)
        assert list(due.places) == [place for place, _, _ in expected]
        assert due.batch.shape == (len(expected), readings, 2)
        assert due.batch[:, :, 0].tolist() == [window for _, window, _ in expected]
        assert list(due.inputs) == [new for _, _, new in expected]
        assert due.batch.flags.c_contiguous
    all_used = sum(map(len, used))
    assert windows.waiting + windows.skipped + all_used == number
    assert windows.waiting == sum(windows.waiting_of(source) for source in range(4))


def test_sources_are_bounded() -> None:
    """Beyond its sources a rule refuses, by reason."""
    windows = Windows(3, 2, sources_max=2)
    assert [windows.add_source(), windows.add_source()] == [0, 1]
    with pytest.raises(Refused, match="already 2 sources") as refused:
        windows.add_source()
    assert refused.value.reason is RefusedBecause.FULL


def test_large_windows_allow_fewer_sources() -> None:
    """The rings of all sources together stay below 256 MiB."""
    windows = Windows(4096, 256)
    assert windows.sources_max == 63


def test_restart_forgets_and_says_what_waited() -> None:
    """After a restart a window fills from nothing, and what waited is said."""
    windows = Windows(3, 1)
    source = windows.add_source()
    windows.push([source] * 2, np.ones((2, 1), np.float32))
    assert windows.restart(source) == 2
    assert windows.waiting == 0
    due = windows.push([source] * 3, np.full((3, 1), 7, np.float32))
    assert due.batch.tolist() == [[[7], [7], [7]]]
    assert windows.restart(source) == 0
