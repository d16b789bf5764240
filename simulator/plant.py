"""A plant of pumps: seeded, plausible readings with faults whose truth is known.

A pump has a load that wanders slowly (a sum of slow waves, so it is a pure function of time) and
drives all of its sensors, noise that sensors share, noise of each sensor's own, and now and then a
fault: cavitation, an inlet valve that closes, a bearing that wears, a sensor that sticks at an end
of its range. Each reading says which fault was active when it was taken: the truth that an alarm
is judged by.

Everything follows from the seed, the name of the pump and the number of the step: the same plant
gives the same readings, and a pump gives the same ones whichever pumps stand beside it. Nothing
here knows the time: the first readings are taken at ``start_ns``, the others follow at the rate.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAULTS", "FIELDS", "Fault", "Plant", "PlantReading"]

FAULTS: Final = ("cavitation", "valve_closing", "bearing_wear", "sensor_stuck")
"""The kinds of fault."""

FIELDS: Final = (
    "accelerometer_1_rms",
    "accelerometer_2_rms",
    "current",
    "pressure",
    "temperature",
    "thermocouple",
    "voltage",
    "flow_rate",
)
"""The sensors of a pump, in order; their units are g, g, A, bar, °C, °C, V, L/min."""

# One column for each of FIELDS, in its unit.
_NOMINAL: Final = np.array([0.027, 0.040, 1.30, 2.40, 72.0, 25.5, 231.0, 32.0])
_RANGE_HIGH: Final = np.array([0.5, 0.5, 5.0, 6.0, 120.0, 60.0, 400.0, 60.0])
_OWN_NOISE: Final = np.array([6e-4, 9e-4, 0.04, 0.03, 0.25, 0.05, 1.2, 0.30])
_LOAD_GAIN: Final = np.array([0.0012, 0.0018, 0.10, 0.12, 1.0, 0.12, -1.0, 1.2])
_AMBIENT_GAIN: Final = np.array([0.0, 0.0, 0.0, 0.0, 1.2, 0.35, 0.0, 0.0])
_SHARED_NOISE: Final = np.array(
    [
        [0.0, 0.0, 0.02, 0.04, 0.0, 0.0, 0.0, 0.30],  # the water
        [5e-4, 7e-4, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0],  # the shaft
        [0.0, 0.0, -0.02, 0.0, 0.0, 0.0, 1.0, 0.0],  # the mains
    ]
)
_STEPS_PER_UNIT: Final = np.array([1e6, 1e6, 1e4, 1e4, 1e3, 1e3, 1e2, 1e2])
# What a fault at its worst adds, as a share of the nominal value; for what share of it it grows.
_FAULT_SHARE: Final = {
    "cavitation": np.array([0.80, 0.60, -0.06, -0.18, 0.0, 0.0, 0.0, -0.12]),
    "valve_closing": np.array([0.10, 0.10, -0.12, 0.25, 0.03, 0.0, 0.0, -0.45]),
    "bearing_wear": np.array([1.20, 0.50, 0.08, 0.0, 0.06, 0.04, 0.0, 0.0]),
}
_FAULT_GROWS: Final = {"cavitation": 0.1, "valve_closing": 0.3, "bearing_wear": 0.5}
_CAVITATION_NOISE: Final = 6.0  # bubbles burst at random: the accelerometers' own noise, times this
_CHUNK_STEPS: Final = 512
_WAVES: Final = 3
_WAVE_SECONDS: Final = (240.0, 2400.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one pump, active in ``start_ns <= at_ns < end_ns``.

    Attributes:
        pump: Which pump has it.
        kind: One of ``FAULTS``.
        start_ns: Its first instant, UTC nanoseconds.
        end_ns: The first instant after it.
        field: The sensor that sticks, or None for the other kinds.
        stuck_at: What that sensor says all the time, in its unit, or None.
    """

    pump: str
    kind: str
    start_ns: int
    end_ns: int
    field: str | None
    stuck_at: float | None


@dataclass(frozen=True, slots=True)
class PlantReading:
    """What all sensors of one pump said at one instant.

    Attributes:
        topic: ``plant/<pump>/telemetry``.
        at_ns: When it was taken, UTC nanoseconds.
        fields: One value for each of ``FIELDS``, in its unit.
        fault: The kind of fault that was active, or None.
        number: Counts the readings of the whole plant from 0, without a gap.
    """

    topic: str
    at_ns: int
    fields: dict[str, float]
    fault: str | None
    number: int

    def payload(self) -> bytes:
        """The reading as JSON, with ``t`` (UTC ms) and ``n`` (its number), without the fault."""
        return json.dumps(
            {"t": self.at_ns // 1_000_000, "n": self.number, **self.fields}, separators=(",", ":")
        ).encode()


class Plant:
    """Pumps that are read together, all at the same rate.

    Args:
        seed: What everything random follows from, 0 or above.
        pumps: Names, each a level of a topic; distinct.
        rate: Readings a second of each pump, above 0.
        start_ns: When the first readings are taken, UTC nanoseconds.
        quiet_seconds: Mean time of a pump between two faults, above 0; ``math.inf`` for no fault.
        fault_seconds: Mean time that a fault lasts, above 0.

    Raises:
        ValueError: No pump, a name twice, or a rate or time that is not above 0.
    """

    def __init__(
        self,
        *,
        seed: int,
        pumps: Sequence[str] = ("pump-1", "pump-2"),
        rate: float = 1.0,
        start_ns: int = 0,
        quiet_seconds: float = 300.0,
        fault_seconds: float = 60.0,
    ) -> None:
        if not pumps or len(set(pumps)) != len(pumps):
            raise ValueError(f"a plant needs pumps of distinct names, not {list(pumps)}")
        for name, value in (("rate", rate), ("quiet", quiet_seconds), ("fault", fault_seconds)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self.pumps = tuple(pumps)
        self._seed = seed
        self._rate = rate
        self._start_ns = start_ns
        self._quiet_seconds = quiet_seconds
        self._fault_seconds = fault_seconds

    def __iter__(self) -> Iterator[PlantReading]:
        """Same as `readings`."""
        return self.readings()

    def readings(self) -> Iterator[PlantReading]:
        """All readings from the first on, without end, in order of time; each call starts anew."""
        pumps = [_Pump(self._generator(pump), self.faults(pump)) for pump in self.pumps]
        topics = [f"plant/{pump}/telemetry" for pump in self.pumps]
        number = 0
        for first in count(0, _CHUNK_STEPS):
            steps = np.arange(first, first + _CHUNK_STEPS)
            at_ns = self._start_ns + (steps * (1e9 / self._rate)).astype(np.int64)
            taken = [pump.take(steps / self._rate, at_ns) for pump in pumps]
            for offset, instant in enumerate(at_ns.tolist()):
                for topic, (rows, kinds) in zip(topics, taken, strict=True):
                    fields = dict(zip(FIELDS, rows[offset], strict=True))
                    yield PlantReading(topic, instant, fields, kinds[offset], number)
                    number += 1

    def faults(self, pump: str) -> Iterator[Fault]:
        """All faults of a pump, in order; without end, or none where the plant has none.

        Args:
            pump: One of `pumps`.

        Yields:
            Faults that do not overlap.
        """
        if math.isinf(self._quiet_seconds):
            return
        draw = self._generator(f"{pump}/faults")
        start_ns = end_ns = self._start_ns
        while True:
            start_ns = end_ns + int(1e9 * self._quiet_seconds * draw.uniform(0.5, 1.5))
            end_ns = start_ns + int(1e9 * self._fault_seconds * draw.uniform(0.5, 1.5))
            kind = str(draw.choice(FAULTS))
            column, end_of_range = int(draw.integers(len(FIELDS))), int(draw.integers(2))
            if kind == "sensor_stuck":
                stuck_at = float(_RANGE_HIGH[column] * end_of_range)
                yield Fault(pump, kind, start_ns, end_ns, FIELDS[column], stuck_at)
            else:
                yield Fault(pump, kind, start_ns, end_ns, None, None)

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *purpose.encode()])


class _Pump:
    """One pump as it is read, chunk by chunk: its waves, its noise and its next fault."""

    def __init__(self, draw: np.random.Generator, faults: Iterator[Fault]) -> None:
        low, high = np.log(_WAVE_SECONDS)
        self._periods = np.exp(draw.uniform(low, high, (2, _WAVES)))
        self._phases = draw.uniform(0.0, 2 * math.pi, (2, _WAVES))
        self._draw = draw
        self._faults = faults
        self._fault = next(faults, None)

    def take(
        self, seconds: NDArray[np.float64], at_ns: NDArray[np.int64]
    ) -> tuple[list[list[float]], list[str | None]]:
        """Values [steps, fields] and the active fault [steps] of the next steps."""
        angles = seconds[:, None, None] * (2 * math.pi / self._periods) + self._phases
        load, ambient = np.sin(angles).mean(axis=2).T
        own = self._draw.standard_normal((len(seconds), len(FIELDS))) * _OWN_NOISE
        shared = self._draw.standard_normal((len(seconds), len(_SHARED_NOISE))) @ _SHARED_NOISE
        rows = _NOMINAL + np.outer(load, _LOAD_GAIN) + np.outer(ambient, _AMBIENT_GAIN)
        rows += shared + own
        kinds: list[str | None] = [None] * len(seconds)
        while (fault := self._fault) is not None and fault.start_ns <= at_ns[-1]:
            active = slice(*np.searchsorted(at_ns, (fault.start_ns, fault.end_ns)).tolist())
            passed = (at_ns[active] - fault.start_ns) / (fault.end_ns - fault.start_ns)
            _suffer(rows[active], own[active], fault, passed)
            kinds[active] = [fault.kind] * len(passed)
            if fault.end_ns > at_ns[-1]:
                break
            self._fault = next(self._faults, None)
        exact = np.clip(rows, 0.0, _RANGE_HIGH)
        return (np.rint(exact * _STEPS_PER_UNIT) / _STEPS_PER_UNIT).tolist(), kinds


def _suffer(
    rows: NDArray[np.float64], own: NDArray[np.float64], fault: Fault, passed: NDArray[np.float64]
) -> None:
    """Adds a fault, of whose time a share [steps] has passed, to rows [steps, fields] in place."""
    if fault.field is not None and fault.stuck_at is not None:
        rows[:, FIELDS.index(fault.field)] = fault.stuck_at
        return
    severity = np.minimum(passed / _FAULT_GROWS[fault.kind], 1.0)
    rows += np.outer(severity, _FAULT_SHARE[fault.kind] * _NOMINAL)
    if fault.kind == "cavitation":
        rows[:, :2] += severity[:, None] * np.abs(own[:, :2]) * _CAVITATION_NOISE
