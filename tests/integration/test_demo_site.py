"""The demonstration of a site end to end: everything is killed, and nothing is lost or doubled."""

import json

import pytest

from simulator.demo.site.configurations import EDGES
from simulator.demo.site.script import CommitStep
from tests.processes import run

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.timeout(240)
def test_a_site_whose_every_part_is_killed_accounts_for_every_record() -> None:
    """Row 39: a cut; a leader, a gateway in a handover, a worker after each step are killed."""
    done = run(
        *("demo", "--topology", "site", "--json", "--seed", "3"),
        *("--seconds", "16", "--outage", "4", "--rate", "60"),
        seconds=230,
    )
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["failures"] == []
    assert done.returncode == 0
    assert outcome["unaccounted"] == outcome["pending"] == outcome["archived_twice"] == 0
    parts = ("delivered", "explained", "pending", "unaccounted")
    assert outcome["produced"] == sum(outcome[part] for part in parts)
    assert outcome["lanes"]["decisions"]["delivered"] == outcome["decided"]
    assert outcome["died_after"] == [str(step) for step in CommitStep]
    told = " ".join(each["what"] for each in outcome["happened"])
    assert "the leader of the stream" in told
    assert "had just come in" in told
    assert set(outcome["edges"]) == set(EDGES)
    for edge in outcome["edges"].values():
        assert edge["decided_during_outage"] > 0
        assert edge["outage_rate_min"] >= 0.95
