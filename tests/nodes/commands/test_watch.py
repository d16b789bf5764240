"""``holdfast watch``.

What others publish is shown, and can neither end it nor reach the terminal.
"""

import json

import pytest

from nodes.commands.watch import _told

TOPIC = "mesh/v1/demo/edge-1/decision/pump"
DECISION = {
    "name": "pump",
    "topic": "plant/pump-1/telemetry",
    "verdict": "normal",
    "confidence": 0.97,
    "values": {"t2_ratio": 0.25},
    "reasons": [],
    "replay": False,
    "decided_at": 1_795_452_511_467,
}


def test_a_decision_is_one_line() -> None:
    """Time, rule, topic, verdict, confidence, values."""
    line = _told(TOPIC, json.dumps(DECISION).encode())
    assert line == (
        "2026-11-23T16:48:31.467Z  pump  plant/pump-1/telemetry  normal 97%  t2_ratio=0.25"
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"nope",
        b"",
        b"[]",
        b"3",
        b'{"verdict": 1}',
        json.dumps({**DECISION, "confidence": "high"}).encode(),
        json.dumps({**DECISION, "decided_at": 1e300}).encode(),
        json.dumps({**DECISION, "values": {"a": "b"}}).encode(),
    ],
)
def test_a_message_that_is_no_decision_is_said_to_be_unreadable(payload: bytes) -> None:
    """Anybody may publish anything there; the next message is still shown."""
    assert _told(TOPIC, payload) == f"unreadable message of {len(payload)} bytes on {TOPIC}"


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A verdict with an escape sequence is shown as text (refusal 36)."""
    line = _told(TOPIC, json.dumps({**DECISION, "verdict": "\x1b[31mred\x07\r\n"}).encode())
    assert line.isprintable()
    assert "\\x1b[31mred\\x07\\r\\n" in line
