"""An edge that records everything, beside a bare paho echo on the same broker, in one run.

Load comes from ``mosquitto_pub -l`` and goes to ``mosquitto_sub -C``, both C programs. The broker
is filled while the measured process stands still; then it runs, with the broker and the sink as its
only neighbours. It must be saturated: its CPU seconds over wall seconds until the last message came
back at least 0.95. ``saturated`` says whether both were; a ratio of processes that were not is
worth nothing. Latency is measured apart, at 2,000 readings a second, by a prober that stamps each
reading and hears what comes back.

At the end the edge is given a headquarters, drains, and the rows of the archive are compared with
the decisions heard.
"""

import contextlib
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import orjson
import typer

from tests.bench import model
from tests.bench.decide.load import flood, latencies
from tests.bench.decide.processes import DECIDED, ECHOED, broker, drain, echo, edge

__all__ = ["main"]

_SATURATED = 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one quality of service showed; medians over rounds."""

    broker: str
    messages: int
    rounds: int
    echo_per_s: float
    decide_per_s: float
    ratio: float
    echo_us_cpu: float
    decide_us_cpu: float
    cpu_ratio: float
    echo_saturation: float
    decide_saturation: float
    saturated: bool
    echo_ms_p50: float
    decide_ms_p50: float
    echo_ms_p99: float
    decide_ms_p99: float
    decisions: int
    archived: int


def main(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    messages: Annotated[
        int, typer.Option(help="in each flood at QoS 0; a third at QoS 1")
    ] = 120_000,
    rounds: Annotated[int, typer.Option(help="floods of each")] = 3,
    broker: Annotated[str, typer.Option(help="nats or mosquitto")] = "nats",
) -> None:
    """Measures an edge against a bare echo, at QoS 0 and 1."""
    outcomes = {}
    for qos in (0, 1):
        # At QoS 1 all of them wait for their turn, and a client has 65,535 packet ids.
        count = messages if qos == 0 else min(messages // 3, 60_000)
        # A broker says at its end what its log says; standard output is for the outcome.
        with (
            tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder,
            contextlib.redirect_stdout(sys.stderr),
        ):
            outcomes[f"qos{qos}"] = asdict(_measure(Path(folder), qos, count, rounds, broker))
    if json:
        sys.stdout.buffer.write(orjson.dumps(outcomes, option=orjson.OPT_INDENT_2) + b"\n")
        return
    for name, outcome in outcomes.items():
        print(f"\n{name}, {outcome['messages']:,} messages, {outcome['rounds']} rounds")
        for key, value in outcome.items():
            print(f"  {key:18} {value:,.3f}" if isinstance(value, float) else f"  {key:18} {value}")


def _measure(root: Path, qos: int, count: int, rounds: int, kind: str) -> Outcome:
    payloads = root / "payloads"
    fields = ", ".join(f'"{name}": {n * 1.25 + 0.0625}' for n, name in enumerate(model.FIELDS))
    payloads.write_text((f"{{{fields}}}\n") * count, encoding="utf-8")
    model.write(root / "bench.onnx")
    with broker(kind, root) as running:
        port = running.port
        with echo(root, port, qos) as (pid, _):
            echoed = [flood(port, pid, payloads, count, qos, ECHOED) for _ in range(rounds)]
            echo_ms = latencies(port, qos, ECHOED)
        with edge(root, port, qos, uplink=None) as (pid, warmed):
            decided = [flood(port, pid, payloads, count, qos, DECIDED) for _ in range(rounds)]
            decide_ms = latencies(port, qos, DECIDED)
        archived = drain(root, port, qos)
    decisions = warmed + count * rounds + len(decide_ms)
    saturation = [min(one.saturation for one in floods) for floods in (echoed, decided)]
    rate = [median(one.per_s for one in floods) for floods in (echoed, decided)]
    cpu = [median(one.us_cpu for one in floods) for floods in (echoed, decided)]
    return Outcome(
        broker=kind,
        messages=count,
        rounds=rounds,
        echo_per_s=round(rate[0]),
        decide_per_s=round(rate[1]),
        ratio=round(rate[1] / rate[0], 3),
        echo_us_cpu=round(cpu[0], 1),
        decide_us_cpu=round(cpu[1], 1),
        cpu_ratio=round(cpu[0] / cpu[1], 3),
        echo_saturation=round(saturation[0], 3),
        decide_saturation=round(saturation[1], 3),
        saturated=min(saturation) >= _SATURATED,
        echo_ms_p50=_quantile(echo_ms, 0.5),
        decide_ms_p50=_quantile(decide_ms, 0.5),
        echo_ms_p99=_quantile(echo_ms, 0.99),
        decide_ms_p99=_quantile(decide_ms, 0.99),
        decisions=decisions,
        archived=archived,
    )


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[int(len(ordered) * share)], 3)
