"""A section: what every table of a configuration has in common."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BYTES_MAX", "DAY_MS", "Milliseconds", "Section"]

BYTES_MAX: Final = 1 << 60
DAY_MS: Final = 86_400_000

Milliseconds = Annotated[int, Field(ge=1, le=DAY_MS, description="milliseconds, 1 to a day")]


class Section(BaseModel):
    """A table of the configuration: frozen, and no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )
