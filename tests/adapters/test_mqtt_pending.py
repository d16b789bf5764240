"""What waits for ``accept`` or ``refuse``, against a plain list."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.adapters.mqtt.pending import BatchKey, Pending, PendingBatch
from schemas.limits import INTAKE_BATCHES_MAX

ACK_SECONDS = 10.0
BYTES_MAX = 1000


def key_of(number: int) -> BatchKey:
    """A batch of the hall's pump."""
    return BatchKey("hall", "pump", "events", number.to_bytes(32))


def entry_of(size: int) -> PendingBatch:
    """A batch that came once, with nothing withheld."""
    return PendingBatch(bytes(size), redelivered=False, withheld=None)


class PendingMachine(RuleBasedStateMachine):
    """Batches come, fall due and are settled in any order; time only goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = Pending(ACK_SECONDS, BYTES_MAX)
        self.now = 0.0
        self.sizes: dict[int, int] = {}
        self.due_at: dict[int, float] = {}
        self.handed_out: set[int] = set()

    @rule(number=st.integers(0, 9), size=st.integers(1, 400))
    def come(self, number: int, size: int) -> None:
        """A batch comes; one that is here already is found."""
        found = self.pending.find(key_of(number))
        assert (found is not None) == (number in self.sizes)
        if found is None:
            self.pending.add(key_of(number), entry_of(size))
            self.sizes[number], self.due_at[number] = size, 0.0

    @rule()
    def hand_out(self) -> None:
        """All that is due comes out, marked if it did before, and is due again later."""
        arrivals = self.pending.hand_out(self.now)
        numbers = [int.from_bytes(arrival.token.digest) for arrival in arrivals]  # type: ignore[attr-defined]
        assert sorted(numbers) == sorted(n for n, at in self.due_at.items() if at <= self.now)
        for number, arrival in zip(numbers, arrivals, strict=True):
            assert arrival.redelivered == (number in self.handed_out)
            assert len(arrival.payload) == self.sizes[number]
            self.due_at[number] = self.now + ACK_SECONDS
            self.handed_out.add(number)

    @rule(number=st.integers(0, 9))
    def settle(self, number: int) -> None:
        """A batch goes once; one that is not here is nobody's mistake."""
        gone = self.pending.settle(key_of(number))
        assert (gone is not None) == (number in self.sizes)
        self.sizes.pop(number, None)
        self.due_at.pop(number, None)
        self.handed_out.discard(number)

    @rule(seconds=st.floats(0, 2 * ACK_SECONDS))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.now += seconds

    @invariant()
    def agrees(self) -> None:
        """Bytes, fullness and the next time are those of the list."""
        held = sum(self.sizes.values())
        assert (len(self.pending), self.pending.held_bytes) == (len(self.sizes), held)
        assert self.pending.full == (held >= BYTES_MAX)
        assert self.pending.next_at() == min(self.due_at.values(), default=None)


TestPending = PendingMachine.TestCase
TestPending.settings = settings(max_examples=60, deadline=None)


def test_a_group_is_bounded_and_the_first_come_first() -> None:
    """At most ``INTAKE_BATCHES_MAX`` at once; what fell due again goes before what has just come.

    It has waited longer.
    """
    pending = Pending(ACK_SECONDS, BYTES_MAX)
    numbers = range(INTAKE_BATCHES_MAX + 2)
    for number in numbers:
        pending.add(key_of(number), entry_of(0))
    first = pending.hand_out(0.0)
    rest = pending.hand_out(0.0)
    assert [arrival.token for arrival in [*first, *rest]] == [key_of(n) for n in numbers]
    assert len(first) == INTAKE_BATCHES_MAX
    pending.settle(key_of(0))
    pending.add(key_of(5000), entry_of(0))
    again = pending.hand_out(ACK_SECONDS)
    assert again[0].token == key_of(1)
    assert key_of(5000) not in [arrival.token for arrival in again]


def test_many_small_batches_are_full_too() -> None:
    """The number of entries is bounded, whatever their bytes."""
    pending = Pending(ACK_SECONDS, BYTES_MAX)
    for number in range(4 * INTAKE_BATCHES_MAX):
        assert not pending.full
        pending.add(key_of(number), entry_of(0))
    assert pending.full
