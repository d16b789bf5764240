"""``holdfast links``: what people see of the links of a running node."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from mesh.adapters.system import SystemClock
from nodes.commands.links import links, links_lines, links_table, silence

REPORT: dict[str, Any] = {
    "at": 1_000_000,
    "interval_seconds": 60.0,
    "links": [
        {
            "name": "cable",
            "up": False,
            "reason": "no \x1b[31mroute",
            "since_seconds": 3600.0,
            "connections": 3,
            "sent_bytes": 123456,
            "bytes_per_second": None,
            "bytes_per_second_max": None,
            "bucket_bytes": None,
            "bytes_per_day": None,
            "bytes_today": 5,
            "bytes_left_today": None,
            "opens_in_seconds": 0.0,
            "held_seconds": 0.0,
            "least_lane": None,
            "carries": [],
            "sending": [],
            "sending_batches": 0,
            "waits": {"decisions": "it is down", "logs": "it is down", "events": "other"},
        },
    ],
    "spent": {},
}
UP = {"up": True, "carries": ["alarms"], "sending": ["a", "b"], "sending_batches": 3, "waits": {}}
CONFIG = '[node]\nsite = "s"\nname = "n"\nstate_directory = "state"\n'


def _report(**changes: object) -> dict[str, Any]:
    return {**REPORT, "links": [{**REPORT["links"][0], **changes}]}


def _told(report: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(links_table(report))
    return capture.get() + "\n".join(links_lines(report))


def test_a_link_that_is_down_says_why_and_who_waits() -> None:
    """Lanes that wait for the same reason are told together; nothing reaches the terminal raw."""
    told = _told(REPORT)
    assert "down for 60 min" in told
    assert "\x1b" not in told
    assert "cable: decisions, logs waiting: it is down" in told
    assert "cable: events waiting: other" in told


def test_a_link_that_sends_says_what() -> None:
    """And how many more there are."""
    told = _told(_report(**UP, bytes_left_today=2048, bytes_per_second=100.0))
    assert "cable sends a; b; and 1 more" in told
    assert "2.0 KiB" in told
    assert "up for 60 min" in told


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"opens_in_seconds": 30.0}, "opens in 30 s"),
        ({"opens_in_seconds": None}, "never in its windows"),
        ({"held_seconds": 7.0}, "on trial for 7 s"),
        ({"since_seconds": 1e6}, "for 278 h"),
    ],
)
def test_what_holds_a_link_back_is_told(changes: dict[str, Any], state: str) -> None:
    """A window, or that it came back only now."""
    told = _told(_report(**{**UP, **changes, "sending": [], "sending_batches": 0}))
    assert state in told
    assert "cable: nothing waits" in told


def test_a_node_that_is_silent_is_said_to_be() -> None:
    """No report, an old one, one that is none: each is said, with what to look at."""
    assert silence(REPORT, 1_000_000 + 119_000, "d") == ""
    assert "said nothing for 2 min" in silence(REPORT, 1_000_000 + 121_000, "d")
    assert "no report" in silence(None, 0, "d")
    assert "not readable" in silence({"at": "x"}, 0, "d")
    assert "has ended, 5 s ago" in silence({**REPORT, "running": False}, 1_005_000, "d")


def _node(folder: Path, report: dict[str, Any] | None) -> Path:
    file = folder / "config.toml"
    file.write_text(CONFIG)
    (folder / "state").mkdir()
    if report is not None:
        (folder / "state" / "links.json").write_bytes(orjson.dumps(report))
    return file


def test_the_command_reads_what_the_node_wrote(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """As JSON it is the document itself, and nothing is written beside it."""
    fresh = {**REPORT, "at": SystemClock().now().wall_ns // 10**6}
    file = _node(tmp_path, fresh)
    links(file, json=True)
    assert orjson.loads(capfdbinary.readouterr().out) == fresh
    links(file)
    assert b"cable" in capfdbinary.readouterr().out
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["links.json"]


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (None, "no report of links"),
        (REPORT, "has said nothing"),
        ({"at": 1, "interval_seconds": 1, "links": [{}]}, "not readable"),
        ({"at": 1, "interval_seconds": 1, "links": 3}, "not readable"),
    ],
)
def test_a_command_without_a_running_node_says_try_later(
    tmp_path: Path,
    report: dict[str, Any] | None,
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 75, with what is known."""
    with pytest.raises(SystemExit) as ended:
        links(_node(tmp_path, report))
    assert ended.value.code == 75
    assert problem in capsys.readouterr().err


def test_a_configuration_without_a_node_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 78."""
    file = tmp_path / "config.toml"
    file.write_text("[log]\n")
    with pytest.raises(SystemExit) as ended:
        links(file)
    assert ended.value.code == 78
    assert "[node] is missing" in capsys.readouterr().err
