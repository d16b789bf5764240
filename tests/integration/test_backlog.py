"""A large backlog opens, drains in order to its end, and takes little memory meanwhile."""

from pathlib import Path

import pytest

from tests.bench.backlog.command import measure

pytestmark = [pytest.mark.slow]

BACKLOG_BYTES = 96_000_000
FRAMES = 2000


def test_a_backlog_drains_in_order_in_little_memory(tmp_path: Path) -> None:
    """Rows 1, 29: after a kill a backlog opens at once and drains in order, in bounded memory.

    Every pending record is drained with its chain, and none that was released.
    """
    outcome = measure(tmp_path / "spool", BACKLOG_BYTES, FRAMES)
    assert outcome.backlog_bytes >= BACKLOG_BYTES
    assert outcome.drained_records > 20_000
    assert outcome.open_seconds < 1
    assert outcome.first_append_seconds < 1
    assert outcome.peak_rss_mb < 120
    # Half of the backlog: whoever held all of it would be found out.
    assert outcome.peak_rss_mb - outcome.rss_mb_before < 48
