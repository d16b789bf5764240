"""A plant of pumps: seeded, plausible readings with faults whose truth is known.

What a pump does is a load that wanders slowly (a sum of slow waves, so that it is a pure function of
time) and drives all of its sensors, noise that the sensors share, noise of each sensor's own, and now and
then a fault: cavitation, an inlet valve that closes, a bearing that wears, a sensor that sticks at an
end of its range. Every reading says which fault, if any, was active when it was taken, which is what an
alarm is judged by.

Everything follows from the seed, the name of the pump and the number of the step: the same plant gives
the same readings, and a pump gives the same ones whichever pumps stand beside it. Nothing here knows the
time; the first reading is at ``start_ns`` and the others follow at the rate.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAULTS", "FIELDS", "Fault", "Plant", "PlantReading"]

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
"""The sensors of a pump, in order: g, g, A, bar, °C, °C, V, L/min."""

FAULTS: Final = ("cavitation", "valve_closing", "bearing_wear", "sensor_stuck")
"""The kinds of fault."""

type_Rows = NDArray[np.float64]
