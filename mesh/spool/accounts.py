"""Accounts: full statements of each lane, made from where it stands. Pure."""

from collections.abc import Callable, Mapping

from mesh.spool.lane import LaneState
from schemas.messages import Account, Epoch, Explained, Instant, Lane
from schemas.ranges import Ranges

__all__ = ["statements"]


def statements(
    now: Instant,
    lanes: Mapping[Lane, LaneState],
    epoch: Epoch,
    unrecorded: Epoch,
    holders: Callable[[Lane], dict[str, int]],
) -> list[Account]:
    """A statement of each lane that ever had a number, and of what could not be recorded.

    The statement about the lane ``account`` counts these very statements as produced. A statement
    takes as its number one more than the number of its own record in the lane ``account``, so it
    goes on rising through crashes, and no receiver takes a newer statement for an old one. The
    caller appends them at once.

    Args:
        now: the time that they say.
        lanes: where each lane stands.
        epoch: the present life.
        unrecorded: the epoch of what could not be recorded.
        holders: up to where each holder has released a lane.
    """
    told = [lane for lane, state in lanes.items() if state.next_seq and lane is not Lane.ACCOUNT]
    shed = [lane for lane, state in lanes.items() if state.unrecorded]
    accounts = []
    number = lanes[Lane.ACCOUNT].next_seq
    for lane in (*told, Lane.ACCOUNT):
        state = lanes[lane]
        number += 1
        state.statement = number
        own = len(told) + 1 + len(shed) if lane is Lane.ACCOUNT else 0
        accounts.append(
            Account(
                now.wall_ns,
                now.mono_ns,
                lane,
                epoch,
                state.statement,
                state.next_seq + own,
                dict(state.explained),
                holders(lane),
            )
        )
    for lane in shed:
        count = lanes[lane].unrecorded
        gone: dict[str, Ranges] = {Explained.SHED: Ranges(((0, count),))}
        number += 1
        accounts.append(Account(now.wall_ns, now.mono_ns, lane, unrecorded, number, count, gone))
    return accounts
