"""The plant: readings that follow from the seed, and faults whose truth is known."""

import json
import math
from collections import defaultdict
from itertools import islice

import numpy as np
import pytest

from simulator.plant import FAULTS, FIELDS, Plant, PlantReading


def take(plant: Plant, count: int) -> list[PlantReading]:
    """The first readings of a plant."""
    return list(islice(plant.readings(), count))


def test_same_seed_same_readings() -> None:
    """The same seed gives the same readings, each time they are asked for; another seed others."""
    plant = Plant(seed=3, rate=5.0, start_ns=10)
    assert (
        take(plant, 3000) == take(plant, 3000) == take(Plant(seed=3, rate=5.0, start_ns=10), 3000)
    )
    assert take(plant, 10) != take(Plant(seed=4, rate=5.0, start_ns=10), 10)


def test_pump_does_not_depend_on_its_neighbours() -> None:
    """A pump says the same whichever pumps stand beside it."""
    alone = take(Plant(seed=3, pumps=["pump-2"]), 1500)
    among = take(Plant(seed=3, pumps=["pump-1", "pump-2", "pump-3"]), 4500)[1::3]
    assert [(r.at_ns, r.fields, r.fault) for r in alone] == [
        (r.at_ns, r.fields, r.fault) for r in among
    ]


def test_pumps_differ() -> None:
    """No two pumps run alike, and their faults come at different times."""
    plant = Plant(seed=3, pumps=["a", "b"])
    one, two = take(plant, 2)
    assert not set(one.fields.values()) & set(two.fields.values())
    assert next(plant.faults("a")).start_ns != next(plant.faults("b")).start_ns


def test_numbers_times_and_topics() -> None:
    """Readings are numbered without a gap, taken at the rate, and tell their pump by the topic."""
    readings = take(Plant(seed=0, pumps=["a", "b"], rate=4.0, start_ns=1_000), 2400)
    assert [r.number for r in readings] == list(range(2400))
    assert [r.at_ns for r in readings] == [1_000 + (n // 2) * 250_000_000 for n in range(2400)]
    assert [r.topic for r in readings[:3]] == [
        "plant/a/telemetry",
        "plant/b/telemetry",
        "plant/a/telemetry",
    ]


def test_payload_is_the_reading_without_its_truth() -> None:
    """The JSON holds time in milliseconds, number and all fields, and nothing about faults."""
    reading = take(Plant(seed=1, start_ns=1_700_000_000_123_456_789), 2)[1]
    assert json.loads(reading.payload()) == {
        "t": 1_700_000_000_123,
        "n": 1,
        **reading.fields,
    }
    assert tuple(reading.fields) == FIELDS


def test_every_fault_is_labelled_from_its_start_to_its_end() -> None:
    """A reading names a fault exactly where the schedule has one; all kinds occur."""
    plant = Plant(seed=5, pumps=["a", "b"], rate=2.0, quiet_seconds=50, fault_seconds=20)
    readings = take(plant, 20_000)
    for pump in plant.pumps:
        mine = [r for r in readings if r.topic == f"plant/{pump}/telemetry"]
        faults = iter(plant.faults(pump))
        fault = next(faults)
        for reading in mine:
            while reading.at_ns >= fault.end_ns:
                fault = next(faults)
            expected = fault.kind if fault.start_ns <= reading.at_ns else None
            assert reading.fault == expected
    assert {r.fault for r in readings} == {None, *FAULTS}


def test_faults_show_in_the_sensors_they_belong_to() -> None:
    """Fully grown, a fault moves its sensors far beyond normal running, and a stuck one rests."""
    plant = Plant(seed=5, pumps=["a"], rate=2.0, quiet_seconds=100, fault_seconds=60)
    readings = take(plant, 30_000)
    normal = np.array([list(r.fields.values()) for r in readings if r.fault is None])
    mean, spread = normal.mean(axis=0), normal.std(axis=0)
    seen = defaultdict(list)
    for fault in plant.faults("a"):
        if fault.end_ns > readings[-1].at_ns:
            break
        late = (fault.start_ns + fault.end_ns) // 2
        rows = np.array(
            [list(r.fields.values()) for r in readings if late <= r.at_ns < fault.end_ns]
        )
        seen[fault.kind].append((rows.mean(axis=0) - mean) / spread)
        if fault.field is not None:
            assert set(rows[:, FIELDS.index(fault.field)]) == {fault.stuck_at}
    moves = {kind: np.min(shift, axis=0) for kind, shift in seen.items() if kind != "sensor_stuck"}
    assert moves["cavitation"][0] > 10
    assert moves["bearing_wear"][0] > 10
    assert moves["valve_closing"][FIELDS.index("pressure")] > 3
    assert np.max(seen["valve_closing"], axis=0)[FIELDS.index("flow_rate")] < -8


def test_normal_running_drifts_and_its_sensors_move_together() -> None:
    """Without faults flow and current follow the load, and the mean of a minute wanders."""
    plant = Plant(seed=2, pumps=["a"], quiet_seconds=math.inf)
    readings = take(plant, 7200)
    assert {r.fault for r in readings} == {None}
    assert not list(plant.faults("a"))
    rows = np.array([list(r.fields.values()) for r in readings])
    flow, current = rows[:, FIELDS.index("flow_rate")], rows[:, FIELDS.index("current")]
    assert np.corrcoef(flow, current)[0, 1] > 0.3
    minutes = flow.reshape(-1, 60)
    assert np.ptp(minutes.mean(axis=1)) > 3 * minutes.std(axis=1).mean() / math.sqrt(60)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pumps": []},
        {"pumps": ["a", "a"]},
        {"rate": 0.0},
        {"rate": math.nan},
        {"quiet_seconds": 0.0},
        {"fault_seconds": -1.0},
    ],
)
def test_impossible_plants_are_refused(wrong: dict[str, object]) -> None:
    """A plant without pumps, with a pump twice, or without time or rate, is refused at once."""
    with pytest.raises(ValueError, match=r"must be above 0|distinct names"):
        Plant(seed=0, **wrong)  # type: ignore[arg-type]
