"""What deciding asks of a model; ``nodes.edge.runtime`` has the real ones. Pure."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import MeshError

__all__ = ["Contract", "Model", "ModelFailed", "Outputs"]


@dataclass(frozen=True, slots=True)
class Contract:
    """What a model says of itself.

    Args:
        name: what it is called.
        version: which one of that name.
        digest: SHA-256 of its file.
        fields: F names of what a reading must hold, in the order of the input's columns; empty
            when the model does not say.
        window: W, how many readings it looks at; ``None`` when it takes any number.
        width: F, how many columns its input has; ``None`` when it takes any number.
        labels: L names, one for each column of ``probabilities``.
        values: K names, one for each column of ``values``.
    """

    name: str
    version: str
    digest: bytes
    fields: tuple[str, ...]
    window: int | None
    width: int | None
    labels: tuple[str, ...]
    values: tuple[str, ...]


class Outputs(NamedTuple):
    """What a model said of n windows."""

    probabilities: NDArray[np.float32]
    """[n, L]."""
    values: NDArray[np.float32]
    """[n, K]."""


class ModelFailed(MeshError):
    """A run ended with an error of the runtime; the model stays loaded."""


class Model(Protocol):
    """A model that is ready to run."""

    @property
    def contract(self) -> Contract:
        """What it says of itself."""
        ...

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Runs it on windows [n, W, F]. Synchronous: milliseconds at most are meant.

        Raises:
            ModelFailed: the runtime gave up.
        """
        ...
