"""Accounts: full statements of each lane, made from where it stands. Pure."""

from collections.abc import Callable, Mapping

from mesh.spool.lane import LaneState
from schemas.messages import Account, Epoch, Explained, Instant, Lane
from schemas.ranges import Ranges

__all__ = ["statements"]


def statements(
    now: Instant,
    lives: Mapping[Epoch, Mapping[Lane, LaneState]],
    unrecorded: Epoch,
    holders: Callable[[Epoch, Lane], dict[str, int]],
) -> list[Account]:
    """A statement of each lane that ever had a number, and of what could not be recorded.

    Past epochs come first: what is stated of them is final but for what is given up or damaged.

    The statement about the lane ``account`` counts these very statements as produced. A statement
    takes as its number one more than the number of its own record in the lane ``account``, so it
    goes on rising through crashes, and no receiver takes a newer statement for an old one; of a
    past epoch, what its own life and those since may have reached is added. The
    caller appends them at once.

    Args:
        now: the time that they say.
        lives: where each lane stands, by epoch; the present one last.
        unrecorded: the epoch of what could not be recorded.
        holders: up to where each holder has released a lane.
    """
    present = list(lives)[-1]
    lanes = lives[present]
    told = [
        (epoch, lane)
        for epoch, life in lives.items()
        for lane, state in life.items()
        if state.next_seq and (epoch, lane) != (present, Lane.ACCOUNT)
    ]
    shed = [lane for lane, state in lanes.items() if state.unrecorded]
    accounts = []
    number = lanes[Lane.ACCOUNT].next_seq
    for epoch, lane in (*told, (present, Lane.ACCOUNT)):
        state = lives[epoch][lane]
        number += 1
        if epoch == present:
            state.statement = number
        own = len(told) + 1 + len(shed) if (epoch, lane) == (present, Lane.ACCOUNT) else 0
        accounts.append(
            Account(
                now.wall_ns,
                now.mono_ns,
                lane,
                epoch,
                state.statement if epoch == present else state.statement + number,
                state.next_seq + own,
                dict(state.explained),
                holders(epoch, lane),
            )
        )
    for lane in shed:
        count = lanes[lane].unrecorded
        gone: dict[str, Ranges] = {Explained.SHED: Ranges(((0, count),))}
        number += 1
        accounts.append(Account(now.wall_ns, now.mono_ns, lane, unrecorded, number, count, gone))
    return accounts
