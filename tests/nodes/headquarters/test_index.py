"""The ledgers that an archive's files tell of."""

from mesh.transfer import ledger
from nodes.headquarters.index import FileIndex, ledgers
from schemas.messages import Account, Epoch, Explained, Lane, Stage
from schemas.ranges import Ranges
from schemas.stored import PartitionLedger

FIRST, LATER = Epoch(1, 5), Epoch(2, 6)
KEY = ("hall", "pump", FIRST, Lane.EVENTS)


def test_what_a_later_life_states_releases_nothing_in_a_ledger_made_anew() -> None:
    """Made from the archive, a ledger tells who stated what, as the one before it did."""
    gone = {Explained.FORGOTTEN: Ranges(((0, 5),))}
    account = Account(0, 0, Lane.EVENTS, FIRST, 1, 8, gone)
    index = {KEY: FileIndex(Ranges(((5, 8),)), {})}
    own, later = (ledgers(index, [("hall", "pump", epoch, account)])[0] for epoch in (FIRST, LATER))
    partition = PartitionLedger("hq", Epoch(1, 1))
    assert ledger.receipt(partition, own, 1, Stage.ARCHIVED).watermark == 8
    assert ledger.receipt(partition, later, 1, Stage.ARCHIVED).watermark == 0
    assert not ledger.account_line(later).missing
