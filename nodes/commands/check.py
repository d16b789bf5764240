"""``holdfast config check``: says all that is wrong with a configuration, or what is in force."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nodes import config
from nodes.commands.process import fail
from schemas.errors import ConfigurationInvalid, MeshError

__all__ = ["app"]

app = typer.Typer(help="Looks at configurations.", no_args_is_help=True)


@app.callback()
def _configuration() -> None:
    """Looks at configurations."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="configuration file (TOML)")],
    json: Annotated[bool, typer.Option("--json", help="print the settings as JSON")] = False,
) -> None:
    """Reads a configuration as its command would, models included, and prints what is in force.

    Ends with 0 when it is right, and with 78 when it is not, all of its errors at once.
    """
    try:
        settings = config.load(file, os.environ)
        if settings.headquarters is None:
            config.for_edge(settings)
        problems = []
        for rule in settings.decisions:
            # Only a check of rules needs the inference runtime.
            from nodes.edge.model import load_model  # noqa: PLC0415

            try:
                load_model(rule)
            except MeshError as wrong:
                problems.append(f"{file}: decisions {rule.name}: {wrong}")
        if problems:
            raise ConfigurationInvalid(tuple(problems))
    except MeshError as error:
        fail(error)
    typer.echo(settings.model_dump_json(indent=2) if json else config.describe(settings))
