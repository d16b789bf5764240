"""The demonstration end to end.

Real processes, a cut, kills, and an account computed from outside.
"""

import json
from typing import Any

import pytest

from tests.processes import run

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def demonstration(*options: str) -> dict[str, Any]:
    """A short run; its JSON."""
    done = run(
        *("demo", "--json", "--seconds", "12", "--outage", "5", "--rate", "200", "--seed", "3"),
        *options,
        seconds=110,
    )
    assert done.stdout, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if outcome["failures"] else 0)
    return outcome


def check_equation(outcome: dict[str, Any]) -> None:
    """Produced = delivered + pending + explained + unaccounted, for all and for each lane."""
    parts = ("delivered", "pending", "unaccounted")
    total = sum(outcome[part] for part in parts) + outcome["explained"]
    assert outcome["produced"] == total
    for lane in outcome["lanes"].values():
        explained = sum(lane["explained"].values())
        assert lane["produced"] == sum(lane[part] for part in parts) + explained
    assert outcome["unaccounted"] == 0
    assert outcome["pending"] == 0
    assert outcome["archived_twice"] == 0


def test_a_cut_network_loses_nothing_and_stops_no_decision() -> None:
    """Through an outage every identity is accounted for, and each second is decided as before."""
    outcome = demonstration()
    assert outcome["failures"] == []
    check_equation(outcome)
    readings = outcome["decided"] + outcome["refused"] + outcome["waiting"]
    assert readings == outcome["readings"]
    assert outcome["decided_during_outage"] > 0
    assert outcome["lanes"]["decisions"]["delivered"] == outcome["decided"]
    assert 0.95 <= outcome["outage_rate_min"] <= outcome["outage_rate_max"] <= 1.05


def test_a_killed_edge_loses_nothing_that_it_recorded() -> None:
    """SIGKILL in mid-outage: what was published and not recorded is explained.

    What nobody received is said.
    """
    outcome = demonstration("--kill", "edge")
    check_equation(outcome)
    assert outcome["failures"] == []
    assert outcome["not_received"] > 0


def test_a_killed_headquarters_archives_nothing_twice() -> None:
    """SIGKILL during the drain: what comes again is taken once."""
    outcome = demonstration("--kill", "headquarters")
    check_equation(outcome)
    assert outcome["failures"] == []
