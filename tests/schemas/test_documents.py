"""What people and PLCs read."""

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given

from schemas.documents import decision_json, record_json, state_json, to_json
from schemas.messages import Account, Decision, Identity, Lane, NodeState
from schemas.ranges import Ranges
from schemas.wire import Message
from tests.schemas.samples import EPOCH, EXAMPLES, messages_of_any_kind


def test_a_decision_says_who_what_when_and_how_long() -> None:
    """Milliseconds, hex, words; values by their labels, and none is invented."""
    decision = EXAMPLES["decision"]
    assert isinstance(decision, Decision)
    said = json.loads(decision_json("hall", Identity("pump", EPOCH, Lane.DECISIONS, 7), decision))
    assert said["identity"] == {
        "node": "pump",
        "epoch": "3-0123456789abcdef",
        "lane": "decisions",
        "seq": 7,
    }
    assert said["decided_at"] == decision.wall_ns // 1_000_000
    assert said["valid_until"] == said["decided_at"] + decision.valid_for_ms
    assert said["values"] == {"score": 1.5}
    assert said["model"]["digest"] == decision.origin.model_digest.hex()
    assert said["trace_id"] == decision.trace.hex()
    assert said["verdict"] == "anomaly"


def test_what_json_cannot_say_becomes_null() -> None:
    """NaN and infinities are not JSON: a PLC's parser must never meet them."""
    decision = EXAMPLES["decision"]
    assert isinstance(decision, Decision)
    odd = replace(decision, values=(math.nan,))
    said = json.loads(decision_json("hall", Identity("pump", EPOCH, Lane.DECISIONS, 7), odd))
    assert said["values"] == {"score": None}


def test_a_state_and_its_will_differ_in_one_word() -> None:
    """The session ties a will to its birth."""
    birth = NodeState("hall", "pump", "00ff", online=True, since_wall_ns=5_000_000, epoch="1-0")
    will = json.loads(state_json(replace(birth, online=False)))
    assert json.loads(state_json(birth)) | {"online": False} == will
    assert will["since"] == 5
    assert set(will) == {"site", "node", "session", "online", "since", "epoch", "details"}
    assert "since_wall_ns" in asdict(birth)


@given(messages_of_any_kind())
def test_any_message_can_be_shown(message: Message) -> None:
    """The archive never fails on a record that was decoded."""
    assert isinstance(json.loads(to_json(message)), dict)


def test_sets_and_epochs_are_said_in_words() -> None:
    """An account as a person reads it."""
    account = EXAMPLES["account"]
    assert isinstance(account, Account)
    said = json.loads(record_json(account))
    assert said["explained"] == {"evicted": "0-3, 6"}
    assert said["epoch"] == str(EPOCH)
    assert said["lane"] == "logs"
    assert json.loads(to_json({"x": Ranges()})) == {"x": "none"}


def test_what_has_no_form_is_our_own_mistake() -> None:
    """And is said so."""
    with pytest.raises(TypeError):
        to_json({"x": object()})
